// SPDX-License-Identifier: Apache-2.0
// The last token picked is fed only when something follows it: the last reply's needs no room and no step.
#include "conversation.hpp"

#include <algorithm>
#include <optional>
#include <sstream>
#include <utility>

#include "command_line.hpp"

namespace minillama {
namespace {

/// Tokens that must fit after turn `index`: the later turns, and one of each reply that another turn follows.
std::size_t reserved_behind(std::span<const turn> turns, std::size_t index, const conversation_settings& settings) {
  if (settings.start == turn_start::fresh) return 0;
  std::size_t reserved = 0;
  for (std::size_t later = index + 1; later < turns.size(); ++later)
    reserved += settings.missing_end.size() + turns[later].tokens.size() + (later + 1 < turns.size() && settings.tokens > 0 ? 1 : 0);
  return reserved;
}

class speaker {
 public:
  speaker(session& at, std::size_t room, const model_config& config, const tokenizer& words, const conversation_settings& settings,
          const step_observer& observe, const listener& listening)
      : at_(at), room_(room), config_(config), words_(words), settings_(settings), observe_(observe), listening_(listening) {}

  void restart(std::span<const float> logits, token_id last) {
    logits_ = logits;
    previous_ = last;
    pending_.reset();
    unended_.clear();
    used_ = 0;
  }

  /// @param seed      of the turn's random source
  /// @param last      no turn follows on this one
  /// @param reserved  room that the reply leaves
  reply take(const turn& asked, std::uint64_t seed, bool last, std::size_t reserved) {
    std::vector<token_id> fed;
    if (pending_) fed.push_back(*pending_);
    pending_.reset();
    fed.insert(fed.end(), unended_.begin(), unended_.end());
    unended_.clear();
    fed.insert(fed.end(), asked.tokens.begin(), asked.tokens.end());
    if (!fed.empty()) feed(fed);

    const std::size_t most = std::min(settings_.tokens, room_ - used_ - reserved + (last ? 1 : 0));
    sampler picks({settings_.sampling.temperature, settings_.sampling.top_p, seed});
    reply given;
    while (given.tokens.size() < most) {
      if (listening_.stopped && listening_.stopped()) {
        given.ended = ending::interrupted;
        break;
      }
      if (pending_) feed({&*pending_, 1});
      if (settings_.keep == kept_logits::all) given.logits.insert(given.logits.end(), logits_.begin(), logits_.end());
      const token_id token = picks.pick(logits_);
      given.tokens.push_back(token);
      pending_ = token;
      if (listening_.picked) listening_.picked(token);
      if (settings_.ends == end_rule::heeded && config_.ends(token)) {
        given.ended = ending::end_token;
        break;
      }
      const std::string added = words_.decode(previous_, token);
      given.text += added;
      if (listening_.spoken) listening_.spoken(added);
    }
    if (given.ended == ending::token_limit && most < settings_.tokens) given.ended = ending::context_limit;
    if (given.ended != ending::end_token && !last) unended_ = settings_.missing_end;
    if (listening_.finished) listening_.finished(given);
    return given;
  }

 private:
  void feed(std::span<const token_id> tokens) {
    logits_ = at_.feed(tokens, observe_);
    previous_ = tokens.back();
    used_ += tokens.size();
  }

  session& at_;
  const std::size_t room_;
  const model_config& config_;
  const tokenizer& words_;
  const conversation_settings& settings_;
  const step_observer& observe_;
  const listener& listening_;

  std::span<const float> logits_;
  token_id previous_ = 0;            // the last token fed
  std::optional<token_id> pending_;  // picked, not yet fed
  std::vector<token_id> unended_;    // what has to follow it before a turn
  std::size_t used_ = 0;             // of the room
};

std::string unescaped(const std::filesystem::path& file, std::size_t line_number, const std::string& line) {
  std::string text;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\') {
      text += line[i];
      continue;
    }
    const char next = ++i < line.size() ? line[i] : '\0';
    if (next != 'n' && next != '\\')
      throw load_error(file, "line " + std::to_string(line_number), "after a backslash expected n or a backslash");
    text += next == 'n' ? '\n' : '\\';
  }
  return text;
}

}  // namespace

const char* name_of(ending ended) {
  switch (ended) {
    case ending::end_token:
      return "end token";
    case ending::token_limit:
      return "token limit";
    case ending::context_limit:
      return "context limit";
    default:
      return "interrupted";
  }
}

std::vector<std::string> read_turns(const std::filesystem::path& file) {
  std::istringstream lines(read_file(file));
  std::vector<std::string> turns;
  std::string line;
  for (std::size_t number = 1; std::getline(lines, line); ++number)
    if (!line.empty()) turns.push_back(unescaped(file, number, line));
  if (turns.empty()) throw load_error(file.string(), "holds no turn");
  return turns;
}

std::size_t conversation_room(const std::string& source, std::size_t prompt_tokens, std::span<const turn> turns, std::size_t context,
                              const conversation_settings& settings) {
  std::size_t all = 0, longest = 0;
  for (const turn& one : turns) {
    all += one.tokens.size();
    longest = std::max(longest, one.tokens.size());
  }
  const bool fresh = settings.start == turn_start::fresh;
  const std::size_t between = turns.empty() ? 0 : turns.size() - 1, ends = between * settings.missing_end.size();
  const std::size_t needed = fresh || turns.empty() ? longest : all + ends + (settings.tokens > 0 ? between : 0);
  const std::size_t wished = fresh ? longest + settings.tokens : all + ends + turns.size() * settings.tokens;
  if (prompt_tokens + needed > context)
    throw load_error(source, "prompt: " + std::to_string(prompt_tokens + needed) + " tokens" + (turns.size() > 1 ? " with the turns" : "") +
                                 " are longer than the context of " + std::to_string(context));
  return std::min(wished, context - prompt_tokens);
}

std::vector<reply> converse(session& at, std::size_t room, const model_config& config, const tokenizer& words,
                            std::span<const float> logits_of_prompt, token_id last_of_prompt, std::span<const turn> turns,
                            const conversation_settings& settings, const step_observer& observe, const listener& listening) {
  speaker model_side(at, room, config, words, settings, observe, listening);
  model_side.restart(logits_of_prompt, last_of_prompt);
  random_source seeds(settings.sampling.seed);
  std::vector<reply> replies;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const bool fresh = settings.start == turn_start::fresh;
    if (fresh) {
      at.fork();
      model_side.restart(logits_of_prompt, last_of_prompt);
    }
    replies.push_back(model_side.take(turns[i], seeds.next(), fresh || i + 1 == turns.size(), reserved_behind(turns, i, settings)));
    if (replies.back().ended == ending::interrupted) break;
  }
  return replies;
}

}  // namespace minillama
