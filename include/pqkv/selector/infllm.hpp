// SPDX-License-Identifier: Apache-2.0
// Selection by blocks with representative keys, as InfLLM does it. Every block of tokens has a few representatives: those of its keys to
// which the queries of following tokens gave the highest scores. A block's relevance to a query is the sum of the query's inner products
// with the representatives. The most relevant blocks are taken whole. It is meant for comparison with other selectors. It has no CUDA
// kernels, cannot save slots, and its arithmetic is not canonical.
//
// Representatives need queries. A prompt's queries must all be shown to pqcache::observe(), in order, before the prompt's last chunk;
// otherwise prefill() refuses the prompt. Queries of later tokens are recorded by attend() and retrieve(). A block gets its representatives
// once, from the queries recorded up to then: at the end of the prompt if the whole block has left the window by then, otherwise at the
// first query after it has left. blind_blocks() counts the blocks that got representatives without any query.
//
// Tokens that have left the window but do not fill a block yet are selected before all blocks, the newest first.
//
// Differences from the paper: the window is that of the budget, not local_tokens, and k counts tokens, including those of the unfinished
// block, so that methods are compared at equal tokens. Keys and queries have the rotary embedding of their own positions; the paper treats
// all tokens outside the window as equally far away. Each KV head has its own list; the published code sums relevance over all heads of a
// layer. The published code also scores representatives by softmax weights; here the paper's inner products decide.
// Source: Xiao, Zhang, Han, Xiao, Lin, Zhang, Liu, Sun, "InfLLM: Training-free long-context extrapolation for LLMs with an efficient
// context memory", NeurIPS 2024.
#pragma once

#include <algorithm>
#include <cstring>

#include "../exec/memory.hpp"
#include "concept.hpp"
#include "token_runs.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
/// run(policy, rows, index, tasks, f): calls f(i, worker) for every task i; worker.choose() chooses a block's representatives and writes
/// their sum.
struct represent_blocks {};
}  // namespace op

namespace selector {

/// The settings of infllm; the defaults are the paper's.
struct infllm_params {
  std::size_t block_tokens = 128;
  std::size_t representatives = 4;  // keys of a block
  std::size_t local_tokens = 4096;  // how many queries after a token score it as a representative; fewer if fewer were recorded
  /// How the relevances of a block to a group's query heads are reduced to one: by default their sum, as in the published code. `none`
  /// gives each query head its own list. Representatives are always chosen per KV head, by the sum over its group.
  group_reduction reduction = group_reduction::logit_sum;

  static constexpr std::size_t most_block_tokens = 4096, most_representatives = 64;
};

/// One block of one head: tokens [first, last).
struct block_keys {
  std::size_t head;
  std::uint32_t first, last;
  std::uint32_t last_query;  // position of the newest query that may score the keys
  float* out;                // [d], written: the sum of the representatives; NaNs where no key is finite
};

/// What infllm keeps of every slot.
struct infllm_index {
  /// The record of one slot.
  struct record {
    std::uint32_t observed = 0;      // queries of the prompt that observe() was given
    std::uint32_t seen = 0;          // one past the newest query that was recorded
    std::uint32_t represented = 0;   // blocks that have representatives
    std::uint32_t is_learned = 0;    // 1: the prompt is over
    std::uint64_t blind_blocks = 0;  // as infllm::blind_blocks() says
  };

  view<float, 3> blocks;       // [batch * h, blocks, d] sums of representatives
  view<float, 3> queries;      // [batch * h, capacity, d] by position, the sum over each group's query heads
  view<std::uint8_t, 2> seen;  // [batch * h, capacity] 1: the query of this position was recorded
  view<record, 1> records;     // [batch]
  std::size_t kv_heads = 0;
  infllm_params settings{};

  template <class P, class Rows>
  void encode(const P&, const Rows&, view<const leaving_tokens, 1>) const noexcept {}
  void commit(const leaving_tokens&) const noexcept {}
  /// After a cut: blocks with a token that is in the window again lose their representatives, and the queries of tokens that were cut off
  /// are forgotten.
  void forget(const leaving_tokens& tokens, const sequence& after) const noexcept {
    record& one = records(tokens.slot);
    one.represented = std::min(one.represented, tokens.first / static_cast<std::uint32_t>(settings.block_tokens));
    for (std::size_t head = tokens.slot * kv_heads; head < (tokens.slot + 1) * kv_heads; ++head)
      for (std::size_t t = after.n; t < one.seen; ++t) seen(head, t) = 0;
    one.seen = std::min(one.seen, after.n);
    if (after.n == 0) one = {};
  }
  slot_parts parts() const noexcept { return {}; }  // infllm::copied() copies a slot

  /// Records the query of a token, [hq, d]. Query heads with an element that is not finite are left out.
  template <class Q>
  void note(std::size_t slot, std::size_t position, view<Q, 2> query) const noexcept {
    const std::size_t g = query.extent(0) / kv_heads, d = query.extent(1);
    for (std::size_t h = 0; h < kv_heads; ++h) {
      const std::size_t head = slot * kv_heads + h;
      float* const sum = &queries(head, position, 0);
      std::fill_n(sum, d, 0.0f);
      seen(head, position) = 0;
      for (std::size_t q = h * g; q < (h + 1) * g; ++q) {
        bool finite = true;
        for (std::size_t i = 0; i < d; ++i) finite &= is_finite(static_cast<float>(query(q, i)));
        for (std::size_t i = 0; finite && i < d; ++i) sum[i] += static_cast<float>(query(q, i));
        seen(head, position) |= finite ? 1 : 0;
      }
    }
    records(slot).seen = std::max(records(slot).seen, static_cast<std::uint32_t>(position + 1));
  }
  /// A block that has left the window, without those of its tokens that are sinks.
  block_keys block_of(std::size_t head, std::size_t block, std::uint32_t middle_begin, std::uint32_t last_query) const {
    const auto length = static_cast<std::uint32_t>(settings.block_tokens), first = static_cast<std::uint32_t>(block) * length;
    return {head, std::max(first, std::min(middle_begin, first + length)), first + length, last_query, &blocks(head, block, 0)};
  }
};

/// Ranks blocks by the inner products of a query with their representatives.
class infllm {
 public:
  using params = infllm_params;

  static constexpr status can_construct(const cache_shape&, const params& settings) noexcept {
    return pqkv::detail::checks("pqcache")
        .at_least("selector.block_tokens", settings.block_tokens, 1, "tokens of a block")
        .at_most("selector.block_tokens", settings.block_tokens, params::most_block_tokens, "tokens of a block")
        .at_least("selector.representatives", settings.representatives, 1, "keys of a block")
        .at_most("selector.representatives", settings.representatives, std::min(settings.block_tokens, params::most_representatives),
                 "keys of a block: its tokens, and 64")
        .at_least("selector.local_tokens", settings.local_tokens, 1, "queries after a token")
        .at_most("selector.local_tokens", settings.local_tokens, 2147483647.0, "queries after a token");
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
  infllm(const auto& policy, const cache_shape& shape, const params& settings)
      : shape_(shape), memory_(make_owner<std::byte>(policy, index_bytes(shape, settings))) {
    arena memory(memory_);
    all_ = place(memory, shape, settings);
  }

  std::size_t lists() const { return score_lists(settings().reduction, shape_.kv_heads, shape_.query_heads); }
  static constexpr coverage_rule covers() { return {coverage::everything, coverage::listed}; }
  static constexpr std::size_t least_rows() { return 0; }
  infllm_index index() const { return all_.index; }
  /// Queries of a slot's prompt that observe() was given; the prompt's last chunk is refused unless it is all of them.
  std::size_t observed(std::size_t slot) const { return all_.index.records(slot).observed; }
  /// How many blocks, counted per KV head since the slot was empty, got their representatives without any query that could score their
  /// keys. Such a block is represented by its first tokens. A number above 0 means that tokens were appended whose queries were never given
  /// to attend() or retrieve().
  std::uint64_t blind_blocks(std::size_t slot) const { return all_.index.records(slot).blind_blocks; }

  /// A query reads the sums of representatives. Choosing representatives, once for each block, reads keys too, but is not counted, like the
  /// training of other selectors.
  struct block_traffic {
    std::uint64_t kv_heads, row_bytes;
    std::uint32_t length;
    constexpr traffic operator()(const middle_range& middle) const {
      return {kv_heads * token_runs{in_blocks(middle, length), length, front_run::kept}.count() * row_bytes, 0};
    }
  };
  block_traffic traffic_of(std::size_t) const { return {shape_.kv_heads, shape_.head_dim * sizeof(float), block_length()}; }

  static constexpr status can_observe(const params&) noexcept { return {}; }
  status can_observe_in(std::size_t slot) const noexcept {
    return pqkv::detail::checks("observe").that(all_.index.records(slot).is_learned == 0, status::code::value, "slot", relation::required,
                                                "empty or in the middle of its prompt: attend() sees later queries itself", 0, 1);
  }
  /// Records the next queries [n, hq, d] of a slot's prompt.
  /// @pre can_observe_in(slot)
  /// @throws capacity_error when there are more queries than a slot has tokens
  template <exec::policy P, class Q>
  void observe(const P&, std::size_t slot, view<Q, 3> queries) {
    infllm_index::record& one = all_.index.records(slot);
    require_ok(pqkv::detail::checks("observe").that(queries.extent(0) <= shape_.capacity - one.observed, status::code::capacity,
                                                    "queries.extent(0)", relation::at_most, "tokens of the slot without a query",
                                                    shape_.capacity - one.observed, queries.extent(0)));
    pqkv::detail::in_float_environment([&] {
      for (std::size_t i = 0; i < queries.extent(0); ++i) all_.index.note(slot, one.observed + i, queries[i]);
    });
    one.observed += static_cast<std::uint32_t>(queries.extent(0));
  }

  /// Records the queries of a step, and chooses representatives for the blocks that are completely in the middle for the first time. A
  /// query can score the keys of blocks represented at its own position or later.
  template <exec::policy P, class Rows>
  void see(const P& policy, view<const float, 2> query, const Rows& rows, const planned_queries<space::host>& planned) {
    const std::size_t hq = shape_.query_heads, h = shape_.kv_heads, tokens = query.extent(0) / hq;
    const auto found = all_.found.slice(0, 0, tokens);
    if (!find_blocks(query, planned, found)) return;
    detail::run_operation<op::represent_blocks>(policy, rows, all_.index, tokens * h, [&](std::size_t task, auto& worker) {
      const found_blocks& one = found(task / h);
      std::uint32_t blind = 0;
      for (std::uint32_t block = one.first; block < one.last; ++block)
        blind += worker.choose(all_.index.block_of(one.slot * h + task % h, block, one.middle_begin, one.position)) ? 0 : 1;
      all_.blind(task) = blind;
    });
    for (std::size_t i = 0; i < tokens; ++i) commit(found(i), i * h);
  }

  /// Chooses the representatives of a prompt's blocks.
  /// @throws value_error when observe() was not given the queries of the prompt's tokens
  template <exec::policy P, class Rows>
  learning<space::host> learn(const P& policy, std::size_t slot, const Rows& rows, const sequence& at, middle_range middle) {
    const infllm_index::record& one = all_.index.records(slot);
    const std::size_t h = shape_.kv_heads;
    require_ok(pqkv::detail::checks("prefill").that(one.observed == at.prompt, status::code::value, "queries", relation::equal,
                                                    "tokens of the prompt; observe() must be given all of their queries", at.prompt,
                                                    one.observed));
    const auto found = found_blocks{static_cast<std::uint32_t>(slot), 0, middle.end / static_cast<std::uint32_t>(settings().block_tokens),
                                    middle.begin, at.n - 1};
    detail::run_operation<op::represent_blocks>(policy, rows, all_.index, h, [&](std::size_t head, auto& worker) {
      std::uint32_t blind = 0;
      for (std::uint32_t block = found.last; block-- > 0;)  // the last block first, since the worker slides its window of queries
        blind += worker.choose(all_.index.block_of(slot * h + head, block, found.middle_begin, found.position)) ? 0 : 1;
      all_.blind(head) = blind;
    });
    commit(found, 0);
    all_.index.records(slot).is_learned = 1;
    return {true, {}};
  }

  template <exec::policy P, class Rows>
  void select(const P& policy, view<const float, 2> query, const Rows&, const head_map<>& map, view<const middle_range, 1> ranges,
              view<std::int32_t, 2> indices, view<std::uint32_t, 1> counts) {
    const std::size_t heads = ranges.extent(0), lists_per_head = counts.extent(0) / heads;
    const auto ranked = all_.ranked.slice(0, 0, heads);
    for (std::size_t head = 0; head < heads; ++head) ranked(head) = in_blocks(ranges(head), block_length());
    const run_rows blocks{
        as_const(all_.index.blocks), as_const(all_.memory.computed), as_const(ranked), map, block_length(), front_run::kept};
    select_runs(policy, query, blocks, settings().reduction, shape_.softmax_scale, all_.memory, indices, counts);
    for (std::size_t list = 0; list < counts.extent(0); ++list) {
      const middle_range& range = ranges(list / lists_per_head);
      const std::uint32_t unfinished = range.selected() - counts(list);
      for (std::uint32_t i = 0; i < unfinished; ++i) indices(list, counts(list)++) = static_cast<std::int32_t>(range.end - unfinished + i);
    }
  }

  void maintain(const auto&, std::size_t, const sequence&, middle_range) {}
  void clear(const auto&, std::size_t slot) { all_.index.forget({static_cast<std::uint32_t>(slot), 0, 0}, {}); }
  /// Copies a slot.
  void copied(std::size_t from, std::size_t to) noexcept {
    const infllm_index& index = all_.index;
    const infllm_index::record one = index.records(from);
    clear(0, to);
    for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
      const std::size_t source = from * shape_.kv_heads + h, target = to * shape_.kv_heads + h, row = shape_.head_dim * sizeof(float);
      std::memcpy(index.seen.data + target * index.seen.stride(0), index.seen.data + source * index.seen.stride(0), one.seen);
      std::memcpy(index.queries[target].data, index.queries[source].data, one.seen * row);
      std::memcpy(index.blocks[target].data, index.blocks[source].data, one.represented * row);
    }
    index.records(to) = one;
  }

 private:
  /// Blocks [first, last) of a slot, which are completely in the middle for the first time at this query.
  struct found_blocks {
    std::uint32_t slot = 0, first = 0, last = 0, middle_begin = 0, position = 0;
  };
  struct parts {
    infllm_index index;
    run_memory memory;
    view<middle_range, 1> ranked;  // [row heads]
    view<found_blocks, 1> found;   // [queries at once]
    view<std::uint32_t, 1> blind;  // [queries at once * h]
  };

  const params& settings() const { return all_.index.settings; }
  std::uint32_t block_length() const { return static_cast<std::uint32_t>(settings().block_tokens); }
  /// The part of a middle that consists of whole blocks, and how many tokens are selected there. Tokens of the unfinished block are
  /// selected first and count towards k.
  static constexpr middle_range in_blocks(const middle_range& middle, std::uint32_t length) {
    const std::uint32_t whole = middle.end - middle.end % length, end = whole > middle.begin ? whole : middle.begin;
    const std::uint32_t unfinished = middle.end - end, k = middle.selected();
    return {middle.begin, end, k > unfinished ? k - unfinished : 0};
  }
  /// Records the queries. Returns whether any block needs representatives.
  bool find_blocks(view<const float, 2> query, const planned_queries<space::host>& planned, view<found_blocks, 1> found) const {
    const std::size_t hq = shape_.query_heads;
    bool any = false;
    for (std::size_t i = 0; i < found.extent(0); ++i) {
      found(i) = {};
      const step_token token = locate(planned.step, shape_.batch, planned.first + i);
      if (token.row >= planned.step.rows(shape_.batch)) continue;
      const sequence& now = planned.sequences(token.slot);
      if (now.learned == 0 || now.prefilling != 0 || token.count > now.n) continue;
      const std::uint32_t position = now.n - token.count + token.index;
      const middle_range middle = now.at(planned.query(token).planned_length(now)).middle(planned.rule);
      std::uint32_t first = all_.index.records(token.slot).represented;
      if (i > 0 && token.index > 0) first = found(i - 1).last;  // continues where the slot's previous token ended
      const std::uint32_t last = std::max(first, middle.end / static_cast<std::uint32_t>(settings().block_tokens));
      found(i) = {token.slot, first, last, middle.begin, position};
      pqkv::detail::in_float_environment([&] { all_.index.note(token.slot, position, query.slice(0, i * hq, hq)); });
      any = any || first < last;
    }
    return any;
  }
  /// @param task  the task of KV head 0; tasks of the other heads follow, each with its count of blind blocks
  void commit(const found_blocks& found, std::size_t task) const {
    if (found.first == found.last) return;
    infllm_index::record& one = all_.index.records(found.slot);
    one.represented = found.last;
    for (std::size_t h = 0; h < shape_.kv_heads; ++h) one.blind_blocks += all_.blind(task + h);
  }

  static constexpr run_table table_of(const cache_shape& shape, const params& settings) {
    return {shape.batch * shape.kv_heads, shape.capacity, settings.block_tokens, shape.head_dim};
  }
  static constexpr parts place(arena& memory, const cache_shape& shape, const params& settings) {
    const run_table table = table_of(shape, settings);
    const std::size_t heads = table.heads, n = shape.capacity, d = shape.head_dim, tokens = shape.queries_at_once();
    const std::size_t lists = score_lists(settings.reduction, shape.kv_heads, shape.query_heads), most = static_cast<std::size_t>(-1);
    const bool fits = heads <= most / 8 / d / n;
    parts all;
    all.index.blocks = table.place(memory);
    all.index.queries = make_view(memory.take<float>(fits ? heads * n * d : most), heads, n, d);
    all.index.seen = make_view(memory.take<std::uint8_t>(fits ? heads * n : most), heads, n);
    all.index.records = make_view(memory.take<infllm_index::record>(shape.batch), shape.batch);
    all.index.kv_heads = shape.kv_heads;
    all.index.settings = settings;
    all.memory = run_memory::place(memory, shape, lists, table.runs(), d);
    all.ranked = make_view(memory.take<middle_range>(tokens * shape.kv_heads), tokens * shape.kv_heads);
    all.found = make_view(memory.take<found_blocks>(tokens), tokens);
    all.blind = make_view(memory.take<std::uint32_t>(tokens * shape.kv_heads), tokens * shape.kv_heads);
    return all;
  }

  cache_shape shape_;
  owner<std::byte, space::host> memory_;
  parts all_{};
};

}  // namespace selector
}  // namespace pqkv
