// SPDX-License-Identifier: Apache-2.0
// The steps of one question, and the table at the end.
#include "interview.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace minillama {
namespace {

constexpr std::size_t most_answer_tokens = 24;  // some say nothing, and would never complete an answer

/// A figure of a table's column, or a dash where it was not measured.
std::string cell(int width, int digits, const std::optional<double>& value) {
  char text[64];
  if (value)
    std::snprintf(text, sizeof text, "%*.*f", width, digits, *value);
  else
    std::snprintf(text, sizeof text, "%*s", width, "-");
  return text;
}

}  // namespace

contestant contestant_at(policy_name name, std::size_t one_in, std::size_t subspaces, unsigned bits) {
  contestant made;
  made.settings.name = name;
  made.settings.budget.ratio = 1.0 / static_cast<double>(one_in);
  made.settings.quantizer.subspaces = subspaces;
  made.settings.quantizer.bits = bits;
  for (const auto& [text, value] : policy_names())
    if (value == name) made.label = text;
  if (name == policy_name::pq) made.label.append(" ").append(std::to_string(subspaces)).append("x").append(std::to_string(bits));
  if (name != policy_name::full) made.label.append(" 1/").append(std::to_string(one_in));
  return made;
}

std::size_t shown_queries(std::span<const contestant> all) {
  std::size_t most = 0;
  for (const contestant& who : all) most = std::max(most, who.settings.shown_queries());
  return most;
}

void interview::run(const held_prompt& context, const examination& exam, const audience& watching) {
  const auto start = std::chrono::steady_clock::now();
  std::size_t room = question_room;
  for (const exam_question& asked : exam.questions) room = std::max(room, asked.tokens.size() + most_answer_tokens);
  const std::unique_ptr<session> held = context.start(who_.settings, room, session_kind::forked);
  index_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const step_observer observer = measuring_ ? quality_.observer(*measuring_) : step_observer{};
  for (const exam_question& asked : exam.questions) {
    if (watching.asked) watching.asked(asked.fact);
    answers_.push_back(ask(*held, asked, exam.form, observer, watching));
    if (watching.answered) watching.answered(asked.fact, answers_.back());
  }
  statistics_ += held->statistics();
}

answer interview::ask(session& at, const exam_question& asked, answer_form form, const step_observer& observer, const audience& watching) {
  at.fork();
  token_id previous = asked.tokens.back(), next = greedy(at.feed(asked.tokens, observer));
  std::string text;
  for (std::size_t picked = 1;; ++picked) {
    const std::string added = words_->decode(previous, next);
    text += added;
    const bool complete = is_complete(form, text) || picked == most_answer_tokens;
    if (watching.spoken && !(complete && added == "\n")) watching.spoken(added);
    if (complete || (config_.ends(next) && form == answer_form::number)) break;
    previous = next;
    next = greedy(at.step(next, observer));
  }
  const bool right = is_right(form, text, asked.fact.value);
  if (text.ends_with('\n')) text.pop_back();
  return {text, right};
}

std::size_t interview::right() const {
  return static_cast<std::size_t>(std::count_if(answers_.begin(), answers_.end(), [](const answer& given) { return given.right; }));
}

void print_table(const std::vector<interview>& interviews) {
  std::printf("%-16s %9s %9s | %24s | %7s %6s %6s %6s | %8s %6s\n", "", "", "tokens", "KV kB read per token", "", "mass", "mass", "mass",
              "decode", "times");
  std::printf("%-16s %9s %9s | %8s %7s %7s | %7s %6s %6s %6s | %8s %6s\n", "policy", "right", "attended", "rows", "index", "select",
              "recall", "mean", "worst", "retr.", "tokens/s", interviews.empty() ? "" : interviews.front().who().label.c_str());
  for (const interview& one : interviews) {
    const session_statistics& s = one.statistics();
    const quality_summary q = one.quality();
    const double kilobyte = 1000, layers = static_cast<double>(std::max<std::uint64_t>(one.statistics().layers, 1));
    const auto kilobytes = [&](std::uint64_t selection_bytes::*part) {
      return cell(7, 0, s.selection ? std::optional(s.per_step((*s.selection).*part) / kilobyte) : std::nullopt);
    };
    const auto measured = [&](int width, double value) { return cell(width, 3, q.steps ? std::optional(value) : std::nullopt); };
    using selected = selection_bytes;
    std::printf("%-16s %4zu/%-4zu %9.0f | %8.0f %s %s | %s %s %s %s | %8.1f %5.1fx\n", one.who().label.c_str(), one.right(),
                one.answers().size(), s.per_step(s.tokens_attended) / layers, s.per_step(s.attended_bytes) / kilobyte,
                kilobytes(&selected::index).c_str(), kilobytes(&selected::selector).c_str(), measured(7, q.recall).c_str(),
                measured(6, q.mass).c_str(), measured(6, q.worst_mass).c_str(), cell(6, 3, q.worst_retrieval_mass).c_str(),
                s.tokens_per_second(), s.tokens_per_second() / interviews.front().statistics().tokens_per_second());
  }
  std::printf(
      "tokens attended: sinks, window and retrieved, of each KV head, in each layer and step. recall: share of the\n"
      "exact top-k found. mass: share of the softmax weight attended to, mean over heads, of the worst head, and of\n"
      "the worst retrieval head (one where the exact top-k reaches 0.9). Recall and mass are means over the steps that\n"
      "yielded answer bytes.\n");
}

}  // namespace minillama
