// SPDX-License-Identifier: Apache-2.0
// Contexts outside, policies inside: each context is prefilled once.
#include "evaluation.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "command_line.hpp"
#include "report.hpp"

namespace minillama {
namespace {

using nlohmann::json;

/// full comes first: losses are counted against it.
std::vector<contestant> candidates_at(const std::set<std::size_t>& ratios, const std::vector<code_sizes>& codes) {
  using enum policy_name;
  if (ratios.empty())
    return {contestant_at(full, 1),       contestant_at(pq, 5),      contestant_at(pq, 10),     contestant_at(pq, 40),
            contestant_at(pq, 10, 2, 6),  contestant_at(oracle, 10), contestant_at(oracle, 40), contestant_at(streaming, 10),
            contestant_at(streaming, 40), contestant_at(snapkv, 10), contestant_at(h2o, 10),    contestant_at(sparq, 10),
            contestant_at(sparq, 40),     contestant_at(quest, 10),  contestant_at(quest, 40),  contestant_at(infllm, 10),
            contestant_at(infllm, 40)};
  std::vector<contestant> all{contestant_at(full, 1)};
  for (const policy_name name : {pq, oracle, streaming, snapkv, h2o, sparq, quest, infllm})
    for (const std::size_t one_in : ratios) {
      if (name != pq || codes.empty()) {
        all.push_back(contestant_at(name, one_in));
        continue;
      }
      for (const code_sizes& sizes : codes) {
        contestant one = contestant_at(name, one_in);
        one.label = "pq " + sizes.text() + " 1/" + std::to_string(one_in);
        sizes.apply(one.settings.quantizer);
        all.push_back(one);
      }
    }
  return all;
}

/// Unless policies are named, those that the library is usually compared with.
bool takes_part(policy_name name, const std::set<policy_name>& named) {
  using enum policy_name;
  return named.empty() ? name == pq || name == oracle || name == streaming : named.count(name) != 0;
}

}  // namespace

std::vector<contestant> contestants_of(const evaluation_settings& settings) {
  using enum policy_name;
  std::vector<contestant> all;
  for (contestant who : candidates_at(settings.ratios, settings.codes)) {
    if (who.settings.name != full && !takes_part(who.settings.name, settings.policies)) continue;
    who.settings.budget.window = settings.window;
    if (who.settings.name != full) who.settings.rows = settings.rows;
    if (settings.sinks) who.settings.budget.sinks = *settings.sinks;
    who.settings.raise_floor();
    auto& quantizer = who.settings.quantizer;
    quantizer.path = settings.path;
    if (settings.axes)
      quantizer.axes = *settings.axes;
    else if (settings.device == device_name::cuda)
      who.settings.show_no_queries();
    if (settings.over) quantizer.over = settings.over;
    quantizer.train.seed = settings.seed;
    const bool joint_codes = quantizer.subspaces * quantizer.bits <= pqkv::max_joint_bits;
    if (!joint_codes) quantizer.path = pqkv::search_path::scan;
    if (who.settings.name == pq && joint_codes && settings.check == path_check::both) {
      for (const char* path : {"joint", "scan"}) {
        contestant one = who;
        one.settings.quantizer.path = path_names().at(path);
        one.label.append(" ").append(path);
        all.push_back(one);
      }
    } else {
      all.push_back(who);
    }
  }
  return all;
}

namespace {

json summary_of(const interview& one, const interview& full) {
  const session_statistics& s = one.statistics();
  const quality_summary q = one.quality();
  const auto& settings = one.who().settings;
  std::size_t lost = 0;
  for (std::size_t i = 0; i < one.answers().size(); ++i) lost += full.answers()[i].right && !one.answers()[i].right ? 1 : 0;
  json out{{"label", one.who().label},
           {"right", one.right()},
           {"lost_of_full", lost},
           {"tokens_attended", s.per_step(s.tokens_attended) / static_cast<double>(s.layers)},
           {"bytes_per_token", bytes_per_token_of(s)},
           {"decode_tokens_per_second", s.tokens_per_second()},
           {"decode_shares", shares_of(s.parts, s.seconds)},
           {"index_seconds", one.index_seconds()},
           {"measured_steps", q.steps},
           {"recall", nullptr},
           {"attention_mass", nullptr},
           {"output_error", nullptr},
           {"retrieval_heads", nullptr}};
  if (q.steps) {
    out["recall"] = {{"mean", q.recall}, {"worst_head", q.worst_recall}};
    out["attention_mass"] = {{"mean", q.mass}, {"worst_head", q.worst_mass}, {"oracle_mean", q.oracle_mass}};
    out["attention_mass"]["worst_retrieval_head"] = q.worst_retrieval_mass ? json(*q.worst_retrieval_mass) : json(nullptr);
    out["retrieval_heads"] = q.retrieval_heads;
    out["output_error"] = {{"mean", q.output_error}, {"worst_head", q.worst_output_error}};
    out["output_error"]["worst_retrieval_head"] = q.worst_retrieval_output_error ? json(*q.worst_retrieval_output_error) : json(nullptr);
  }
  out["rows"] = name_of(settings.rows);
  if (settings.name != policy_name::full) out["ratio"] = settings.budget.ratio;
  if (settings.name == policy_name::pq) {
    out["subspaces"] = settings.quantizer.subspaces;
    out["bits"] = settings.quantizer.bits;
    const auto& residual = settings.quantizer.residual;
    if (residual.used()) out["residual"] = {{"subspaces", residual.subspaces}, {"bits", residual.bits}, {"shortlist", residual.shortlist}};
    for (const auto& [name, path] : path_names())
      if (path == settings.quantizer.path) out["path"] = name;
  }
  return out;
}

/// Answers that neighbouring interviews of the joint path and the scan give differently.
std::size_t path_differences(const std::vector<interview>& interviews) {
  std::size_t differences = 0;
  for (std::size_t i = 1; i < interviews.size(); ++i) {
    const auto path = [&](std::size_t of) { return interviews[of].who().settings.quantizer.path; };
    if (path(i - 1) != pqkv::search_path::joint || path(i) != pqkv::search_path::scan) continue;
    for (std::size_t q = 0; q < interviews[i].answers().size(); ++q)
      differences += interviews[i - 1].answers()[q].text != interviews[i].answers()[q].text ? 1 : 0;
  }
  return differences;
}

}  // namespace

evaluation evaluate(engine& computing, const model_config& config, const examiner& examining, pool_runner& runner, const std::string& text,
                    const evaluation_settings& settings) {
  if (settings.length + question_room > config.max_positions)
    throw std::invalid_argument("--length: the model's " + std::to_string(config.max_positions) +
                                " positions leave no room for a question after it");
  print_window(config, settings.length + question_room);
  evaluation result;
  const bool on_host = settings.device == device_name::host;
  const auto measuring = on_host && settings.measure == measured_by::heads ? std::optional<host_policy>({runner, {}}) : std::nullopt;
  const std::vector<contestant> contestants = contestants_of(settings);
  for (const contestant& who : contestants) result.interviews.emplace_back(who, config, examining.words(), measuring);
  json questions = json::array();
  double prefill_seconds = 0;
  std::optional<part_seconds> prefill_parts{part_seconds{}};
  std::size_t prefilled_tokens = 0;
  random_source random(settings.seed);
  for (std::size_t i = 0; i < settings.contexts; ++i) {
    const std::size_t count = (i + 1) * settings.questions / settings.contexts - i * settings.questions / settings.contexts;
    const examination exam = examining.prepare(i, text, settings.length, count, random);
    const std::string label =
        "context " + std::to_string(i + 1) + " of " + std::to_string(settings.contexts) + " (" + name_of(exam.kind) + ")";
    const auto start = std::chrono::steady_clock::now();
    const std::unique_ptr<held_prompt> prefilled = [&] {
      progress_bar bar(label);
      return computing.prefill(exam.context, bar.report(), shown_queries(contestants));
    }();
    prefill_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (const auto parts = prefilled->parts(); parts && prefill_parts)
      *prefill_parts += *parts;
    else
      prefill_parts.reset();
    prefilled_tokens += exam.context.size();
    std::fprintf(stderr, "%s, right of %zu:", label.c_str(), count);
    for (interview& one : result.interviews) {
      const std::size_t before = one.right();
      one.run(*prefilled, exam);
      std::fprintf(stderr, "  %s %zu", one.who().label.c_str(), one.right() - before);
    }
    std::fprintf(stderr, "\n");
    for (const exam_question& asked : exam.questions) {
      json entry{{"context", i}, {"kind", name_of(exam.kind)}, {"key", asked.fact.key}, {"value", asked.fact.value}};
      for (const interview& one : result.interviews) entry["answers"][one.who().label] = one.answers()[questions.size()].text;
      questions.push_back(entry);
    }
  }
  result.path_differences = path_differences(result.interviews);

  json policies = json::array();
  for (const interview& one : result.interviews) policies.push_back(summary_of(one, result.interviews.front()));
  result.json = {{"settings",
                  {{"device", computing.description()},
                   {"seed", settings.seed},
                   {"contexts", settings.contexts},
                   {"questions", settings.questions},
                   {"length", settings.length},
                   {"sinks", settings.sinks ? json(*settings.sinks) : json(nullptr)},
                   {"window", settings.window ? json(*settings.window) : json(nullptr)},
                   {"text_bytes", text.size()},
                   {"threads", runner.threads()}}},
                 {"prefill",
                  {{"tokens", prefilled_tokens},
                   {"seconds", prefill_seconds},
                   {"tokens_per_second", static_cast<double>(prefilled_tokens) / prefill_seconds},
                   {"shares", shares_of(prefill_parts, prefill_seconds)}}},
                 {"policies", policies},
                 {"questions", questions}};
  if (settings.check == path_check::both) result.json["path_differences"] = result.path_differences;
  return result;
}

}  // namespace minillama
