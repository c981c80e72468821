// SPDX-License-Identifier: Apache-2.0
// Where the codes of a list's tokens are: threads take eight tokens at a time, whose codes of one subspace are one load.
#pragma once

#include <cstdint>

#include "scan.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// Whether each of eight positions is in the range [lead, end), as bits.
__device__ inline unsigned live_positions(std::uint32_t position, std::uint32_t lead, std::uint32_t end) {
  const unsigned before = position < lead ? lead - position : 0, left = position < end ? end - position : 0;
  return (left < 8 ? (1u << left) - 1 : 0xffu) & 0xffu << before;
}

/// The tokens of a list by position. The first token of the range has position `lead`, so that the codes of eight tokens from a multiple of
/// eight on are one aligned word of each plane, if the planes are a multiple of eight bytes apart.
struct token_positions {
  const std::uint8_t* codes;
  std::size_t stride;
  std::uint32_t lead, end;  // the positions of the range are [lead, end)

  __device__ explicit token_positions(const scored_items& items)
      : stride(items.stride), lead(static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(items.codes) % 8)), end(lead + items.n) {
    codes = items.codes - lead;
  }
  __device__ std::uint32_t count() const { return end - lead; }
  /// The code of the first token in the first plane.
  __device__ const std::uint8_t* first() const { return codes + lead; }
  __device__ unsigned live(std::uint32_t position) const { return live_positions(position, lead, end); }
  /// The codes of eight positions in the planes from j on; 0 where some are outside the range. Those have no part in the usual loops.
  template <unsigned Planes>
  __device__ void read(unsigned j, std::uint32_t position, uint2 (&words)[Planes]) const {
    const std::uint8_t* plane = codes + j * stride + position;
    if (live(position) == 0xff && stride % 8 == 0) {
#pragma unroll
      for (unsigned a = 0; a < Planes; ++a) words[a] = __ldcg(reinterpret_cast<const uint2*>(plane + a * stride));
      return;
    }
#pragma unroll
    for (unsigned a = 0; a < Planes; ++a) words[a] = {0, 0};
#pragma unroll 1
    for (unsigned at = 0; at < 8 && live(position) == 0xff; ++at)
#pragma unroll
      for (unsigned a = 0; a < Planes; ++a) {
        const std::uint32_t code = std::uint32_t{__ldcg(plane + a * stride + at)} << at % 4 * 8;
        (at < 4 ? words[a].x : words[a].y) |= code;
      }
  }
  /// Calls take(position, live) for the eight positions at the beginning and at the end of the range of which some are outside it, if they
  /// are in [begin, last).
  template <class Take>
  __device__ void for_ends(std::uint32_t begin, std::uint32_t last, Take take) const {
#pragma unroll 1
    for (unsigned which = 0; which < 2; ++which) {
      const std::uint32_t position = which == 0 ? 0 : end / 8 * 8;
      if (position < begin || position >= last || (which == 1 && position == 0)) continue;
      if (live(position) != 0 && live(position) != 0xff) take(position, live(position));
    }
  }
  static constexpr std::uint32_t no_position = 0xffffffffu;
};

}  // namespace pqkv::detail::block
