// SPDX-License-Identifier: Apache-2.0
// Plays a life (rank_lives.hpp) to one rank whose rows are in device memory: what the script gives and is answered is host memory, and is
// copied here. For the queued backend and for CUDA.
#pragma once

#include <pqkv/scale/device_context_parallel.hpp>

#include "placed_array.hpp"
#include "rank_lives.hpp"

namespace pqkv_cases {

/// @tparam T  of the stored rows
template <class T, class Policy, class Communicator>
class device_rank_player {
 public:
  using device = pqkv::space::device;
  using cache_type = pqkv::scale::context_parallel<pqkv::dense_rows<T, device>, Communicator>;

  device_rank_player(const Policy& policy, const Communicator& ranks, const typename cache_type::params& p)
      : policy_(policy), rank_(ranks.rank()), cache_(policy, ranks, p) {}

  void prefill(std::size_t slot, pqkv::view<const T, 3> keys, pqkv::view<const T, 3> values, pqkv::chunk which) {
    const std::size_t before = cache_.size(policy_, slot), n = keys.extent(1), h = keys.extent(0), d = keys.extent(2);
    std::vector<T> k, v;
    std::size_t own = 0;
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t t = 0; t < n; ++t) {
        if (cache_.layout().owner(before + t) != rank_) continue;
        own += head == 0 ? 1 : 0;
        for (std::size_t i = 0; i < d; ++i) k.push_back(keys(head, t, i)), v.push_back(values(head, t, i));
      }
    const array<T> there_k(policy_, k), there_v(policy_, v);
    cache_.prefill(policy_, slot, there_k.const_view(h, own, d), there_v.const_view(h, own, d), n, which);
    pqkv::sync(policy_);  // the copies end here
  }
  void copy_by_file(std::size_t from, std::size_t to) { copy_by_own_file(policy_, cache_, from, to); }

  device_rank_player& cache() { return *this; }
  const Policy& policy() const { return policy_; }
  cache_type& device_cache() { return cache_; }

  void reset(const Policy&, std::size_t slot) { cache_.reset(policy_, slot); }
  void fork(const Policy&, std::size_t from, std::size_t to) { cache_.fork(policy_, from, to); }
  void maintain(const Policy&) { cache_.maintain(policy_); }
  /// By the host's number and by a length on the device in turns.
  void truncate(const Policy&, std::size_t slot, std::size_t n) {
    if (n % 2 == 0) return cache_.truncate(policy_, slot, n);
    const array<std::uint32_t> slots(policy_, std::vector<std::uint32_t>{static_cast<std::uint32_t>(slot)}),
        lengths(policy_, std::vector<std::uint32_t>{static_cast<std::uint32_t>(n)});
    cache_.truncate(policy_, lengths.const_view(1), slots.const_view(1));
    pqkv::sync(policy_);
  }
  void append(const Policy&, pqkv::view<const T, 3> keys, pqkv::view<const T, 3> values, const pqkv::cache_step& step) {
    const placed_step placed(policy_, step);
    const array<T> k(policy_, flat(keys)), v(policy_, flat(values));
    cache_.append(policy_, k.const_view(keys.extent(0), keys.extent(1), keys.extent(2)),
                  v.const_view(keys.extent(0), keys.extent(1), keys.extent(2)), placed.view());
    pqkv::sync(policy_);
  }
  void retrieve(const Policy&, pqkv::view<const float, 3> query, pqkv::view<std::int32_t, 3> indices, pqkv::view<std::uint32_t, 2> counts,
                const pqkv::cache_step& step) {
    const placed_step placed(policy_, step);
    const array<float> q(policy_, flat(query));
    const array<std::int32_t> lists(policy_, indices.size());
    const array<std::uint32_t> sizes(policy_, counts.size());
    cache_.retrieve(policy_, q.const_view(query.extent(0), query.extent(1), query.extent(2)),
                    lists.view(indices.extent(0), indices.extent(1), indices.extent(2)), sizes.view(counts.extent(0), counts.extent(1)),
                    placed.view());
    const std::vector<std::int32_t> found = lists.read();
    const std::vector<std::uint32_t> how_many = sizes.read();
    std::copy(found.begin(), found.end(), indices.data);
    std::copy(how_many.begin(), how_many.end(), counts.data);
  }
  void attend(const Policy&, pqkv::view<const float, 3> query, pqkv::view<float, 3> out, pqkv::view<float, 2> lse,
              const pqkv::cache_step& step) {
    const placed_step placed(policy_, step);
    const array<float> q(policy_, flat(query)), results(policy_, query.size()), sums(policy_, lse.size());
    cache_.attend(policy_, q.const_view(query.extent(0), query.extent(1), query.extent(2)),
                  results.view(query.extent(0), query.extent(1), query.extent(2)), sums.view(lse.extent(0), lse.extent(1)), placed.view());
    const std::vector<float> there = results.read(), of_sums = sums.read();
    std::size_t at = 0;
    for (std::size_t t = 0; t < out.extent(0); ++t)
      for (std::size_t head = 0; head < out.extent(1); ++head)
        for (std::size_t i = 0; i < out.extent(2); ++i) out(t, head, i) = there[at++];
    std::copy(of_sums.begin(), of_sums.end(), lse.data);
  }

 private:
  template <class E>
  using array = placed_array<E, Policy>;

  template <class E>
  static std::vector<std::remove_const_t<E>> flat(pqkv::view<E, 3> from) {
    std::vector<std::remove_const_t<E>> all;
    for (std::size_t a = 0; a < from.extent(0); ++a)
      for (std::size_t b = 0; b < from.extent(1); ++b)
        for (std::size_t i = 0; i < from.extent(2); ++i) all.push_back(from(a, b, i));
    return all;
  }
  /// A host's step in device memory.
  struct placed_step {
    array<std::uint32_t> slots, counts;
    std::size_t rows;

    placed_step(const Policy& policy, const pqkv::cache_step& step)
        : slots(policy, std::vector<std::uint32_t>(step.slots.data, step.slots.data + step.slots.extent(0))),
          counts(policy, std::vector<std::uint32_t>(step.counts.data, step.counts.data + step.counts.extent(0))),
          rows(step.slots.extent(0)) {}
    pqkv::basic_step<device> view() const { return {slots.const_view(rows), counts.const_view(rows)}; }
  };

  Policy policy_;
  std::size_t rank_;
  cache_type cache_;
};

}  // namespace pqkv_cases
