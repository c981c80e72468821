// SPDX-License-Identifier: Apache-2.0
// What one CTA of a list does with the scores of its tokens, eight of a thread at a time: it compares them with a bracket around the
// threshold, or stores them.
#pragma once

#include "bracket.cuh"
#include "reduce.cuh"
#include "shared.cuh"
#include "scan_lookups.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// As sample_place() of block/bracket.cuh, where the sample has `of` keys, at most n: also if n is not many more.
PQKV_HD inline std::uint32_t sample_place(std::uint32_t which, std::uint32_t of, std::uint32_t n) {
  const std::uint32_t stride = n / of;
  return which * stride + which * (n - stride * of) / of + (which * 0x9e3779b1u >> 16) % stride;
}

/// What the CTAs of a list tell each other after they have compared their tokens with the bracket.
struct bracket_counts {
  std::uint32_t above, at_high, inside, at_low;

  __device__ void add(const bracket_counts& other) {
    above += other.above, at_high += other.at_high, inside += other.inside, at_low += other.at_low;
  }
  /// The sums of the counts of the warp's first lanes.
  __device__ bracket_counts up_to(unsigned lanes) const {
    const bool counts = threadIdx.x % 32 < lanes;
    const auto sum = [&](std::uint32_t count) { return __reduce_add_sync(all_lanes, counts ? count : 0); };
    return {sum(above), sum(at_high), sum(inside), sum(at_low)};
  }
  /// Whether the k-th largest token is at the bracket or inside it.
  __device__ bool holds(std::uint32_t k) const { return above < k && k - above <= at_high + inside + at_low; }
};

/// Where the k-th largest token is: at the bracket's high end, inside, or at its low end.
struct bracket_place {
  std::uint32_t rest;  // how many are selected of those at the high end; or of those inside and at the low end
  bool is_high, is_low;
  std::uint32_t of_low;  // how many are selected of those at the low end, if it is there

  /// @param all  of all CTAs; it holds(k)
  __device__ bracket_place(const bracket_counts& all, std::uint32_t k) : rest(k - all.above) {
    is_high = rest <= all.at_high;
    rest -= is_high ? 0 : all.at_high;
    is_low = !is_high && rest > all.inside;
    of_low = is_low ? rest - all.inside : 0;
  }
  __device__ bool is_inside() const { return !is_high && !is_low; }
  /// The threshold, unless it is inside. Of the tokens inside, none or all are selected.
  __device__ threshold limit() const { return {is_high ? 0xffffffffu : 0, is_low ? of_low : rest}; }
  /// How many of some CTAs' tokens are above the threshold and at it, but for those inside if the threshold is there, as token_count().
  __device__ std::uint64_t marked(const bracket_counts& of) const {
    return std::uint64_t{of.above + (is_high ? 0 : of.at_high) + (is_low ? of.inside : 0)} << 32 | (is_high  ? of.at_high
                                                                                                    : is_low ? of.at_low
                                                                                                             : 0);
  }
};

/// Compares a CTA's tokens with the bracket.
template <unsigned Count>
struct bracket_comparison {
  bracket limits;
  std::uint32_t low_end;          // the bracket's low end; if it equals the high one, a key that no token has
  std::uint32_t begin, end;       // positions of the CTA
  std::uint32_t lead, range_end;  // of the range
  // Shared addresses: what loops do through generic ones takes longer.
  std::uint32_t uppers, lowers;  // bits of each token: above the bracket both; at its high end the first; at its low end the second
  std::uint32_t kept, room;      // [room] key and position of tokens inside the bracket
  std::uint32_t count;           // of all tokens inside
  bracket_counts counts{};       // of a thread

  __device__ void operator()(std::uint32_t position, const std::uint32_t (&keys)[Count]) {
    static_assert(Count == 8);
    unsigned upper = 0, lower = 0, insides = 0;
#pragma unroll
    for (unsigned a = 0; a < Count; ++a) {
      const std::uint32_t key = keys[a];
      upper |= key >= limits.high ? 1u << a : 0;
      lower |= key > limits.high || key == low_end ? 1u << a : 0;
      insides |= key > limits.low && key < limits.high ? 1u << a : 0;
    }
    const unsigned live = position < end ? live_positions(position, lead, range_end) : 0;
    upper &= live, lower &= live, insides &= live;
    if (position < (end + 31) / 32 * 32) {
      store_shared_byte(uppers + (position - begin) / 8, upper);
      store_shared_byte(lowers + (position - begin) / 8, lower);
    }
    counts.add({popcount(upper & lower), popcount(upper & ~lower), 0, popcount(lower & ~upper)});
    keep(insides, keys, position);
  }

 private:
  __device__ static std::uint32_t popcount(unsigned bits) { return static_cast<std::uint32_t>(__popc(bits)); }
  /// Keeps a thread's tokens inside the bracket, as far as there is room.
  __device__ void keep(unsigned insides, const std::uint32_t (&keys)[Count], std::uint32_t position) const {
    if (insides == 0) return;
    std::uint32_t place = add_shared(count, popcount(insides));
#pragma unroll
    for (unsigned a = 0; a < Count; ++a) {
      const unsigned is_inside = insides >> a & 1;
      store_shared_if(is_inside != 0 && place < room, kept + place * static_cast<unsigned>(sizeof(uint2)), {keys[a], position + a});
      place += is_inside;
    }
  }
};

/// Stores the keys of a CTA's tokens.
template <unsigned Count>
struct key_storing {
  std::uint32_t end, lead, range_end;  // positions: of the CTA, and of the range
  std::uint32_t* keys;                 // by place in the range

  __device__ void operator()(std::uint32_t position, const std::uint32_t (&found)[Count]) const {
    const unsigned live = position < end ? live_positions(position, lead, range_end) : 0;
#pragma unroll
    for (unsigned a = 0; a < Count; ++a)
      if (live >> a & 1) keys[position + a - lead] = found[a];
  }
};

}  // namespace pqkv::detail::block
