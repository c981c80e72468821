// SPDX-License-Identifier: Apache-2.0
// Softmax sums of attended tokens on the host. A task is a KV head. Its keys are transposed in tiles of 64 tokens, so that the canonical
// inner product, a chain over coordinates, runs for many tokens at once, as it does for centroids.
#pragma once

#include <algorithm>

#include "../../exec/host.hpp"
#include "../../selector/attended_sum.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::sum_attended, backend::host> {
  template <class P, class Store>
  static void run(const P& policy, view<const float, 2> query, const Store& store, view<const token_span, 1> spans,
                  view<attended_sum, 1> sums, float scale, view<const middle_range, 1> ranges = {});

 private:
  static constexpr std::size_t tile_tokens = op::sum_attended::tile_tokens;

  /// Adds a span's tokens to the sums of query heads [first, first + count).
  template <class Kernels, class Store>
  static void add_span(view<const float, 2> query, const Store& store, std::size_t head, const token_span& span, std::size_t first,
                       std::size_t count, canonical::softmax_scale softmax, view<attended_sum, 1> sums) {
    add_tokens<Kernels>(query, store, head, 0, span.leading, first, count, softmax, sums);
    add_tokens<Kernels>(query, store, head, span.window_begin, span.window_end, first, count, softmax, sums);
  }

  template <class Kernels, class Store>
  static void add_tokens(view<const float, 2> query, const Store& store, std::size_t head, std::size_t begin, std::size_t end,
                         std::size_t first, std::size_t count, canonical::softmax_scale softmax, view<attended_sum, 1> sums) {
    const std::size_t d = store.head_dim();
    alignas(cache_line_bytes) float keys[max_head_dim * tile_tokens];  // [d, tile]
    alignas(cache_line_bytes) float copy[max_head_dim], logits[tile_tokens];
    for (; begin < end; begin += tile_tokens) {
      const std::size_t tokens = std::min(tile_tokens, end - begin);
      for (std::size_t t = 0; t < tile_tokens; ++t) {  // a short tile repeats its last token
        const float* const key = detail::load_row<Kernels>(store.key(head, begin + std::min(t, tokens - 1)), d, copy);
        for (std::size_t i = 0; i < d; ++i) keys[i * tile_tokens + t] = key[i];
      }
      for (std::size_t q = first; q < first + count; ++q) {
        Kernels::inner_products(&query(q, 0), keys, tile_tokens, d, logits);
        sums(q) = sums(q).merged(sum_of(logits, tokens, softmax), softmax);
      }
    }
  }

  static attended_sum sum_of(const float* logits, std::size_t count, canonical::softmax_scale softmax) {
    attended_sum sum;
    bool found = false;
    for (std::size_t i = 0; i < count; ++i)
      if (is_finite(logits[i]) && (!found || logits[i] > sum.top)) sum.top = logits[i], found = true;
    for (std::size_t i = 0; found && i < count; ++i)
      if (is_finite(logits[i])) sum.weight += canonical::to_fixed(canonical::exponential(canonical::sub(logits[i], sum.top), softmax));
    return sum;
  }
};

template <class P, class Store>
void kernel<op::sum_attended, backend::host>::run(const P& policy, view<const float, 2> query, const Store& store,
                                                  view<const token_span, 1> spans, view<attended_sum, 1> sums, float scale,
                                                  view<const middle_range, 1> ranges) {
  const std::size_t h = store.heads(), g = query.extent(0) / h, lists_per_head = spans.extent(0) / h;
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    detail::run_tasks(policy, h, [&](std::size_t head) {
      const auto softmax = canonical::softmax_scale::of(store.head_dim(), scale);
      for (std::size_t q = head * g; q < (head + 1) * g; ++q) sums(q) = {};
      if (ranges.data != nullptr && ranges(head).size() == 0) return;
      if (lists_per_head == 1) return add_span<kernels>(query, store, head, spans(head), head * g, g, softmax, sums);
      for (std::size_t q = head * g; q < (head + 1) * g; ++q) add_span<kernels>(query, store, head, spans(q), q, 1, softmax, sums);
    });
  });
}

PQKV_HOST_OPERATION(op::sum_attended, view<const float, 2>, const strided_store<float>&, view<const token_span, 1>, view<attended_sum, 1>,
                    float, view<const middle_range, 1>)
PQKV_HOST_OPERATION(op::sum_attended, view<const float, 2>, const mapped_store<strided_rows<float>>&, view<const token_span, 1>,
                    view<attended_sum, 1>, float, view<const middle_range, 1>)
PQKV_HOST_OPERATION(op::sum_attended, view<const float, 2>, const mapped_store<strided_rows<bfloat16>>&, view<const token_span, 1>,
                    view<attended_sum, 1>, float, view<const middle_range, 1>)

}  // namespace pqkv
