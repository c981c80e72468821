// SPDX-License-Identifier: Apache-2.0
// The second stage of a selection: the tokens of a shortlist, which retrieve() made from short codes, are scored again with the finer codes
// of the residuals, and the k best of them are selected. Its cost depends on the shortlist's length, not on n. It cannot bring back a token
// that is not on the shortlist, so make the shortlist a few times k long.
// Source: Jegou, Tavenard, Douze, Amsaleg, "Searching in one billion vectors: re-rank with source coding", 2011.
#pragma once

#include "../quantize/residual.hpp"
#include "retrieve.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct rerank {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t lists = 0, query_heads = 0;
    std::size_t entries = 0;    // m * c + m2 * c2
    std::size_t shortlist = 0;  // tokens of the longest list
  };
};
}  // namespace op

/// What rerank() must know besides its views.
struct rerank_params {
  std::size_t head_dim = 0;  // d, for the softmax's scale
  group_reduction reduction = group_reduction::probability_sum;
  float scale = 0;  // of the logits; 0: 1 / sqrt(d)
};

/// The tables of both stages for the same queries.
template <class Space = space::host>
struct two_stage_table {
  distance_table_view<Space> coarse;  // [hq, m, c] and [hq], of the first codebook
  distance_table_view<Space> fine;    // [hq, m2, c2], of the residuals' codebook; its bias is not used
};

/// The codes of both stages for the same tokens, by absolute position.
template <class Space = space::host>
struct two_stage_codes {
  codes_view<Space> coarse;         // [h, m, n], planar
  residual_codes_view<Space> fine;  // [h, n, m2], token-major
};

/// Length of the shortlist for k selected tokens: factor * k, but at most all tokens.
PQKV_HD constexpr std::uint32_t shortlist_size(const middle_range& range, std::size_t factor) {
  const std::size_t wanted = range.selected() * factor;
  return wanted < range.size() ? static_cast<std::uint32_t>(wanted) : range.size();
}

namespace detail {
constexpr std::size_t rerank_scratch_bytes(const op::rerank::sizes& s) {
  const std::size_t g = s.lists == 0 ? 0 : (s.query_heads / s.lists + 3) / 4 * 4, rows = (s.shortlist + 15) / 16 * 16;
  return s.lists * (3 * cache_line_bytes + (4 * s.entries + (g + 1) * rows) * sizeof(float));
}
}  // namespace detail

/// The checks of rerank().
template <class Tables, class Codes, class Shortlist, class Lengths, class Ranges, class Indices, class Counts, class Skipped,
          class Map = head_map<>>
constexpr status can_rerank(const Tables& tables, const Codes& codes, const Shortlist& shortlist, const Lengths& lengths,
                            const Ranges& ranges, const Indices& indices, const Counts& counts, const rerank_params& params,
                            const Skipped& skipped, const Map& map = {}) noexcept {
  if (const status s = can_look_up(tables.coarse, codes.coarse, "rerank", map); !s.ok()) return s;
  const auto& fine = tables.fine.entries;
  const std::size_t h = map.heads(codes.coarse.extent(0)), hq = tables.coarse.entries.extent(0),
                    lists = score_lists(params.reduction, h, hq);
  const std::size_t c = fine.extent(2);
  return detail::checks("rerank")
      .extent("tables.fine.extent(0)", fine.extent(0), hq, "hq, from tables.coarse")
      .at_least("tables.fine.extent(1)", fine.extent(1), 1, "m2")
      .that(c >= 16 && c <= max_centroids && (c & (c - 1)) == 0, status::code::value, "tables.fine.extent(2)", relation::stated,
            "16, 32, 64, 128 or 256", 256, c)
      .extent("tables.fine.stride(2)", fine.stride(2), 1, "last axis contiguous")
      .extent("codes.fine.extent(0)", codes.fine.extent(0), codes.coarse.extent(0), "h, from codes.coarse")
      .extent("codes.fine.extent(1)", codes.fine.extent(1), codes.coarse.extent(2), "n, from codes.coarse")
      .extent("codes.fine.extent(2)", codes.fine.extent(2), fine.extent(1), "m2, from tables.fine")
      .extent("codes.fine.stride(2)", codes.fine.stride(2), 1, "last axis contiguous")
      .extent("shortlist.extent(0)", shortlist.extent(0), lists, "h, or hq under reduction none")
      .extent("shortlist.stride(1)", shortlist.stride(1), 1, "last axis contiguous")
      .extent("lengths.extent(0)", lengths.extent(0), lists, "h, or hq under reduction none")
      .extent("ranges.extent(0)", ranges.extent(0), h, "h, from codes.coarse")
      .extent("indices.extent(0)", indices.extent(0), lists, "h, or hq under reduction none")
      .extent("indices.stride(1)", indices.stride(1), 1, "last axis contiguous")
      .extent("counts.extent(0)", counts.extent(0), lists, "h, or hq under reduction none")
      .extent("skipped.stride(0)", skipped.data == nullptr ? 1 : skipped.stride(0), 1, "contiguous")
      .extent("skipped.extent(0)", skipped.data == nullptr ? hq : skipped.extent(0), hq, "hq, from tables.coarse")
      .at_least("params.head_dim", params.head_dim, 1, "d");
}

/// Selects, for every list, the k tokens of its shortlist with the highest scores under both stages' codes; equal scores go to the lower
/// position.
///
/// z[q, t] = (sum over j of coarse[q, j, coarse code] + sum over j of fine[q, j, fine code]) / sqrt(d), p = softmax of z over the
/// shortlist, scores = the reduction of p or z over the group's query heads; bits as in docs/numerics.md
///
/// @param tables     [hq, m, c] and [hq, m2, c2] float, from inner_product_table() with the two codebooks
/// @param codes      [h, m, n] and [h, n, m2] uint8, of encode() and encode_residual()
/// @param shortlist  [h, s_max] int32 ([hq, s_max] under `none`): positions, ascending, from retrieve()
/// @param lengths    [h] uint32 ([hq] under `none`): tokens of each shortlist
/// @param ranges     [h] k is `retrieve`; begin and end are the bounds of positions; the rest as in retrieve()
/// @param indices    [h, k_max] int32 ([hq, k_max] under `none`), written: absolute positions, ascending, then -1; not the shortlist's
///                   memory
/// @param counts     [h] uint32 ([hq] under `none`), written: k, or the shortlist's length if that is less
/// @param skipped    [hq] uint8, written if given: 1 for a query head that was left out because a table entry, or a sum of a shortlist's
///                   token, is not finite
/// @param map        the sequence of the codes that each row of queries asks; empty: heads in order
/// @pre    positions of a list are ascending; codes are below their table's c
/// @throws shape_error, value_error; capacity_error when the policy's scratch is too small
/// @cost   shortlist * g * (m + m2) look-ups and as many exponentials as shortlist * g; scratch_bytes<op::rerank>()
/// @source PQCache section 3.3, with the second stage of "re-rank with source coding"
template <exec::policy P>
void rerank(const P& policy, const two_stage_table<typename P::space_type>& tables, const two_stage_codes<typename P::space_type>& codes,
            view<const std::int32_t, 2, typename P::space_type> shortlist, view<const std::uint32_t, 1, typename P::space_type> lengths,
            view<const middle_range, 1, typename P::space_type> ranges, view<std::int32_t, 2, typename P::space_type> indices,
            view<std::uint32_t, 1, typename P::space_type> counts, const rerank_params& params,
            view<std::uint8_t, 1, typename P::space_type> skipped = {}, const head_map<typename P::space_type>& map = {}) {
  require_ok(can_rerank(tables, codes, shortlist, lengths, ranges, indices, counts, params, skipped, map));
  detail::run_operation<op::rerank>(policy, tables, codes, shortlist, lengths, ranges, indices, counts, params, skipped, map);
}

}  // namespace pqkv
