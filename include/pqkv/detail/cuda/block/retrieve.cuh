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
    reduction<std::uint64_t, Threads> sums;
    reduction<std::uint32_t, Threads> maxima;
  };

  /// Dynamic shared memory of one list.
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t g, std::size_t m, std::size_t c) {
    return shared_memory::bytes<float>(g * m * c) + shared_memory::bytes<float>(g * m) + shared_memory::bytes<float>(g) +
           shared_memory::bytes<std::uint64_t>(g) + shared_memory::bytes<std::uint32_t>(g);
  }
  __device__ list_scorer(const scoring& call, unsigned list, const scored_items& items, scratch& own, shared_memory& memory)
      : call_(call), items_(items), scratch_(own), first_(list * call.g), table_(std::size_t{call.m} * call.c) {
    entries_ = memory.take<float>(call.g * table_);
    tops_ = memory.take<float>(call.g * call.m);
    factor_ = memory.take<float>(call.g);
    total_ = memory.take<std::uint64_t>(call.g);
    usable_ = memory.take<std::uint32_t>(call.g);
  }

  /// Which query heads can be used; writes `skipped` if given.
  __device__ void look(std::uint8_t* skipped) {
    for (unsigned q = threadIdx.x / 32; q < call_.g; q += warps) {
      const bool finite = table_is_finite(call_.row(first_ + q, 0), call_.table.entries.stride(1), call_.m, call_.c,
                                          call_.table.bias(first_ + q), call_.reduction);
      if (threadIdx.x % 32 != 0) continue;
      usable_[q] = finite ? 1 : 0;
      if (skipped != nullptr) skipped[first_ + q] = finite ? 0 : 1;
    }
    __syncthreads();
  }

  /// After look(). @param tokens  what the items stand for in all
  __device__ void prepare(std::uint32_t tokens) {
    if (!uses_probabilities(call_.reduction)) {
      for (std::size_t at = threadIdx.x; at < call_.g * table_; at += Threads) {
        const unsigned q = static_cast<unsigned>(at / table_);
        entries_[at] = usable_[q] != 0 ? entry(q, at % table_) : nothing(call_.reduction);
      }
      for (unsigned q = threadIdx.x; q < call_.g; q += Threads) factor_[q] = usable_[q] != 0 ? call_.table.bias(first_ + q) : 0.0f;
      __syncthreads();
      return;
    }
    for (unsigned row = threadIdx.x / 32; row < call_.g * call_.m; row += warps) {
      const float top = largest_entry(call_.row(first_ + row / call_.m, row % call_.m), call_.c);
      if (threadIdx.x % 32 == 0) tops_[row] = top;
    }
    __syncthreads();
    for (std::size_t at = threadIdx.x; at < call_.g * table_; at += Threads) {
      const unsigned q = static_cast<unsigned>(at / table_);
      entries_[at] = usable_[q] != 0 ? canonical::exponential(shifted(q, at % table_), call_.scale) : 0.0f;
    }
    __syncthreads();
    for (unsigned q = 0; q < call_.g; q += side_by_side) add_up(q);
    for (unsigned q = 0; q < call_.g; ++q)
      if (usable_[q] != 0 && canonical::needs_recentring(total_[q], tokens)) recentre(q);
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads)
      factor_[q] = usable_[q] != 0 ? canonical::inverse_normaliser(total_[q]) : 0.0f;
    __syncthreads();
  }

  __device__ float score(std::uint32_t i) const { return group_score(call_.reduction, entries_, factor_, call_.g, items_, i); }

 private:
  __device__ float entry(unsigned q, std::size_t at) const {
    return call_.row(first_ + q, static_cast<unsigned>(at / call_.c))[at % call_.c];
  }
  __device__ float shifted(unsigned q, std::size_t at) const {
    return canonical::sub(entry(q, at), tops_[q * call_.m + at / call_.c]);
  }

  /// Z of up to side_by_side query heads from `first` on.
  __device__ void add_up(unsigned first) {
    const unsigned count = call_.g - first < side_by_side ? call_.g - first : side_by_side;
    std::uint64_t z[side_by_side] = {};
    for (std::uint32_t i = threadIdx.x; i < items_.n; i += Threads) {
      const std::uint32_t weight = items_.weight(i);
      if (weight == 0) continue;
#pragma unroll
      for (unsigned a = 0; a < side_by_side; ++a)
        if (a < count) z[a] += canonical::to_fixed(items_.product(entries_ + (first + a) * table_, i)) * weight;
    }
#pragma unroll
    for (unsigned a = 0; a < side_by_side; ++a) {
      if (a >= count) break;
      const std::uint64_t total = scratch_.sums.sum(z[a]);
      if (threadIdx.x == 0) total_[first + a] = total;
    }
    __syncthreads();
  }

  __device__ void recentre(unsigned q) {
    std::uint32_t best = 0;
    for (std::uint32_t i = threadIdx.x; i < items_.n; i += Threads) {
      if (items_.weight(i) == 0) continue;
      float z = shifted(q, items_.code(0, i));
      for (unsigned j = 1; j < call_.m; ++j) z = canonical::add(z, shifted(q, std::size_t{j} * call_.c + items_.code(j, i)));
      const std::uint32_t key = canonical::order_key(z);
      best = key > best ? key : best;
    }
    const float shift = recentring_shift(scratch_.maxima.max(best), call_.scale, call_.m);
    for (std::size_t at = threadIdx.x; at < table_; at += Threads)
      entries_[q * table_ + at] = canonical::exponential(canonical::sub(shifted(q, at), shift), call_.scale);
    __syncthreads();
    std::uint64_t z = 0;
    for (std::uint32_t i = threadIdx.x; i < items_.n; i += Threads) {
      const std::uint32_t weight = items_.weight(i);
      if (weight != 0) z += canonical::to_fixed(items_.product(entries_ + q * table_, i)) * weight;
    }
    z = scratch_.sums.sum(z);
    if (threadIdx.x == 0) total_[q] = z;
    __syncthreads();
  }

  const scoring& call_;
  const scored_items& items_;
  scratch& scratch_;
  unsigned first_;     // query head of the table
  std::size_t table_;  // m * c
  float *entries_, *tops_, *factor_;
  std::uint64_t* total_;
  std::uint32_t* usable_;
};

}  // namespace pqkv::detail::block
