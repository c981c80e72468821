// SPDX-License-Identifier: Apache-2.0
// The steps of one question, and the table at the end.
#include "interview.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "tokenizer.hpp"

namespace minillama {
namespace {

constexpr std::size_t longest_answer = 24;  // values have at most 8 bytes

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

void interview::run(const held_prompt& context, const std::vector<question>& questions, const audience& watching) {
  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<session> held = context.start(who_.settings, question_room, session_kind::forked);
  index_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const step_observer observer = measuring_ ? quality_.observer(*measuring_) : step_observer{};
  for (const question& asked : questions) {
    if (watching.asked) watching.asked(asked);
    answers_.push_back(ask(*held, asked, observer, watching));
    if (watching.answered) watching.answered(asked, answers_.back());
  }
  statistics_ += held->statistics();
}

answer interview::ask(session& at, const question& asked, const step_observer& observer, const audience& watching) {
  at.fork();
  auto next = static_cast<char>(greedy(at.feed(byte_tokens(asked.text()), observer)));
  answer given;
  while (next != '\n' && given.text.size() < longest_answer) {
    given.text += next;
    if (watching.spoken) watching.spoken(next);
    next = static_cast<char>(greedy(at.step(static_cast<std::uint8_t>(next), observer)));
  }
  given.right = next == '\n' && given.text == asked.value;
  return given;
}

std::size_t interview::right() const {
  return static_cast<std::size_t>(std::count_if(answers_.begin(), answers_.end(), [](const answer& given) { return given.right; }));
}

void print_table(const std::vector<interview>& interviews) {
  std::printf("%-16s %9s %9s | %24s | %7s %6s %6s %6s | %8s %6s\n", "", "", "tokens", "KV kB read per token", "", "mass", "mass", "mass",
              "decode", "against");
  std::printf("%-16s %9s %9s | %8s %7s %7s | %7s %6s %6s %6s | %8s %6s\n", "policy", "right", "attended", "rows", "index", "select",
              "recall", "mean", "worst", "retr.", "tokens/s", interviews.empty() ? "" : interviews.front().who().label.c_str());
  for (const interview& one : interviews) {
    const session_statistics& s = one.statistics();
    const quality_summary q = one.quality();
    const double kilobyte = 1000, layers = static_cast<double>(std::max<std::uint64_t>(one.statistics().layers, 1));
    const auto kilobytes = [&](std::uint64_t session_statistics::selection_bytes::*part) {
      return cell(7, 0, s.selection ? std::optional(s.per_step((*s.selection).*part) / kilobyte) : std::nullopt);
    };
    const auto measured = [&](int width, double value) { return cell(width, 3, q.steps ? std::optional(value) : std::nullopt); };
    using selected = session_statistics::selection_bytes;
    std::printf("%-16s %4zu/%4zu %9.0f | %8.0f %s %s | %s %s %s %s | %8.1f %5.1fx\n", one.who().label.c_str(), one.right(),
                one.answers().size(), s.per_step(s.tokens_attended) / layers, s.per_step(s.attended_bytes) / kilobyte,
                kilobytes(&selected::index).c_str(), kilobytes(&selected::selector).c_str(), measured(7, q.recall).c_str(),
                measured(6, q.mass).c_str(), measured(6, q.worst_mass).c_str(), cell(6, 3, q.worst_retrieval_mass).c_str(),
                s.tokens_per_second(), s.tokens_per_second() / interviews.front().statistics().tokens_per_second());
  }
  std::printf(
      "tokens attended: sinks, window and retrieved, of each KV head, in each layer and step. recall: share of the exact top-k found.\n"
      "mass: share of the softmax weight attended to, mean over heads, of the worst head, and of the worst retrieval head (one where\n"
      "the exact top-k reaches 0.9). Recall and mass are means over the steps that yielded answer bytes.\n");
}

}  // namespace minillama
