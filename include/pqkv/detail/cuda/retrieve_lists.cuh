// SPDX-License-Identifier: Apache-2.0
// The output lists of retrieve().
#pragma once

#include <cstdint>

#include "../../core/view.hpp"
#include "../../search/retrieve.hpp"

namespace pqkv::inline PQKV_MODE::detail {

struct retrieved_lists {
  view<std::int32_t, 2, space::device> indices;
  view<std::uint32_t, 1, space::device> counts;

  __device__ std::uint32_t room() const { return static_cast<std::uint32_t>(indices.extent(1)); }
  __device__ std::int32_t* list(unsigned which) const { return indices.data + which * indices.stride(0); }
  /// How many tokens of a range are selected; at most the length of a list.
  __device__ std::uint32_t selected(const middle_range& range) const { return range.selected() < room() ? range.selected() : room(); }
  /// A CTA writes the count, and -1 behind the list.
  template <unsigned Threads>
  __device__ void finish(unsigned which, std::uint32_t k) const {
    if (threadIdx.x == 0) counts(which) = k;
    for (std::uint32_t i = k + threadIdx.x; i < room(); i += Threads) list(which)[i] = -1;
  }
};

}  // namespace pqkv::detail
