// SPDX-License-Identifier: Apache-2.0
// The tables of one list, prepared by one CTA alone: exponentials of the entries, normalisers over all items, recentring where they
// are too small. For as many items as a CTA can go through by itself; scan.cuh spreads the same steps over the device.
#pragma once

#include "../scan.cuh"

namespace pqkv::detail::block {

template <unsigned Threads>
class list_scorer {
  static constexpr unsigned warps = Threads / 32, side_by_side = 4;  // query heads that share the read of an item's codes

 public:
  struct scratch {
    reduction<std::uint64_t, Threads> sums[side_by_side];
    reduction<std::uint32_t, Threads> maxima;
  };

  /// Dynamic shared memory of one list.
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t g, std::size_t m, std::size_t c) {
    return shared_memory::bytes<float>(g * m * c) + shared_memory::bytes<float>(g * m) + shared_memory::bytes<float>(g) +
           shared_memory::bytes<std::uint64_t>(g) + shared_memory::bytes<std::uint32_t>(g);
  }
  __device__ list_scorer(const scoring& call, unsigned list, const scored_items& items, scratch& own, shared_memory& memory)
      : call_(call), items_(items), scratch_(own), first_(list * call.g), table_(call.m * call.c) {
    entries_ = memory.take<float>(call.g * table_);
    tops_ = memory.take<float>(call.g * call.m);
    factor_ = memory.take<float>(call.g);
    total_ = memory.take<std::uint64_t>(call.g);
    usable_ = memory.take<std::uint32_t>(call.g);
  }

  /// Which query heads can be used; writes `skipped` if given.
  __device__ void look(std::uint8_t* skipped) {
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads)
      usable_[q] = is_finite(call_.table.bias(first_ + q)) || call_.reduction != group_reduction::logit_max ? 1 : 0;
    __syncthreads();
    for (unsigned at = threadIdx.x / 32; at < call_.g * call_.m; at += warps) {
      const table_row row = look_at_row(call_.row(first_ + at / call_.m, at % call_.m), call_.c);
      if (threadIdx.x % 32 != 0) continue;
      tops_[at] = row.top;
      if (!row.is_finite) atomicAnd(&usable_[at / call_.m], 0u);
    }
    __syncthreads();
    if (skipped == nullptr) return;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) skipped[first_ + q] = usable_[q] != 0 ? 0 : 1;
  }

  /// After look(). @param tokens  what the items stand for in all
  __device__ void prepare(std::uint32_t tokens) {
    if (!uses_probabilities(call_.reduction)) {
      for (unsigned at = threadIdx.x; at < call_.g * table_; at += Threads)
        entries_[at] = usable_[query_of(at)] != 0 ? entry(at) : nothing(call_.reduction);
      for (unsigned q = threadIdx.x; q < call_.g; q += Threads) factor_[q] = usable_[q] != 0 ? call_.table.bias(first_ + q) : 0.0f;
      __syncthreads();
      return;
    }
    for (unsigned at = threadIdx.x; at < call_.g * table_; at += Threads)
      entries_[at] = usable_[query_of(at)] != 0 ? canonical::exponential(shifted(at), call_.scale) : 0.0f;
    __syncthreads();
    for (unsigned q = 0; q < call_.g; q += side_by_side) add_up(q);
    for (unsigned q = 0; q < call_.g; ++q)
      if (usable_[q] != 0 && canonical::needs_recentring(total_[q], tokens)) recentre(q);
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads)
      factor_[q] = usable_[q] != 0 ? canonical::inverse_normaliser(total_[q]) : 0.0f;
    __syncthreads();
  }

  /// keys[i] = order key of the score of item i, for all items.
  __device__ void score(std::uint32_t* keys) const {
    if (are_pairs() && call_.reduction == group_reduction::probability_sum) {
      for (std::uint32_t first = threadIdx.x; first < items_.n; first += turns * Threads) {
        float of[turns] = {};
#pragma unroll 2
        for (unsigned q = 0; q < call_.g; ++q)
#pragma unroll
          for (unsigned a = 0; a < turns; ++a) of[a] = canonical::fma(pair_product(q, first + a * Threads), factor_[q], of[a]);
#pragma unroll
        for (unsigned a = 0; a < turns; ++a)
          if (first + a * Threads < items_.n) keys[first + a * Threads] = canonical::order_key(of[a]);
      }
      return;
    }
    for (std::uint32_t i = threadIdx.x; i < items_.n; i += Threads)
      keys[i] = canonical::order_key(
          add_queries(first_score(call_.reduction), call_.reduction, entries_, factor_, call_.g, items_, i));
  }

 private:
  /// The usual case, cells of two subspaces, goes four items at a time without a branch: any number is an item with codes.
  static constexpr unsigned turns = 4;
  __device__ bool are_pairs() const { return items_.are_cells() && call_.m == 2; }
  __device__ float pair_product(unsigned q, std::uint32_t i) const {
    const float* e = entries_ + q * table_;
    return canonical::mul(e[(i >> call_.bits) & (call_.c - 1)], e[call_.c + (i & (call_.c - 1))]);
  }

  // Entry `at` of the list's tables [g, m, c]; c is a power of two.
  __device__ unsigned query_of(unsigned at) const { return (at >> call_.bits) / call_.m; }
  __device__ float entry(unsigned at) const {
    const unsigned row = at >> call_.bits, q = row / call_.m;
    return call_.row(first_ + q, row - q * call_.m)[at & (call_.c - 1)];
  }
  __device__ float shifted(unsigned at) const { return canonical::sub(entry(at), tops_[at >> call_.bits]); }

  /// Z of up to side_by_side query heads from `first` on.
  __device__ void add_up(unsigned first) {
    const unsigned count = call_.g - first < side_by_side ? call_.g - first : side_by_side;
    std::uint64_t z[side_by_side] = {};
    for (std::uint32_t base = threadIdx.x; are_pairs() && base < items_.n; base += turns * Threads) {
      std::uint32_t weight[turns];
#pragma unroll
      for (unsigned t = 0; t < turns; ++t) weight[t] = base + t * Threads < items_.n ? items_.weight(base + t * Threads) : 0;
#pragma unroll
      for (unsigned a = 0; a < side_by_side; ++a)
#pragma unroll
        for (unsigned t = 0; t < turns; ++t)  // of no weight: the product may be anything
          if (a < count) z[a] += canonical::to_fixed(pair_product(first + a, base + t * Threads)) * weight[t];
    }
    for (std::uint32_t i = threadIdx.x; !are_pairs() && i < items_.n; i += Threads) {
      const std::uint32_t weight = items_.weight(i);
      if (weight == 0) continue;
#pragma unroll
      for (unsigned a = 0; a < side_by_side; ++a)
        if (a < count) z[a] += canonical::to_fixed(items_.product(entries_ + (first + a) * table_, i)) * weight;
    }
    reduction<std::uint64_t, Threads>::sums(z, scratch_.sums, total_ + first, count);
  }

  __device__ void recentre(unsigned q) {
    std::uint32_t best = 0;
    for (std::uint32_t i = threadIdx.x; i < items_.n; i += Threads) {
      if (items_.weight(i) == 0) continue;
      float z = shifted(q * table_ + items_.code(0, i));
      for (unsigned j = 1; j < call_.m; ++j) z = canonical::add(z, shifted(q * table_ + j * call_.c + items_.code(j, i)));
      const std::uint32_t key = canonical::order_key(z);
      best = key > best ? key : best;
    }
    const float shift = call_.recentring_shift(scratch_.maxima.max(best));
    for (unsigned at = q * table_ + threadIdx.x; at < (q + 1) * table_; at += Threads)
      entries_[at] = canonical::exponential(canonical::sub(shifted(at), shift), call_.scale);
    __syncthreads();
    std::uint64_t z = 0;
    for (std::uint32_t i = threadIdx.x; i < items_.n; i += Threads) {
      const std::uint32_t weight = items_.weight(i);
      if (weight != 0) z += canonical::to_fixed(items_.product(entries_ + q * table_, i)) * weight;
    }
    z = scratch_.sums[0].sum(z);
    if (threadIdx.x == 0) total_[q] = z;
    __syncthreads();
  }

  const scoring& call_;
  const scored_items& items_;
  scratch& scratch_;
  unsigned first_;     // query head of the table
  unsigned table_;     // m * c
  float *entries_, *tops_, *factor_;
  std::uint64_t* total_;
  std::uint32_t* usable_;
};

}  // namespace pqkv::detail::block
