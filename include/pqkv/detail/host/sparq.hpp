// SPDX-License-Identifier: Apache-2.0
// Scores from some coordinates of keys on the host. A task is one list; its query heads share the coordinates and each key's values there.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../../exec/host.hpp"
#include "../../selector/sparq.hpp"
#include "oracle.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::sparse_query_scores, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::sparse_query_scores::sizes& sizes) {
    constexpr std::size_t most = static_cast<std::size_t>(-1);  // stands for more than can be counted
    const std::size_t row = (sizes.tokens + sizes.head_dim) * sizeof(float) + 2 * cache_line_bytes;
    return sizes.query_heads <= most / row ? sizes.query_heads * row : most;
  }

  template <class P, class Store>
  static void run(const P& policy, view<const float, 2> query, const Store& store, view<const middle_range, 1> ranges, std::size_t r,
                  group_reduction reduction, view<float, 2> scores, float softmax_scale);

 private:
  using exact = kernel<op::exact_scores, backend::host>;

  /// chosen[0, r), ascending: the coordinates with the largest sum of magnitudes over the query heads that are finite.
  template <class Kernels>
  static void choose(view<const float, 2> query, std::size_t r, std::uint16_t* chosen) {
    const std::size_t d = query.extent(1);
    double sums[max_head_dim] = {};
    for (std::size_t q = 0; q < query.extent(0); ++q)
      if (Kernels::all_finite(&query(q, 0), d))
        for (std::size_t i = 0; i < d; ++i) sums[i] += std::fabs(static_cast<double>(query(q, i)));
    std::iota(chosen, chosen + d, std::uint16_t{0});
    const auto is_before = [&](std::uint16_t a, std::uint16_t b) { return sums[a] != sums[b] ? sums[a] > sums[b] : a < b; };
    if (r < d) std::nth_element(chosen, chosen + r, chosen + d, is_before);
    std::sort(chosen, chosen + r);
  }

  /// The chosen coordinates of one query head, times what makes up for the others in the softmax.
  static void gather_query(const float* query, std::size_t d, const std::uint16_t* chosen, std::size_t r, float* out) {
    double all = 0, kept = 0;
    for (std::size_t i = 0; i < d; ++i) all += std::fabs(static_cast<double>(query[i]));
    if (r == d) kept = all;
    for (std::size_t i = 0; i < r && r < d; ++i) kept += std::fabs(static_cast<double>(query[chosen[i]]));
    const auto factor = kept == 0 ? 1.0f : static_cast<float>(std::sqrt(all / kept));  // of zeros, any will do
    for (std::size_t i = 0; i < r; ++i) out[i] = query[chosen[i]] * factor;
  }

  template <class Kernels, class Store>
  static void dots(view<const float, 2> query, const float* gathered, const Store& store, std::size_t head, middle_range range,
                   const std::uint16_t* chosen, std::size_t r, float* logits, std::size_t stride) {
    alignas(cache_line_bytes) float key[max_head_dim];
    for (std::size_t i = 0; i < range.size(); ++i) {
      const auto row = store.key(head, range.begin + i);
      for (std::size_t x = 0; x < r; ++x) key[x] = row[chosen[x]];
      Kernels::group_dots(gathered, query.extent(0), key, r, logits + i, stride);
      for (std::size_t q = 0; q < query.extent(0); ++q)
        if (!is_finite(logits[q * stride + i])) logits[q * stride + i] = exact::lowest;
    }
    for (std::size_t q = 0; q < query.extent(0); ++q)  // one that is not finite may be so outside the chosen coordinates alone
      if (!Kernels::all_finite(&query(q, 0), query.extent(1))) std::fill_n(logits + q * stride, range.size(), exact::lowest);
  }
};

template <class P, class Store>
void kernel<op::sparse_query_scores, backend::host>::run(const P& policy, view<const float, 2> query, const Store& store,
                                                         view<const middle_range, 1> ranges, std::size_t r, group_reduction reduction,
                                                         view<float, 2> scores, float softmax_scale) {
  const std::size_t h = store.heads(), hq = query.extent(0), lists = scores.extent(0), g = hq / lists, lists_per_head = lists / h;
  std::size_t longest = 0;
  for (std::size_t head = 0; head < h; ++head) {
    longest = std::max<std::size_t>(longest, ranges(head).size());
    require_ok(detail::checks("sparse_query_scores")
                   .at_most("ranges.end", ranges(head).end, store.tokens(), "n, from store")
                   .at_most("ranges.size", ranges(head).size(), scores.extent(1), "scores.extent(1)"));
  }
  workspace memory(policy.scratch, scratch_bytes({hq, longest, store.head_dim()}), "sparse_query_scores");
  float* logits = memory.take<float>(hq * longest);
  float* gathered = memory.take<float>(hq * r);
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    detail::run_tasks(policy, lists, [&](std::size_t list) {
      const std::size_t head = list / lists_per_head, n = ranges(head).size();
      const auto own_query = query.slice(0, list * g, g);
      float *const own = logits + list * g * longest, *const own_gathered = gathered + list * g * r;
      std::uint16_t chosen[max_head_dim];
      choose<kernels>(own_query, r, chosen);
      for (std::size_t q = 0; q < g; ++q) gather_query(&own_query(q, 0), own_query.extent(1), chosen, r, own_gathered + q * r);
      dots<kernels>(own_query, own_gathered, store, head, ranges(head), chosen, r, own, longest);
      const auto scale = canonical::softmax_scale::of(store.head_dim(), softmax_scale);
      exact::template reduce<kernels>(own, longest, g, n, scale, reduction, scores.data + list * scores.stride(0));
    });
  });
}

PQKV_HOST_OPERATION(op::sparse_query_scores, view<const float, 2>, const strided_store<float>&, view<const middle_range, 1>, std::size_t,
                    group_reduction, view<float, 2>, float)
PQKV_HOST_OPERATION(op::sparse_query_scores, view<const float, 2>, const mapped_store<strided_rows<float>>&, view<const middle_range, 1>,
                    std::size_t, group_reduction, view<float, 2>, float)
PQKV_HOST_OPERATION(op::sparse_query_scores, view<const float, 2>, const mapped_store<strided_rows<bfloat16>>&, view<const middle_range, 1>,
                    std::size_t, group_reduction, view<float, 2>, float)

}  // namespace pqkv
