// SPDX-License-Identifier: Apache-2.0
// Attention on the host. A list of tokens is cut into parts of at most attention_part_tokens. A task is one part for up to 8 query heads,
// which share each K and V row. So one sequence with few heads still gives every core work, and so does a batch of sequences of unequal
// lengths. Within a part, the softmax is online over tiles of 32 tokens. While a tile's row is read, the same row of the next tile is
// prefetched. Each tile's weighted values are summed separately first, which keeps float sums over 10^5 tokens accurate. Parts are merged
// in ascending order. Their boundaries depend on the list's length alone, so the number of threads and the other sequences change no bit of
// the result.
#pragma once

#include <algorithm>

#include "../../attention.hpp"
#include "../../core/arena.hpp"
#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "attention_sum.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// At d = 128 in 16 bits, a tile and the next one, being prefetched, fit in a first-level cache of 48 KiB; two tiles of 64 tokens do not.
// measured: bench/attention dense, one Zen 5 core, 2026-11-23: 64 tokens 9 to 15 GB/s, 32 tokens 17 to 18
inline constexpr std::size_t attention_tile_tokens = 32;

/// A list's tokens, in the order attention reads them.
class attended_tokens {
 public:
  attended_tokens(const token_set<>& tokens, std::size_t list)
      : span_(tokens.spans(list)),
        indices_(tokens.indices.data == nullptr ? nullptr : tokens.indices.data + list * tokens.indices.stride(0)),
        listed_(span_.leading + (tokens.indices.data == nullptr ? 0 : tokens.counts(list))) {}

  std::size_t size() const { return listed_ + (span_.window_end > span_.window_begin ? span_.window_end - span_.window_begin : 0); }
  std::size_t parts() const { return attention_parts(size()); }
  std::size_t operator[](std::size_t i) const {
    return i < span_.leading ? i : i < listed_ ? static_cast<std::size_t>(indices_[i - span_.leading]) : span_.window_begin + (i - listed_);
  }
  /// The first token of a part, which is also the first of a tile. The lengths of parts differ by one tile at most.
  std::size_t begin(std::size_t part) const {
    const std::size_t tiles = (size() + attention_tile_tokens - 1) / attention_tile_tokens;
    return std::min(size(), part * tiles / parts() * attention_tile_tokens);
  }

 private:
  token_span span_;
  const std::int32_t* indices_;
  std::size_t listed_;
};

/// One part of a list for up to attention_max_queries query heads of one KV head.
template <class Kernels, class Store>
class attention_part {
  using row_type = kv_row<typename Store::value_type>;
  using T = typename row_type::element_type;
  static constexpr bool has_scales = std::is_same_v<typename Store::value_type, scaled_int8>;

 public:
  using sum_type = attention_sum<Kernels, T>;

  attention_part(const Store& store, std::size_t head, const attended_tokens& tokens, const view<const float, 2>& query, std::size_t first,
                 std::size_t queries, float scale)
      : store_(store),
        tokens_(tokens),
        head_(head),
        g_(queries),
        d_(store.head_dim()),
        stride_(attention_row_floats(d_)),
        scale_(canonical::softmax_scale::of(d_, scale)) {
    std::fill_n(query_, attention_max_queries * stride_, 0.0f);
    std::fill_n(weight_, attention_max_queries * attention_tile_tokens, 0.0f);
    for (std::size_t q = 0; q < g_; ++q)
      for (std::size_t i = 0; i < d_; ++i) query_[q * stride_ + sum_type::place(i)] = query(first + q, i);
  }

  void run(std::size_t first, std::size_t last, sum_type& sum) {
    tile tiles[2]{};  // the zeros silence compiler warnings in the caller's build; fill() writes all that is read
    std::size_t now = 0;
    fill(tiles[0], first, last);
    touch(tiles[0]);
    for (std::size_t t = first; t < last; t += attention_tile_tokens, now ^= 1) {
      if (last - t > attention_tile_tokens) {
        fill(tiles[now ^ 1], t + attention_tile_tokens, last);
        add(tiles[now], tiles[now ^ 1], sum);
      } else {
        add(tiles[now], tiles[now], sum);
      }
    }
  }

  canonical::softmax_scale scale() const { return scale_; }

 private:
  struct no_scales {};
  struct row_scales {
    const float *keys[attention_tile_tokens], *values[attention_tile_tokens];
  };
  using scales_of_rows = std::conditional_t<has_scales, row_scales, no_scales>;
  struct tile {
    std::size_t count;
    bool contiguous;
    const T* keys[attention_tile_tokens];  // places after the last row repeat the last row
    const T* values[attention_tile_tokens];
    std::size_t key_strides, value_strides;
    scales_of_rows scales;
  };

  void fill(tile& to, std::size_t first, std::size_t last) const {
    to.count = std::min(attention_tile_tokens, last - std::min(first, last));
    to.contiguous = true;
    for (std::size_t i = 0; i < to.count; ++i) {
      const std::size_t token = tokens_[first + i];
      const row_type key = store_.key(head_, token), value = store_.value(head_, token);
      to.keys[i] = key.data;
      to.values[i] = value.data;
      to.contiguous &= key.stride == 1 && value.stride == 1;
      to.key_strides = key.stride;
      to.value_strides = value.stride;
      if constexpr (has_scales) {
        to.scales.keys[i] = key.scale;
        to.scales.values[i] = value.scale;
        __builtin_prefetch(key.scale);  // may be on another cache line
      }
    }
    for (std::size_t i = to.count; to.count != 0 && i < attention_tile_tokens; ++i) {
      to.keys[i] = to.keys[to.count - 1];
      to.values[i] = to.values[to.count - 1];
    }
  }

  void touch(const tile& some) const {
    if (!some.contiguous) return;
    for (std::size_t i = 0; i < some.count; ++i)
      for (std::size_t byte = 0; byte < d_ * sizeof(T); byte += cache_line_bytes) {
        __builtin_prefetch(reinterpret_cast<const char*>(some.keys[i]) + byte);
        __builtin_prefetch(reinterpret_cast<const char*>(some.values[i]) + byte);
      }
  }

  void add(const tile& now, const tile& next, sum_type& sum) {
    if (now.contiguous) {
      const rows_ahead<T> ahead{next.keys, next.values};
      Kernels::tile_dots(query_, stride_, g_, now.keys, now.count, d_, ahead, weight_, attention_tile_tokens);
      weigh(now, sum);
      Kernels::tile_add(sum.sums(), stride_, g_, weight_, attention_tile_tokens, now.values, now.count, d_, ahead);
      return;
    }
    if constexpr (!has_scales) add_strided(now, sum);
  }

  /// Turns logits into weights. If rows have scales, a key's scale multiplies its logit before the softmax, and a value's scale its weight
  /// after it.
  void weigh(const tile& now, sum_type& sum) {
    if constexpr (has_scales) {
      alignas(cache_line_bytes) float of_keys[attention_tile_tokens], of_values[attention_tile_tokens];
      for (std::size_t i = 0; i < attention_tile_tokens; ++i) {
        of_keys[i] = *now.scales.keys[std::min(i, now.count - 1)];
        of_values[i] = *now.scales.values[std::min(i, now.count - 1)];
      }
      for (std::size_t q = 0; q < g_; ++q) {
        float* const weight = weight_ + q * attention_tile_tokens;
        for (std::size_t i = 0; i < attention_tile_tokens; ++i) weight[i] *= of_keys[i];
        sum.weigh(q, weight, now.count, scale_);
        for (std::size_t i = 0; i < attention_tile_tokens; ++i) weight[i] *= of_values[i];
      }
    } else {
      for (std::size_t q = 0; q < g_; ++q) sum.weigh(q, weight_ + q * attention_tile_tokens, now.count, scale_);
    }
  }

  void add_strided(const tile& now, sum_type& sum) {
    for (std::size_t i = 0; i < now.count; i += tile_row_padding) {
      const std::size_t count = std::min(tile_row_padding, now.count - i);
      copy_rows(now.keys + i, now.key_strides, count);
      Kernels::tile_dots(query_, stride_, g_, copies_, count, d_, rows_ahead<T>{copies_, copies_}, weight_ + i, attention_tile_tokens);
    }
    for (std::size_t q = 0; q < g_; ++q) sum.weigh(q, weight_ + q * attention_tile_tokens, now.count, scale_);
    for (std::size_t i = 0; i < now.count; i += tile_row_padding) {
      const std::size_t count = std::min(tile_row_padding, now.count - i);
      copy_rows(now.values + i, now.value_strides, count);
      Kernels::tile_add(sum.sums(), stride_, g_, weight_ + i, attention_tile_tokens, copies_, count, d_, rows_ahead<T>{copies_, copies_});
    }
  }

  /// Copies strided rows to contiguous ones. Places after the last row repeat the last row.
  void copy_rows(const T* const* rows, std::size_t stride, std::size_t count) {
    for (std::size_t r = 0; r < tile_row_padding; ++r) {
      copies_[r] = copy_ + std::min(r, count - 1) * stride_;
      for (std::size_t i = 0; r < count && i < d_; ++i) copy_[r * stride_ + i] = rows[r][i * stride];
    }
  }

  const Store& store_;
  const attended_tokens& tokens_;
  std::size_t head_, g_, d_, stride_;
  canonical::softmax_scale scale_;
  alignas(cache_line_bytes) float query_[attention_max_queries * 256];
  alignas(cache_line_bytes) float weight_[attention_max_queries * attention_tile_tokens];
  const T* copies_[tile_row_padding];
  alignas(cache_line_bytes) T copy_[tile_row_padding * 256];
};

/// The arguments of one call, and its tasks.
template <class Kernels, class Store>
struct attention_call {
  using part_type = attention_part<Kernels, Store>;
  using sum_type = typename part_type::sum_type;

  const view<const float, 2>& query;
  const Store& store;
  const token_set<>& tokens;
  const view<float, 2>& out;
  const view<float, 1>& lse;
  float scale;  // of the logits; 0: 1 / sqrt(d)

  std::size_t lists() const { return tokens.spans.extent(0); }
  std::size_t group() const { return query.extent(0) / lists(); }
  std::size_t shares() const { return (group() + attention_max_queries - 1) / attention_max_queries; }  // parts of a list's query heads
  std::size_t partial_floats() const { return attention_row_floats(store.head_dim()) + 2; }

  /// The query heads of one share of a list: the number of the first, and how many.
  std::size_t first(std::size_t list, std::size_t share) const { return list * group() + share * attention_max_queries; }
  std::size_t queries(std::size_t share) const { return std::min(attention_max_queries, group() - share * attention_max_queries); }

  void finish(const sum_type& sum, std::size_t list, std::size_t share) const {
    for (std::size_t q = 0; q < queries(share); ++q) {
      const std::size_t row = first(list, share) + q;
      const float log_sum = sum.finish(q, &out(row, 0), canonical::logit_factor(store.head_dim(), scale));
      if (lse.data != nullptr) lse(row) = log_sum;
    }
  }

  /// Attends to one part of a list. Writes to `partials` [parts of the list, g, partial_floats], or to out if the list has one part.
  void part(std::size_t list, std::size_t share, std::size_t part, float* partials) const {
    const attended_tokens attended(tokens, list);
    const std::size_t head = list / (lists() / store.heads());
    part_type work(store, head, attended, query, first(list, share), queries(share), scale);
    sum_type sum(queries(share), store.head_dim());
    work.run(attended.begin(part), attended.begin(part + 1), sum);
    if (attended.parts() == 1)
      finish(sum, list, share);
    else
      sum.write(partials + (part * group() + share * attention_max_queries) * partial_floats(), partial_floats());
  }

  /// Merges the parts of a list.
  void merge_parts(std::size_t list, std::size_t share, const float* partials) const {
    sum_type sum(queries(share), store.head_dim());
    const auto factor = canonical::softmax_scale::of(store.head_dim(), scale);
    for (std::size_t p = 0; p < attended_tokens(tokens, list).parts(); ++p)
      sum.add(partials + (p * group() + share * attention_max_queries) * partial_floats(), partial_floats(), factor);
    finish(sum, list, share);
  }

  /// All parts of a list in one task; the result has the same bits.
  void whole(std::size_t list, std::size_t share) const {
    const attended_tokens attended(tokens, list);
    if (attended.parts() == 1) return part(list, share, 0, nullptr);
    float partial[attention_max_queries * (256 + 2)];
    sum_type all(queries(share), store.head_dim());
    part_type work(store, list / (lists() / store.heads()), attended, query, first(list, share), queries(share), scale);
    for (std::size_t p = 0; p < attended.parts(); ++p) {
      sum_type sum(queries(share), store.head_dim());
      work.run(attended.begin(p), attended.begin(p + 1), sum);
      sum.write(partial, partial_floats());
      all.add(partial, partial_floats(), work.scale());
    }
    finish(all, list, share);
  }
};

}  // namespace detail

template <>
struct kernel<op::attention, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::attention::sizes& sizes) { return detail::attention_host_scratch_bytes(sizes); }

  template <class P, class Store>
  static void run(const P& policy, view<const float, 2> query, const Store& store, const token_set<>& tokens, view<float, 2> out,
                  view<float, 1> lse, float scale);

 private:
  static std::size_t partial_bytes(std::size_t lists, std::size_t partial_floats) {
    arena count;
    count.take<std::uint32_t>(lists + 1);
    count.take<float>(partial_floats);
    return count.used_bytes();
  }
};

template <class P, class Store>
void kernel<op::attention, backend::host>::run(const P& policy, view<const float, 2> query, const Store& store, const token_set<>& tokens,
                                               view<float, 2> out, view<float, 1> lse, float scale) {
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    const detail::attention_call<detail::simd_kernels<decltype(isa)>, Store> call{query, store, tokens, out, lse, scale};
    const std::size_t lists = call.lists(), shares = call.shares();
    std::size_t parts = 0;
    for (std::size_t list = 0; list < lists; ++list) parts += detail::attended_tokens(tokens, list).parts();
    if (parts == lists || !exec::runs_whole_call<typename P::runner_type>) {  // a slice runner's calls cannot share memory for partial sums
      detail::run_tasks(policy, lists * shares, [&](std::size_t task) { call.whole(task / shares, task % shares); });
      return;
    }
    const std::size_t list_floats = call.group() * call.partial_floats();
    workspace scratch(policy.scratch, partial_bytes(lists, parts * list_floats), "attention");
    auto* const first = scratch.template take<std::uint32_t>(lists + 1);
    auto* const partials = scratch.template take<float>(parts * list_floats);
    first[0] = 0;
    for (std::size_t list = 0; list < lists; ++list)
      first[list + 1] = first[list] + static_cast<std::uint32_t>(detail::attended_tokens(tokens, list).parts());
    detail::run_tasks(policy, parts * shares, [&](std::size_t task) {
      const std::size_t part = task / shares;
      const auto list = static_cast<std::size_t>(std::upper_bound(first, first + lists, part) - first) - 1;
      call.part(list, task % shares, part - first[list], partials + first[list] * list_floats);
    });
    detail::run_tasks(policy, lists * shares, [&](std::size_t task) {
      const std::size_t list = task / shares;
      if (first[list + 1] - first[list] > 1) call.merge_parts(list, task % shares, partials + first[list] * list_floats);
    });
  });
}

PQKV_HOST_OPERATION(op::attention, view<const float, 2>, const strided_store<float>&, const token_set<>&, view<float, 2>, view<float, 1>,
                    float)
PQKV_HOST_OPERATION(op::attention, view<const float, 2>, const strided_store<half>&, const token_set<>&, view<float, 2>, view<float, 1>,
                    float)
PQKV_HOST_OPERATION(op::attention, view<const float, 2>, const strided_store<bfloat16>&, const token_set<>&, view<float, 2>, view<float, 1>,
                    float)
PQKV_HOST_OPERATION(op::attention, view<const float, 2>, const mapped_store<strided_rows<float>>&, const token_set<>&, view<float, 2>,
                    view<float, 1>, float)
PQKV_HOST_OPERATION(op::attention, view<const float, 2>, const mapped_store<strided_rows<half>>&, const token_set<>&, view<float, 2>,
                    view<float, 1>, float)
PQKV_HOST_OPERATION(op::attention, view<const float, 2>, const mapped_store<strided_rows<bfloat16>>&, const token_set<>&, view<float, 2>,
                    view<float, 1>, float)

}  // namespace pqkv
