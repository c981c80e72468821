// SPDX-License-Identifier: Apache-2.0
// Finds the k-th largest key of weighted items that one CTA holds, in one pass if the caller knows a close upper bound of the keys. A
// histogram of fine bins below the bound finds the bin of the threshold; the few items in it are compared with each other. If the bound is
// far off or the bin holds too many items, further histograms follow. For items of a cluster, or keys without a bound, use radix_select.
#pragma once

#include <cstdint>

#include "reduce.cuh"
#include "select.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

template <unsigned Threads>
class list_select {
  static constexpr unsigned log_bins = 10, bins = 1u << log_bins, own_bins = bins / Threads,
                            most_candidates = 256;  // in a bin; with more, finer bins are made
  // measured: retrieve/scan, n 1048576, k 2048 of bench/cuda/retrieve.cu, H100, 2026-11: 149 us, 185 with up to 1024 compared at once
  static_assert(own_bins * Threads == bins);

 public:
  static constexpr unsigned wide_shift = 17;  // 64 bins for each power of two, so 16 powers of two below the bound
  /// The shift with which the bins reach from `high` down to `low` and not much farther.
  __device__ static unsigned shift_of(std::uint32_t low, std::uint32_t high) {
    const unsigned open = 32 - static_cast<unsigned>(__clz(static_cast<int>(high - low)));  // bits of high - key
    return open > log_bins ? open - log_bins : 0;
  }

  /// All threads call it after a barrier. Ends with one, so that the scratch may be used again at once.
  /// @param k        at least 1; everything is selected if k is more than the sum of the weights
  /// @param ceiling  at least every key of positive weight; a close bound makes it faster
  /// @param shift    log2 of the number of keys in a bin
  /// @param key_at, weight_at  of item i
  template <class KeyAt, class WeightAt>
  __device__ threshold find(std::uint32_t items, std::uint32_t k, std::uint32_t ceiling, unsigned shift, KeyAt key_at, WeightAt weight_at) {
    std::uint32_t high = ceiling;  // keys above it are selected; k is what remains to be found from here down
    for (;;) {
      const auto place = [&](std::uint32_t key) { return key <= high ? (high - key) >> shift : bins; };
#pragma unroll
      for (unsigned b = 0; b < own_bins; ++b) weights_[b * Threads + threadIdx.x] = 0;
      if (threadIdx.x == 0) bin_ = bins, count_ = 0;
      __syncthreads();
      for_items(items, key_at, weight_at, [&](std::uint32_t key, std::uint32_t weight) {
        const std::uint32_t bin = place(key);
        if (bin < bins) atomicAdd(&weights_[bin], weight);
      });
      __syncthreads();
      std::uint32_t total = 0, own[own_bins], sum = 0;
#pragma unroll
      for (unsigned b = 0; b < own_bins; ++b) sum += own[b] = weights_[threadIdx.x * own_bins + b];
      std::uint32_t above = prefix_.prefix(sum, total);
#pragma unroll
      for (unsigned b = 0; b < own_bins; ++b) {
        if (above < k && k - above <= own[b]) bin_ = threadIdx.x * own_bins + b, rest_ = k - above;
        above += own[b];
      }
      __syncthreads();
      if (total < k) {  // the threshold is below all bins: new bins for all lower keys
        k -= total;
        if (high >> shift < bins) {  // there are no lower keys: fewer than k items in all
          if (threadIdx.x == 0) all_equal_ = true;
          __syncthreads();
          return {0, k};
        }
        high -= bins << shift;
        shift = 32 - log_bins;
        continue;
      }
      k = rest_;
      high -= bin_ << shift;
      if (shift == 0) {
        if (threadIdx.x == 0) all_equal_ = weights_[bin_] == k;
        __syncthreads();
        return {high, k};
      }
      for_items(items, key_at, weight_at, [&](std::uint32_t key, std::uint32_t weight) {
        if (place(key) != 0) return;
        const std::uint32_t at = atomicAdd(&count_, 1u);
        if (at < most_candidates) candidates_[at] = {key, weight};
      });
      __syncthreads();
      if (count_ <= most_candidates) return decide(k);
      shift = shift > log_bins ? shift - log_bins : 0;
      __syncthreads();
    }
  }

  /// After find(): whether all items that equal the threshold are selected.
  __device__ bool takes_all_equal() const { return all_equal_; }

 private:
  struct candidate {
    std::uint32_t key, weight;
  };

  /// Calls take(key, weight) for this thread's items of positive weight. Several are read before the first is used.
  template <class KeyAt, class WeightAt, class Take>
  __device__ static void for_items(std::uint32_t items, KeyAt key_at, WeightAt weight_at, Take take) {
    constexpr unsigned at_once = 4;
    std::uint32_t first = threadIdx.x;
#pragma unroll 1
    for (; first + (at_once - 1) * Threads < items; first += at_once * Threads) {
      std::uint32_t key[at_once], weight[at_once];
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) weight[a] = weight_at(first + a * Threads), key[a] = key_at(first + a * Threads);
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a)
        if (weight[a] != 0) take(key[a], weight[a]);
    }
#pragma unroll 1
    for (; first < items; first += Threads)
      if (const std::uint32_t weight = weight_at(first); weight != 0) take(key_at(first), weight);
  }
  /// The threshold of the k largest candidates. Each thread has one candidate and compares it with all.
  __device__ threshold decide(std::uint32_t k) {
    static_assert(most_candidates <= Threads);
    const std::uint32_t count = count_;
    if (threadIdx.x < count) {
      const std::uint32_t key = candidates_[threadIdx.x].key;
      std::uint32_t above = 0, equal = 0, first = count;  // first: of the same key
#pragma unroll 4
      for (std::uint32_t i = 0; i < count; ++i) {
        const candidate other = candidates_[i];
        above += other.key > key ? other.weight : 0;
        equal += other.key == key ? other.weight : 0;
        first = other.key == key && i < first ? i : first;
      }
      if (first == threadIdx.x && above < k && k - above <= equal) bin_ = key, rest_ = k - above, all_equal_ = k - above == equal;
    }
    __syncthreads();
    const threshold limit{bin_, rest_};
    __syncthreads();
    return limit;
  }

  alignas(16) std::uint32_t weights_[bins];
  candidate candidates_[most_candidates];
  std::uint32_t bin_, rest_, count_;  // at the end, the threshold
  bool all_equal_;
  reduction<std::uint32_t, Threads> prefix_;
};

}  // namespace pqkv::detail::block
