// SPDX-License-Identifier: Apache-2.0
// From table to selected tokens in one call: score, reduce over the group, select. Two paths give exactly the same set. `scan` scores every
// token. `joint` scores the cells of a cell_index, and its cost hardly grows with n.
#pragma once

#include "cell_index.hpp"
#include "scan.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct retrieve {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t lists = 0, query_heads = 0, subspaces = 0, centroids = 0;  // hq, m, c
    std::size_t tokens = 0;  // largest end - begin of a range; on a device codes.extent(2), since the ranges stay there
    std::size_t cells = 0;   // of the index; 0 without one
    group_reduction reduction = group_reduction::probability_sum;
  };
};
}  // namespace op

/// How scores are computed; the selected set is the same.
enum class search_path : std::uint8_t {
  automatic,  // joint if there is an index with no more cells than there are tokens, else scan
  joint,
  scan
};

/// The tokens of one head that are ranked, and how many of them to select.
struct middle_range {
  std::uint32_t begin = 0;     // first ranked token
  std::uint32_t end = 0;       // one past the last
  std::uint32_t retrieve = 0;  // k; with end - begin or more all are selected, with 0 none

  PQKV_HD constexpr std::uint32_t size() const { return end - begin; }
  PQKV_HD constexpr std::uint32_t selected() const { return retrieve < size() ? retrieve : size(); }
};

/// Lists of positions, as retrieve() writes them and attention() reads them (cache/token_set.hpp).
template <class Space = space::host>
struct token_lists {
  view<std::int32_t, 2, Space> indices;  // [lists, k_max] ascending, then -1
  view<std::uint32_t, 1, Space> counts;  // [lists]
};

/// What retrieve() must know besides its views.
struct retrieve_params {
  std::size_t head_dim = 0;  // d, for the softmax's scale
  group_reduction reduction = group_reduction::probability_sum;
  search_path path = search_path::automatic;
  float scale = 0;  // of the logits; 0: 1 / sqrt(d)
};

/// The path that `automatic` stands for.
PQKV_HD constexpr search_path resolve_path(search_path wanted, std::size_t cells, std::size_t tokens) {
  if (wanted != search_path::automatic) return wanted;
  // measured: retrieve_tokens_a_cell of bench/retrieve.cpp, one Zen 5 core, 2026-11: time of scan over joint at 1, 2, 4 tokens a cell.
  // Normal keys, which fill the cells: 2 x 6 bits VBMI 0.9, 1.4, 2.7, AVX2 1.8, 3.5, 7.5; 2 x 8 bits VBMI 1.2, 2.2, 3.5, scalar 1.1, 2.2,
  // 4.2. Keys in clusters, in the same order: 1.8, 2.4, 3.4; 3.6, 5.9, 8.6; 4.7, 7.2, 13; 13, 23, 45
  return cells != 0 && cells <= tokens ? search_path::joint : search_path::scan;
}

namespace detail {
constexpr std::size_t retrieve_scratch_bytes(const op::retrieve::sizes& s) {
  const std::size_t lists = s.lists, tokens = s.tokens, cells = s.cells, scored = tokens > cells ? tokens : cells,
                    kept = cells == 0 ? 0 : cells + 64, words = tokens / 64 + 1;
  const auto lines = [](std::size_t bytes) { return (bytes + cache_line_bytes - 1) / cache_line_bytes * cache_line_bytes; };
  const std::size_t sums = lines(lists * tokens * sizeof(std::uint16_t));
  const std::size_t doubtful = lines(lists * (tokens / 2 + 64) * sizeof(std::int32_t));
  const std::size_t filter = adds_logits(s.reduction) ? sums + doubtful : 0, earlier = lines(lists * cells * sizeof(std::uint32_t));
  return filter + earlier + scan_scratch_bytes({s.query_heads, s.subspaces, s.centroids}) + lines(lists * scored * sizeof(float)) +
         4 * lines(lists * kept * sizeof(float)) + lines(lists * s.subspaces * cells) +
         lines(lists * (words + words / 64 + 1) * sizeof(std::uint64_t));
}

/// Tokens of a list near its threshold that the CUDA policy has room to keep: at least three deviations of its sample, whatever k is.
PQKV_HD constexpr std::size_t retrieve_device_kept(std::size_t tokens) { return tokens / 16 > 8192 ? tokens / 16 : 8192; }
/// Words of a list's tokens by position: the first of them has a position below 8, and there are whole groups of 256.
PQKV_HD constexpr std::size_t retrieve_device_positions(std::size_t tokens) { return (tokens + 7 + 255) / 256 * 256; }
/// Words of a list: one for every four query heads of each token. @param query_heads  of the list
PQKV_HD constexpr std::size_t retrieve_device_words(std::size_t tokens, std::size_t query_heads) {
  return (query_heads + 3) / 4 * retrieve_device_positions(tokens);
}
/// Short lists and small indices need less.
constexpr std::size_t retrieve_device_scratch_bytes(const op::retrieve::sizes& s) {
  const std::size_t of_list = s.lists == 0 ? 0 : (s.query_heads + s.lists - 1) / s.lists, bits = s.tokens / 32 + 1,
                    words = retrieve_device_words(s.tokens, of_list), scored = words > s.cells ? words : s.cells;
  return scan_device_scratch_bytes(s.query_heads) + 4 * cache_line_bytes +
         s.lists * (scored * sizeof(float) + 2 * bits * sizeof(std::uint32_t) + retrieve_device_kept(s.tokens) * 8 + 32);
}
}  // namespace detail

/// The checks of retrieve().
template <class Table, class Codes, class Index, class Ranges, class Indices, class Counts, class Skipped, class Map = head_map<>>
constexpr status can_retrieve(const Table& table, const Codes& codes, const Index& index, const Ranges& ranges, const Indices& indices,
                              const Counts& counts, const retrieve_params& params, const Skipped& skipped, const Map& map = {}) noexcept {
  const std::size_t h = map.heads(codes.extent(0)), hq = table.entries.extent(0), lists = score_lists(params.reduction, h, hq);
  if (const status s = can_look_up(table, codes, "retrieve", map); !s.ok()) return s;
  if (!index.empty())
    if (const status s = can_use_cell_index(index, codes.extent(0), codes.extent(1), "retrieve"); !s.ok()) return s;
  std::size_t cells = 1;
  for (std::size_t j = 0; j < codes.extent(1) && cells <= index.cells(); ++j) cells *= table.entries.extent(2);
  return detail::checks("retrieve")
      .extent("index.counts.extent(1)", index.empty() ? cells : index.cells(), cells, "c^m, from table")
      .extent("ranges.extent(0)", ranges.extent(0), h, map.empty() ? "h, from codes" : "rows * h, from map")
      .extent("indices.extent(0)", indices.extent(0), lists, "h, or hq under reduction none")
      .extent("indices.stride(1)", indices.stride(1), 1, "last axis contiguous")
      .extent("counts.extent(0)", counts.extent(0), lists, "h, or hq under reduction none")
      .extent("skipped.stride(0)", skipped.data == nullptr ? 1 : skipped.stride(0), 1, "contiguous")
      .extent("skipped.extent(0)", skipped.data == nullptr ? hq : skipped.extent(0), hq, "hq, from table")
      .that(params.path != search_path::joint || !index.empty(), status::code::value, "params.path", relation::required,
            "scan or automatic: joint needs a cell_index", 1, 0)
      .at_least("params.head_dim", params.head_dim, 1, "d");
}

/// Selects, for every KV head, the k tokens of its range with the highest scores; equal scores go to the lower position.
///
/// @param table    [hq, m, c] float, from inner_product_table()
/// @param codes    [h, m, n] uint8, planar, absolute positions
/// @param index    of the same codes, or empty. Each head's `first` must be the beginning of its range, and its `last` the end of the range
///                 or later; tokens after the range take no part
/// @param ranges   [h] what is ranked. A range beyond n, or one that selects more than indices.extent(1), is a value_error on the host. On
///                 a device, where reading it would mean waiting, both are cut to what there is
/// @param indices  [h, k_max] int32 ([hq, k_max] under `none`), written: absolute positions, ascending, then -1
/// @param counts   [h] uint32 ([hq] under `none`), written
/// @param skipped  [hq] uint8, written if given: 1 for a query head that was left out because its table has a non-finite entry
/// @param map      the sequence of codes and index that each row of queries asks; empty: heads in order. With a map, ranges, indices and
///                 counts are of rows * h heads
/// @throws shape_error, value_error; capacity_error when the policy's scratch is too small
/// @cost   joint: cells * g * m table look-ups, and writing k ids. scan: tokens * g * m look-ups; under logit_sum tokens * m look-ups of 16
///         bits and a few of floats. scratch_bytes<op::retrieve>()
/// @source PQCache section 3.3; joint codes: see cell_index.hpp
template <exec::policy P>
void retrieve(const P& policy, distance_table_view<typename P::space_type> table, codes_view<typename P::space_type> codes,
              cell_index_view<typename P::space_type> index, view<const middle_range, 1, typename P::space_type> ranges,
              view<std::int32_t, 2, typename P::space_type> indices, view<std::uint32_t, 1, typename P::space_type> counts,
              const retrieve_params& params, view<std::uint8_t, 1, typename P::space_type> skipped = {},
              const head_map<typename P::space_type>& map = {}) {
  require_ok(can_retrieve(table, codes, index, ranges, indices, counts, params, skipped, map));
  detail::run_operation<op::retrieve>(policy, table, codes, index, ranges, indices, counts, params, skipped, map);
}

/// The same, with probabilities normalised over the range and other tokens too: those that each query attends to in any case. It matters
/// where query heads share a list, since a head that looks elsewhere counts less.
/// @param attended  [hq] from sum_attended(), of the same queries
template <exec::policy P>
void retrieve(const P& policy, distance_table_view<typename P::space_type> table, codes_view<typename P::space_type> codes,
              cell_index_view<typename P::space_type> index, view<const middle_range, 1, typename P::space_type> ranges,
              view<std::int32_t, 2, typename P::space_type> indices, view<std::uint32_t, 1, typename P::space_type> counts,
              const retrieve_params& params, view<std::uint8_t, 1, typename P::space_type> skipped,
              const head_map<typename P::space_type>& map, view<const attended_sum, 1, typename P::space_type> attended) {
  require_ok(can_retrieve(table, codes, index, ranges, indices, counts, params, skipped, map));
  require_ok(detail::checks("retrieve")
                 .extent("attended.extent(0)", attended.extent(0), table.entries.extent(0), "hq, from table")
                 .extent("attended.stride(0)", attended.stride(0), 1, "contiguous"));
  detail::run_operation<op::retrieve>(policy, table, codes, index, ranges, indices, counts, params, skipped, map, attended);
}

/// The same as the first, into lists that attention() can take as they are.
template <exec::policy P>
void retrieve(const P& policy, distance_table_view<typename P::space_type> table, codes_view<typename P::space_type> codes,
              cell_index_view<typename P::space_type> index, view<const middle_range, 1, typename P::space_type> ranges,
              const token_lists<typename P::space_type>& lists, const retrieve_params& params) {
  retrieve(policy, table, codes, index, ranges, lists.indices, lists.counts, params);
}

}  // namespace pqkv
