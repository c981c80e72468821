// SPDX-License-Identifier: Apache-2.0
// The part of a pqcache that changes no sequence: its members, the state of its sequences, and the argument checks of its verbs. The verbs
// that change sequences are in pqcache.hpp, the only file that includes this one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.hpp"
#include "cache/cache_checks.hpp"
#include "cache/dense_rows.hpp"
#include "cache/quantized_rows.hpp"
#include "exec/host.hpp"
#include "exec/sync.hpp"
#include "selector/concept.hpp"
#include "selector/pq.hpp"

namespace pqkv::inline PQKV_MODE {

namespace detail {

/// All memory of a cache besides rows and index, taken from one block.
template <class Space>
struct cache_memory {
  slot_table<Space> slots;
  view<slot_statistics, 1, Space> counted;         // [batch] counts of a call in several passes, until it ends
  view<std::uint32_t, 1, Space> prompt_nonfinite;  // [2] rows of K, and of V, of a prompt that are not finite
  step_plan<Space> plan;                           // of queries_at_once() query tokens
  view<std::int32_t, 2, Space> indices;            // [lists of these tokens, k_max]
  view<float, 3, Space> query, out;                // [queries at once, hq, d]
  view<float, 2, Space> lse;                       // [queries at once, hq]
  std::byte* scratch;

  static constexpr cache_memory place(arena& memory, const cache_shape& shape, const flat_budget_rule& rule, std::size_t lists,
                                      std::size_t k_max, std::size_t scratch_bytes) {
    const std::size_t batch = shape.batch, tokens = shape.queries_at_once(), hq = shape.query_heads, d = shape.head_dim;
    const auto of = [&]<class T>(T, std::size_t size) { return make_view<Space>(memory.take<T>(size), size); };
    cache_memory all;
    all.slots = slot_table<Space>::place(memory, batch, rule);
    all.counted = of(slot_statistics{}, batch);
    all.prompt_nonfinite = of(std::uint32_t{}, 2);
    all.plan = {of(std::uint32_t{}, tokens), of(token_span{}, tokens * lists), of(middle_range{}, tokens * shape.kv_heads),
                of(std::uint32_t{}, tokens * lists)};
    const bool fits = k_max <= static_cast<std::size_t>(-1) / 8 / (tokens * lists);
    all.indices =
        make_view<Space>(memory.take<std::int32_t>(fits ? tokens * lists * k_max : static_cast<std::size_t>(-1)), tokens * lists, k_max);
    all.query = make_view<Space>(memory.take<float>(tokens * hq * d), tokens, hq, d);
    all.out = make_view<Space>(memory.take<float>(tokens * hq * d), tokens, hq, d);
    all.lse = make_view<Space>(memory.take<float>(tokens * hq), tokens, hq);
    all.scratch = memory.take<std::byte>(scratch_bytes);
    return all;
  }
};

/// The second axis of the kernels' grids counts query heads, and CUDA limits that axis to 65535. @pre can_cache(shape)
inline status can_enqueue(const cache_shape& shape, const char* function) noexcept {
  return checks(function).at_most("step_queries", shape.queries_at_once(), 65535 / shape.query_heads,
                                  "query tokens at once, batch unless given, times hq at most 65535 on a device");
}

/// Bytes of scratch for a step: the larger of those for selection and for attention. Every list may be as long as a slot's capacity.
template <class Selector, class P>
std::size_t step_scratch_bytes(const P& policy, const cache_shape& shape, const typename Selector::params& settings) {
  const std::size_t hq = shape.queries_at_once() * shape.query_heads;
  return std::max(Selector::scratch_bytes(policy, shape, settings),
                  scratch_bytes<op::attention>(policy, {hq, hq, shape.head_dim, shape.capacity}));
}

}  // namespace detail

/// The part of a pqcache that its verbs work on. Template parameters as in pqcache.
template <class Rows, class Selector>
class pqcache_state {
 public:
  using value_type = typename Rows::value_type;
  using space_type = typename Rows::space_type;
  using step_type = basic_step<space_type>;
  template <class T, std::size_t Rank>
  using view_of = view<T, Rank, space_type>;
  /// Whether the host can read the sequences' states without waiting for a device.
  static constexpr bool is_on_host = space::usable_from<space_type, space::host>;

  /// Shape of the cache, and the settings of budget, rows and selector.
  struct params : cache_shape {
    budget_rule budget{};                  // how many tokens a query attends to
    typename Selector::params selector{};  // e.g. selector::pq::params
    typename Rows::params rows{};          // e.g. the engine's pages
  };

  /// The checks of the constructor.
  static status can_construct(const params& p) noexcept {
    if (const status s = can_cache(p); !s.ok()) return s;
    if constexpr (!is_on_host)
      if (const status g = detail::can_enqueue(p, "pqcache"); !g.ok()) return g;
    if (const status b = can_budget(p.budget, "pqcache"); !b.ok()) return b;
    if (const status r = Rows::can_construct(p, p.rows); !r.ok()) return r;
    if (const status q = Selector::can_construct(p, p.selector); !q.ok()) return q;
    return can_hold_bytes(std::max(Rows::required_bytes(p, p.rows), Selector::index_bytes(p, p.selector)));
  }

  /// The bytes that the constructor will allocate under this policy.
  /// @throws shape_error, value_error as can_construct() says; capacity_error when no memory could hold it
  template <exec::policy P>
  static memory_plan plan(const P& policy, const params& p) {
    require_ok(can_construct(p));
    memory_plan all;
    all.kv_bytes = Rows::required_bytes(p, p.rows);
    all.index_bytes = Selector::index_bytes(p, p.selector);
    arena count;
    place(count, policy, p, lists_of(policy, p));
    all.scratch_bytes = count.used_bytes();
    require_ok(can_hold_bytes(all.scratch_bytes));
    return all;
  }
  static memory_plan plan(const params& p) requires is_on_host { return plan(exec::host<isa::scalar>{}, p); }

  /// @param policy  of the cache's memory space; on a device its stream clears the memory
  /// @throws as plan(); std::bad_alloc; on a device cuda_error
  template <exec::policy P>
  requires std::same_as<typename P::space_type, space_type> pqcache_state(const P& policy, const params& p)
      : params_((plan(policy, p), p)),
        rows_(policy, p, p.rows),
        selector_(policy, p, p.selector),
        k_max_(largest_k(p)),
        rule_(p.budget.flat()) {
    arena count;
    place(count, policy, p, selector_.lists());
    memory_ = make_owner<std::byte>(policy, count.used_bytes());
    arena memory(memory_);
    work_ = place(memory, policy, p, selector_.lists());
    scratch_bytes_ = step_scratch_bytes(policy, p);
    if constexpr (!is_on_host) known_ = buffer<sequence>(p.batch);
  }

  /// The parameters of the constructor.
  const params& parameters() const { return params_; }
  /// The selector, which can tell for example how many iterations trained a slot's codebook.
  const Selector& selection() const { return selector_; }
  /// The store of keys and values.
  const Rows& rows() const { return rows_; }
  Rows& rows() { return rows_; }
  /// Lists of selected tokens for one query token: h, or hq under the reduction `none`.
  std::size_t lists() const { return selector_.lists(); }
  /// Keys and values by absolute position, [batch * h, capacity, d]; slot b's head is b * h + head. For measurements and engines
  /// that attend themselves.
  auto store() const { return rows_.store(); }

  /// The state of a slot's sequence: its length, and whether it has an index. @pre slot < batch, here and below
  /// @{
  const sequence& at(std::size_t slot) const requires is_on_host { return work_.slots.sequences(slot); }
  std::size_t size(std::size_t slot) const requires is_on_host { return at(slot).n; }
  /// s, w and k of a slot at its present length. The window holds fewer than w tokens until it is full.
  token_budget budget(std::size_t slot) const requires is_on_host { return at(slot).budget(rule_); }
  /// The middle of a slot: the range that the next query ranks, and how many tokens it selects.
  middle_range middle(std::size_t slot) const requires is_on_host { return at(slot).middle(rule_); }
  const slot_statistics& statistics(std::size_t slot) const requires is_on_host { return work_.slots.statistics(slot); }
  /// The plan of the slot's next query: the ranges that it attends to as a whole, and the range in which it ranks tokens. For engines that
  /// attend themselves.
  query_plan plan_query(std::size_t slot) const requires is_on_host {
    return pqkv::plan_query(at(slot), asked_query{}, rule_, selector_.covers());
  }
  /// @}
  /// The same for caches in host and in device memory. On a device these wait for the stream. @throws cuda_error
  /// @{
  template <exec::policy P>
  sequence at(const P& policy, std::size_t slot) const {
    return read(policy, work_.slots.sequences, slot);
  }
  template <exec::policy P>
  std::size_t size(const P& policy, std::size_t slot) const {
    return at(policy, slot).n;
  }
  template <exec::policy P>
  token_budget budget(const P& policy, std::size_t slot) const {
    return at(policy, slot).budget(rule_);
  }
  template <exec::policy P>
  middle_range middle(const P& policy, std::size_t slot) const {
    return at(policy, slot).middle(rule_);
  }
  template <exec::policy P>
  slot_statistics statistics(const P& policy, std::size_t slot) const {
    return read(policy, work_.slots.statistics, slot);
  }
  /// @}

  /// Shows the selector some of a slot's queries, before the last chunk of prefill(). Each selector uses them in its own way. pq needs a
  /// few hundred, spread over the whole prompt; every later training uses what it learnt from them, also after truncate(), until reset().
  /// snapkv and h2o take the queries of consecutive tokens, the last of which is the prompt's last. infllm needs all of them, in order.
  /// fork() copies what the slot has been shown, and so does save() if the slot has an index.
  ///
  /// @param queries  [n, hq, d] float, half or bfloat16, after rotary embedding, any strides; a query that is not finite is left out
  /// @throws shape_error, value_error; also when the selector's settings make no use of queries; std::bad_alloc where the selector stores
  ///         them (h2o)
  /// @cost   n * hq * d additions or copies in the calling thread; on a device one kernel: the queries must last until it has run
  template <exec::policy P, class Q, class Space>
  requires storage_scalar<Q> && std::same_as<typename P::space_type, space_type> && reachable_from<Space, P>
  void observe(const P& policy, std::size_t slot, view<Q, 3, Space> queries) {
    require_ok(can_observe(slot, queries));
    selector_.observe(policy, slot, view_of<Q, 3>(queries));
  }

  /// The most tokens that a list of retrieve() can hold when a slot is in this state.
  std::size_t retrieve_capacity(const sequence& now) const {
    const middle_range ranked = now.middle(rule_);
    const selector::coverage covered = now.coverage(ranked, selector_.covers());
    return covered == selector::coverage::everything ? ranked.size() : covered == selector::coverage::nothing ? 0 : ranked.selected();
  }
  std::size_t retrieve_capacity(std::size_t slot) const requires is_on_host { return retrieve_capacity(at(slot)); }

  /// The checks of the verbs (pqcache.hpp, and observe() above) with the verbs' arguments, for engines without exceptions.
  /// @{
  status can_prefill(std::size_t slot, const auto& keys, const auto& values) const noexcept {
    const status s = admission().prefill(slot, keys, values, rows_.room(slot));
    if (!s.ok()) return s;
    const std::size_t n = known(slot).n;
    return rows_.can_hold("prefill", slot, n, n + keys.extent(1));
  }
  status can_append(const auto& keys, const auto& values, const step_type& step = {}) const noexcept {
    const status s = admission().append(keys, values, step, [this](std::size_t slot) { return rows_.room(slot); });
    if constexpr (is_on_host)
      for (std::size_t row = 0; s.ok() && row < step.rows(params_.batch); ++row) {
        const std::size_t slot = step.slot(row), n = at(slot).n;
        if (const status held = rows_.can_hold("append", slot, n, n + step.count(row)); !held.ok()) return held;
      }
    return s;
  }
  status can_attend(const auto& query, const auto& out, view_of<float, 2> lse = {}, const step_type& step = {}) const noexcept {
    return admission().attend(query, out, lse, step);
  }
  status can_retrieve(const auto& query, const auto& indices, const auto& counts, const step_type& step = {}) const noexcept {
    return admission().retrieve(query, indices, counts, step, [this](std::size_t slot) { return retrieve_capacity(known(slot)); });
  }
  status can_observe(std::size_t slot, const auto& queries) const noexcept {
    if (const status s = Selector::can_observe(params_.selector); !s.ok()) return s;
    if (const status s = admission().slot("observe", "slot", slot); !s.ok()) return s;
    if constexpr (requires { selector_.can_observe_in(slot); })
      if (const status s = selector_.can_observe_in(slot); !s.ok()) return s;
    return detail::checks("observe")
        .extent("queries.extent(1)", queries.extent(1), params_.query_heads, "hq, from params")
        .extent("queries.extent(2)", queries.extent(2), params_.head_dim, "d, from params");
  }
  status can_truncate(std::size_t slot, std::size_t n) const noexcept { return admission().truncate(slot, n); }
  status can_truncate(view_of<const std::uint32_t, 1> lengths, view_of<const std::uint32_t, 1> slots = {}) const noexcept {
    return admission().truncate(lengths, slots);
  }
  status can_fork(std::size_t from, std::size_t to) const noexcept {
    const status s = admission().slot("fork", "from", from);
    return s.ok() ? admission().slot("fork", "to", to) : s;
  }
  status can_reset(std::size_t slot) const noexcept { return admission().slot("reset", "slot", slot); }
  /// @}

 protected:
  static status can_hold_bytes(std::size_t bytes) noexcept {
    constexpr std::size_t most = static_cast<std::size_t>(-1) / 4;
    return detail::checks("pqcache").that(bytes < most, status::code::capacity, "params", relation::at_most, "bytes of the cache", most,
                                          bytes);
  }
  static std::size_t largest_k(const params& p) { return std::clamp<std::size_t>(p.budget.at(p.capacity).retrieve, 1, p.capacity); }

  template <class P>
  static std::size_t lists_of(const P&, const params& p) {
    if constexpr (requires { p.selector.reduction; })
      return score_lists(p.selector.reduction, p.kv_heads, p.query_heads);
    else
      return p.kv_heads;
  }
  template <class P>
  static std::size_t step_scratch_bytes(const P& policy, const params& p) {
    return detail::step_scratch_bytes<Selector>(policy, p, p.selector);
  }
  template <class P>
  static detail::cache_memory<space_type> place(arena& memory, const P& policy, const params& p, std::size_t lists) {
    return detail::cache_memory<space_type>::place(memory, p, p.budget.flat(), lists, largest_k(p), step_scratch_bytes(policy, p));
  }

  template <class P, class T>
  T read(const P& policy, view_of<T, 1> from, std::size_t slot) const {
    T found;
    copy_bytes(policy, &found, &from.data[slot], sizeof(T));
    sync(policy);
    return found;
  }

  /// Cuts the query tokens into passes of at most queries_at_once() and calls f(first, count, slots) for each; f counts in
  /// slots.statistics. On the host, a call of several passes counts in separate memory first, so that a call which fails leaves the
  /// statistics unchanged.
  template <class F>
  void for_passes(std::size_t tokens, F f) const {
    const std::size_t most = params_.queries_at_once();
    slot_table<space_type> slots = work_.slots;
    const bool aside = is_on_host && tokens > most;
    if (aside) slots.statistics = work_.counted;
    if constexpr (is_on_host)
      for (std::size_t slot = 0; aside && slot < params_.batch; ++slot) work_.counted(slot) = {};
    detail::for_passes(tokens, most, [&](std::size_t first, std::size_t count) { f(first, count, slots); });
    if constexpr (is_on_host)
      for (std::size_t slot = 0; aside && slot < params_.batch; ++slot) work_.slots.statistics(slot) += work_.counted(slot);
  }

  /// The state of a slot's sequence, as far as the host knows it. For a device cache that is the state after the last prefill, load, fork,
  /// reset, maintain, or truncate of one slot: steps do not update it.
  const sequence& known(std::size_t slot) const noexcept {
    if constexpr (is_on_host)
      return work_.slots.sequences(slot);
    else
      return known_[slot];
  }
  /// Reads a slot's state from the device, if there is one. Call it before the host relies on known(): the host does not see what enqueued
  /// or replayed steps change.
  template <class P>
  void look_at(const P& policy, std::size_t slot) {
    if constexpr (!is_on_host)
      if (slot < params_.batch && known(slot).prefilling == 0) known_[slot] = at(policy, slot);
  }
  detail::cache_checks<space_type> admission() const noexcept {
    return {params_, is_on_host ? work_.slots.sequences.data : known_.data(), selector_.lists()};
  }

  /// Bytes that attention reads for one token of one KV head.
  static constexpr std::size_t token_bytes(std::size_t d) { return token_row<value_type>::bytes(d); }

  /// The header of a saved slot of this cache.
  slot_file_header header_of(const sequence& now, slot_contents contents) const {
    slot_file_header header;
    header.contents = contents;
    header.kv_heads = static_cast<std::uint32_t>(params_.kv_heads);
    header.head_dim = static_cast<std::uint32_t>(params_.head_dim);
    header.element = detail::element_number<value_type>();
    header.selector = selector_.signature();
    if (contents == slot_contents::index_and_rows && rows_.parts().count != 0)
      header.row_bytes = static_cast<std::uint32_t>(rows_.parts().part[0].token_bytes);
    header.at = now;
    header.middle_begin = now.middle(rule_).begin;
    header.middle_end = now.middle(rule_).end;
    header.payload_bytes = payload_bytes(header);
    return header;
  }
  slot_parts saved_parts(const slot_file_header& header) const {
    slot_parts parts;
    if (header.at.learned != 0) parts.add(selector_.index().learnt_parts());
    if (header.contents == slot_contents::index_and_rows) parts.add(rows_.parts());
    return parts;
  }
  /// Calls f(first byte, bytes, limit) for every run of bytes that a slot's file holds. A run of codes has a limit above 0, which every
  /// code must be below; only the codes of the middle are in the file.
  template <class F>
  void for_runs(std::size_t slot, const slot_file_header& header, F f) const {
    const slot_parts parts = saved_parts(header);
    for (std::size_t i = 0; i < parts.count; ++i) {
      const slot_part& part = parts.part[i];
      const bool codes = part.limit != 0;
      const std::size_t first = codes ? header.middle_begin : 0, last = codes ? header.middle_end : header.at.n;
      for (std::size_t run = 0; run < part.segments; ++run)
        f(part.segment(slot, run) + first * part.token_bytes, part.bytes(last - first), part.limit);
    }
  }
  std::uint64_t payload_bytes(const slot_file_header& header) const {
    std::uint64_t all = 0;
    for_runs(0, header, [&](const std::byte*, std::size_t bytes, std::size_t) { all += bytes; });
    return all;
  }

  planned_queries<space_type> queries_of(const step_type& step, std::size_t first) const {
    return {as_const(work_.slots.sequences), step, first, rule_, selector_.covers(), params_.selection};
  }
  view_of<std::int32_t, 2> found(const step_plan<space_type>& plan) const { return work_.indices.slice(0, 0, plan.counts.extent(0)); }
  /// The rows as the selector reads them. One that reads sinks and window reads their copies in fast memory.
  template <class P>
  auto ranked_rows(const P&) const {
    if constexpr (selects_by_spans<Selector, P>)
      return attended_rows();
    else
      return rows_.view();
  }
  /// The rows as append() writes them. On the host it encodes keys that leave the window from their copies in fast memory.
  auto appended_rows() const {
    if constexpr (is_on_host) return attended_rows();
    if constexpr (!is_on_host) return rows_.view();
  }
  /// The rows as attention reads them.
  auto attended_rows() const {
    if constexpr (rows_of_tiers<Rows>)
      return rows_.tiers();
    else
      return rows_.view();
  }

  params params_;
  Rows rows_;
  Selector selector_;
  std::size_t k_max_, scratch_bytes_ = 0;
  flat_budget_rule rule_;
  owner<std::byte, space_type> memory_;
  detail::cache_memory<space_type> work_{};
  buffer<sequence> known_;  // the host's copy of the states of a device's sequences
};

}  // namespace pqkv
