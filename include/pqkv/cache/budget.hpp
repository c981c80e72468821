// SPDX-License-Identifier: Apache-2.0
// How many tokens take part in attention, per KV head: sinks at the start, the window at the end, and k retrieved from between.
// A rule follows the sequence as it grows; a budget frozen at the prompt's length would starve long answers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "../config.hpp"
#include "../core/error.hpp"
#include "../core/float_environment.hpp"

namespace pqkv::inline PQKV_MODE {

/// The budget at one length.
struct token_budget {
  std::size_t sinks = 0;     // s
  std::size_t window = 1;    // w
  std::size_t retrieve = 0;  // k
};

/// The length from which a sequence's budget is computed.
enum class budget_growth : std::uint8_t {
  with_sequence,    // at its present length
  frozen_at_prompt  // at the length of its prompt, as the paper's code does; without a prompt at 0
};

namespace detail {
/// floor(ratio * n), with the product rounded to the nearest double. Rounded down, 0.3 * 10 would be less than 3.
PQKV_HD constexpr std::size_t share_of(double ratio, std::size_t n) {
#if !defined(__CUDA_ARCH__)
  if (!std::is_constant_evaluated()) {
    std::size_t share = 0;
    in_float_environment([&] { share = static_cast<std::size_t>(ratio * static_cast<double>(n)); });
    return share;
  }
#endif
  return static_cast<std::size_t>(ratio * static_cast<double>(n));
}
}  // namespace detail

/// A budget_rule as plain numbers, as kernels take it.
struct flat_budget_rule {
  static constexpr std::size_t by_share = static_cast<std::size_t>(-1);

  double ratio, window_share;
  std::size_t min_tokens, tokens, sinks;
  std::size_t window, retrieve;  // outright, or by_share
  bool frozen;                   // budget_growth::frozen_at_prompt

  /// The budget at a length of n tokens.
  PQKV_HD constexpr token_budget at(std::size_t n) const {
    const std::size_t share = detail::share_of(ratio, n);
    const std::size_t total = tokens != 0 ? tokens : share > min_tokens ? share : min_tokens;
    const std::size_t rest = total > sinks ? total - sinks : 0;
    const std::size_t w = window != by_share ? window : default_window(rest);
    return {sinks, w, retrieve != by_share ? retrieve : rest > w ? rest - w : 0};
  }

 private:
  PQKV_HD constexpr std::size_t default_window(std::size_t rest) const {
    const std::size_t wished = detail::share_of(window_share, rest);
    const std::size_t at_least = wished > 16 ? wished : 16, most = window_share > 0.5 ? rest : rest / 2, at_most = most > 1 ? most : 1;
    return at_least < at_most ? at_least : at_most;
  }
};

/// budget = tokens if given, else max(min_tokens, floor(ratio * n)). rest = budget - s. The window takes w = window_share * rest, but at
/// least 16 and at most half of the rest (and at least 1); k = rest - w. A share above a half may take all of the rest: 1 is streaming
/// attention. Each of w and k can also be given outright.
///
/// The paper gives the window half (window_share = 0.5). A tenth leaves more of the budget to retrieval; what that is worth on a model is
/// measured by `minillama-ask --questions 100 --policy pq`, with and without --window.
struct budget_rule {
  double ratio = 0.1;           // of the n tokens cached
  std::size_t min_tokens = 64;  // floor of a budget by ratio
  std::size_t tokens = 0;       // outright, sinks included; 0: by ratio
  std::size_t sinks = 4;        // s: a real model needs no more (docs/quality.md), and the rest goes to retrieval
  double window_share = 0.1;    // of the budget without sinks
  std::optional<std::size_t> window{};
  std::optional<std::size_t> retrieve{};
  budget_growth growth = budget_growth::with_sequence;

  /// The budget at a length of n tokens.
  constexpr token_budget at(std::size_t n) const { return flat().at(n); }
  /// The rule without optionals.
  constexpr flat_budget_rule flat() const {
    return {ratio,
            window_share,
            min_tokens,
            tokens,
            sinks,
            window.value_or(flat_budget_rule::by_share),
            retrieve.value_or(flat_budget_rule::by_share),
            growth == budget_growth::frozen_at_prompt};
  }
};

/// A window of 0 and a total below s + 1 are errors. The total is not used when both window and retrieve are given.
constexpr status can_budget(const budget_rule& rule, const char* function = "budget_rule") noexcept {
  const bool outright = rule.window && rule.retrieve;
  return detail::checks(function)
      .that(rule.ratio >= 0 && rule.ratio <= 1, status::code::value, "budget.ratio", relation::stated, "between 0 and 1", 1, rule.ratio)
      .that(rule.window_share >= 0 && rule.window_share <= 1, status::code::value, "budget.window_share", relation::stated,
            "between 0 and 1", 1, rule.window_share)
      .at_least("budget.window", rule.window ? static_cast<double>(*rule.window) : 1, 1, "w")
      .at_least(rule.tokens != 0 ? "budget.tokens" : "budget.min_tokens",
                outright ? static_cast<double>(rule.sinks) + 1 : static_cast<double>(rule.tokens != 0 ? rule.tokens : rule.min_tokens),
                static_cast<double>(rule.sinks) + 1, "sinks + 1");
}

}  // namespace pqkv
