// SPDX-License-Identifier: Apache-2.0
// Ascending lists out of bitmaps: one of tokens that are selected, one of tokens whose score equals the threshold, of which the
// lowest are. Marking bits puts tokens in order at no more cost than one read of the words.
#pragma once

#include <cstdint>

#include "reduce.cuh"

namespace pqkv::detail::block {

/// Counts of both kinds in one number: selected tokens in the upper half, equal ones in the lower.
__device__ inline std::uint64_t token_count(bool selected) { return selected ? std::uint64_t{1} << 32 : std::uint64_t{1}; }

template <unsigned Threads>
class bitmap_emission {
 public:
  /// Takes the CTA's words; returns how many tokens are marked in them. The maps must be complete.
  __device__ std::uint64_t count(const std::uint32_t* chosen, const std::uint32_t* equal, std::uint32_t words) {
    chosen_ = chosen;
    equal_ = equal;
    const std::uint32_t share = (words + Threads - 1) / Threads;
    first_ = threadIdx.x * share < words ? threadIdx.x * share : words;
    last_ = words - first_ < share ? words : first_ + share;
    std::uint64_t own = 0;
    for (std::uint32_t w = first_; w < last_; ++w)
      own += (static_cast<std::uint64_t>(__popc(chosen[w])) << 32) + static_cast<std::uint64_t>(__popc(equal[w]));
    std::uint64_t total = 0;
    below_ = reduction_->prefix(own, total);
    return total;
  }

  /// @param before    marked tokens of all words before the CTA's
  /// @param of_equal  equal tokens that are selected
  /// @param first     the token of bit 0 of the CTA's first word
  /// @param room      nothing is written at or beyond it
  __device__ void emit(std::uint64_t before, std::uint32_t of_equal, std::int32_t first, std::int32_t* out, std::uint32_t room) const {
    std::uint32_t above = static_cast<std::uint32_t>((before + below_) >> 32), equal = static_cast<std::uint32_t>(before + below_);
    for (std::uint32_t w = first_; w < last_; ++w) {
      const std::uint32_t chosen = chosen_[w];
      for (std::uint32_t bits = chosen | equal_[w]; bits != 0; bits &= bits - 1) {
        const int bit = __ffs(static_cast<int>(bits)) - 1;
        const bool is_equal = (chosen >> bit & 1u) == 0;
        const std::uint32_t place = above + (equal < of_equal ? equal : of_equal);
        if ((!is_equal || equal < of_equal) && place < room) out[place] = first + static_cast<std::int32_t>(w * 32) + bit;
        equal += is_equal ? 1 : 0;
        above += is_equal ? 0 : 1;
      }
    }
  }

  __device__ explicit bitmap_emission(reduction<std::uint64_t, Threads>& scratch) : reduction_(&scratch) {}

 private:
  const std::uint32_t *chosen_ = nullptr, *equal_ = nullptr;
  std::uint32_t first_ = 0, last_ = 0;  // words of this thread
  std::uint64_t below_ = 0;             // marked tokens in the words of the threads below
  reduction<std::uint64_t, Threads>* reduction_;
};

}  // namespace pqkv::detail::block
