// SPDX-License-Identifier: Apache-2.0
// What can be refused is refused before the first product: the device, files, settings, lengths, in this order.
#include "generation.hpp"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <sstream>
#include <tuple>

#include "calibration.hpp"
#include "chat.hpp"
#include "command_line.hpp"
#include "cuda/settings.hpp"
#include "elapsed.hpp"
#include "layer_cache.hpp"
#include "output_file.hpp"
#include "process_memory.hpp"
#include "report.hpp"
#include "window.hpp"

namespace minillama {
namespace {

using nlohmann::json;

/// What a conversation starts from, and what messages call its source.
struct input {
  std::string source;
  std::vector<token_id> prompt;
  std::vector<turn> turns;              // at least one
  std::vector<token_id> missing_end{};  // of a reply, in a chat
};

/// Numbers of a file, each a token of the model.
std::vector<token_id> read_ids(const std::string& file, std::size_t vocabulary) {
  std::istringstream words(read_file(file));
  std::vector<token_id> ids;
  for (std::string word; words >> word;) {
    const auto digits = std::all_of(word.begin(), word.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
    if (!digits || word.size() > 9 || std::stoul(word) >= vocabulary)
      throw load_error(file, "token " + std::to_string(ids.size()),
                       "expected a number below the " + std::to_string(vocabulary) + " of the vocabulary, got " + word.substr(0, 40));
    ids.push_back(static_cast<token_id>(std::stoul(word)));
  }
  return ids;
}

/// The prompt's text; in a chat it opens what the user says, and the first turn goes on with it. With -p '' the model begins by itself,
/// from its begin token; an empty file is refused, as it is seldom meant.
input read_input(const options& o, const model_config& config, const tokenizer& words) {
  const chat_template* chat = o.chat ? &chat_template_named("--chat", *o.chat) : nullptr;
  input in;
  std::string text;
  if (o.ids_file)
    in.source = *o.ids_file;
  else if (!o.prompt_file && o.prompt)
    in.source = "-p", text = *o.prompt;
  else if (!o.prompt_file || *o.prompt_file == "-")
    in.source = "standard input", text = read_standard_input();
  else
    in.source = *o.prompt_file, text = read_file(*o.prompt_file);
  const bool begins_itself = !o.ids_file && !o.prompt_file && o.prompt && o.prompt->empty();
  if (!o.ids_file && text.empty() && !begins_itself) throw load_error(in.source, "prompt: is empty");

  const bool open = chat && !o.turns.empty();  // the first turn is a question after the prompt
  if (chat) text = chat->user_open + text + (open ? "" : chat->user_close);
  in.prompt = o.ids_file ? read_ids(*o.ids_file, config.vocabulary) : words.encode(text, text_place::start);
  if (in.prompt.empty() && begins_itself && words.begin_token()) in.prompt.push_back(*words.begin_token());
  if (in.prompt.empty())
    throw load_error(in.source, begins_itself ? "prompt: is empty, and the tokenizer has no begin token" : "prompt: is empty");
  for (const std::string& said : o.turns) {
    std::string whole = said;
    if (chat) {
      const bool follows_reply = !in.turns.empty() && o.start == turn_start::continued;
      const std::string behind_end = std::string(chat->reply_close).substr(std::string_view(chat->end_token).size());
      whole = (follows_reply ? behind_end + chat->user_open : "") + said + chat->user_close;
    }
    in.turns.push_back({said, words.encode(whole, text_place::behind)});
  }
  if (in.turns.empty()) in.turns.emplace_back();  // the reply to the prompt itself
  if (chat) in.missing_end = words.encode(chat->end_token, text_place::behind);
  return in;
}

/// What every run has: the model, its threads, and the document that it writes at its end.
class run {
 public:
  explicit run(const options& o) : start_(wall_clock::now()), runner_(o.threads) {
    if (o.json_file) file_.emplace(*o.json_file);
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
  std::unique_ptr<held_prompt> prefill_timed(engine& computing, std::span<const token_id> tokens, std::size_t kept_queries) {
    start_ = wall_clock::now();
    progress_bar bar("prefill");
    std::unique_ptr<held_prompt> prompt = computing.prefill(tokens, bar.report(), kept_queries);
    times_.prefill = seconds_since(start_);
    times_.prefill_parts = prompt->parts();
    return prompt;
  }
  started_session start_timed(engine& computing, std::span<const token_id> tokens, const policy_settings& settings, std::size_t room,
                              session_kind kind) {
    start_ = wall_clock::now();
    progress_bar bar("prefill");
    started_session made = computing.start(tokens, settings, room, kind, bar.report());
    times_.prefill = seconds_since(start_) - made.waited_seconds;
    times_.index_wait = made.waited_seconds;
    times_.prefill_parts = made.parts;
    return made;
  }
  void waited(double seconds) { times_.index_wait = seconds; }
  void token_picked() { times_.tokens.push_back(seconds_since(start_)); }

  void finish() const {
    if (file_) file_->write(text_of(document_));
  }
  /// Ends an interrupted run: a report of half of it is not written.
  [[noreturn]] void give_up() const {
    throw interrupted(file_ ? "interrupted; " + file_->path().string() + ": nothing was written" : "interrupted");
  }

 private:
  std::optional<output_file> file_;
  wall_clock::time_point start_;
  pool_runner runner_;
  run_times times_;
  json document_;
};

/// Where sessions of one prompt start. One alone is started by the engine, which then need not hold the whole prompt's rows.
class starting_point {
 public:
  enum class turn { first_of_two, last };

  starting_point(run& work, engine& computing, const model_config& config, std::span<const token_id> tokens,
                 const policy_settings& settings, std::size_t room, session_kind kind, std::size_t sessions)
      : work_(work), room_(room), kind_(kind) {
    if (sessions == 1)
      only_ = work.start_timed(computing, tokens, settings, room, kind);
    else
      prompt_ = work.prefill_timed(computing, tokens, settings_of_layers(settings, config, tokens.size() + room).shown_queries());
  }
  std::span<const float> logits() const { return prompt_ ? prompt_->logits() : std::span<const float>(only_.logits); }
  /// A session, and the seconds that its caches and indexes took.
  std::pair<std::unique_ptr<session>, double> start(const policy_settings& settings, turn which) {
    if (!prompt_) return {std::move(only_.at), only_.index_seconds};
    const auto before = wall_clock::now();
    auto made = which == turn::last ? prompt_->start_last(settings, room_, kind_) : prompt_->start(settings, room_, kind_);
    const double seconds = seconds_since(before);
    if (which == turn::first_of_two) work_.waited(seconds);
    return {std::move(made), seconds};
  }

 private:
  run& work_;
  std::size_t room_;
  session_kind kind_;
  std::unique_ptr<held_prompt> prompt_;
  started_session only_;
};

/// A session, timed, with its observer.
struct measured_session {
  measured_session(starting_point& from, starting_point::turn which, const model_config& config, pool_runner& runner,
                   const policy_settings& settings, bool quality)
      : meter(config) {
    std::tie(at, index_seconds) = from.start(settings, which);
    if (quality) observe = meter.observer({runner, {}});
  }
  session_record record() const { return record_of(*at, index_seconds, observe ? &meter : nullptr); }

  std::unique_ptr<session> at;
  double index_seconds = 0;
  quality_meter meter;
  step_observer observe;
};

/// The settings, with what the preset has to find out about this machine.
policy_settings prepared(const options& o, const model& llama, run& work, std::size_t prompt_tokens) {
  policy_settings settings = o.policy;
  if (settings.preset != preset_name::paper || settings.name != policy_name::pq) return settings;
  const pqkv::overlap_model machine = o.calibration ? kept_calibration(*o.calibration, llama, work.runner(), settings)
                                                    : calibrate(llama, work.runner(), settings);
  settings.quantizer.overlap = machine;
  const std::size_t rows = prompt_tokens - std::min(prompt_tokens, settings.budget.sinks);
  print_overlap(machine, machine.iterations(rows, prompt_tokens, settings.quantizer.overlap_most));
  work.document()["overlap"] = overlap_of(machine, machine.iterations(rows, prompt_tokens, settings.quantizer.overlap_most));
  return settings;
}

footprint plan_on_host(const model_config& config, const policy_settings& settings, const run_shape& shape,
                       const weight_footprint& weights) {
  footprint planned = plan_footprint(config, settings, shape, weights);
  return_free_memory();
  planned.program = resident_bytes();
  return planned;
}

/// On a GPU it is the GPU's memory. Where caches are planned by whoever makes them, the document has what they took.
footprint planned_on(device_name device, const checkpoint& from, const policy_settings& settings, const run_shape& shape) {
  return device == device_name::cuda ? cuda::plan_footprint(from.config, settings, shape)
                                     : plan_on_host(from.config, settings, shape, plan_weights(from));
}

}  // namespace

void generate(const options& o) {
  run work(o);
  checkpoint from = open_checkpoint(o.model);
  const model_config config = from.config;
  const std::unique_ptr<tokenizer> words = make_tokenizer(config, o.model, o.tokenizer);
  const input asked = read_input(o, config, *words);
  const std::vector<token_id>& tokens = asked.prompt;
  const std::vector<turn>& turns = asked.turns;

  const std::size_t context = o.context_for(config);
  const conversation_settings settings{.missing_end = asked.missing_end,
                                       .tokens = o.tokens,
                                       .start = o.start,
                                       .sampling = o.sampling,
                                       .keep = o.compare_full ? kept_logits::all : kept_logits::none,
                                       .ends = o.ends};
  const std::size_t room = conversation_room(asked.source, tokens.size(), turns, context, settings);
  const auto kind = o.start == turn_start::fresh ? session_kind::forked : session_kind::single;
  std::size_t longest_turn = 1;  // with the token before it, and the end of a reply
  for (const turn& one : turns) longest_turn = std::max(longest_turn, one.tokens.size() + 1 + asked.missing_end.size());
  const run_shape shape{.prompt = tokens.size(),
                        .capacity = tokens.size() + room,
                        .slots = o.start == turn_start::fresh ? 2u : 1u,
                        .threads = o.threads,
                        .sessions = o.compare_full ? 2u : 1u,
                        .at_once = longest_turn};
  footprint planned = planned_on(o.device, from, o.policy, shape);

  const model llama(from);
  from.weights.reset();
  const policy_settings policy_asked = prepared(o, llama, work, tokens.size());
  const std::unique_ptr<engine> computing = work.engine_for(o.device, llama);
  starting_point prefilled(work, *computing, config, tokens, policy_asked, room, kind, shape.sessions);
  const auto hold = [&](const policy_settings& policy, starting_point::turn which, bool quality, const listener& listening) {
    measured_session held(prefilled, which, config, work.runner(), policy, quality);
    auto replies = converse(*held.at, room, config, *words, prefilled.logits(), tokens.back(), turns, settings, held.observe, listening);
    return std::pair(std::move(replies), held.record());
  };
  const interrupt_watch watch;
  const listener aloud{.picked = [&](token_id) { work.token_picked(); },
                       .spoken =
                           [](const std::string& text) {
                             std::fwrite(text.data(), 1, text.size(), stdout);
                             finish_standard_output();
                           },
                       .finished = [](const reply&) { std::fputc('\n', stdout); },
                       .stopped = interrupt_watch::is_interrupted};
  const auto [replies, record] =
      hold(policy_asked, o.compare_full ? starting_point::turn::first_of_two : starting_point::turn::last, o.quality, aloud);
  finish_standard_output();
  print_statistics(record, work.times(), tokens.size());
  if (record.quality) print_quality(*record.quality);
  print_window(config, shape.capacity);
  if (interrupt_watch::is_interrupted()) work.give_up();

  json& document = work.document();
  document["model"] = model_of(o, config);
  planned.caches = record.memory;
  document["memory"] = memory_of(planned, shape);
  document["prompt"] = {{"source", asked.source}, {"tokens", tokens.size()}};
  document["times"] = times_of(record, work.times(), tokens.size());
  document["statistics"] = record_of(record);
  for (std::size_t i = 0; i < turns.size(); ++i)
    document["turns"].push_back({{"text", turns[i].text}, {"tokens", turns[i].tokens}, {"reply", reply_of(replies[i])}});
  if (o.compare_full) {
    const auto [full_replies, full_record] = hold(dense(o.policy), starting_point::turn::last, false, {});
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
  const std::vector<token_id> all = make_tokenizer(config, o.model, o.tokenizer)->encode(text, text_place::start);
  const std::size_t context = o.context_for(config), scored = o.perplexity_tokens;
  if (all.size() <= scored)
    throw load_error(source, "has " + std::to_string(all.size()) + " tokens; expected at least one before the " + std::to_string(scored) +
                                 " of --perplexity-tokens");
  if (all.size() > context)
    throw load_error(source, std::to_string(all.size()) + " tokens are longer than the context of " + std::to_string(context));
  const std::size_t prompt = o.perplexity_prompt.value_or(all.size() - scored);
  if (prompt > all.size() - scored)
    throw load_error(source, "has " + std::to_string(all.size() - scored) + " tokens before the scored ones; expected at least the " +
                                 std::to_string(prompt) + " of --perplexity-prompt");
  const std::span<const token_id> head = std::span(all).first(prompt), tail = std::span(all).last(scored);
  const std::span<const token_id> between = std::span(all).subspan(prompt, all.size() - scored - prompt);
  const run_shape shape{.prompt = head.size(), .capacity = all.size(), .threads = o.threads, .sessions = o.compare_full ? 2u : 1u};
  footprint planned = planned_on(o.device, from, o.policy, shape);

  const model llama(from);
  from.weights.reset();
  const policy_settings policy_asked = prepared(o, llama, work, head.size());
  const std::unique_ptr<engine> computing = work.engine_for(o.device, llama);
  starting_point prefilled(work, *computing, config, head, policy_asked, between.size() + scored, session_kind::single, shape.sessions);
  const auto scored_under = [&](const policy_settings& policy, starting_point::turn which, bool quality, kept_distributions keep,
                                std::span<const float> dense) {
    measured_session held(prefilled, which, config, work.runner(), policy, quality);
    std::span<const float> logits = prefilled.logits();
    for (std::size_t fed = 0; fed < between.size(); fed += o.perplexity_turn)
      logits = held.at->feed(between.subspan(fed, std::min(o.perplexity_turn, between.size() - fed)));
    text_score found = score(*held.at, logits, tail, held.observe, keep, dense);
    return std::pair(std::move(found), held.record());
  };
  std::optional<std::pair<text_score, session_record>> full;
  if (o.compare_full) full = scored_under(dense(o.policy), starting_point::turn::first_of_two, false, kept_distributions::all, {});
  const auto [found, record] = scored_under(policy_asked, starting_point::turn::last, o.quality, kept_distributions::none,
                                            full ? std::span<const float>(full->first.log_probabilities) : std::span<const float>());
  print_statistics(record, work.times(), head.size());
  if (record.quality) print_quality(*record.quality);
  print_window(config, shape.capacity);
  std::fprintf(stderr, "perplexity            %10.6f of the last %zu tokens\n", found.perplexity(), found.tokens);

  json& document = work.document();
  document["model"] = model_of(o, config);
  planned.caches = record.memory;
  document["memory"] = memory_of(planned, shape);
  document["prompt"] = {{"source", source}, {"tokens", head.size()}};
  document["times"] = times_of(record, work.times(), head.size());
  document["statistics"] = record_of(record);
  document["perplexity"]["policy"] = score_of(found);
  if (full) {
    std::fprintf(stderr, "perplexity of full    %10.6f\n", full->first.perplexity());
    std::fprintf(stderr, "divergence from full  %10.6f nats a token\n", found.divergence.value_or(0));
    document["perplexity"]["full"] = score_of(full->first);
    document["full"] = record_of(full->second);
  }
  work.finish();
}

void print_plan(const options& o) {
  run work(o);
  checkpoint from;
  const bool known = has_weights(o.model);
  if (known)
    from = open_checkpoint(o.model);
  else
    from.config = load_config(std::filesystem::path(o.model) / "config.json");
  const model_config& config = from.config;
  const std::size_t context = o.context_for(config);
  const run_shape shape{.prompt = context,
                        .capacity = context,
                        .slots = o.start == turn_start::fresh ? 2u : 1u,
                        .threads = o.threads,
                        .sessions = o.compare_full ? 2u : 1u,
                        .at_once = o.turns.empty() ? 1 : step_tokens};
  const footprint planned = plan_on_host(config, o.policy, shape, known ? plan_weights(from) : plan_float_weights(config));
  if (!known) std::fputs("there are no weights beside config.json: they are counted as floats\n", stderr);
  print_footprint(planned, shape);
  print_window(config, shape.capacity);
  work.document()["model"] = model_of(o, config);
  work.document()["memory"] = memory_of(planned, shape);
  work.finish();
}

}  // namespace minillama
