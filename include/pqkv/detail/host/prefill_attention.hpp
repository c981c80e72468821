// SPDX-License-Identifier: Apache-2.0
// Causal attention of a block of queries on the host. A tile has up to 192 rows, each a (query, head) of one KV head, so a group shares
// each widened row of K and V. For every 96 keys the scores are one matrix product, keys times transposed queries, with shape [keys, rows].
// The softmax then runs down columns, without sums across a register, and the rows that must not see a key are a prefix of the key's
// scores. The weighted values are a second product, whose left side is the transpose of those weights.
#pragma once

#include <atomic>
#include <cmath>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../prefill_attention.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

template <class Kernels, class Store>
class prefill_call {
 public:
  prefill_call(const view<const float, 3>& query, const Store& store, std::size_t first, const view<float, 3>& out,
               const view<float, 2>& lse, float scale)
      : query_(query),
        store_(store),
        out_(out),
        lse_(lse),
        first_(first),
        g_(query.extent(0) / store.heads()),
        d_(store.head_dim()),
        stride_(prefill_row_floats(d_)),
        factor_(scale),
        scale_(canonical::softmax_scale::of(d_, scale)) {}

  std::size_t head_dim() const { return d_; }
  std::size_t tiles() const { return prefill_tiles(store_.heads(), query_.extent(0), query_.extent(1)); }

  /// Tile 0 has the most keys.
  void run(std::size_t tile, const prefill_slot& in) const {
    const std::size_t head = tile % store_.heads(), all = g_ * query_.extent(1);
    const rows_of_queries rows(head, (tiles() - 1 - tile) / store_.heads() * prefill_tile_rows, all);
    start(rows, in);
    const std::size_t keys = position(rows, rows.count - 1) + 1;
    for (std::size_t begin = 0; begin < keys; begin += prefill_tile_keys) add(rows, begin, std::min(prefill_tile_keys, keys - begin), in);
    finish(rows, in);
  }

 private:
  static constexpr std::size_t width = prefill_tile_rows, lines = 16;

  /// Rows [first, first + count) of a KV head. Row r is query r / g of head r % g.
  struct rows_of_queries {
    rows_of_queries(std::size_t of_head, std::size_t from, std::size_t all)
        : head(of_head), first(from), count(std::min(width, all - from)) {}
    std::size_t head, first, count;
  };

  static std::size_t whole_registers(std::size_t n) { return (n + lines - 1) / lines * lines; }
  std::size_t position(const rows_of_queries& rows, std::size_t r) const { return first_ + (rows.first + r) / g_; }
  /// How many rows of the tile stand before a key and must not see it: the first ones.
  std::size_t blind(const rows_of_queries& rows, std::size_t key) const {
    const std::size_t row = key <= first_ ? 0 : (key - first_) * g_;
    return row <= rows.first ? 0 : row - rows.first;
  }

  void start(const rows_of_queries& rows, const prefill_slot& in) const {
    for (std::size_t r = 0; r < rows.count; ++r) {
      const float* query = &query_(rows.head * g_ + (rows.first + r) % g_, (rows.first + r) / g_, 0);
      for (std::size_t i = 0; i < d_; ++i) in.queries[i * width + r] = query[i];
    }
    for (std::size_t i = 0; i < d_; ++i) std::fill_n(in.queries + i * width + rows.count, whole_registers(rows.count) - rows.count, 0.0f);
    for (std::size_t t = 0; t < prefill_tile_keys; ++t) std::fill_n(in.values + t * stride_ + d_, stride_ - d_, 0.0f);
    std::fill_n(in.sums, rows.count * stride_, 0.0f);
    std::fill_n(in.tops, rows.count, float_from_bits(0xff800000u));
    std::fill_n(in.totals, rows.count, 0.0);
    std::fill_n(in.broken, rows.count, 0u);
  }

  void add(const rows_of_queries& rows, std::size_t begin, std::size_t count, const prefill_slot& in) const {
    for (std::size_t t = 0; t < count; ++t) {
      copy(store_.key(rows.head, begin + t), in.keys + t * stride_);
      copy(store_.value(rows.head, begin + t), in.values + t * stride_);
    }
    Kernels::template matrix_product<matrix_result::replaced>(in.keys, stride_, 1, count, in.queries, width, d_,
                                                              whole_registers(rows.count), in.weights, width);
    weigh(rows, begin, count, in);
    const std::size_t columns = whole_registers(d_);
    if (blind(rows, begin + count - 1) == 0 || finite(in.values, count)) {
      Kernels::template matrix_product<matrix_result::added>(in.weights, 1, width, rows.count, in.values, stride_, count, columns, in.sums,
                                                             stride_);
      return;
    }
    // A weight of zero does not keep an infinity out of the sum of a row that must not see it: 0 times infinity is a NaN.
    for (std::size_t r = 0; r < rows.count; ++r) {
      const std::size_t seen = position(rows, r) + 1 - std::min(begin, position(rows, r) + 1);
      Kernels::template matrix_product<matrix_result::added>(in.weights + r, 1, width, 1, in.values, stride_, std::min(seen, count),
                                                             columns, in.sums + r * stride_, stride_);
    }
  }

  /// Turns logits into weights relative to the running maxima. Every row sees key 0, so its maximum is a number after the first tile.
  void weigh(const rows_of_queries& rows, std::size_t begin, std::size_t count, const prefill_slot& in) const {
    std::copy_n(in.tops, rows.count, in.before);
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t hidden = blind(rows, begin + t);
      Kernels::column_tops(in.weights + t * width + hidden, rows.count - hidden, in.tops + hidden, in.broken + hidden);
    }
    for (std::size_t r = 0; begin != 0 && r < rows.count; ++r) {
      if (in.tops[r] == in.before[r] || in.broken[r] != 0) continue;
      const float shrink = canonical::exponential(in.before[r] - in.tops[r], scale_);
      in.totals[r] *= static_cast<double>(shrink);
      Kernels::tile_scale(in.sums + r * stride_, stride_, shrink);
    }
    std::fill_n(in.tile_totals, rows.count, 0.0f);
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t hidden = blind(rows, begin + t), seen = rows.count - hidden;
      float* const weights = in.weights + t * width;
      std::fill_n(weights, hidden, 0.0f);
      Kernels::column_lower(weights + hidden, seen, in.tops + hidden);
      Kernels::exponentials(weights + hidden, seen, scale_, weights + hidden);
      Kernels::column_totals(weights + hidden, seen, in.tile_totals + hidden);
    }
    for (std::size_t r = 0; r < rows.count; ++r) in.totals[r] += static_cast<double>(in.tile_totals[r]);
  }

  void finish(const rows_of_queries& rows, const prefill_slot& in) const {
    const float nan = float_from_bits(0x7fc00000u);
    const double factor = canonical::logit_factor(d_, factor_);
    for (std::size_t r = 0; r < rows.count; ++r) {
      const std::size_t head = rows.head * g_ + (rows.first + r) % g_, query = (rows.first + r) / g_;
      const bool broken = in.broken[r] != 0;
      const auto part = static_cast<float>(1 / in.totals[r]);
      float* const out = &out_(head, query, 0);
      for (std::size_t i = 0; i < d_; ++i) out[i] = broken ? nan : in.sums[r * stride_ + i] * part;
      if (lse_.data != nullptr)
        lse_(head, query) = broken ? nan : static_cast<float>(static_cast<double>(in.tops[r]) * factor + std::log(in.totals[r]));
    }
  }

  template <class T>
  void copy(kv_row<T> row, float* to) const {
    const float* found = load_row<Kernels>(row, d_, to);
    if (found != to) std::copy_n(found, d_, to);
  }

  bool finite(const float* values, std::size_t count) const {
    bool all = true;
    for (std::size_t t = 0; t < count; ++t) all = all && Kernels::all_finite(values + t * stride_, d_);
    return all;
  }

  const view<const float, 3>& query_;
  const Store& store_;
  const view<float, 3>& out_;
  const view<float, 2>& lse_;
  std::size_t first_, g_, d_, stride_;
  float factor_;  // of the logits; 0: 1 / sqrt(d)
  canonical::softmax_scale scale_;
};

}  // namespace detail

template <>
struct kernel<op::prefill_attention, backend::host> {
  static std::size_t scratch_bytes(const op::prefill_attention::sizes& s) {
    return std::min(detail::prefill_tiles(s.kv_heads, s.query_heads, s.queries), detail::prefill_slots) *
           detail::prefill_slot::bytes(s.head_dim);
  }

  template <class P, class Store>
  static void run(const P& policy, view<const float, 3> query, const Store& store, std::size_t first, view<float, 3> out,
                  view<float, 2> lse, float scale);
};

template <class P, class Store>
void kernel<op::prefill_attention, backend::host>::run(const P& policy, view<const float, 3> query, const Store& store, std::size_t first,
                                                       view<float, 3> out, view<float, 2> lse, float scale) {
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    const detail::prefill_call<detail::simd_kernels<decltype(isa)>, Store> call(query, store, first, out, lse, scale);
    const std::size_t tiles = call.tiles(), slots = std::min(tiles, detail::prefill_slots);
    if (tiles == 0) return;
    const std::size_t slot_bytes = detail::prefill_slot::bytes(store.head_dim());
    workspace scratch(policy.scratch, slots * slot_bytes, "prefill_attention");
    auto* const memory = scratch.template take<std::byte>(slots * slot_bytes);
    std::atomic<std::size_t> next{0};
    // A task owns a slot of scratch and takes the next free tile, longest first. If the runner's other threads make this call too, a task
    // takes every slots-th tile instead.
    detail::run_tasks(policy, slots, [&](std::size_t task) {
      arena own(memory + task * slot_bytes, slot_bytes);
      const detail::prefill_slot slot(own, call.head_dim());
      if constexpr (exec::runs_whole_call<typename P::runner_type>)
        for (std::size_t tile = next++; tile < tiles; tile = next++) call.run(tile, slot);
      else
        for (std::size_t tile = task; tile < tiles; tile += slots) call.run(tile, slot);
    });
  });
}

PQKV_HOST_OPERATION(op::prefill_attention, view<const float, 3>, const strided_store<float>&, std::size_t, view<float, 3>, view<float, 2>,
                    float)
PQKV_HOST_OPERATION(op::prefill_attention, view<const float, 3>, const mapped_store<strided_rows<float>>&, std::size_t, view<float, 3>,
                    view<float, 2>, float)
PQKV_HOST_OPERATION(op::prefill_attention, view<const float, 3>, const mapped_store<strided_rows<bfloat16>>&, std::size_t, view<float, 3>,
                    view<float, 2>, float)

}  // namespace pqkv
