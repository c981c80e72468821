// SPDX-License-Identifier: Apache-2.0
// Ranks tokens that lie in several places, each of which sees its own part: processes, machines, devices. The places agree on the
// normalisers first, as sums of integers, and then score their tokens as one place with all tokens would, to the bit. So the best of all
// places' best are the best of all tokens. In this order:
//
//   sum_part()       each place: Z of its tokens; the caller adds the integers of all places
//   largest_part()   only where needs_centre(): the largest sum of u; the caller takes the maximum, sets the centre, and sums again
//   retrieve_part()  each place: its best tokens by these normalisers, and their scores
//
// scale/context_parallel.hpp does it. Not for tokens that lie in one place: retrieve() reads the codes once less. Host memory only.
#pragma once

#include "retrieve.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct sum_part {};      // run(policy, table, codes, index, ranges, params, map, normalisers): writes `sum` around `centre`
struct largest_part {};  // the same arguments: writes `largest`
}  // namespace op

/// What retrieve_part() passes to the kernel of retrieve() in addition.
struct partial_ranking {
  view<const normaliser, 1> normalisers{};  // [hq] over the tokens of all places; empty: over the ranges
  view<float, 2> scores{};                  // [lists, k_max], or empty
};

/// Whether a reduction needs normalisers at all; the others need only retrieve_part().
PQKV_HD constexpr bool needs_normalisers(group_reduction reduction) {
  return reduction == group_reduction::probability_sum || reduction == group_reduction::probability_max;
}
/// Whether a sum over all places has too few bits, so that it is to be computed again around the best token.
/// @param tokens  of all places
PQKV_HD constexpr bool needs_centre(const normaliser& of_all, std::uint64_t tokens) {
  return canonical::needs_recentring(of_all.sum, tokens);
}
/// The same normaliser around the best token of all places, without its sum.
inline normaliser centred(const normaliser& of_all, const retrieve_params& params) {
  normaliser result{0, 0, of_all.largest};
  detail::in_float_environment(
      [&] { result.centre = canonical::recentring(of_all.largest, canonical::softmax_scale::of(params.head_dim, params.scale)); });
  return result;
}

/// The checks of sum_part() and largest_part().
template <class Table, class Codes, class Index, class Ranges, class Normalisers, class Map = head_map<>>
constexpr status can_sum_part(const Table& table, const Codes& codes, const Index& index, const Ranges& ranges,
                              const Normalisers& normalisers, const retrieve_params& params, const char* function,
                              const Map& map = {}) noexcept {
  const std::size_t h = map.heads(codes.extent(0));
  if (const status s = can_look_up(table, codes, function, map); !s.ok()) return s;
  if (!index.empty())
    if (const status s = can_use_cell_index(index, codes.extent(0), codes.extent(1), function); !s.ok()) return s;
  return detail::checks(function)
      .extent("ranges.extent(0)", ranges.extent(0), h, map.empty() ? "h, from codes" : "rows * h, from map")
      .extent("normalisers.extent(0)", normalisers.extent(0), table.entries.extent(0), "hq, from table")
      .that(needs_normalisers(params.reduction), status::code::value, "params.reduction", relation::required,
            "probability_sum or probability_max: the others have no normaliser", 0, 0)
      .at_least("params.head_dim", params.head_dim, 1, "d");
}

/// Writes each query head's Z over its range's tokens, around the normaliser's centre. Sums of several places add up as integers.
///
/// @param table, codes, index, ranges, params, map  as in retrieve(); `retrieve` of a range is not used
/// @param normalisers  [hq] `centre` is read, `sum` written; 0 for a query head whose table has a non-finite entry
/// @throws shape_error, value_error
/// @cost   as the first pass of retrieve(); allocates tables of hq * m * c floats unless the policy brings scratch_bytes<op::retrieve>()
template <exec::policy P>
void sum_part(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index, view<const middle_range, 1> ranges,
              view<normaliser, 1> normalisers, const retrieve_params& params, const head_map<>& map = {}) {
  require_ok(can_sum_part(table, codes, index, ranges, normalisers, params, "sum_part", map));
  detail::run_operation<op::sum_part>(policy, table, codes, index, ranges, params, map, normalisers);
}

/// Writes `largest` of each normaliser; shapes, errors and cost as sum_part(). The maximum over places is that of all tokens.
template <exec::policy P>
void largest_part(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                  view<const middle_range, 1> ranges, view<normaliser, 1> normalisers, const retrieve_params& params,
                  const head_map<>& map = {}) {
  require_ok(can_sum_part(table, codes, index, ranges, normalisers, params, "largest_part", map));
  detail::run_operation<op::largest_part>(policy, table, codes, index, ranges, params, map, normalisers);
}

/// Selects each range's best tokens as retrieve() does, with probabilities normalised over the tokens of all places.
///
/// @param normalisers  [hq] over all places; not read by reductions without one
/// @param scores       [lists, k_max] float, written: the score of every listed token; unspecified after a list's end
/// All else as in retrieve().
/// @throws shape_error, value_error; capacity_error when the policy's scratch is too small
/// @cost   as retrieve(), without its first pass and with k look-ups of m codes more
template <exec::policy P>
void retrieve_part(const P& policy, distance_table_view<> table, codes_view<> codes, cell_index_view<> index,
                   view<const middle_range, 1> ranges, const token_lists<>& lists, const retrieve_params& params,
                   view<const normaliser, 1> normalisers, view<float, 2> scores, const head_map<>& map = {}) {
  require_ok(can_retrieve(table, codes, index, ranges, lists.indices, lists.counts, params, view<std::uint8_t, 1>{}, map));
  require_ok(detail::checks("retrieve_part")
                 .at_most("codes.extent(1)", codes.extent(1), max_subspaces, "m")
                 .extent("normalisers.extent(0)", normalisers.extent(0), table.entries.extent(0), "hq, from table")
                 .extent("scores.extent(0)", scores.extent(0), lists.indices.extent(0), "lists, from lists.indices")
                 .extent("scores.extent(1)", scores.extent(1), lists.indices.extent(1), "k_max, from lists.indices")
                 .extent("scores.stride(1)", scores.stride(1), 1, "last axis contiguous"));
  detail::run_operation<op::retrieve>(policy, table, codes, index, ranges, lists.indices, lists.counts, params, view<std::uint8_t, 1>{},
                                      map, view<const attended_sum, 1>{}, partial_ranking{normalisers, scores});
}

}  // namespace pqkv
