// SPDX-License-Identifier: Apache-2.0
// The operations of scale/share_steps.hpp in plain code on host memory: what the device's kernels must do, and what the queued backend
// (queued_backend.hpp) runs, so that a context_parallel in device memory lives where there is no GPU. With it the communicator of queues:
// in_process, whose exchanges wait in the queue like all other work.
#pragma once

#include <algorithm>
#include <vector>

#include <pqkv/pqkv.hpp>
#include <pqkv/scale/device_context_parallel.hpp>
#include <pqkv/scale/in_process.hpp>

#include "queued_backend.hpp"

namespace pqkv::inline PQKV_MODE::scale {  // where the backend's calls of to_host() find those of the types here
template <class Space>
constexpr planned_share<space::host> to_host(const planned_share<Space>& call) {
  using pqkv_cases::to_host;
  return {to_host(call.queries), to_host(call.plan), to_host(call.own), call.share, call.mode, call.vote, call.vote_to};
}
template <class Space>
constexpr ranked_share<space::host> to_host(const ranked_share<Space>& call) {
  using pqkv_cases::to_host;
  return {to_host(call.table),
          to_host(call.codes),
          to_host(call.index),
          to_host(call.map),
          to_host(call.whole),
          to_host(call.own),
          {to_host(call.found.indices), to_host(call.found.counts)},
          to_host(call.scores),
          to_host(call.normalisers),
          call.how,
          call.share,
          call.k};
}
template <class Space>
constexpr merged_shares<space::host> to_host(const merged_shares<Space>& call) {
  using pqkv_cases::to_host;
  return {to_host(call.out), to_host(call.lse), call.vote, call.disagreed};
}
template <class T, class Space>
constexpr sampled_keys<T> to_host(const sampled_keys<T, Space>& keys) {
  return {pqkv_cases::to_host(keys.keys), keys.first_head};
}
}  // namespace pqkv::scale

namespace pqkv_cases {

/// One rank's communicator: exchanges are work of its queue.
class queued_ranks {
 public:
  queued_ranks(pqkv::scale::in_process_group& group, std::size_t rank) : ranks_(group, rank) {}
  explicit queued_ranks(const pqkv::scale::in_process& ranks) : ranks_(ranks) {}
  std::size_t rank() const { return ranks_.rank(); }
  std::size_t size() const { return ranks_.size(); }
  void finish(const queued_policy& policy) const { policy.stream->finish(); }

  void all_gather(const queued_policy& policy, const std::byte* own, std::byte* all, std::size_t bytes) const {
    policy.stream->push_exchange([=, ranks = ranks_] { ranks.all_gather(pqkv::exec::host<>{}, own, all, bytes); });
  }
  void all_reduce(const queued_policy& policy, std::uint64_t* numbers, std::size_t count, pqkv::scale::reduction how) const {
    policy.stream->push_exchange([=, ranks = ranks_] { ranks.all_reduce(pqkv::exec::host<>{}, numbers, count, how); });
  }
  void all_to_all(const queued_policy& policy, const std::byte* to, std::byte* from, std::size_t bytes) const {
    policy.stream->push_exchange([=, ranks = ranks_] { ranks.all_to_all(pqkv::exec::host<>{}, to, from, bytes); });
  }

 private:
  pqkv::scale::in_process ranks_;
};

}  // namespace pqkv_cases

namespace pqkv {

template <>
struct kernel<op::plan_share, backend::host> {
  template <class P>
  static void run(const P& policy, const scale::planned_share<space::host>& call) {
    kernel<op::plan_step, backend::host>::run(policy, call.queries, call.plan);
    for (std::size_t i = 0; i < call.plan.spans.extent(0); ++i) call.plan.spans(i) = call.share.local(call.plan.spans(i));
    const std::size_t rank = call.share.rank, ranks = call.share.layout.ranks;
    for (std::size_t i = 0; i < call.own.extent(0); ++i) {
      const std::size_t k = call.plan.ranges(i).retrieve;
      call.own(i) = call.share.local(call.plan.ranges(i));
      if (call.mode == scale::selection_mode::local)
        call.own(i).retrieve = static_cast<std::uint32_t>(k * (rank + 1) / ranks - k * rank / ranks);
    }
    if (call.vote_to != nullptr) *call.vote_to = call.vote;
  }
};

template <>
struct kernel<op::append_share, backend::host> {
  template <class P, class Rows, class Index, class K, class V>
  static void run(const P& policy, const Rows& rows, const Index& index, const appended_tokens<space::host>& call,
                  const scale::token_share& share, view<K, 3> keys, view<V, 3> values) {
    const std::size_t batch = call.slots.sequences.extent(0), h = rows.heads() / batch;
    std::size_t first = 0;
    for (std::size_t row = 0; row < call.step.rows(batch); first += call.step.count(row), ++row) {
      const std::uint32_t slot = call.step.slot(row), count = call.step.count(row);
      sequence& now = call.slots.sequences(slot);
      if (count == 0) continue;
      if (now.prefilling != 0 || now.n + std::size_t{count} > call.capacity || first + count > call.tokens) {
        call.slots.statistics(slot).refused += count;
        continue;
      }
      for (std::uint32_t i = 0; i < count; ++i)
        for (std::size_t head = 0; head < h && share.owns(now.n + i); ++head) {
          const std::uint32_t to = share.local(now.n + i);
          detail::store_row<isa::scalar>(row_of(keys, first + i, head), rows.key_slot(slot * h + head, to), rows.head_dim());
          detail::store_row<isa::scalar>(row_of(values, first + i, head), rows.value_slot(slot * h + head, to), rows.head_dim());
        }
      const leaving_tokens leaving = share.local(leaving_between(slot, now, now.grown(now.learned != 0 ? count : 0), call.slots.rule));
      index.encode(policy, rows, make_view(&leaving, 1));
      index.commit(leaving);
      now = now.grown(count);
    }
  }
};

template <>
struct kernel<op::truncate_share, backend::host> {
  template <class P, class Index>
  static void run(const P&, const Index& index, const truncated_tokens<space::host>& call, const scale::token_share& share) {
    for (std::size_t row = 0; row < call.rows(); ++row) {
      sequence& now = call.slots.sequences(call.slot_of(row));
      if (call.length_of(row) > now.n || now.prefilling != 0) {
        ++call.slots.statistics(call.slot_of(row)).refused;
        continue;
      }
      const sequence after = now.truncated(call.length_of(row));
      if (now.learned != 0) index.forget(share.local(leaving_between(call.slot_of(row), after, now, call.slots.rule)), after);
      now = after;
    }
  }
};

template <>
struct kernel<op::gather_share, backend::host> {
  template <class P, class Rows, class T>
  static void run(const P&, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first,
                  const scale::token_share& share, view<T, 3> out) {
    for (std::size_t h = 0; h < out.extent(0); ++h)
      for (std::size_t i = 0; i < out.extent(1); ++i) {
        const std::size_t token = first + sample(i);
        for (std::size_t e = 0; e < out.extent(2); ++e)
          out(h, i, e) = static_cast<T>(share.owns(token) ? rows.key(head + h, share.local(static_cast<std::uint32_t>(token)))[e] : 0.0f);
      }
  }
};

template <>
struct kernel<op::agree_normalisers, backend::host> {
  template <class P>
  static void run(const P& policy, const scale::ranked_share<space::host>& call, const scale::gathered_mail& sums,
                  const scale::gathered_mail& centred, unsigned stage, unsigned) {
    const std::size_t hq = call.normalisers.extent(0), g = hq / call.whole.extent(0);
    const auto is_short = [&](std::size_t q) { return needs_centre(call.normalisers(q), call.whole(q / g).size()); };
    const auto add_up = [&] {
      kernel<op::sum_part, backend::host>::run(policy, call.table, call.codes, call.index, call.own, call.how, call.map, call.normalisers);
    };
    if (stage == 0) {
      for (std::size_t q = 0; q < hq; ++q) call.normalisers(q) = {};
      add_up();
      kernel<op::largest_part, backend::host>::run(policy, call.table, call.codes, call.index, call.own, call.how, call.map,
                                                   call.normalisers);
      for (std::size_t q = 0; q < hq; ++q) {
        sums.own[1 + 2 * q] = call.normalisers(q).sum;
        sums.own[2 + 2 * q] = canonical::order_key(call.normalisers(q).largest);
      }
    } else if (stage == 1) {
      std::vector<std::uint64_t> all(hq, 0);
      for (std::size_t q = 0; q < hq; ++q) {
        std::uint32_t key = 0;
        for (unsigned rank = 0; rank < sums.ranks; ++rank) {
          all[q] += sums.word(rank, 1 + 2 * q);
          key = std::max(key, static_cast<std::uint32_t>(sums.word(rank, 2 + 2 * q)));
        }
        call.normalisers(q) = {all[q], 0, canonical::from_order_key(key)};
        if (is_short(q)) call.normalisers(q) = centred_of(call.normalisers(q), call.how);
      }
      add_up();
      for (std::size_t q = 0; q < hq; ++q) centred.own[1 + q] = call.normalisers(q).sum;  // around 0 these are the first ones again
    } else {
      for (std::size_t q = 0; q < hq; ++q) {
        call.normalisers(q).sum = 0;
        for (unsigned rank = 0; rank < centred.ranks; ++rank) call.normalisers(q).sum += centred.word(rank, 1 + q);
      }
    }
  }

 private:
  static normaliser centred_of(const normaliser& of, const retrieve_params& how) { return pqkv::centred(of, how); }
};

template <>
struct kernel<op::retrieve_share, backend::host> {
  template <class P>
  static void run(const P& policy, const scale::ranked_share<space::host>& call) {
    kernel<op::retrieve, backend::host>::run(policy, call.table, call.codes, call.index, call.own, call.found.indices, call.found.counts,
                                             call.how, {}, call.map, {}, partial_ranking{as_const(call.normalisers), call.scores});
  }
};

template <>
struct kernel<op::choose_tokens, backend::host> {
  template <class P>
  static void run(const P&, const scale::ranked_share<space::host>& call, const scale::gathered_mail& mail, unsigned stage, unsigned) {
    const std::size_t lists = call.found.counts.extent(0), per_head = lists / call.whole.extent(0);
    const auto word_of = [&](std::size_t list, std::size_t i) {
      const std::size_t place = static_cast<std::size_t>(call.found.indices(list, i));
      return scale::candidate_of(call.scores(list, i), call.share.layout.position(call.share.rank, place));
    };
    for (std::size_t list = 0; list < lists; ++list) {
      const middle_range whole = call.whole(list / per_head);
      const std::size_t base = 1 + list * (call.k + 1);
      if (whole.size() == 0) continue;
      std::uint32_t& count = call.found.counts(list);
      if (stage == 0) {
        mail.own[base] = count;
        for (std::size_t i = 0; i < count; ++i) mail.own[base + 1 + i] = word_of(list, i);
        continue;
      }
      std::vector<std::uint64_t> all;
      for (unsigned rank = 0; rank < mail.ranks; ++rank)
        for (std::size_t i = 0; i < mail.word(rank, base); ++i) all.push_back(mail.word(rank, base + 1 + i));
      std::sort(all.begin(), all.end());
      const std::size_t k = whole.selected();
      if (all.size() <= k) continue;
      std::uint32_t kept = 0;
      for (std::size_t i = 0; i < count; ++i)
        if (word_of(list, i) <= all[k - 1]) call.found.indices(list, kept++) = call.found.indices(list, i);
      count = kept;
    }
  }
};

template <>
struct kernel<op::merge_shares, backend::host> {
  template <class P>
  static void run(const P&, const scale::merged_shares<space::host>& call, const scale::gathered_mail& mail) {
    const std::size_t rows = call.out.extent(0), d = call.out.extent(1);
    for (unsigned rank = 0; rank < mail.ranks; ++rank)
      if (mail.word(rank, 0) != call.vote) *call.disagreed = 1;
    std::vector<float> other(d);
    for (std::size_t q = 0; q < rows; ++q) {
      call.lse(q) = mail.value(0, q);
      for (std::size_t i = 0; i < d; ++i) call.out(q, i) = mail.value(0, rows + q * d + i);
      for (unsigned rank = 1; rank < mail.ranks; ++rank) {
        for (std::size_t i = 0; i < d; ++i) other[i] = mail.value(rank, rows + q * d + i);
        merge(&call.out(q, 0), call.lse(q), other.data(), mail.value(rank, q), d);
      }
    }
  }
};

template <>
struct kernel<op::write_share_lists, backend::host> {
  template <class P, class Indices, class Counts>
  static void run(const P&, const scale::planned_share<space::host>& call, view<const std::int32_t, 2> found, const Indices& indices,
                  const Counts& counts) {
    const std::size_t lists = indices.extent(1), room = indices.extent(2), rank = call.share.rank;
    const auto& queries = call.queries;
    for (std::size_t i = 0; i < indices.extent(0); ++i) {
      const step_token token = locate(queries.step, queries.sequences.extent(0), queries.first + i);
      const bool is_asked = token.count != 0 && token.slot < queries.sequences.extent(0);
      const middle_range whole = call.share.local(
          is_asked ? whole_middle(queries.sequences(token.slot), queries.query(token), queries.rule, queries.covers) : middle_range{});
      for (std::size_t list = 0; list < lists; ++list) {
        const std::size_t row = i * lists + list,
                          all = whole.size() != 0 ? whole.size()
                                : is_asked        ? call.plan.counts(row)
                                                  : 0,
                          listed = std::min(all, room);
        counts(i, list) = static_cast<std::uint32_t>(listed);
        for (std::size_t k = 0; k < room; ++k) {
          const std::size_t place = k >= listed ? 0 : whole.size() != 0 ? whole.begin + k : static_cast<std::size_t>(found(row, k));
          indices(i, list, k) = k < listed ? static_cast<std::int32_t>(call.share.layout.position(rank, place)) : -1;
        }
      }
    }
  }
};

}  // namespace pqkv
