// SPDX-License-Identifier: Apache-2.0
// The sizes of an index of product quantization, the operations it is made of, and the memory that ranking with it works in.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../core/random.hpp"
#include "../quantize/axes.hpp"
#include "../quantize/residual.hpp"
#include "retrieve.hpp"

namespace pqkv::inline PQKV_MODE {

namespace op {
struct encode_leaving {};     // run(policy, pq_index_view, rows, leaving): codes of the tokens that leave each sequence's window
struct gather_keys {};        // run(policy, rows, first head, sample, first token, pair_axes of these heads, out [h, n, d])
struct replace_centroids {};  // run(policy, rows, first head, index of one sequence, replaced_centroids)
struct learn_codebook {};     // run(policy, index of one sequence, first token, keys [h, n, d], params, outcomes); host
struct renew_codebook {};     // run(policy, rows, first head, index, replaced_centroids, keys [h, n, d], params, outcomes); host
/// run(policy, rows, first head, index, replaced_centroids, keys [h, n, d], iterations, work): the first number of `work` is set to how
/// many codes of tokens before the new ones were written.
struct renew_replaced {
  /// How many numbers of 64 bits `work` has. On the host one is enough. @param problems  h * m; width: of a centroid
  static constexpr std::size_t words(std::size_t problems, std::size_t c, std::size_t width) {
    return 1 + problems * (c * (width + 1) + max_centroids / sizeof(std::uint64_t));
  }
};
}  // namespace op

/// The arguments of op::replace_centroids. In every head and subspace, the centroids that the fewest of the tokens [first, last) have as
/// their code (ties: lower index) are replaced: the i-th of them by token begin + fresh(i), minus the mean. There are as many as `fresh`
/// draws. A centroid stays where it is if its token's sub-vector has an element that is not finite.
struct replaced_centroids {
  std::size_t first, last;
  std::size_t begin;
  stratified_sample fresh;
};

/// The sizes of an index.
struct pq_index_shape {
  std::size_t sequences = 1;  // slots
  std::size_t kv_heads = 0;   // h of one sequence
  std::size_t head_dim = 0;   // d
  std::size_t subspaces = 2;  // m
  unsigned bits = 6;          // b
  std::size_t capacity = 0;   // tokens of a sequence
  key_metric metric = key_metric::squared_l2;
  std::size_t fine_subspaces = 0;  // m2 of the second stage; 0: none
  unsigned fine_bits = 8;          // b2
  search_path path = search_path::automatic;
  axis_order axes = axis_order::contiguous;

  constexpr axis_map axis_places() const { return {axes, static_cast<std::uint32_t>(subspaces), static_cast<std::uint32_t>(head_dim)}; }
  constexpr std::size_t heads() const { return sequences * kv_heads; }
  constexpr pq_shape coarse() const { return {heads(), head_dim, subspaces, bits, metric}; }
  constexpr pq_shape fine() const { return residual_shape(coarse(), fine_subspaces, fine_bits); }
  constexpr bool has_fine() const { return fine_subspaces != 0; }
  /// Cells of the joint-code index; 0 if there is none or it could never be used.
  constexpr std::size_t cells() const {
    const pq_shape s = coarse();
    return has_cell_index(s) && resolve_path(path, s.cells(), capacity) == search_path::joint ? s.cells() : 0;
  }
  /// How many rows training needs.
  constexpr std::size_t least_rows() const { return std::max(coarse().centroids(), has_fine() ? fine().centroids() : 0); }
};

/// The memory that ranking works in: tables of a step's queries, and the second stage's shortlists.
template <class Space = space::host>
struct pq_workspace {
  mutable_distance_table_view<Space> table, fine_table;  // [queries, m, c], [queries, m2, c2]
  view<std::uint8_t, 1, Space> skipped;                  // [queries]
  view<std::int32_t, 2, Space> shortlist;                // [lists, capacity], or empty
  view<std::uint32_t, 1, Space> lengths;                 // [lists]
  view<middle_range, 1, Space> shortlist_ranges;         // [row heads]
  view<std::uint8_t, 2, Space> outcomes;                 // [h, m + m2] outcomes of training
  view<float, 2, Space> ordered;                         // [queries, d], or empty where axes are contiguous
  view<attended_sum, 1, Space> attended;                 // [queries]
  view<std::uint32_t, 1, Space> summed;                  // [row heads] zeros between launches: how many of `attended` one launch has so far
  view<std::uint32_t, 1, Space> arrived;                 // [2 * row heads] zeros between launches: what a list's CTAs meet at

  /// The tables of the first `query_heads`.
  constexpr mutable_distance_table_view<Space> table_of(std::size_t query_heads) const {
    return {table.entries.slice(0, 0, query_heads), table.bias.slice(0, 0, query_heads)};
  }

  /// @param rows         query tokens that are ranked at once
  /// @param query_heads  hq of one query token
  static constexpr pq_workspace place(arena& memory, const pq_index_shape& shape, std::size_t rows, std::size_t query_heads,
                                      group_reduction reduction) {
    const std::size_t hq = rows * query_heads, h = rows * shape.kv_heads, lists = score_lists(reduction, h, hq);
    pq_workspace all;
    all.table = distance_table::place<Space>(memory, hq, shape.coarse());
    all.skipped = make_view<Space>(memory.take<std::uint8_t>(hq), hq);
    const std::size_t problems = shape.subspaces + shape.fine_subspaces;
    all.outcomes = make_view<Space>(memory.take<std::uint8_t>(shape.kv_heads * problems), shape.kv_heads, problems);
    if (shape.axes != axis_order::contiguous) all.ordered = make_view<Space>(memory.take<float>(hq * shape.head_dim), hq, shape.head_dim);
    all.attended = make_view<Space>(memory.take<attended_sum>(hq), hq);
    all.summed = make_view<Space>(memory.take<std::uint32_t>(h), h);
    all.arrived = make_view<Space>(memory.take<std::uint32_t>(2 * h), 2 * h);
    if (!shape.has_fine()) return all;
    all.fine_table = distance_table::place<Space>(memory, hq, shape.fine());
    const bool fits = lists <= static_cast<std::size_t>(-1) / 8 / shape.capacity;
    all.shortlist =
        make_view<Space>(memory.take<std::int32_t>(fits ? lists * shape.capacity : static_cast<std::size_t>(-1)), lists, shape.capacity);
    all.lengths = make_view<Space>(memory.take<std::uint32_t>(lists), lists);
    all.shortlist_ranges = make_view<Space>(memory.take<middle_range>(h), h);
    return all;
  }
};

}  // namespace pqkv
