// SPDX-License-Identifier: Apache-2.0
// Tokens grouped by joint code (the inverted multi-index). With m * b small a token's score depends only on its cell, one of c^m, so a
// decode step scores cells instead of tokens and its cost hardly grows with n. A head's counts include every token at once. Its id lists
// may be older: tokens that are counted but in no list yet form the tail. retrieve() reads the tail token by token, and merge_tails() moves
// it into the lists.
// Source: Babenko and Lempitsky, "The inverted multi-index", 2012, turned round: we score all cells and emit whole lists.
#pragma once

#include "../quantize/codes.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct count_cells {};
struct merge_tails {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t heads = 0, tokens = 0, cells = 0;  // tokens: codes.extent(2)
  };
};
}  // namespace op

inline constexpr std::size_t max_joint_bits = 16;  // most bits m * b of an index

/// Whether a joint-code index exists for the shape: c^m <= 2^16 cells.
constexpr bool has_cell_index(const pq_shape& shape) { return shape.joint_bits() <= max_joint_bits; }

/// @tparam Const  true for read-only
template <bool Const, class Space = space::host>
struct basic_cell_index_view {
  template <class T>
  using element = std::conditional_t<Const, const T, T>;

  view<element<std::uint32_t>, 2, Space> counts;   // [h, cells] tokens of each cell
  view<element<std::uint32_t>, 2, Space> offsets;  // [h, cells + 1] where a cell's list begins in ids
  view<element<std::int32_t>, 2, Space> ids;       // [h, capacity] token positions, grouped by cell, ascending in a cell
  view<element<std::uint32_t>, 1, Space> first;    // [h] first token that is counted
  view<element<std::uint32_t>, 1, Space> merged;   // [h] tokens of [first, merged) are in the lists; ids of later tokens there are void
  view<element<std::uint32_t>, 1, Space> last;     // [h] tokens [merged, last) are the tail: counted, but in no list yet
  view<const std::uint8_t, 2, Space> cell_codes;   // [m, cells] code j of each cell; subspace 0 is the most significant digit

  PQKV_HD constexpr std::size_t cells() const { return counts.extent(1); }
  PQKV_HD constexpr bool empty() const { return counts.data == nullptr; }
  /// The part of heads [from, from + count).
  PQKV_HD constexpr basic_cell_index_view heads(std::size_t from, std::size_t count) const {
    return {counts.slice(0, from, count),
            offsets.slice(0, from, count),
            ids.slice(0, from, count),
            first.slice(0, from, count),
            merged.slice(0, from, count),
            last.slice(0, from, count),
            cell_codes};
  }
  template <class To>
  requires space::usable_from<Space, To> PQKV_HD constexpr operator basic_cell_index_view<true, To>() const {
    return {counts, offsets, ids, first, merged, last, cell_codes};
  }
};

/// An index to be searched.
template <class Space = space::host>
using cell_index_view = basic_cell_index_view<true, Space>;
/// An index to be filled.
template <class Space = space::host>
using mutable_cell_index_view = basic_cell_index_view<false, Space>;

/// Owner of the index of h heads and up to `capacity` tokens in host memory. One thread may write at a time, or any number read. Its views
/// end with it.
class cell_index {
 public:
  cell_index() = default;
  /// @throws value_error when the shape is out of bounds or has more than 2^16 cells
  cell_index(const pq_shape& shape, std::size_t capacity) : shape_(shape), capacity_(capacity) {
    require_ok(can_quantize(shape, "cell_index"));
    require_ok(detail::checks("cell_index").at_most("shape.joint_bits", shape.joint_bits(), max_joint_bits, "m * b"));
    const std::size_t h = shape.kv_heads, cells = shape.cells();
    counts_ = buffer<std::uint32_t>(h * cells);
    offsets_ = buffer<std::uint32_t>(h * (cells + 1));
    ids_ = buffer<std::int32_t>(h * capacity);
    ranges_ = buffer<std::uint32_t>(3 * h);
    cell_codes_ = buffer<std::uint8_t>(shape.subspaces * cells);
    write_cell_codes(shape, cell_codes_.data());
  }
  /// The codes of every cell, [m, cells]: what a view's cell_codes must hold.
  static constexpr void write_cell_codes(const pq_shape& shape, std::uint8_t* cell_codes) {
    const std::size_t cells = shape.cells();
    for (std::size_t cell = 0; cell < cells; ++cell)
      for (std::size_t j = 0; j < shape.subspaces; ++j)
        cell_codes[j * cells + cell] =
            static_cast<std::uint8_t>((cell >> (shape.bits * (shape.subspaces - 1 - j))) & (shape.centroids() - 1));
  }
  /// Takes an index from the caller's memory of any space, which must be zeros, or counts the bytes. The last part is cell_codes; the
  /// caller fills it by write_cell_codes().
  template <class Space = space::host>
  static constexpr mutable_cell_index_view<Space> place(arena& memory, const pq_shape& shape, std::size_t capacity) {
    const std::size_t h = shape.kv_heads, cells = shape.cells();
    mutable_cell_index_view<Space> all{make_view<Space>(memory.take<std::uint32_t>(h * cells), h, cells),
                                       make_view<Space>(memory.take<std::uint32_t>(h * (cells + 1)), h, cells + 1),
                                       make_view<Space>(memory.take<std::int32_t>(h * capacity), h, capacity),
                                       make_view<Space>(memory.take<std::uint32_t>(h), h),
                                       make_view<Space>(memory.take<std::uint32_t>(h), h),
                                       make_view<Space>(memory.take<std::uint32_t>(h), h),
                                       {}};
    all.cell_codes = as_const(make_view<Space>(memory.take<std::uint8_t>(shape.subspaces * cells), shape.subspaces, cells));
    return all;
  }
  static constexpr std::size_t required_bytes(const pq_shape& shape, std::size_t capacity) {
    const std::size_t h = shape.kv_heads, cells = shape.cells();
    return (h * (2 * cells + 1) + 3 * h) * sizeof(std::uint32_t) + h * capacity * sizeof(std::int32_t) + shape.subspaces * cells;
  }
  std::size_t size_bytes() const {
    return counts_.size_bytes() + offsets_.size_bytes() + ids_.size_bytes() + ranges_.size_bytes() + cell_codes_.size_bytes();
  }
  mutable_cell_index_view<> mutable_view() {
    const std::size_t h = shape_.kv_heads, cells = counts_.data() == nullptr ? 0 : shape_.cells();
    return {make_view(counts_.data(), h, cells),
            make_view(offsets_.data(), h, cells + 1),
            make_view(ids_.data(), h, capacity_),
            make_view(ranges_.data(), h),
            make_view(ranges_.data() + h, h),
            make_view(ranges_.data() + 2 * h, h),
            as_const(make_view(cell_codes_.data(), shape_.subspaces, cells))};
  }
  cell_index_view<> view() const { return const_cast<cell_index*>(this)->mutable_view(); }

 private:
  pq_shape shape_{};
  std::size_t capacity_{};
  buffer<std::uint32_t> counts_, offsets_, ranges_;
  buffer<std::int32_t> ids_;
  buffer<std::uint8_t> cell_codes_;
};

/// Whether an index belongs to h heads and m subspaces. Every function that takes an index checks this first.
template <class Index>
constexpr status can_use_cell_index(const Index& index, std::size_t h, std::size_t m, const char* function) noexcept {
  return detail::checks(function)
      .extent("index.counts.extent(0)", index.counts.extent(0), h, "h, from codes")
      .extent("index.offsets.extent(0)", index.offsets.extent(0), h, "h, from codes")
      .extent("index.offsets.extent(1)", index.offsets.extent(1), index.cells() + 1, "cells + 1, from index.counts")
      .extent("index.ids.extent(0)", index.ids.extent(0), h, "h, from codes")
      .extent("index.first.extent(0)", index.first.extent(0), h, "h, from codes")
      .extent("index.merged.extent(0)", index.merged.extent(0), h, "h, from codes")
      .extent("index.last.extent(0)", index.last.extent(0), h, "h, from codes")
      .extent("index.cell_codes.extent(0)", index.cell_codes.extent(0), m, "m, from codes")
      .extent("index.cell_codes.extent(1)", index.cell_codes.extent(1), index.cells(), "cells, from index.counts")
      .extent("index.counts.stride(1)", index.counts.stride(1), 1, "last axis contiguous")
      .extent("index.offsets.stride(1)", index.offsets.stride(1), 1, "last axis contiguous")
      .extent("index.ids.stride(1)", index.ids.stride(1), 1, "last axis contiguous")
      .extent("index.cell_codes.stride(1)", index.cell_codes.stride(1), 1, "last axis contiguous");
}

/// The checks of count_cells() and merge_tails().
template <class Codes, class Index>
constexpr status can_index_cells(const Codes& codes, const Index& index, std::size_t first, std::size_t last,
                                 const char* function) noexcept {
  if (const status s = can_use_cell_index(index, codes.extent(0), codes.extent(1), function); !s.ok()) return s;
  return detail::checks(function)
      .extent("codes.stride(2)", codes.stride(2), 1, "last axis contiguous")
      .at_most("last", last, codes.extent(2), "n, from codes")
      .at_most("first", first, last, "last");
}

/// Counts tokens [first, last) of every head; they join the tail. `first` must be the index's `last`; on an empty index (index.first ==
/// index.last) counting starts at any `first`.
///
/// @param codes  [h, m, n] uint8, planar, absolute positions
/// Codes must be below the c that the index was made for.
///
/// @throws shape_error, value_error; capacity_error when the index has no room for the ids. Nothing is changed then. A device's index is
///         not read, since that would mean waiting: there the caller must ensure `first` and the room
/// @cost   (last - first) * m a head; no allocation
template <exec::policy P>
void count_cells(const P& policy, codes_view<typename P::space_type> codes, std::size_t first, std::size_t last,
                 mutable_cell_index_view<typename P::space_type> index) {
  require_ok(can_index_cells(codes, index, first, last, "count_cells"));
  detail::run_operation<op::count_cells>(policy, codes, first, last, index);
}

namespace detail {
/// How many runs of tokens the CUDA policy sorts in parallel.
constexpr std::size_t merge_tails_runs(std::size_t tokens) { return tokens < 2048 ? 1 : tokens > 131072 ? 64 : tokens / 2048; }
constexpr std::size_t merge_tails_device_scratch_bytes(const op::merge_tails::sizes& s) {
  return cache_line_bytes + s.heads * merge_tails_runs(s.tokens) * s.cells * sizeof(std::uint32_t);
}
}  // namespace detail

/// Moves every head's tail into its id lists, by a counting sort of the head's tokens.
///
/// @throws shape_error; capacity_error when a device policy's scratch is too small
/// @cost   n * m + cells a head; no allocation; scratch_bytes<op::merge_tails>(). Belongs between steps, every few
///         hundred tokens
template <exec::policy P>
void merge_tails(const P& policy, codes_view<typename P::space_type> codes, mutable_cell_index_view<typename P::space_type> index) {
  require_ok(can_index_cells(codes, index, 0, 0, "merge_tails"));
  detail::run_operation<op::merge_tails>(policy, codes, index);
}

}  // namespace pqkv
