// SPDX-License-Identifier: Apache-2.0
// What can be refused is refused before the first product: the device, files, settings, lengths, in this order.
#include "generation.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "calibration.hpp"
#include "command_line.hpp"
#include "cuda/settings.hpp"
#include "output_file.hpp"
#include "report.hpp"

namespace minillama {
namespace {

using nlohmann::json;
using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) { return std::chrono::duration<double>(clock::now() - start).count(); }

/// Text of a run, and what messages call it.
struct input {
  std::string source, text;
};

input prompt_of(const options& o) {
  input in;
  if (!o.prompt_file && o.prompt)
    in = {"-p", *o.prompt};
  else if (!o.prompt_file || *o.prompt_file == "-")
    in = {"standard input", read_standard_input()};
  else
    in = {*o.prompt_file, read_file(*o.prompt_file)};
  if (in.text.empty()) throw load_error(in.source, "prompt: is empty");
  return in;
}

/// What every run has: the model, its threads, and the document that it writes at its end.
class run {
 public:
  explicit run(const options& o)
      : file_(o.json_file ? std::optional<output_file>(*o.json_file) : std::nullopt), start_(clock::now()), runner_(o.threads) {
    document_["pqkv"] =
        std::to_string(pqkv::version_major) + "." + std::to_string(pqkv::version_minor) + "." + std::to_string(pqkv::version_patch);
    document_["settings"] = settings_of(o);
  }

  json& document() { return document_; }
  pool_runner& runner() { return runner_; }
  const run_times& times() const { return times_; }

  /// The model on its device, of which the document tells.
  std::unique_ptr<engine> engine_for(device_name device, const model& llama) {
    std::unique_ptr<engine> made = make_engine(device, llama, runner_);
    print_device(device, made->description());
    document_["device"] = made->description();
    return made;
  }
  std::unique_ptr<held_prompt> prefill_timed(engine& computing, std::span<const token_id> tokens) {
    start_ = clock::now();
    progress_bar bar("prefill");
    std::unique_ptr<held_prompt> prompt = computing.prefill(tokens, bar.report());
    times_.prefill = seconds_since(start_);
    times_.prefill_parts = prompt->parts();
    return prompt;
  }
  void token_picked() {
    if (!times_.first_token) times_.first_token = seconds_since(start_);
  }

  void finish() const {
    if (file_) file_->write(text_of(document_));
  }

 private:
  std::optional<output_file> file_;
  clock::time_point start_;
  pool_runner runner_;
  run_times times_;
  json document_;
};

/// A session, timed, with its observer.
struct measured_session {
  measured_session(const held_prompt& prompt, const model_config& config, pool_runner& runner, const policy_settings& settings,
                   std::size_t room, session_kind kind, bool quality)
      : start(clock::now()), at(prompt.start(settings, room, kind)), index_seconds(seconds_since(start)), meter(config) {
    if (quality) observe = meter.observer({runner, {}});
  }
  session_record record() const { return record_of(*at, index_seconds, observe ? &meter : nullptr); }

  clock::time_point start;
  std::unique_ptr<session> at;
  double index_seconds;
  quality_meter meter;
  step_observer observe;
};

/// The settings, with what the preset has to find out about this machine.
policy_settings prepared(const options& o, const model& llama, run& work, std::size_t prompt_tokens) {
  policy_settings settings = o.policy;
  if (settings.preset != preset_name::paper || settings.name != policy_name::pq) return settings;
  const pqkv::overlap_model machine = calibrate(llama, work.runner(), settings);
  settings.quantizer.overlap = machine;
  const std::size_t rows = prompt_tokens - std::min(prompt_tokens, settings.budget.sinks);
  print_overlap(machine, machine.iterations(rows, prompt_tokens, settings.quantizer.overlap_most));
  work.document()["overlap"] = overlap_of(machine, machine.iterations(rows, prompt_tokens, settings.quantizer.overlap_most));
  return settings;
}

/// Where caches are planned by whoever makes them, the document has what they took.
footprint planned_on(device_name device, const model_config& config, const policy_settings& settings, const run_shape& shape) {
  return device == device_name::cuda ? cuda::plan_footprint(config, settings, shape) : plan_footprint(config, settings, shape);
}

policy_settings dense(policy_settings settings) {
  settings.name = policy_name::full;
  return settings;
}

}  // namespace

void generate(const options& o) {
  run work(o);
  const input prompt = prompt_of(o);
  checkpoint from = open_checkpoint(o.model);
  const model_config config = from.config;
  const std::unique_ptr<tokenizer> words = make_tokenizer(config, o.tokenizer);
  const std::vector<token_id> tokens = words->encode(prompt.text, text_place::start);
  std::vector<turn> turns;
  for (const std::string& text : o.turns) turns.push_back({text, words->encode(text, text_place::behind)});
  if (turns.empty()) turns.emplace_back();  // the reply to the prompt itself

  const conversation_settings settings{o.tokens, o.start, o.sampling, o.compare_full ? kept_logits::all : kept_logits::none};
  const std::size_t room = conversation_room(prompt.source, tokens.size(), turns, o.context_for(config), settings);
  const auto kind = o.start == turn_start::fresh ? session_kind::forked : session_kind::single;
  const run_shape shape{tokens.size(), tokens.size() + room, o.start == turn_start::fresh ? 2u : 1u, o.threads};
  footprint planned = planned_on(o.device, config, o.policy, shape);

  const model llama(from);
  from.weights.reset();
  const policy_settings policy_asked = prepared(o, llama, work, tokens.size());
  const std::unique_ptr<engine> computing = work.engine_for(o.device, llama);
  const std::unique_ptr<held_prompt> prefilled = work.prefill_timed(*computing, tokens);
  const auto hold = [&](const policy_settings& policy, bool quality, const listener& listening) {
    measured_session held(*prefilled, config, work.runner(), policy, room, kind, quality);
    auto replies = converse(*held.at, room, config, *words, prefilled->logits(), tokens.back(), turns, settings, held.observe, listening);
    return std::pair(std::move(replies), held.record());
  };
  const listener aloud{.picked = [&](token_id) { work.token_picked(); },
                       .spoken =
                           [](const std::string& text) {
                             std::fwrite(text.data(), 1, text.size(), stdout);
                             std::fflush(stdout);
                           },
                       .finished = [](const reply&) { std::fputc('\n', stdout); }};
  const auto [replies, record] = hold(policy_asked, o.quality, aloud);
  finish_standard_output();
  print_statistics(record, work.times(), tokens.size());
  if (record.quality) print_quality(*record.quality);

  json& document = work.document();
  document["model"] = model_of(o, config);
  planned.caches = record.memory;
  document["memory"] = memory_of(planned, shape);
  document["prompt"] = {{"source", prompt.source}, {"tokens", tokens.size()}};
  document["times"] = times_of(record, work.times(), tokens.size());
  document["statistics"] = record_of(record);
  for (std::size_t i = 0; i < turns.size(); ++i)
    document["turns"].push_back({{"text", turns[i].text}, {"tokens", turns[i].tokens}, {"reply", reply_of(replies[i])}});
  if (o.compare_full) {
    const auto [full_replies, full_record] = hold(dense(o.policy), false, {});
    const std::vector<reply_comparison> compared = compare(replies, full_replies, config.vocabulary, o.start);
    print_comparison(compared, full_record);
    document["full"] = record_of(full_record);
    for (std::size_t i = 0; i < turns.size(); ++i) document["turns"][i]["comparison"] = comparison_of(compared[i], full_replies[i]);
  }
  work.finish();
}

void score_text(const options& o) {
  run work(o);
  const std::string& source = *o.perplexity_file;
  const std::string text = read_file(source);
  checkpoint from = open_checkpoint(o.model);
  const model_config config = from.config;
  const std::vector<token_id> all = make_tokenizer(config, o.tokenizer)->encode(text, text_place::start);
  const std::size_t context = o.context_for(config), scored = o.perplexity_tokens;
  if (all.size() <= scored)
    throw load_error(source, "has " + std::to_string(all.size()) + " tokens; expected at least one before the " + std::to_string(scored) +
                                 " of --perplexity-tokens");
  if (all.size() > context)
    throw load_error(source, std::to_string(all.size()) + " tokens are longer than the context of " + std::to_string(context));
  const std::span<const token_id> head = std::span(all).first(all.size() - scored), tail = std::span(all).last(scored);
  const run_shape shape{head.size(), all.size(), 1, o.threads};
  footprint planned = planned_on(o.device, config, o.policy, shape);

  const model llama(from);
  from.weights.reset();
  const policy_settings policy_asked = prepared(o, llama, work, head.size());
  const std::unique_ptr<engine> computing = work.engine_for(o.device, llama);
  const std::unique_ptr<held_prompt> prefilled = work.prefill_timed(*computing, head);
  const auto scored_under = [&](const policy_settings& policy, bool quality) {
    measured_session held(*prefilled, config, work.runner(), policy, scored, session_kind::single, quality);
    const text_score found = score(*held.at, prefilled->logits(), tail, held.observe);
    return std::pair(found, held.record());
  };
  const auto [found, record] = scored_under(policy_asked, o.quality);
  print_statistics(record, work.times(), head.size());
  if (record.quality) print_quality(*record.quality);
  std::fprintf(stderr, "perplexity            %10.6f of the last %zu tokens\n", found.perplexity(), found.tokens);

  json& document = work.document();
  document["model"] = model_of(o, config);
  planned.caches = record.memory;
  document["memory"] = memory_of(planned, shape);
  document["prompt"] = {{"source", source}, {"tokens", head.size()}};
  document["times"] = times_of(record, work.times(), head.size());
  document["statistics"] = record_of(record);
  document["perplexity"]["policy"] = score_of(found);
  if (o.compare_full) {
    const auto [full, full_record] = scored_under(dense(o.policy), false);
    std::fprintf(stderr, "perplexity of full    %10.6f\n", full.perplexity());
    document["perplexity"]["full"] = score_of(full);
    document["full"] = record_of(full_record);
  }
  work.finish();
}

void print_plan(const options& o) {
  run work(o);
  const model_config config = read_shape(o.model);
  const std::size_t context = o.context_for(config);
  const run_shape shape{context, context, o.start == turn_start::fresh ? 2u : 1u, o.threads};
  const footprint planned = plan_footprint(config, o.policy, shape);
  print_footprint(planned, shape);
  work.document()["model"] = model_of(o, config);
  work.document()["memory"] = memory_of(planned, shape);
  work.finish();
}

}  // namespace minillama
