// SPDX-License-Identifier: Apache-2.0
// Attention that tokens receive, on the host. A task is a list, or of a long causal call one of up to four strips of a list's rows. The
// strips do not depend on the number of threads, and are added up in order. Rows of a causal call go through the keys in blocks, as a
// product of matrices.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../selector/received_attention.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::received_attention, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::received_attention::sizes& sizes) {
    constexpr std::size_t most = static_cast<std::size_t>(-1) / 8;  // stands for more than can be counted
    const std::size_t rows = sizes.lists * sizes.rows;
    return rows == 0 || sizes.tokens <= most / sizeof(float) / rows ? rows * sizes.tokens * sizeof(float) + cache_line_bytes : most;
  }

  template <class P, class Store>
  static void run(const P& policy, const weighed_queries& call, const Store& store, view<double, 2> sums, float softmax_scale);

 private:
  static constexpr std::size_t rows_at_once = 32;  // of a causal call: share the keys of a tile
  static constexpr std::size_t tile_keys = 64;
  static constexpr std::size_t most_strips = 4;
  static constexpr float lowest = float_from_bits(0xff800000u);  // -infinity, which stands for a non-finite logit

  struct plan {
    std::size_t rows;     // of a block
    std::size_t blocks;   // of a list
    std::size_t strips;   // tasks of a list
    std::size_t longest;  // tokens that a row attends to, at most
    std::size_t stride;   // from one row's logits to the next
  };
  static bool is_causal(const weighed_queries& call) { return call.tokens.data == nullptr; }
  static plan plan_of(const weighed_queries& call) {
    const std::size_t rows = call.queries.extent(1);
    if (!is_causal(call)) {
      std::uint32_t longest = 0;
      for (std::size_t list = 0; list < call.counts.extent(0); ++list) longest = std::max(longest, call.counts(list));
      return {rows, rows == 0 ? std::size_t{0} : std::size_t{1}, 1, longest, longest};
    }
    const std::size_t block = call.rows_per_token * std::max<std::size_t>(1, rows_at_once / call.rows_per_token);
    const std::size_t blocks = (rows + block - 1) / block;
    const std::size_t longest = call.first_token + rows / call.rows_per_token;
    const std::size_t stride = (longest / tile_keys + 1) * tile_keys + 16;  // a product writes whole tiles; 16: no power of two
    return {block, blocks, std::clamp<std::size_t>(blocks / most_strips, 1, most_strips), longest, stride};
  }

  /// Tokens that a row attends to.
  static std::size_t seen_by(const weighed_queries& call, std::size_t list, std::size_t row) {
    return is_causal(call) ? call.first_token + row / call.rows_per_token + 1 : call.counts(list);
  }

  /// Adds the weights of the rows from `first` on, at most of.rows of them. logits: [of.rows, of.stride]
  template <class Kernels, class Store>
  static void weigh(const weighed_queries& call, const Store& store, std::size_t list, std::size_t first, const plan& of,
                    canonical::softmax_scale scale, float* logits, double* to) {
    const std::size_t count = std::min(of.rows, call.queries.extent(1) - first);
    const std::size_t head = call.first_head + list * call.heads / call.queries.extent(0);
    const std::size_t tokens = seen_by(call, list, first + count - 1);
    if (is_causal(call))
      multiply<Kernels>(&call.queries(list, first, 0), count, store, head, tokens, logits, of.stride);
    else
      dots<Kernels>(&call.queries(list, first, 0), count, store, head, &call.tokens(list, 0), tokens, logits, of.stride);
    for (std::size_t row = 0; row < count; ++row) {
      float* const own = logits + row * of.stride;
      const std::size_t seen = seen_by(call, list, first + row);
      float top = lowest;
      if (!Kernels::tile_top(own, seen, top)) {
        top = lowest;
        for (std::size_t i = 0; i < seen; ++i) {
          if (!is_finite(own[i])) own[i] = lowest;
          top = std::max(top, own[i]);
        }
      }
      if (seen == 0 || top == lowest) continue;
      Kernels::tile_lower(own, seen, top);
      Kernels::exponentials(own, seen, scale, own);
      double total = 0;
      for (std::size_t i = 0; i < seen; ++i) total += static_cast<double>(own[i]);
      const double part = 1 / total;
      for (std::size_t i = 0; i < seen; ++i) to[i] += static_cast<double>(own[i]) * part;
    }
  }

  /// logits[row * stride + i] of the listed tokens.
  template <class Kernels, class Store>
  static void dots(const float* queries, std::size_t rows, const Store& store, std::size_t head, const std::uint32_t* listed,
                   std::size_t tokens, float* logits, std::size_t stride) {
    alignas(cache_line_bytes) float copy[max_head_dim];
    for (std::size_t i = 0; i < tokens; ++i) {
      const float* key = detail::load_row<Kernels>(store.key(head, listed[i]), store.head_dim(), copy);
      Kernels::group_dots(queries, rows, key, store.head_dim(), logits + i, stride);
    }
  }

  /// The same of tokens [0, tokens), by tiles of keys turned on their side; what a tile has too many is zeros.
  template <class Kernels, class Store>
  static void multiply(const float* queries, std::size_t rows, const Store& store, std::size_t head, std::size_t tokens, float* logits,
                       std::size_t stride) {
    const std::size_t d = store.head_dim();
    alignas(cache_line_bytes) float copy[max_head_dim];
    alignas(cache_line_bytes) float tile[max_head_dim * tile_keys];  // [d, tile_keys]
    for (std::size_t begin = 0; begin < tokens; begin += tile_keys) {
      const std::size_t count = std::min(tile_keys, tokens - begin);
      if (count < tile_keys) std::fill_n(tile, d * tile_keys, 0.0f);
      for (std::size_t t = 0; t < count; ++t) {
        const float* key = detail::load_row<Kernels>(store.key(head, begin + t), d, copy);
        for (std::size_t i = 0; i < d; ++i) tile[i * tile_keys + t] = key[i];
      }
      Kernels::template matrix_product<detail::matrix_result::replaced>(queries, d, 1, rows, tile, tile_keys, d, tile_keys, logits + begin,
                                                                        stride);
    }
  }
};

template <class P, class Store>
void kernel<op::received_attention, backend::host>::run(const P& policy, const weighed_queries& call, const Store& store,
                                                        view<double, 2> sums, float softmax_scale) {
  const plan of = plan_of(call);
  if (of.longest == 0 || of.blocks == 0) return;
  require_ok(detail::checks("received_attention").at_most("tokens", of.longest, sums.extent(1), "sums.extent(1)"));
  const std::size_t lists = sums.extent(0), tasks = lists * of.strips;
  P working = policy;
  if (is_causal(call)) working.scratch = arena();  // from the heap
  const std::size_t partial = of.strips == 1 ? 0 : tasks * of.longest;
  workspace memory(working.scratch,
                   scratch_bytes({tasks, of.rows, of.stride}) + (partial == 0 ? 0 : partial * sizeof(double) + cache_line_bytes),
                   "received_attention");
  float* const logits = memory.take<float>(tasks * of.rows * of.stride);
  double* const partials = partial == 0 ? nullptr : memory.take<double>(partial);
  const auto scale = canonical::softmax_scale::of(store.head_dim(), softmax_scale);
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    detail::run_tasks(policy, tasks, [&](std::size_t task) {
      const std::size_t list = task / of.strips, strip = task % of.strips;
      double* const to = partials == nullptr ? &sums(list, 0) : partials + task * of.longest;
      if (partials != nullptr) std::fill_n(to, of.longest, 0.0);
      for (std::size_t block = strip; block < of.blocks; block += of.strips)
        weigh<detail::simd_kernels<decltype(isa)>>(call, store, list, block * of.rows, of, scale, logits + task * of.rows * of.stride, to);
    });
  });
  if (partials == nullptr) return;
  detail::run_tasks(policy, lists, [&](std::size_t list) {
    for (std::size_t strip = 0; strip < of.strips; ++strip)
      for (std::size_t i = 0; i < of.longest; ++i) sums(list, i) += partials[(list * of.strips + strip) * of.longest + i];
  });
}

PQKV_HOST_OPERATION(op::received_attention, const weighed_queries&, const strided_store<float>&, view<double, 2>, float)
PQKV_HOST_OPERATION(op::received_attention, const weighed_queries&, const mapped_store<strided_rows<float>>&, view<double, 2>, float)
PQKV_HOST_OPERATION(op::received_attention, const weighed_queries&, const mapped_store<strided_rows<bfloat16>>&, view<double, 2>, float)

}  // namespace pqkv
