// SPDX-License-Identifier: Apache-2.0
// The lists of retrieve(): where they are written, and where their ranges and tables are.
#pragma once

#include <cstdint>

#include "../../core/view.hpp"
#include "../../search/retrieve.hpp"
#include "block/scan_scorer.cuh"
#include "block/shared.cuh"

namespace pqkv::inline PQKV_MODE::detail {

struct retrieved_lists {
  view<std::int32_t, 2, space::device> indices;
  view<std::uint32_t, 1, space::device> counts;

  __device__ std::uint32_t room() const { return static_cast<std::uint32_t>(indices.extent(1)); }
  __device__ std::int32_t* list(unsigned which) const { return indices.data + which * indices.stride(0); }
  /// How many tokens of a range are selected; at most the length of a list.
  __device__ std::uint32_t selected(const middle_range& range) const { return range.selected() < room() ? range.selected() : room(); }
  /// A CTA writes the count, and -1 after the list's end.
  template <unsigned Threads>
  __device__ void finish(unsigned which, std::uint32_t k) const {
    if (threadIdx.x == 0) counts(which) = k;
    for (std::uint32_t i = k + threadIdx.x; i < room(); i += Threads) list(which)[i] = -1;
  }
};

/// Where nothing is to be launched before a call's kernel.
struct no_work {
  void operator()() const {}
};

/// Lists whose ranges and tables are in device memory.
struct given_lists {
  using entries = block::table_entries;
  static constexpr bool exchanges = false, plans = false;

  /// The list of one CTA.
  struct one {
    const block::scoring& call;
    unsigned list;

    __device__ one(const given_lists&, const block::scoring& of, unsigned which, unsigned, unsigned) : call(of), list(which) {}
    __device__ std::size_t head() const { return call.head_of(list); }
    /// Returns where the table entries of the list will be. Other kinds of lists start copying here what the entries are computed from.
    __device__ entries begin(block::shared_memory&, std::uint32_t* = nullptr) const { return {}; }
    /// After this call the entries and the range can be used.
    __device__ void finish(const entries&) const {}
    __device__ middle_range range(const entries&) const { return call.range(list); }
  };
  std::size_t shared_bytes(const block::scoring&) const { return 0; }
  std::size_t centroid_bytes(const block::scoring&) const { return 0; }
};

}  // namespace pqkv::detail
