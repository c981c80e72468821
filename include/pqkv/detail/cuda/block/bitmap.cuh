// SPDX-License-Identifier: Apache-2.0
// Makes ascending lists from two bitmaps: one of selected tokens, and one of tokens whose score equals the threshold, of which the lowest
// are selected. Setting bits sorts the tokens for the price of one read of the words.
#pragma once

#include <cstdint>

#include "reduce.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Both counts in one number: selected tokens in the upper half, equal ones in the lower.
__device__ inline std::uint64_t token_count(bool selected) { return selected ? std::uint64_t{1} << 32 : std::uint64_t{1}; }

/// A warp takes consecutive words, and a lane every 32nd of them, so that lanes write close together.
template <unsigned Threads>
class bitmap_emission {
  static constexpr unsigned at_once = 4;  // words of a lane; their counts, up to 1024 over all lanes, fit in 16 bits of one number each

 public:
  /// Takes the CTA's words and returns how many tokens are marked in them. The maps must be complete.
  /// @param equal  null if every equal token is selected; `chosen` then has them
  __device__ std::uint64_t count(const std::uint32_t* chosen, const std::uint32_t* equal, std::uint32_t words) {
    chosen_ = chosen;
    equal_ = equal;
    const std::uint32_t share = (words + Threads - 1) / Threads * 32, before = threadIdx.x / 32 * share;
    first_ = before < words ? before : words;
    last_ = words - first_ < share ? words : first_ + share;
    std::uint64_t own = 0;
    for (std::uint32_t w = first_ + threadIdx.x % 32; w < last_; w += 32)
      own += (static_cast<std::uint64_t>(__popc(chosen[w])) << 32) + static_cast<std::uint64_t>(equal != nullptr ? __popc(equal[w]) : 0);
    std::uint64_t total = 0;
    below_ = __shfl_sync(all_lanes, reduction_->prefix(own, total), 0);
    return total;
  }

  /// @param before    marked tokens of all words before the CTA's
  /// @param of_equal  equal tokens that are selected
  /// @param first     the token of bit 0 of the CTA's first word
  /// @param room      nothing is written at or beyond it
  __device__ void emit(std::uint64_t before, std::uint32_t of_equal, std::int32_t first, std::int32_t* out, std::uint32_t room) const {
    std::uint32_t above = static_cast<std::uint32_t>((before + below_) >> 32), equal = static_cast<std::uint32_t>(before + below_);
    for (std::uint32_t base = first_; base < last_; base += at_once * 32) {
      std::uint32_t chosen[at_once], equals[at_once], any = 0;
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        const std::uint32_t w = base + a * 32 + threadIdx.x % 32;
        chosen[a] = w < last_ ? chosen_[w] : 0;
        any |= equals[a] = w < last_ && equal_ != nullptr ? equal_[w] : 0;
      }
      const places of_chosen(chosen);
      const std::int32_t start = first + static_cast<std::int32_t>((base + threadIdx.x % 32) * 32);
      if (__any_sync(all_lanes, any != 0) == 0) {  // almost everywhere
        const std::uint32_t here = above + (equal < of_equal ? equal : of_equal);
#pragma unroll
        for (unsigned a = 0; a < at_once; ++a) {
          std::uint32_t place = here + of_chosen.before(a);
          for (std::uint32_t bits = chosen[a]; bits != 0; bits &= bits - 1, ++place)
            if (place < room) out[place] = start + static_cast<std::int32_t>(a * 1024) + __ffs(static_cast<int>(bits)) - 1;
        }
      } else {
        const places of_equals(equals);
#pragma unroll 1
        for (unsigned a = 0; a < at_once; ++a) {
          std::uint32_t own_above = above + of_chosen.before(a), own_equal = equal + of_equals.before(a);
          for (std::uint32_t bits = of_word(chosen, a) | of_word(equals, a); bits != 0; bits &= bits - 1) {
            const int bit = __ffs(static_cast<int>(bits)) - 1;
            const bool is_equal = (of_word(chosen, a) >> bit & 1u) == 0;
            const std::uint32_t place = own_above + (own_equal < of_equal ? own_equal : of_equal);
            if ((!is_equal || own_equal < of_equal) && place < room) out[place] = start + static_cast<std::int32_t>(a * 1024) + bit;
            own_equal += is_equal ? 1 : 0;
            own_above += is_equal ? 0 : 1;
          }
        }
        equal += of_equals.all();
      }
      above += of_chosen.all();
    }
  }

  __device__ explicit bitmap_emission(reduction<std::uint64_t, Threads>& scratch) : reduction_(&scratch) {}

 private:
  /// The number of bits before a lane's words, for at_once rows of 32 words.
  class places {
   public:
    __device__ explicit places(const std::uint32_t (&words)[at_once]) {
      std::uint64_t own = 0;
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) own |= static_cast<std::uint64_t>(__popc(words[a])) << (16 * a);
      lower_ = warp_prefix(own);
      total_ = __shfl_sync(all_lanes, lower_ + own, 31);
    }
    __device__ std::uint32_t before(unsigned a) const {
      std::uint32_t rows_before = 0;
      for (unsigned row = 0; row < a; ++row) rows_before += field(total_, row);
      return rows_before + field(lower_, a);
    }
    __device__ std::uint32_t all() const {
      std::uint32_t sum = 0;
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) sum += field(total_, a);
      return sum;
    }

   private:
    __device__ static std::uint32_t field(std::uint64_t of, unsigned a) { return static_cast<std::uint32_t>(of >> (16 * a)) & 0xffffu; }
    std::uint64_t lower_, total_;
  };
  /// words[a], kept in registers.
  __device__ static std::uint32_t of_word(const std::uint32_t (&words)[at_once], unsigned a) {
    std::uint32_t word = 0;
#pragma unroll
    for (unsigned i = 0; i < at_once; ++i) word = i == a ? words[i] : word;
    return word;
  }

  const std::uint32_t *chosen_ = nullptr, *equal_ = nullptr;
  std::uint32_t first_ = 0, last_ = 0;  // words of this warp
  std::uint64_t below_ = 0;             // marked tokens in the words of the warps below
  reduction<std::uint64_t, Threads>* reduction_;
};

/// A bitmap with fewer marked tokens than words. A second bitmap marks the words that are used, so that emission skips the others.
template <unsigned Threads>
class sparse_bitmap {
 public:
  __host__ __device__ static constexpr std::uint32_t touched_words(std::uint32_t words) { return (words + 31) / 32; }

  /// Clears both bitmaps; complete after the caller's next barrier.
  /// @param words    [count up to a multiple of 4], aligned to 16 bytes
  /// @param touched  [touched_words(count)]
  __device__ sparse_bitmap(std::uint32_t* words, std::uint32_t* touched, std::uint32_t count)
      : words_(words), touched_(touched), count_(count) {
    for (std::uint32_t w = 4 * threadIdx.x; w < count; w += 4 * Threads) *reinterpret_cast<uint4*>(words + w) = {0, 0, 0, 0};
    for (std::uint32_t w = threadIdx.x; w < touched_words(count); w += Threads) touched[w] = 0;
  }
  __device__ void mark(std::uint32_t token) {
    if (atomicOr(&words_[token / 32], 1u << token % 32) == 0) atomicOr(&touched_[token / 1024], 1u << token / 32 % 32);
  }
  /// Writes the marked tokens, ascending, to their places from `before` on, and returns how many there are. By all threads, after a
  /// barrier.
  /// @param first  the token of bit 0
  /// @param room   nothing is written at or beyond it
  __device__ std::uint32_t emit(reduction<std::uint32_t, Threads>& scratch, std::uint32_t before, std::int32_t first, std::int32_t* out,
                                std::uint32_t room) const {
    unsigned share = 1;  // words of a thread: a power of two up to 32, so that one word of `touched` has their bits
    while (share < 32 && share * Threads < count_) share *= 2;
    std::uint32_t total = 0;
    for (std::uint32_t base = 0; base < count_; base += share * Threads) {
      const std::uint32_t own = base + threadIdx.x * share;
      std::uint32_t mine = own < count_ ? touched_[own / 32] >> own % 32 : 0, tokens = 0, all = 0;
      if (share < 32) mine &= (1u << share) - 1;
      for (std::uint32_t bits = mine; bits != 0; bits &= bits - 1)
        tokens += static_cast<std::uint32_t>(__popc(words_[own + static_cast<std::uint32_t>(__ffs(static_cast<int>(bits))) - 1]));
      std::uint32_t place = before + total + scratch.prefix(tokens, all);
      for (; mine != 0; mine &= mine - 1) {
        const std::uint32_t w = own + static_cast<std::uint32_t>(__ffs(static_cast<int>(mine))) - 1;
        for (std::uint32_t bits = words_[w]; bits != 0; bits &= bits - 1, ++place)
          if (place < room) out[place] = first + static_cast<std::int32_t>(w * 32) + __ffs(static_cast<int>(bits)) - 1;
      }
      total += all;
    }
    return total;
  }

 private:
  std::uint32_t *words_, *touched_;
  std::uint32_t count_;
};

}  // namespace pqkv::detail::block
