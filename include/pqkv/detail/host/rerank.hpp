// SPDX-License-Identifier: Apache-2.0
// The second stage on the host. A task is one list. Four query heads are scored together: their table entries are contiguous, so that one
// load reads them all. Sums are written in one plane for each query head.
#pragma once

#include <algorithm>

#include "../../search/rerank.hpp"
#include "../../search/top_k.hpp"
#include "simd/kernels.hpp"
#include "top_k.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Scratch of one list: tables for groups of four query heads, sums [g, rows], scores [rows].
struct rerank_scratch {
  float* tables;
  float* sums;
  float* scores;
  std::size_t rows;
};

/// Scores of one list's shortlist.
template <class Kernels>
class shortlist_scorer {
 public:
  shortlist_scorer(const rerank_scratch& scratch, const two_stage_table<>& tables, const rerank_params& params, std::size_t first,
                   std::size_t g)
      : scratch_(scratch), tables_(tables), params_(params), first_(first), g_(g) {}

  /// @param skipped  null or [g], written
  void score(const shortlist_codes& codes, const std::int32_t* tokens, std::size_t n, std::uint8_t* skipped) {
    const std::size_t rows = scratch_.rows;
    std::fill_n(scratch_.scores, n, params_.reduction == group_reduction::logit_max ? float_from_bits(0xff800000u) : 0.0f);
    for (std::size_t q = 0; q < g_; q += 4) {
      const std::size_t together = std::min<std::size_t>(4, g_ - q);
      bool finite[4] = {};
      for (std::size_t i = 0; i < together; ++i) finite[i] = entries_finite(first_ + q + i);
      const shortlist_tables of = interleaved(first_ + q, together);
      float* z = scratch_.sums + q * rows;
      Kernels::sums_of_four(of, codes, tokens, n, z, rows);
      for (std::size_t i = 0; i < together; ++i) {
        const bool used = finite[i] && add(z + i * rows, n, tables_.coarse.bias(first_ + q + i));
        if (skipped != nullptr) skipped[q + i] = used ? 0 : 1;
      }
    }
  }

 private:
  bool entries_finite(std::size_t q) const {
    bool finite = params_.reduction != group_reduction::logit_max || is_finite(tables_.coarse.bias(q));
    for (const auto* table : {&tables_.coarse.entries, &tables_.fine.entries})
      for (std::size_t j = 0; j < table->extent(1); ++j) finite &= Kernels::all_finite(&(*table)(q, j, 0), table->extent(2));
    return finite;
  }

  /// The tables of query heads [q, q + together) with contiguous entries. Where there are fewer than four heads, the first one is repeated.
  shortlist_tables interleaved(std::size_t q, std::size_t together) const {
    const auto& coarse = tables_.coarse.entries;
    const auto& fine = tables_.fine.entries;
    float* const begin = scratch_.tables;
    float* out = begin;
    for (const auto* table : {&coarse, &fine})
      for (std::size_t j = 0; j < table->extent(1); ++j, out += 4 * table->extent(2)) {
        const float* rows[4];
        for (std::size_t i = 0; i < 4; ++i) rows[i] = &(*table)(q + (i < together ? i : 0), j, 0);
        Kernels::interleave_four(rows, table->extent(2), out);
      }
    const std::size_t m = coarse.extent(1), c = coarse.extent(2);
    return {begin, m, c, begin + 4 * m * c, fine.extent(1), fine.extent(2)};
  }

  /// Adds one query head's part to the scores. If a sum is not finite, adds nothing and returns false.
  bool add(float* z, std::size_t n, float bias) {
    if (n == 0) return true;
    const float_bounds found = Kernels::bounds(z, n);
    if (!is_finite(found.least) || !is_finite(found.greatest)) return false;
    const canonical::softmax_scale scale = canonical::softmax_scale::of(params_.head_dim, params_.scale);
    switch (params_.reduction) {
      case group_reduction::probability_sum:
        Kernels::add_scaled(z, canonical::inverse_normaliser(Kernels::weights(z, n, found.greatest, scale)), n, scratch_.scores);
        break;
      case group_reduction::probability_max:
        Kernels::max_scaled(z, canonical::inverse_normaliser(Kernels::weights(z, n, found.greatest, scale)), n, scratch_.scores);
        break;
      case group_reduction::logit_max:
        Kernels::max_shifted(z, bias, n, scratch_.scores);
        break;
      case group_reduction::logit_sum:
      case group_reduction::none:
        Kernels::add(z, n, scratch_.scores);
        break;
    }
    return true;
  }

  rerank_scratch scratch_;
  two_stage_table<> tables_;
  rerank_params params_;
  std::size_t first_, g_;
};

}  // namespace detail

template <>
struct kernel<op::rerank, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::rerank::sizes& sizes) { return detail::rerank_scratch_bytes(sizes); }

  template <class P>
  static void run(const P& policy, const two_stage_table<>& tables, const two_stage_codes<>& codes, view<const std::int32_t, 2> shortlist,
                  view<const std::uint32_t, 1> lengths, view<const middle_range, 1> ranges, view<std::int32_t, 2> indices,
                  view<std::uint32_t, 1> counts, const rerank_params& params, view<std::uint8_t, 1> skipped, const head_map<>& map);

 private:
  static void check_list(const two_stage_codes<>& codes, view<const std::int32_t, 2> shortlist, std::uint32_t length, std::size_t list,
                         const middle_range& range, view<std::int32_t, 2> indices) {
    detail::checks checks("rerank");
    checks.at_most("ranges.end", range.end, codes.coarse.extent(2), "n, from codes")
        .at_most("lengths", length, shortlist.extent(1), "s_max, from shortlist")
        .at_most("ranges.retrieve", std::min(length, range.retrieve), indices.extent(1), "k_max, from indices");
    if (length != 0 && length <= shortlist.extent(1))
      checks.at_least("shortlist", shortlist(list, 0), range.begin, "ranges.begin")
          .at_most("shortlist", shortlist(list, length - 1), static_cast<double>(range.end) - 1, "ranges.end - 1");
    require_ok(checks);
  }
};

template <class P>
void kernel<op::rerank, backend::host>::run(const P& policy, const two_stage_table<>& tables, const two_stage_codes<>& codes,
                                            view<const std::int32_t, 2> shortlist, view<const std::uint32_t, 1> lengths,
                                            view<const middle_range, 1> ranges, view<std::int32_t, 2> indices,
                                            view<std::uint32_t, 1> counts, const rerank_params& params, view<std::uint8_t, 1> skipped,
                                            const head_map<>& map) {
  const std::size_t lists = indices.extent(0), hq = tables.coarse.entries.extent(0), h = ranges.extent(0);
  if (lists == 0) return;
  const std::size_t g = hq / lists, lists_per_head = lists / h, padded = (g + 3) / 4 * 4;
  const std::size_t entries =
      tables.coarse.entries.extent(1) * tables.coarse.entries.extent(2) + tables.fine.entries.extent(1) * tables.fine.entries.extent(2);
  std::size_t longest = 0;
  for (std::size_t list = 0; list < lists; ++list) {
    check_list(codes, shortlist, lengths(list), list, ranges(list / lists_per_head), indices);
    longest = std::max<std::size_t>(longest, lengths(list));
  }
  const std::size_t rows = (longest + 15) / 16 * 16;

  workspace memory(policy.scratch, scratch_bytes({lists, hq, entries, longest}), "rerank");
  float* all_tables = memory.take<float>(lists * 4 * entries);
  float* sums = memory.take<float>(lists * padded * rows);
  float* scores = memory.take<float>(lists * rows);

  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    policy.runner.run(lists, [&](std::size_t list) {
      const std::size_t row_head = list / lists_per_head, head = map.head(row_head), n = lengths(list),
                        k = std::min<std::size_t>(n, ranges(row_head).retrieve);
      const std::int32_t* tokens = shortlist.data + list * shortlist.stride(0);
      std::int32_t* out = indices.data + list * indices.stride(0);
      const detail::rerank_scratch own{all_tables + list * 4 * entries, sums + list * padded * rows, scores + list * rows, rows};
      detail::in_float_environment([&] {
        detail::shortlist_scorer<detail::simd_kernels<decltype(isa)>> scorer(own, tables, params, list * g, g);
        scorer.score({codes.coarse.data + head * codes.coarse.stride(0), codes.coarse.stride(1),
                      codes.fine.data + head * codes.fine.stride(0), codes.fine.stride(1)},
                     tokens, n, skipped.data == nullptr ? nullptr : &skipped(list * g));
      });
      const exec::host<typename P::isa_type> here;
      top_k(here, as_const(make_view(own.scores, std::size_t{1}, n)), make_view(out, std::size_t{1}, k));
      for (std::size_t i = 0; i < k; ++i) out[i] = tokens[out[i]];
      std::fill_n(out + k, indices.extent(1) - k, -1);
      counts(list) = static_cast<std::uint32_t>(k);
    });
  });
}

PQKV_HOST_OPERATION(op::rerank, const two_stage_table<>&, const two_stage_codes<>&, view<const std::int32_t, 2>,
                    view<const std::uint32_t, 1>, view<const middle_range, 1>, view<std::int32_t, 2>, view<std::uint32_t, 1>,
                    const rerank_params&, view<std::uint8_t, 1>, const head_map<>&)

}  // namespace pqkv
