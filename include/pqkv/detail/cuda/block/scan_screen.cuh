// SPDX-License-Identifier: Apache-2.0
// Sorts a CTA's tokens by their rounded products: into those above a bracket, those below it, and doubtful ones, whose scores are to be
// computed.
#pragma once

#include "scan_comparison.cuh"
#include "scan_lookups.cuh"
#include "scan_rounded.cuh"
#include "shared.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// The rounded products of a list's tokens, by position.
struct rounded_tokens {
  std::uint32_t* words;  // [packs, stride], at rounded_place() of each position; aligned to 16 bytes
  std::size_t stride;

  __device__ std::uint32_t* pack(unsigned group) const { return words + group * stride; }
};

/// Which scores of rounded products are above or below a bracket whatever was lost by rounding.
struct screen_limits {
  float above, below;

  /// @param key_low, key_high  the bracket: order keys of scores, which are not negative; 0 and 0xffffffff where it is open
  /// @param factors            sum of all normalisers, at most rounded_products::most
  __device__ screen_limits(std::uint32_t key_low, std::uint32_t key_high, float factors) {
    constexpr float rounding = 1 + 0x1p-14f;  // more than two sums of floats can be off: of 256 query heads 2^-15
    const float high = float_from_bits(key_high & 0x7fffffffu), low = float_from_bits(key_low & 0x7fffffffu);
    above = high * rounding;  // a NaN where the bracket is open: no score is above it
    below = (low - factors * rounded_products::least - 0x1p-100f) / (rounded_products::next * rounding);
  }
};

template <unsigned Threads, unsigned Pack>
struct token_screen {
  using pack = query_pack<Pack>;
  static constexpr unsigned at_once = 8, tile = at_once * Threads;
  // The low end of a bracket may be a bin's end below the keys of all scores. It must decode to a NaN then, which no score is below.
  static_assert(list_select<Threads>::wide_shift <= 23);

  rounded_tokens rounded;
  token_positions tokens;
  lookup_table<Pack> table;
  bracket limits;
  screen_limits safe;
  std::uint32_t begin, end;  // positions of the CTA
  group_reduction reduction;
  // Shared addresses.
  std::uint32_t factors;         // [packs] packs of normalisers
  std::uint32_t uppers, lowers;  // two bits of each token, as bracket_comparison's
  std::uint32_t kept, room;      // [room] key and position of tokens inside the bracket; first the positions of doubtful ones
  std::uint32_t doubtful;        // counts tokens, also where there is no room; begins with 0
  std::uint32_t inside;          // counts tokens inside the bracket; begins with 0

  struct result {
    bracket_counts counts;  // of a thread; none inside
    bool fits;              // if not, there were too many doubtful tokens: only bits have been written
  };
  /// Compares the CTA's tokens with the bracket. By all threads. Not inlined, so that it has all registers to itself, and the ranking keeps
  /// its own. Ends without a barrier.
  __device__ __noinline__ static result run(token_screen own) {
    result all{};
    all.counts.above = own.reduction == group_reduction::probability_sum ? own.template sort_out<true>() : own.template sort_out<false>();
    __syncthreads();
    const std::uint32_t count = load_shared_word(own.doubtful);
    all.fits = count <= own.room;
    if (!all.fits) return {{}, false};
#pragma unroll 1
    for (std::uint32_t first = 0; first < count; first += Threads) {
      const bool is_there = first + threadIdx.x < count;
      std::uint32_t key = 0, position = 0;
      if (is_there) {
        position = load_shared_pair(own.kept + (first + threadIdx.x) * static_cast<unsigned>(sizeof(uint2))).y;
        key = own.key_of(own.tokens.codes + position);
      }
      __syncthreads();  // those inside are moved to the front, where all tokens have been read
      if (is_there) all.counts.add(own.settle(key, position));
    }
    return all;
  }

 private:
  /// Sorts by rounded products. @return how many of this thread's tokens are above the bracket
  template <bool Sums>
  __device__ std::uint32_t sort_out() const {
    const token_screen& own = *this;
    std::uint32_t above = 0;
    constexpr unsigned ahead = 4;  // words of four tokens that are under way
    uint4 next[ahead];
    place at(own);
#pragma unroll
    for (unsigned i = 0; i < ahead; ++i) next[i] = at.take(own);
#pragma unroll 1
    for (std::uint32_t base = own.begin; base < own.end; base += tile) {
      const std::uint32_t position = base + at_once * threadIdx.x;
      unsigned upper = 0, not_lower = 0;
#pragma unroll 1
      for (unsigned half = 0; half < 2; ++half) {
        float score[4] = {};
#pragma unroll 1
        for (unsigned group = 0; group < own.table.packs; ++group) {
          const std::uint32_t now[4] = {next[0].x, next[0].y, next[0].z, next[0].w};
#pragma unroll
          for (unsigned i = 0; i + 1 < ahead; ++i) next[i] = next[i + 1];
          next[ahead - 1] = at.take(own);
          const pack factor =
              rounded_products::scaled(load_shared_pack<Pack>(own.factors + group * static_cast<unsigned>(sizeof(pack))));
#pragma unroll
          for (unsigned a = 0; a < 4; ++a) score[a] = rounded_products::score<Sums>(score[a], now[a], factor);
        }
#pragma unroll
        for (unsigned a = 0; a < 4; ++a) {
          upper |= score[a] > own.safe.above ? 1u << (4 * half + a) : 0;
          not_lower |= score[a] < own.safe.below ? 0 : 1u << (4 * half + a);
        }
      }
      const unsigned live = position < own.end ? own.tokens.live(position) : 0;
      upper &= live;
      if (position < (own.end + 31) / 32 * 32) {
        store_shared_byte(own.uppers + (position - own.begin) / 8, upper);
        store_shared_byte(own.lowers + (position - own.begin) / 8, upper);
      }
      above += static_cast<std::uint32_t>(__popc(upper));
      own.keep(not_lower & ~upper & live, position);
    }
    return above;
  }
  /// The order key of a token's score.
  __device__ std::uint32_t key_of(const std::uint8_t* codes) const {
    float score = 0;
#pragma unroll 1
    for (unsigned group = 0; group < table.packs; ++group)
      score = token_loops<Threads, Pack, 0>::with_pack(reduction, score, table.product(codes, tokens.stride, group),
                                                       load_shared_pack<Pack>(factors + group * static_cast<unsigned>(sizeof(pack))));
    return token_loops<Threads, Pack, 0>::key_of(score);
  }
  /// Writes the bits of a doubtful token, and keeps it if it is inside the bracket.
  __device__ bracket_counts settle(std::uint32_t key, std::uint32_t position) const {
    const std::uint32_t word = (position - begin) / 32 * 4, bit = 1u << (position - begin) % 32;
    const bool is_above = key > limits.high, is_high = key == limits.high, is_low = limits.low < limits.high && key == limits.low;
    if (is_above || is_high) set_shared_bits(uppers + word, bit);
    if (is_above || is_low) set_shared_bits(lowers + word, bit);
    if (key > limits.low && key < limits.high)
      store_shared_if(true, kept + add_shared(inside, 1) * static_cast<unsigned>(sizeof(uint2)), {key, position});
    return {is_above ? 1u : 0, is_high ? 1u : 0, 0, is_low ? 1u : 0};
  }
  /// Goes through the words of a thread in the order in which it needs them: packs of four tokens, tokens of eight, eight of a tile.
  struct place {
    std::uint32_t position;
    unsigned half = 0, group = 0;

    __device__ explicit place(const token_screen& own) : position(own.begin + at_once * threadIdx.x) {}
    /// Reads the next ones; zeros at the CTA's end or after it.
    __device__ uint4 take(const token_screen& own) {
      const std::uint32_t* from = own.rounded.pack(group) + rounded_place(position) + half * rounded_half;
      const uint4 words = position < own.end ? __ldcg(reinterpret_cast<const uint4*>(from)) : uint4{};
      if (++group == own.table.packs) group = 0, half ^= 1, position += half == 0 ? tile : 0;
      return words;
    }
  };
  __device__ void keep(unsigned bits, std::uint32_t position) const {
    if (bits == 0) return;
    std::uint32_t place = add_shared(doubtful, static_cast<std::uint32_t>(__popc(bits)));
#pragma unroll 1
    for (; bits != 0; bits &= bits - 1, ++place) {
      const unsigned a = static_cast<unsigned>(__ffs(static_cast<int>(bits))) - 1;
      store_shared_if(place < room, kept + place * static_cast<unsigned>(sizeof(uint2)), {0, position + a});
    }
  }
};

}  // namespace pqkv::detail::block
