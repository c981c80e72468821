// SPDX-License-Identifier: Apache-2.0
// Records outside, policies inside, as in evaluation.cpp.
#include "benchmark_run.hpp"

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "command_line.hpp"
#include "conversation.hpp"
#include "elapsed.hpp"
#include "report.hpp"

namespace minillama {
namespace {

using nlohmann::json;

std::string name_of(metric wanted) {
  for (const auto& [name, value] : score_names())
    if (value == wanted) return name;
  return {};
}

/// The text of a prompt in the model's form.
std::string spoken(const std::string& text, const std::string& begun, const chat_template* chat) {
  return chat ? chat->user_open + text + chat->user_close + begun : text + begun;
}

}  // namespace

std::vector<benchmark_prompt> prompts_of(const benchmark& set, const std::filesystem::path& source, const model_config& config,
                                         const tokenizer& words, const chat_template* chat, std::size_t most) {
  if (set.form == asked_as::text) chat = nullptr;
  const std::size_t marks = words.encode(spoken("", "", chat), text_place::start).size() + 1;  // halves may join as a token more
  if (set.tokens + marks >= config.max_positions)
    throw usage_error("--answer-tokens", std::to_string(set.tokens) + " leave no prompt in the model's " +
                                             std::to_string(config.max_positions) + " positions");
  const std::size_t held = config.max_positions - set.tokens;
  if (most == 0) most = held - marks;
  std::vector<benchmark_prompt> prompts;
  for (const benchmark_record& record : set.records) {
    const std::string text = set.suite == benchmark_suite::ruler ? record.prompt : shortened(words, record.prompt, most);
    prompts.push_back({words.encode(spoken(text, record.begun, chat), text_place::start), text != record.prompt});
    const std::size_t tokens = prompts.back().tokens.size();
    if (tokens > held)
      throw load_error(source, "line " + std::to_string(record.line) + ": " + (set.suite == benchmark_suite::ruler ? "input" : "context"),
                       std::to_string(tokens) + " tokens and an answer of " + std::to_string(set.tokens) + " are longer than the model's " +
                           std::to_string(config.max_positions) + " positions");
  }
  return prompts;
}

double benchmark_result::mean() const { return std::accumulate(scores.begin(), scores.end(), 0.0) / static_cast<double>(scores.size()); }

std::vector<benchmark_result> run_benchmark(engine& computing, const model_config& config, const tokenizer& words, const benchmark& set,
                                            const std::vector<benchmark_prompt>& prompts, const std::vector<contestant>& contestants) {
  std::size_t longest = 0;
  std::vector<benchmark_result> results;
  for (const contestant& who : contestants) results.push_back({who});
  conversation_settings settings;
  settings.tokens = set.tokens;
  for (const benchmark_prompt& prompt : prompts) longest = std::max(longest, prompt.tokens.size());
  print_window(config, longest + set.tokens);
  const turn nothing;
  for (std::size_t i = 0; i < set.records.size(); ++i) {
    const auto& tokens = prompts[i].tokens;
    const std::string label = "record " + std::to_string(i + 1) + " of " + std::to_string(set.records.size());
    const std::unique_ptr<held_prompt> prefilled = [&] {
      progress_bar bar(label);
      return computing.prefill(tokens, bar.report(), shown_queries(contestants));
    }();
    std::fprintf(stderr, "%s, %zu tokens:", label.c_str(), tokens.size());
    for (benchmark_result& one : results) {
      const auto start = wall_clock::now();
      const bool is_last = &one == &results.back();
      const std::unique_ptr<session> at = is_last ? prefilled->start_last(one.who.settings, set.tokens, session_kind::single)
                                                  : prefilled->start(one.who.settings, set.tokens, session_kind::single);
      one.index_seconds += seconds_since(start);
      const auto replies = converse(*at, set.tokens, config, words, prefilled->logits(), tokens.back(), {&nothing, 1}, settings);
      one.replies.push_back(replies.front().text);
      one.scores.push_back(set.score(set.records[i], one.replies.back()));
      one.statistics += at->statistics();
      std::fprintf(stderr, "  %s %.3f", one.who.label.c_str(), one.scores.back());
    }
    std::fprintf(stderr, "\n");
  }
  return results;
}

void print_table(const std::vector<benchmark_result>& results) {
  std::printf("%-22s %7s %9s | %10s %10s %10s | %10s\n", "", "score", "tokens", "rows, kB", "index, kB", "select, kB", "tokens/s");
  for (const benchmark_result& one : results) {
    const session_statistics& s = one.statistics;
    const double layers = static_cast<double>(std::max<std::uint64_t>(s.layers, 1));
    char selection[64] = "         -          -";  // nobody counts them on a GPU
    if (s.selection)
      std::snprintf(selection, sizeof selection, "%10.1f %10.1f", s.per_step(s.selection->index) / 1000,
                    s.per_step(s.selection->selector) / 1000);
    std::printf("%-22s %7.2f %9.0f | %10.1f %s | %10.1f\n", one.who.label.c_str(), 100 * one.mean(), s.per_step(s.tokens_attended) / layers,
                s.per_step(s.attended_bytes) / 1000, selection, s.tokens_per_second());
  }
}

json json_of(const benchmark& set, const std::filesystem::path& source, const std::vector<benchmark_prompt>& prompts,
             const std::vector<benchmark_result>& results) {
  json policies = json::array(), records = json::array();
  for (const benchmark_result& one : results) {
    const session_statistics& s = one.statistics;
    policies.push_back({{"label", one.who.label},
                        {"rows", name_of(one.who.settings.rows)},
                        {"score", 100 * one.mean()},
                        {"tokens_attended", s.layers ? s.per_step(s.tokens_attended) / static_cast<double>(s.layers) : 0.0},
                        {"bytes_per_token", bytes_per_token_of(s)},
                        {"decode_tokens_per_second", s.tokens_per_second()},
                        {"index_seconds", one.index_seconds}});
  }
  for (std::size_t i = 0; i < set.records.size(); ++i) {
    const benchmark_record& record = set.records[i];
    json entry{
        {"line", record.line}, {"id", record.id}, {"prompt_tokens", prompts[i].tokens.size()}, {"shortened", prompts[i].is_shortened}};
    for (const benchmark_result& one : results)
      entry["replies"][one.who.label] = {{"text", one.replies[i]}, {"score", 100 * one.scores[i]}};
    records.push_back(entry);
  }
  return {{"set",
           {{"file", source.string()},
            {"suite", name_of(set.suite)},
            {"dataset", set.dataset},
            {"metric", name_of(set.by)},
            {"records", set.records.size()},
            {"answer_tokens", set.tokens}}},
          {"policies", policies},
          {"records", records}};
}

}  // namespace minillama
