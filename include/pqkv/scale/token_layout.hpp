// SPDX-License-Identifier: Apache-2.0
// Which rank holds which tokens of a sequence. Tokens keep their order on every rank, so a range of the sequence is a range of each rank's
// share: sinks, middle and window of a share follow from those of the sequence, without a message between ranks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../cache/token_set.hpp"
#include "../core/error.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// Runs, then blocks in turn: the first ranks * run tokens lie in one run for each rank (a prompt as context-parallel prefill leaves it),
/// all others in blocks dealt round-robin, so that new tokens go to the rank whose turn it is.
struct token_layout {
  std::size_t ranks = 1;
  std::size_t block = 128;  // tokens of a block that is dealt
  std::size_t run = 0;      // tokens of each rank's run; 0: all tokens are dealt

  /// The rank that holds token t.
  PQKV_HD constexpr std::size_t owner(std::size_t t) const { return t < ranks * run ? t / run : (t - ranks * run) / block % ranks; }
  /// How many of the first n tokens a rank holds: also the place in its share of the first token from n on.
  PQKV_HD constexpr std::size_t held(std::size_t rank, std::size_t n) const {
    const std::size_t own = n > rank * run ? (n - rank * run < run ? n - rank * run : run) : 0;
    if (n <= ranks * run) return own;
    const std::size_t dealt = n - ranks * run, rounds = dealt / (ranks * block), rest = dealt % (ranks * block);
    const std::size_t begun = rest > rank * block ? (rest - rank * block < block ? rest - rank * block : block) : 0;
    return own + rounds * block + begun;
  }
  /// The position in the sequence of a rank's token `place`.
  PQKV_HD constexpr std::size_t position(std::size_t rank, std::size_t place) const {
    if (place < run) return rank * run + place;
    const std::size_t dealt = place - run;
    return ranks * run + (dealt / block * ranks + rank) * block + dealt % block;
  }
  bool operator==(const token_layout&) const = default;
};

/// A rank's share of every sequence: what the sequence has at a position, by its place in the share. Passed to kernels by value.
struct token_share {
  token_layout layout;
  std::size_t rank = 0;

  /// Whether the rank holds token t.
  PQKV_HD constexpr bool owns(std::size_t t) const { return layout.owner(t) == rank; }
  /// @{
  PQKV_HD constexpr std::uint32_t local(std::uint32_t position) const { return static_cast<std::uint32_t>(layout.held(rank, position)); }
  PQKV_HD constexpr middle_range local(const middle_range& range) const { return {local(range.begin), local(range.end), range.retrieve}; }
  PQKV_HD constexpr token_span local(const token_span& span) const {
    return {local(span.leading), local(span.window_begin), local(span.window_end)};
  }
  PQKV_HD constexpr leaving_tokens local(const leaving_tokens& tokens) const {
    return {tokens.slot, local(tokens.first), local(tokens.last)};
  }
  /// @}
};

/// The checks of a layout.
constexpr status can_lay_out(const token_layout& layout, const char* function) noexcept {
  return pqkv::detail::checks(function)
      .at_least("layout.ranks", layout.ranks, 1, "ranks")
      .at_most("layout.ranks", layout.ranks, 65535, "ranks")
      .at_least("layout.block", layout.block, 1, "tokens")
      .at_most("layout.block", layout.block, 2147483647, "tokens")
      .at_most("layout.run", layout.run, 2147483647, "tokens");
}

}  // namespace pqkv::scale
