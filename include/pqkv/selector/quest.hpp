// SPDX-License-Identifier: Apache-2.0
// Selection by pages, as Quest does it. Every page of tokens keeps the least and the largest value of each coordinate of its keys. From
// these follows an upper bound of the inner product of a query with any key of the page. The pages with the highest bounds are taken whole.
// For comparison with other selectors, in host memory only: no CUDA kernel, and its arithmetic is not canonical.
//
// Where this differs from the paper: sinks and window are never ranked, and k counts tokens, so that methods are compared at equal tokens.
// The first and the last page may be only partly in the middle. Such a part gets its own bound, from its keys, for each query.
// Source: Tang, Zhao, Zhu, Xiao, Kasikci, Han, "Quest: Query-aware sparsity for efficient long-context LLM inference", ICML 2024.
#pragma once

#include "../exec/memory.hpp"
#include "concept.hpp"
#include "token_runs.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
/// run(policy, rows, tasks, keys_of): the bounds of runs of keys. Task i calls its second argument for each run that keys_of(i, ...) names.
struct bound_keys {};
}  // namespace op

namespace selector {

/// Keys [first, last) of one head of a store.
struct bounded_keys {
  std::size_t head;
  std::uint32_t first, last;
  float* out;  // [2, d], written: the largest value of each coordinate, then the least; NaNs where no key is finite
};

/// What quest keeps of every slot's pages. A page's bounds are valid from when all its tokens have left the window until one of them is cut
/// off; then the page is computed again when it is whole again.
struct quest_index {
  view<float, 3> bounds;  // [batch * h, pages, 2 d]
  run_table table;
  std::size_t kv_heads;

  /// Computes the pages that the leaving tokens complete. Nobody reads them before the sequence has grown.
  template <exec::policy P, class Rows>
  void encode(const P& policy, const Rows& rows, view<const leaving_tokens, 1> leaving) const {
    detail::run_operation<op::bound_keys>(policy, rows, leaving.extent(0) * kv_heads, [&](std::size_t task, auto bound) {
      const leaving_tokens& tokens = leaving(task / kv_heads);
      const std::size_t head = tokens.slot * kv_heads + task % kv_heads, length = table.length;
      for (std::size_t page = tokens.first / length; (page + 1) * length <= tokens.last; ++page) bound(page_of(head, page));
    });
  }
  /// These do nothing: encode() has computed the pages, and which pages are whole follows from the sequence's length.
  /// @{
  void commit(const leaving_tokens&) const noexcept {}
  void forget(const leaving_tokens&, const sequence&) const noexcept {}
  /// @}
  slot_parts parts() const { return table.parts(bounds, kv_heads); }
  slot_parts learnt_parts() const { return parts(); }

  /// The keys of a whole page.
  bounded_keys page_of(std::size_t head, std::size_t page) const {
    const auto length = static_cast<std::uint32_t>(table.length), first = static_cast<std::uint32_t>(page * length);
    return {head, first, first + length, &bounds(head, page, 0)};
  }
};

/// Ranks pages by upper bounds of their keys' inner products.
class quest {
 public:
  /// Its settings; the page is the paper's.
  struct params {
    std::size_t page_tokens = 16;  // P
    /// How the bounds of a group's query heads become one score of a page. The paper's models have a key head for each query head; with one
    /// query head in a group, all reductions list the same tokens. The default is the other selectors' default, so that a comparison shows
    /// what pages do and not what a reduction does. `none` gives each query head its own list.
    group_reduction reduction = group_reduction::probability_sum;
  };
  /// The largest page.
  static constexpr std::size_t most_page_tokens = 4096;

  static constexpr status can_construct(const cache_shape&, const params& settings) noexcept {
    return pqkv::detail::checks("pqcache")
        .at_least("selector.page_tokens", settings.page_tokens, 1, "tokens of a page")
        .at_most("selector.page_tokens", settings.page_tokens, most_page_tokens, "tokens of a page");
  }
  static constexpr std::size_t index_bytes(const cache_shape& shape, const params& settings) {
    arena count;
    place(count, shape, settings);
    return count.used_bytes();
  }
  template <exec::policy P>
  static constexpr std::size_t scratch_bytes(const P& policy, const cache_shape& shape, const params& settings) {
    return pqkv::scratch_bytes<op::exact_scores>(policy,
                                                 {shape.queries_at_once() * shape.query_heads, table_of(shape, settings).runs() + 2});
  }
  /// @throws std::bad_alloc
  /// @pre can_construct(shape, settings)
  quest(const auto& policy, const cache_shape& shape, const params& settings)
      : shape_(shape), params_(settings), memory_(make_owner<std::byte>(policy, index_bytes(shape, settings))) {
    arena memory(memory_);
    all_ = place(memory, shape, settings);
  }

  std::size_t lists() const { return score_lists(params_.reduction, shape_.kv_heads, shape_.query_heads); }
  static constexpr coverage_rule covers() { return {coverage::everything, coverage::listed}; }
  static constexpr std::size_t least_rows() { return 0; }
  selector_signature signature() const { return {2, static_cast<std::uint32_t>(params_.page_tokens)}; }
  quest_index index() const { return {all_.bounds, table_of(shape_, params_), shape_.kv_heads}; }

  /// Reads the bounds of the whole pages of the middle, and the keys of tokens in pages that are not whole.
  run_traffic traffic_of(std::size_t element_bytes) const {
    return {shape_.kv_heads, 2 * shape_.head_dim * sizeof(float), shape_.head_dim * element_bytes,
            static_cast<std::uint32_t>(params_.page_tokens), front_run::computed};
  }

  /// Computes the whole pages of a prompt.
  template <exec::policy P, class Rows>
  learning<space::host> learn(const P& policy, std::size_t slot, const Rows& rows, const sequence&, middle_range middle) {
    const quest_index index = this->index();
    const std::size_t h = shape_.kv_heads, pages = middle.end / params_.page_tokens;
    detail::run_operation<op::bound_keys>(
        policy, rows, pages * h, [&](std::size_t task, auto bound) { bound(index.page_of(slot * h + task % h, task / h)); });
    return {true, {}};
  }

  template <exec::policy P, class Rows>
  void select(const P& policy, view<const float, 2> query, const Rows& rows, const head_map<>& map, view<const middle_range, 1> ranges,
              view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts) {
    const std::size_t d = shape_.head_dim, hq = query.extent(0), heads = ranges.extent(0);
    const auto split = all_.query.slice(0, 0, hq);
    for (std::size_t q = 0; q < hq; ++q)
      for (std::size_t i = 0; i < d; ++i) {
        // max(q a, q b) for a >= b is q a for a positive q, else q b: an inner product with the larger bounds and one with the least.
        const float x = query(q, i);
        split(q, i) = x < 0 ? 0.0f : x;
        split(q, d + i) = x < 0 ? x : 0.0f;
      }
    const run_rows pages{
        as_const(all_.bounds), as_const(all_.memory.computed), ranges, map, static_cast<std::uint32_t>(params_.page_tokens),
        front_run::computed};
    detail::run_operation<op::bound_keys>(policy, rows, heads, [&](std::size_t head, auto bound) {
      const token_runs runs = pages.runs(head);
      runs.for_each_computed([&](std::uint32_t i) {
        bound({map.head(head), runs.begin(i), runs.end(i), &all_.memory.computed(head, run_rows::place_of(i), 0)});
      });
    });
    select_runs(policy, as_const(split), pages, params_.reduction, softmax_scale_of(shape_), all_.memory, indices, counts);
  }

  void maintain(const auto&, std::size_t, const sequence&, middle_range) {}
  void clear(const auto&, std::size_t) {}

 private:
  struct parts {
    view<float, 3> bounds;
    view<float, 2> query;  // [hq, 2 d] what is positive of each coordinate, then what is negative
    run_memory memory;
  };
  static constexpr run_table table_of(const cache_shape& shape, const params& settings) {
    return {shape.batch * shape.kv_heads, shape.capacity, settings.page_tokens, 2 * shape.head_dim};
  }
  static constexpr parts place(arena& memory, const cache_shape& shape, const params& settings) {
    const run_table table = table_of(shape, settings);
    const std::size_t lists = score_lists(settings.reduction, shape.kv_heads, shape.query_heads);
    const std::size_t hq = shape.queries_at_once() * shape.query_heads;
    parts all;
    all.bounds = table.place(memory);
    all.query = make_view(memory.take<float>(hq * table.row), hq, table.row);
    all.memory = run_memory::place(memory, shape, lists, table.runs(), table.row);
    return all;
  }

  cache_shape shape_;
  params params_;
  owner<std::byte, space::host> memory_;
  parts all_{};
};

}  // namespace selector
}  // namespace pqkv
