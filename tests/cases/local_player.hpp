// SPDX-License-Identifier: Apache-2.0
// The oracle of selection_mode::local: plays a life (rank_lives.hpp) to a plain model of each slot (cache_model.hpp), and answers with what
// the ranks must answer together: each rank's best k / ranks of its own tokens by plain scores, and plain attention in double to all of
// these, sinks and window. It asks the caches under test nothing. A pqcache plays along, which only says when upkeep trains.
#pragma once

#include <pqkv/scale/token_layout.hpp>

#include "cache_model.hpp"
#include "rank_lives.hpp"

namespace pqkv_cases {

/// @tparam T  of the stored rows
template <class T>
class local_player {
 public:
  using whole = whole_player<T>;

  /// @param p       of the one cache with all tokens
  /// @param layout  who holds which token
  local_player(const typename whole::cache_type::params& p, const pqkv::scale::token_layout& layout) : p_(p), layout_(layout), trained_(p) {
    for (std::size_t slot = 0; slot < p.batch; ++slot) slots_.push_back(empty());
  }

  local_player& cache() { return *this; }
  const pqkv::exec::host<>& policy() const { return trained_.policy(); }

  void prefill(std::size_t slot, pqkv::view<const T, 3> keys, pqkv::view<const T, 3> values, pqkv::chunk which) {
    trained_.prefill(slot, keys, values, which);
    slots_[slot].add(keys, values);
    if (which != pqkv::chunk::last) return;
    slots_[slot].end_prompt();
    if (slots_[slot].size() == 0) return;
    slots_[slot].commit();
    slots_[slot].train(p_.selector);
  }
  void copy_by_file(std::size_t from, std::size_t to) {
    trained_.copy_by_file(from, to);
    if (from != to) slots_[to].copy_from(slots_[from]);
  }
  template <class P>
  void fork(const P& policy, std::size_t from, std::size_t to) {
    trained_.cache().fork(policy, from, to);
    if (from != to) slots_[to].copy_from(slots_[from]);
  }
  template <class P>
  void reset(const P& policy, std::size_t slot) {
    trained_.cache().reset(policy, slot);
    slots_[slot] = empty();
  }
  template <class P>
  void truncate(const P& policy, std::size_t slot, std::size_t n) {
    trained_.cache().truncate(policy, slot, n);
    slots_[slot].truncate(n);
  }
  template <class P>
  void maintain(const P& policy) {
    trained_.cache().maintain(policy);
    for (std::size_t slot = 0; slot < p_.batch; ++slot)
      if (slots_[slot].outgrown(p_.selector) || (!slots_[slot].trained() && trained_.cache().at(slot).learned != 0))
        slots_[slot].train(p_.selector);
  }
  template <class P>
  void append(const P& policy, pqkv::view<const T, 3> keys, pqkv::view<const T, 3> values, const pqkv::cache_step& step) {
    trained_.cache().append(policy, keys, values, step);
    const auto by_head = [](pqkv::view<const T, 3> rows) {
      return pqkv::view<const T, 3>{
          rows.data, {rows.extent(1), rows.extent(0), rows.extent(2)}, {rows.stride(1), rows.stride(0), rows.stride(2)}};
    };
    for (std::size_t row = 0, t = 0; row < step.rows(p_.batch); ++row)
      for (std::uint32_t i = 0; i < step.count(row); ++i, ++t) {
        slots_[step.slot(row)].add(by_head(keys.slice(0, t, 1)), by_head(values.slice(0, t, 1)));
        slots_[step.slot(row)].commit();
      }
  }
  template <class P>
  void retrieve(const P&, pqkv::view<const float, 3> query, pqkv::view<std::int32_t, 3> indices, pqkv::view<std::uint32_t, 2> counts,
                const pqkv::cache_step& step) {
    each_query(query, step, [&](std::size_t t, const slot_model<T>&, const slot_model<T>&, const auto&, const auto& lists) {
      for (std::size_t list = 0; list < lists.size(); ++list) {
        counts(t, list) = static_cast<std::uint32_t>(lists[list].size());
        std::copy(lists[list].begin(), lists[list].end(), &indices(t, list, 0));
      }
    });
  }
  template <class P>
  void attend(const P&, pqkv::view<const float, 3> query, pqkv::view<float, 3> out, pqkv::view<float, 2> lse,
              const pqkv::cache_step& step) {
    const std::size_t hq = query.extent(1), d = query.extent(2);
    each_query(
        query, step,
        [&](std::size_t t, const slot_model<T>& planned, const slot_model<T>& now, const std::vector<float>& own, const auto& lists) {
          for (std::size_t q = 0; q < hq; ++q) {
            const plain_result exact = now.attend(own, q, lists[q * lists.size() / hq], planned.first(), planned.window_begin());
            for (std::size_t i = 0; i < d; ++i) out(t, q, i) = static_cast<float>(exact.out[i]);
            lse(t, q) = static_cast<float>(exact.lse);
            tolerance = std::max(tolerance, exact.tolerance());
          }
        });
  }

  double tolerance = 0;  // what float arithmetic may err, at most, in all that was answered

 private:
  /// Calls f(query token, the model that its list is planned by, the model of its own time, its query, the lists of all ranks together).
  template <class F>
  void each_query(pqkv::view<const float, 3> query, const pqkv::cache_step& step, const F& f) {
    const std::size_t size = query.extent(1) * query.extent(2);
    const bool shares = p_.selection == pqkv::draft_selection::first_query;
    std::vector<std::vector<std::int32_t>> lists;
    for (std::size_t row = 0, t = 0; row < step.rows(p_.batch); ++row)
      for (std::size_t i = 0; i < step.count(row); ++i, ++t) {
        const slot_model<T>& last = slots_[step.slot(row)];
        const std::size_t begin = last.size() - step.count(row) + 1;
        const slot_model<T> now = last.when_it_had(begin + i), planned = last.when_it_had(shares ? begin : begin + i);
        const std::vector<float> own(&query(t, 0, 0), &query(t, 0, 0) + size);
        // Queries of one pass share the list of the row's first query among them.
        const bool is_first = !shares || i == 0 || t % p_.queries_at_once() == 0;
        if (is_first) lists = planned.local_lists(own, p_.selector, layout_.ranks, [&](std::size_t token) { return layout_.owner(token); });
        f(t, planned, now, own, lists);
      }
  }
  slot_model<T> empty() const { return {p_.kv_heads, p_.head_dim, p_.budget, p_.softmax_scale}; }

  typename whole::cache_type::params p_;
  pqkv::scale::token_layout layout_;
  whole trained_;
  std::vector<slot_model<T>> slots_;
};

}  // namespace pqkv_cases
