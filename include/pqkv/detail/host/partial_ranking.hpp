// SPDX-License-Identifier: Apache-2.0
// A part's share of the normalisers on the host. A task is one list's group of query heads, as in retrieve().
#pragma once

#include "../../search/partial_ranking.hpp"
#include "cell_index.hpp"
#include "scan.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Calls part(scorer, first query head, q, items) for every query head of every KV head, where the items are the tokens of its range, or
/// the cells that they are in.
template <class P, class Part>
void for_part_items(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                    view<const middle_range, 1> ranges, const retrieve_params& params, const head_map<>& map, Part part) {
  const std::size_t h = ranges.extent(0), m = codes.extent(1), c = table.entries.extent(2), hq = table.entries.extent(0), g = hq / h;
  const std::size_t cells = index.empty() ? 0 : index.cells(), kept = cells == 0 ? 0 : cells + select_slack;
  for (std::size_t row_head = 0; row_head < h; ++row_head)
    require_ok(checks("sum_part")
                   .at_most("ranges.end", ranges(row_head).end, codes.extent(2), "n, from codes")
                   .at_most("ranges.begin", ranges(row_head).begin, ranges(row_head).end, "ranges.end"));
  arena count;
  scorer_scratch::carve(count, hq, m, c);
  count.take<float>(h * kept);
  count.take<std::uint32_t>(h * cells);
  workspace memory(policy.scratch, count.used_bytes(), "sum_part");
  const scorer_scratch tables = scorer_scratch::carve(memory, hq, m, c);
  float* const values = memory.take<float>(h * kept);
  std::uint32_t* const earlier = memory.take<std::uint32_t>(h * cells);
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    run_tasks(policy, h, [&](std::size_t row_head) {
      const std::size_t head = map.head(row_head), first = row_head * g;
      const middle_range range = ranges(row_head);
      group_scorer<simd_kernels<decltype(isa)>> scorer(tables.from(first, m, c), params.reduction, g, m, c,
                                                       canonical::softmax_scale::of(params.head_dim, params.scale));
      const bool joint = range.size() != 0 && cells != 0 && resolve_path(params.path, cells, range.size()) == search_path::joint;
      if (joint) {
        const cell_items items{counts_up_to(index, codes, head, range.end, earlier + row_head * cells), range.size(), cells,
                               values + row_head * kept};
        for (std::size_t q = 0; q < g; ++q) part(scorer, first, q, items);
      } else {
        const token_items items{codes.data + head * codes.stride(0) + range.begin, codes.stride(1), range.size()};
        for (std::size_t q = 0; q < g; ++q) part(scorer, first, q, items);
      }
    });
  });
}

}  // namespace detail

template <>
struct kernel<op::sum_part, backend::host> {
  template <class P>
  static void run(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                  view<const middle_range, 1> ranges, const retrieve_params& params, const head_map<>& map,
                  view<normaliser, 1> normalisers);
};

template <class P>
void kernel<op::sum_part, backend::host>::run(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                                              view<const middle_range, 1> ranges, const retrieve_params& params, const head_map<>& map,
                                              view<normaliser, 1> normalisers) {
  detail::for_part_items(policy, table, codes, index, ranges, params, map,
                         [&](auto& scorer, std::size_t first, std::size_t q, const auto& items) {
                           normaliser& own = normalisers(first + q);
                           own.sum = scorer.part_of_sum(table, first, q, items, own.centre);
                         });
}

PQKV_HOST_OPERATION(op::sum_part, distance_table_view<>, codes_view<>, cell_index_view<>, view<const middle_range, 1>,
                    const retrieve_params&, const head_map<>&, view<normaliser, 1>)

template <>
struct kernel<op::largest_part, backend::host> {
  template <class P>
  static void run(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                  view<const middle_range, 1> ranges, const retrieve_params& params, const head_map<>& map,
                  view<normaliser, 1> normalisers);
};

template <class P>
void kernel<op::largest_part, backend::host>::run(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                                                  view<const middle_range, 1> ranges, const retrieve_params& params, const head_map<>& map,
                                                  view<normaliser, 1> normalisers) {
  detail::for_part_items(policy, table, codes, index, ranges, params, map,
                         [&](auto& scorer, std::size_t first, std::size_t q, const auto& items) {
                           normalisers(first + q).largest = scorer.part_of_largest(table, first, q, items);
                         });
}

PQKV_HOST_OPERATION(op::largest_part, distance_table_view<>, codes_view<>, cell_index_view<>, view<const middle_range, 1>,
                    const retrieve_params&, const head_map<>&, view<normaliser, 1>)

}  // namespace pqkv
