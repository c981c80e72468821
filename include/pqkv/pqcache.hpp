// SPDX-License-Identifier: Apache-2.0
// The policy that composes all of it: the cache of one layer with `batch` slots, each a sequence of its own length. Sinks, window
// and retrieved middle tokens take part in attention; a selector says which middle tokens, by default product quantization. The
// life cycle uses the verbs of serving engines: prefill, append, attend (or retrieve, for engines that attend themselves), fork,
// reset, maintain. Host memory only in this version; all memory is taken at construction, and no step allocates; training does, between
// steps.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.hpp"
#include "cache/doors.hpp"
#include "cache/kv_store.hpp"
#include "cache/slots.hpp"
#include "core/arena.hpp"
#include "exec/runner.hpp"
#include "selector/concept.hpp"
#include "selector/pq.hpp"

namespace pqkv {

/// @tparam T         type of the stored keys and values: float, half or bfloat16
/// @tparam Selector  selector::pq, full, streaming, oracle, or one's own (selector/concept.hpp)
template <storage_scalar T = float, class Selector = selector::pq>
class pqcache {
 public:
  /// Shape of the cache, and the settings of budget and selector.
  struct params : cache_shape {
    budget_rule budget{};                  // how many tokens attend
    typename Selector::params selector{};  // e.g. selector::pq::params
  };

  /// The checks of the constructor.
  static status can_construct(const params& p) noexcept {
    if (const status s = can_cache(p); !s.ok()) return s;
    if (const status b = can_budget(p.budget, "pqcache"); !b.ok()) return b;
    return Selector::can_construct(p, p.selector);
  }

  /// @throws shape_error, value_error as can_construct() says; std::bad_alloc
  explicit pqcache(const params& p)
      : params_((require_ok(can_construct(p)), p)),
        rows_(p.batch * p.kv_heads, p.capacity, p.head_dim),
        selector_(p, p.selector),
        lists_(selector_.lists()),
        k_max_(largest_k(p)),
        scratch_(step_scratch_bytes(p)),
        query_(p.batch * p.query_heads * p.head_dim),
        out_(p.batch * p.query_heads * p.head_dim),
        lse_(p.batch * p.query_heads),
        indices_(p.batch * lists_ * k_max_),
        counts_(p.batch * lists_),
        spans_(p.batch * lists_),
        ranges_(p.batch * p.kv_heads),
        nonfinite_(p.kv_heads),
        slots_(p.batch) {}

  /// What the constructor will take. @throws as the constructor
  static memory_plan plan(const params& p) {
    require_ok(can_construct(p));
    const std::size_t hq = p.batch * p.query_heads;
    memory_plan plan;
    plan.kv_bytes = p.batch * p.kv_heads * p.capacity * interleaved_store<T>::row_elements(p.head_dim) * sizeof(T);
    plan.index_bytes = Selector::index_bytes(p, p.selector);
    // An upper bound in the lists: hq of them under a reduction `none`.
    plan.scratch_bytes = step_scratch_bytes(p) + hq * (2 * p.head_dim + 1) * sizeof(float) +
                         hq * (largest_k(p) * sizeof(std::int32_t) + sizeof(std::uint32_t) + sizeof(token_span)) +
                         p.batch * (p.kv_heads * sizeof(middle_range) + sizeof(slot_state)) + p.kv_heads * sizeof(std::uint32_t);
    return plan;
  }

  /// What it was made with.
  const params& parameters() const { return params_; }
  /// Tokens of one slot. @pre slot < batch, here and below
  std::size_t size(std::size_t slot) const { return slots_[slot].n; }
  /// s, w and k of a slot at present; the window may hold fewer tokens than w until it has filled.
  token_budget budget(std::size_t slot) const { return slots_[slot].budget(params_.budget); }
  /// What the selector keeps of its own, e.g. how many iterations trained a slot's codebook.
  const Selector& selection() const { return selector_; }
  /// Counters of one slot.
  const slot_statistics& statistics(std::size_t slot) const { return slots_[slot].statistics; }
  /// Lists of a slot: h, or hq under a reduction `none`.
  std::size_t lists() const { return lists_; }
  /// Keys and values by absolute position, [batch * h, capacity, d]; slot b's head is b * h + head. For measurements and engines
  /// that attend themselves.
  strided_store<T> store() const { return rows_.store(); }
  /// The middle of a slot: what the next query ranks, and how many of it.
  middle_range middle(std::size_t slot) const { return slots_[slot].middle(params_.budget); }
  /// Tokens that a list of retrieve() holds at most at the slot's present length.
  std::size_t retrieve_capacity(std::size_t slot) const {
    return listing(slot) == selector::coverage::everything ? middle(slot).size()
           : listing(slot) == selector::coverage::nothing  ? 0
                                                           : middle(slot).selected();
  }

  /// The checks of the verbs below, for engines without exceptions; arguments as there.
  /// @{
  status can_prefill(std::size_t slot, const auto& keys, const auto& values) const noexcept { return doors().prefill(slot, keys, values); }
  status can_append(const auto& keys, const auto& values, active_slots active = {}) const noexcept {
    return doors().append(keys, values, active);
  }
  status can_attend(const auto& query, const auto& out, view<float, 2> lse = {}, active_slots active = {}) const noexcept {
    return doors().attend(query, out, lse, active);
  }
  status can_retrieve(const auto& query, const auto& indices, const auto& counts, active_slots active = {}) const noexcept {
    return doors().retrieve(query, indices, counts, active, [this](std::size_t slot) { return retrieve_capacity(slot); });
  }
  status can_fork(std::size_t from, std::size_t to) const noexcept {
    const status s = doors().slot("fork", "from", from);
    return s.ok() ? doors().slot("fork", "to", to) : s;
  }
  /// @}

  /// Takes a prompt's keys and values into an empty slot, whole or in chunks; the last chunk lets the selector build its index.
  ///
  /// @param slot    below batch; empty, or in the middle of a chunked prefill
  /// @param keys    [h, n, d] float, half or bfloat16, any strides, after rotary embedding
  /// @param values  [h, n, d]
  /// @throws shape_error, value_error, capacity_error; the slot is unchanged
  /// @cost   one copy of the rows; with the last chunk the selector's training, which allocates its scratch
  template <exec::policy P, class K, class V, class Space>
    requires storage_scalar<K> && storage_scalar<V> && reachable_from<Space, P>
  void prefill(const P& policy, std::size_t slot, view<K, 3, Space> keys, view<V, 3, Space> values, chunk which = chunk::last) {
    check_policy<P>();
    require_ok(can_prefill(slot, keys, values));
    slot_state& state = slots_[slot];
    store_slot(policy, slot, keys, values, state.n);
    state.n += keys.extent(1);
    state.prompt = state.n;
    state.prefilling = which == chunk::more;
    if (state.prefilling || state.n == 0) return;
    state.slide_window(params_.budget);
    selector_.observe_prefill(working(policy), slot, keys_of(slot), middle(slot));
  }

  /// Adds one token to every active slot. A window that is full gives its oldest token, encoded, to the middle first.
  ///
  /// @param keys    [batch, h, d] float, half or bfloat16, any strides; rows of inactive slots are not read
  /// @param values  [batch, h, d]
  /// @throws shape_error, value_error, capacity_error; no slot is changed
  /// @cost   per slot one row copied and, per token that leaves the window, h * d * c distance terms
  template <exec::policy P, class K, class V, class Space>
    requires storage_scalar<K> && storage_scalar<V> && reachable_from<Space, P>
  void append(const P& policy, view<K, 3, Space> keys, view<V, 3, Space> values, active_slots active = {}) {
    check_policy<P>();
    require_ok(can_append(keys, values, active));
    for (std::size_t slot = 0; slot < params_.batch; ++slot) {
      if (!is_active(active, slot)) continue;
      slot_state& state = slots_[slot];
      store_slot(policy, slot, insert_axis<1>(keys[slot]), insert_axis<1>(values[slot]), state.n);
      ++state.n;
      const std::size_t first = std::max(state.window_begin, params_.budget.sinks);
      state.slide_window(params_.budget);
      if (state.window_begin > first) selector_.append(working(policy), slot, keys_of(slot), first, state.window_begin);
    }
  }

  /// Attention of one query token per active slot over sinks, retrieved middle and window.
  ///
  /// @param query  [batch, hq, d] float, after rotary embedding, any strides
  /// @param out    [batch, hq, d] float, written for active slots; zeros for an empty slot
  /// @param lse    [batch, hq] float, written if given: log-sum-exp over the tokens attended
  /// @throws shape_error, value_error; capacity_error when the policy brings scratch that is too small
  /// @cost   selection plus (s + w + k) rows of K and V per list; no allocation
  template <exec::policy P>
  void attend(const P& policy, view<const float, 3> query, view<float, 3> out, view<float, 2> lse = {}, active_slots active = {}) {
    check_policy<P>();
    require_ok(can_attend(query, out, lse, active));
    select(policy, query, active);
    const std::size_t hq = params_.query_heads, d = params_.head_dim, batch = params_.batch;
    const token_set<> tokens{as_const(make_view(spans_.data(), spans_.size())),
                             as_const(make_view(indices_.data(), counts_.size(), k_max_)),
                             as_const(make_view(counts_.data(), counts_.size()))};
    const auto results = make_view(out_.data(), batch, hq, d);
    attention(working(policy), as_const(make_view(query_.data(), batch * hq, d)), rows_.store(), tokens, flatten(results),
              make_view(lse_.data(), batch * hq));
    for (std::size_t slot = 0; slot < batch; ++slot) {
      if (!is_active(active, slot)) continue;
      for (std::size_t q = 0; q < hq; ++q) {
        for (std::size_t i = 0; i < d; ++i) out(slot, q, i) = results(slot, q, i);
        if (lse.data != nullptr) lse(slot, q) = lse_[slot * hq + q];
      }
      count_step(slot);
    }
  }

  /// The tokens that attend() would fetch, for engines that fetch and attend themselves: middle tokens only.
  ///
  /// @param query    [batch, hq, d] float, any strides
  /// @param indices  [batch, h, k_max] int32 ([batch, hq, k_max] under `none`), written for active slots: absolute positions,
  ///                 ascending, then -1. k_max at least retrieve_capacity(slot); a slot without a codebook lists its whole middle
  /// @param counts   [batch, h] uint32 ([batch, hq] under `none`), written for active slots
  /// @throws shape_error, value_error; capacity_error also when the policy brings scratch that is too small
  /// @cost   as the selection in attend()
  template <exec::policy P>
  void retrieve(const P& policy, view<const float, 3> query, view<std::int32_t, 3> indices, view<std::uint32_t, 2> counts,
                active_slots active = {}) {
    check_policy<P>();
    require_ok(can_retrieve(query, indices, counts, active));
    select(policy, query, active);
    for (std::size_t slot = 0; slot < params_.batch; ++slot)
      for (std::size_t list = 0; list < lists_ && is_active(active, slot); ++list) {
        const bool everything = listing(slot) == selector::coverage::everything;
        const std::size_t row = slot * lists_ + list;
        counts(slot, list) = everything ? middle(slot).size() : counts_[row];
        for (std::size_t i = 0; i < indices.extent(2); ++i)
          indices(slot, list, i) = i >= counts(slot, list) ? -1
                                   : everything            ? static_cast<std::int32_t>(middle(slot).begin + i)
                                                           : indices_[row * k_max_ + i];
      }
  }

  /// Makes slot `to` a copy of slot `from`: rows, index, statistics.
  /// @throws value_error
  template <exec::policy P>
  void fork(const P& policy, std::size_t from, std::size_t to) {
    check_policy<P>();
    require_ok(can_fork(from, to));
    if (from == to) return;
    const std::size_t n = slots_[from].n;
    store_rows(policy, rows_of(from, 0, n).keys, rows_of(to, 0, n).keys);
    store_rows(policy, rows_of(from, 0, n).values, rows_of(to, 0, n).values);
    selector_.fork(policy, from, to, n);
    slots_[to] = slots_[from];
  }

  /// Empties a slot. @throws value_error
  void reset(std::size_t slot) {
    require_ok(doors().slot("reset", "slot", slot));
    slots_[slot] = {};
    selector_.reset(slot);
  }

  /// What must not happen inside a step: trains a codebook that came to have enough keys, folds new tokens into id lists. Cheap
  /// when nothing is due; call it between steps.
  template <exec::policy P>
  void maintain(const P& policy) {
    check_policy<P>();
    for (std::size_t slot = 0; slot < params_.batch; ++slot)
      if (slots_[slot].n != 0 && !slots_[slot].prefilling) selector_.maintain(working(policy), slot, keys_of(slot), middle(slot));
  }

 private:
  struct slot_rows {
    view<T, 3> keys, values;
  };

  detail::cache_doors doors() const noexcept { return {params_, slots_.data(), lists_}; }

  /// The longest list of any length up to capacity.
  static std::size_t largest_k(const params& p) {
    const std::size_t k = p.budget.at(p.capacity).retrieve;
    return k < p.capacity ? k : p.capacity;
  }

  /// Of a selection or, after it, attention to the longest slot in every list.
  static std::size_t step_scratch_bytes(const params& p) {
    const std::size_t hq = p.batch * p.query_heads;
    return std::max(Selector::scratch_bytes(p, p.selector), attention_host_scratch_bytes(hq, hq, p.head_dim, p.capacity));
  }

  template <class P>
  static constexpr void check_policy() {
    static_assert(reachable_from<space::host, P>, "pqkv: this pqcache keeps its memory on the host; use a host policy");
    if constexpr (requires { typename P::runner_type; })
      static_assert(exec::runs_whole_call<typename P::runner_type>,
                    "pqkv: pqcache changes state once per call; give it a runner of whole calls, not exec::slice");
    static_assert(selector_for<Selector, P>, "pqkv: Selector must model pqkv::selector_for (selector/concept.hpp)");
  }
  /// The policy with the cache's own scratch, unless the caller brings some.
  template <class P>
  P working(const P& policy) const {
    P own = policy;
    if (own.scratch.counting() && scratch_.size() != 0) own.scratch = arena(scratch_);
    return own;
  }

  slot_rows rows_of(std::size_t slot, std::size_t first, std::size_t count) {
    const std::size_t h = params_.kv_heads;
    return {rows_.keys().slice(0, slot * h, h).slice(1, first, count), rows_.values().slice(0, slot * h, h).slice(1, first, count)};
  }
  view<const T, 3> keys_of(std::size_t slot) { return rows_of(slot, 0, slots_[slot].n).keys; }

  void store_slot(const auto& policy, std::size_t slot, const auto& keys, const auto& values, std::size_t first) {
    const slot_rows to = rows_of(slot, first, keys.extent(1));
    slots_[slot].statistics.nonfinite_keys += store_counted(policy, keys, to.keys);
    slots_[slot].statistics.nonfinite_values += store_counted(policy, values, to.values);
  }
  std::uint64_t store_counted(const auto& policy, const auto& from, view<T, 3> to) {
    for (std::uint32_t& count : nonfinite_) count = 0;
    store_rows(policy, from, to, make_view(nonfinite_.data(), nonfinite_.size()));
    std::uint64_t total = 0;
    for (const std::uint32_t count : nonfinite_) total += count;
    return total;
  }

  /// How a slot's middle is attended to now: a middle within the budget is taken whole, none of it needs no selector.
  selector::coverage listing(std::size_t slot) const {
    const middle_range m = middle(slot);
    const selector::coverage wish = selector_.covers(slot);
    if (m.size() == 0) return selector::coverage::nothing;
    if (wish != selector::coverage::listed) return wish;
    if (m.retrieve == 0) return selector::coverage::nothing;
    return m.retrieve >= m.size() ? selector::coverage::everything : selector::coverage::listed;
  }

  /// Fills query_, ranges_, indices_, counts_ and spans_ for the active slots; inactive ones attend to nothing.
  template <class P>
  void select(const P& policy, view<const float, 3> query, active_slots active) {
    const std::size_t batch = params_.batch, h = params_.kv_heads, hq = params_.query_heads, d = params_.head_dim;
    bool any_listed = false;
    for (std::size_t slot = 0; slot < batch; ++slot) {
      const bool on = is_active(active, slot);
      for (std::size_t q = 0; q < hq; ++q)
        for (std::size_t i = 0; i < d; ++i) query_[(slot * hq + q) * d + i] = on ? query(slot, q, i) : 0.0f;
      const selector::coverage covered = on ? listing(slot) : selector::coverage::nothing;
      const slot_state& s = slots_[slot];
      const middle_range m = middle(slot);
      const bool listed = covered == selector::coverage::listed;
      any_listed |= listed;
      for (std::size_t head = 0; head < h; ++head) ranges_[slot * h + head] = listed ? m : middle_range{};
      const auto end = static_cast<std::uint32_t>(on ? s.n : 0);
      token_span span{};
      if (on && covered == selector::coverage::everything) span.leading = end;
      if (on && covered != selector::coverage::everything) span = {m.begin, m.end, end};
      for (std::size_t list = slot * lists_; list < (slot + 1) * lists_; ++list) {
        spans_[list] = span;
        counts_[list] = 0;
      }
    }
    if (any_listed)
      selector_.select(working(policy), as_const(make_view(query_.data(), batch * hq, d)), as_const(rows_.keys()),
                       as_const(make_view(ranges_.data(), ranges_.size())), make_view(indices_.data(), counts_.size(), k_max_),
                       make_view(counts_.data(), counts_.size()));
    count_queries();
  }

  /// Inactive slots' queries are zeros.
  void count_queries() {
    const std::size_t hq = params_.query_heads, d = params_.head_dim;
    for (std::size_t q = 0; q < params_.batch * hq; ++q) {
      bool finite = true;
      for (std::size_t i = 0; i < d; ++i) finite &= is_finite(query_[q * d + i]);
      slots_[q / hq].statistics.nonfinite_queries += finite ? 0 : 1;
    }
  }

  void count_step(std::size_t slot) {
    slot_statistics& s = slots_[slot].statistics;
    std::uint64_t attended = 0;
    for (std::size_t list = slot * lists_; list < (slot + 1) * lists_; ++list)
      attended += spans_[list].leading + (spans_[list].window_end - spans_[list].window_begin) + counts_[list];
    ++s.steps;
    s.tokens_attended += attended / lists_;
    s.attended_bytes += attended * 2 * params_.head_dim * sizeof(T);
    if (listing(slot) != selector::coverage::listed) return;
    const selector::traffic read = selector_.step_traffic(middle(slot), sizeof(T));
    s.index_bytes += read.index_bytes;
    s.selector_bytes += read.selector_bytes;
  }

  params params_;
  interleaved_store<T> rows_;
  Selector selector_;
  std::size_t lists_, k_max_;
  buffer<std::byte> scratch_;
  buffer<float> query_, out_, lse_;
  buffer<std::int32_t> indices_;
  buffer<std::uint32_t> counts_;
  buffer<token_span> spans_;
  buffer<middle_range> ranges_;
  buffer<std::uint32_t> nonfinite_;
  buffer<slot_state> slots_;
};

}  // namespace pqkv
