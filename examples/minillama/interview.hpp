// SPDX-License-Identifier: Apache-2.0
// Asks questions about prefilled contexts under one policy and keeps the score. Every question starts from a fork of the prefilled
// state, and the question as well as the answer goes through the decode path: the policy decides what both of them see.
#pragma once
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine.hpp"
#include "examination.hpp"
#include "quality.hpp"

namespace minillama {

/// One policy of a comparison.
struct contestant {
  std::string label;
  policy_settings settings;
};

/// A contestant that attends to one in `one_in` tokens: "full", "oracle 1/10", "pq 2x6 1/20".
contestant contestant_at(policy_name name, std::size_t one_in, std::size_t subspaces = 4, unsigned bits = 8);

/// How many of a prompt's last queries one of them wants: a prompt is computed once for all.
std::size_t shown_queries(std::span<const contestant> all);

struct answer {
  std::string text;  // without the line feed that ends it
  bool right = false;
};

/// Who watches an interview; any of the functions may be empty.
struct audience {
  std::function<void(const question&)> asked;
  std::function<void(const std::string&)> spoken;  // what each token adds to the answer
  std::function<void(const question&, const answer&)> answered;
};

/// Room that a session needs after the context for a question and its answer. More is taken for a question of more tokens.
inline constexpr std::size_t question_room = 128;

class interview {
 public:
  /// @param measuring  what recall and mass are computed on, of sessions of the host; none: they are not measured
  /// @param words      outlives the interview
  interview(contestant who, const model_config& config, const tokenizer& words, const std::optional<host_policy>& measuring)
      : who_(std::move(who)), words_(&words), config_(config), quality_(config), measuring_(measuring) {}

  /// Asks all questions about one context, in a session of its own.
  void run(const held_prompt& context, const examination& exam, const audience& watching = {});

  const contestant& who() const { return who_; }
  const std::vector<answer>& answers() const { return answers_; }
  std::size_t right() const;
  /// Steps of all sessions; the time of measuring is left out.
  const session_statistics& statistics() const { return statistics_; }
  /// Of the steps that yielded answer bytes; of none where it is not measured.
  quality_summary quality() const { return quality_.summary(); }
  double index_seconds() const { return index_seconds_; }

 private:
  answer ask(session& session, const exam_question& asked, answer_form form, const step_observer& observer, const audience& watching);

  contestant who_;
  const tokenizer* words_;
  model_config config_;
  quality_meter quality_;
  std::optional<host_policy> measuring_;
  std::vector<answer> answers_;
  session_statistics statistics_;
  double index_seconds_ = 0;
};

/// Prints a line for each interview: what it answered, read and found. The first is what the others' speed is compared with.
void print_table(const std::vector<interview>& interviews);

}  // namespace minillama
