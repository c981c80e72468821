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
  static constexpr unsigned log_bins = 10, bins = 1u << log_bins, own_bins = bins / Threads, warps = Threads / 32,
                            most_candidates = 256;  // in a bin; with more, finer bins are made
  // measured: retrieve/scan, n 1048576, k 2048 of bench/cuda/retrieve.cu, H100, 2026-11: 149 us; with 1024 instead of 256: 185 us
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
      clear(weights_);
      if (threadIdx.x == 0) bin_ = bins, count_ = 0;
      __syncthreads();
      for_items(items, key_at, weight_at, [&](std::uint32_t key, std::uint32_t weight) {
        const std::uint32_t bin = place(key);
        if (bin < bins) atomicAdd(&weights_[bin], weight);
      });
      __syncthreads();
      const std::uint32_t total = find_bin(k);
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

  /// Finds the keys of two ranks among unweighted items, Count of them in each thread, from one histogram between the smallest and the
  /// largest key. All threads call it after a barrier; it ends with one.
  /// @param ranks  each at least 1 and at most the number of items
  /// @param all    the same keys, in shared memory
  /// @param slack  if the bins of both ranks have at most so many keys, their ends are returned in place of exact keys, which saves three
  ///               barriers: the lower end of the bin of ranks.x, and the upper end of that of ranks.y
  template <unsigned Count>
  __device__ uint2 find_two(const std::uint32_t (&keys)[Count], uint2 ranks, const std::uint32_t* all, std::uint32_t slack) {
    const key_range range = range_of(keys);
    unsigned shift = shift_of(range.low, range.high);
    shift = shift < wide_shift ? shift : wide_shift;
#pragma unroll
    for (unsigned i = 0; i < Count; ++i)
      if (const std::uint32_t bin = (range.high - keys[i]) >> shift; bin < bins) atomicAdd(&weights_[bin], 1u);
    __syncthreads();
    sum_bins(weights_);
    const rank_bin first = bin_of(ranks.x, weights_), second = bin_of(ranks.y, weights_);
    if (shift == 0 || (first.weight <= slack && second.weight <= slack && first.bin < bins && second.bin < bins)) {
      __syncthreads();
      return {range.high - ((first.bin + 1) << shift) + 1, range.high - (second.bin << shift)};
    }
    if (threadIdx.x == 0) ends_[0] = first, ends_[1] = second;
#pragma unroll
    for (unsigned i = 0; i < Count; ++i) {
      const std::uint32_t bin = (range.high - keys[i]) >> shift;
      if (bin == first.bin) collect(0, keys[i]);
      if (bin == second.bin) collect(1, keys[i]);
    }
    __syncthreads();
    if (first.bin < bins && counts_[0] <= few && second.bin < bins && counts_[1] <= few) return decide_two();
    uint2 found{0, 0};
#pragma unroll 1
    for (unsigned which = 0; which < 2; ++which) {
      const auto key_at = [&](std::uint32_t i) { return all[i]; };
      const threshold limit =
          find(Count * Threads, which == 0 ? ranks.x : ranks.y, range.high, wide_shift, key_at, [](std::uint32_t) { return 1u; });
      (which == 0 ? found.x : found.y) = limit.key;
    }
    return found;
  }

  /// Bins of every second histogram of find_between(). The caller has them, since nothing else needs as many.
  struct finer_bins {
    std::uint32_t weights[bins];
  };
  /// Clears what find_between() needs. A barrier must follow.
  __device__ void clear(finer_bins& finer) { clear(weights_), clear(finer.weights); }
  /// find() for unweighted items, also where many are equal. Each histogram divides the bin of the threshold again, until a bin is one key.
  /// The scratch may be used again after the caller's next barrier.
  /// @param k          at most the number of items
  /// @param low, high  bounds of all keys; close ones make it faster
  /// @param finer      cleared by clear()
  /// @param all_equal  written: whether all items that equal the threshold are selected
  template <class KeyAt>
  __device__ threshold find_between(std::uint32_t items, std::uint32_t k, std::uint32_t low, std::uint32_t high, finer_bins& finer,
                                    KeyAt key_at, bool& all_equal) {
    std::uint32_t farthest = high - low;  // below `high`: the threshold is not lower
    unsigned shift = shift_of(low, high);
    for (unsigned level = 0;; ++level) {
      std::uint32_t *const weights = level % 2 == 0 ? weights_ : finer.weights, *const others = level % 2 == 0 ? finer.weights : weights_;
      for_items(
          items, key_at, [](std::uint32_t) { return 1u; },
          [&](std::uint32_t key, std::uint32_t) {
            if (high - key <= farthest) atomicAdd(&weights[(high - key) >> shift], 1u);
          });
      __syncthreads();
      if (level != 0) clear(others);  // for the level after this one
      sum_bins(weights);
      const rank_bin at = bin_of(k, weights);
      high -= at.bin << shift, k = at.rest;
      if (shift == 0) {
        all_equal = at.rest == at.weight;
        return {high, k};
      }
      farthest = (1u << shift) - 1;
      shift = shift > log_bins ? shift - log_bins : 0;
    }
  }

  /// After find(): whether all items that equal the threshold are selected.
  __device__ bool takes_all_equal() const { return all_equal_; }

 private:
  struct candidate {
    std::uint32_t key, weight;
  };

  __device__ static void clear(std::uint32_t* weights) {
#pragma unroll
    for (unsigned b = 0; b < own_bins; ++b) weights[b * Threads + threadIdx.x] = 0;
  }
  /// Reads this thread's bins. Returns the weight of all bins above them; `total` becomes that of all.
  __device__ std::uint32_t own_weights(std::uint32_t (&own)[own_bins], std::uint32_t& total) {
    std::uint32_t sum = 0;
#pragma unroll
    for (unsigned b = 0; b < own_bins; ++b) sum += own[b] = weights_[threadIdx.x * own_bins + b];
    return prefix_.prefix(sum, total);
  }

  /// Finds the bin of the item of rank k, and the rank in it, and returns the weight of all bins. Ends with a barrier.
  __device__ std::uint32_t find_bin(std::uint32_t k) {
    std::uint32_t total = 0, own[own_bins], above = own_weights(own, total);
#pragma unroll
    for (unsigned b = 0; b < own_bins; ++b) {
      if (above < k && k - above <= own[b]) bin_ = threadIdx.x * own_bins + b, rest_ = k - above;
      above += own[b];
    }
    __syncthreads();
    return total;
  }

  static constexpr unsigned few = most_candidates / 2;  // in each of two bins
  struct key_range {
    std::uint32_t low, high;
  };
  struct rank_bin {
    std::uint32_t bin, rest, weight;  // bin of a rank, the rank in it, and what it holds; bin is `bins` where the rank is below all bins
  };

  /// Adds up the weights of each warp's bins. Called after a barrier, ends with one.
  __device__ void sum_bins(const std::uint32_t* weights) {
    std::uint32_t sum = 0;
#pragma unroll
    for (unsigned b = 0; b < own_bins; ++b) sum += weights[threadIdx.x * own_bins + b];
    sum = __reduce_add_sync(all_lanes, sum);
    if (threadIdx.x % 32 == 0) of_warp_[threadIdx.x / 32] = sum;
    __syncthreads();
  }
  /// After sum_bins(). Every warp finds it for itself, which takes less time than to wait for one.
  __device__ rank_bin bin_of(std::uint32_t rank, const std::uint32_t* weights) const {
    const unsigned lane = threadIdx.x % 32;
    const std::uint32_t of_lane = lane < warps ? of_warp_[lane] : 0, before = warp_prefix(of_lane);
    const unsigned warp = __ballot_sync(all_lanes, before < rank && rank - before <= of_lane);
    if (warp == 0) return {bins, 0, 0};
    const int which = __ffs(static_cast<int>(warp)) - 1;
    const unsigned first = (static_cast<unsigned>(which) * 32 + lane) * own_bins;
    std::uint32_t own[own_bins], sum = 0;
#pragma unroll
    for (unsigned b = 0; b < own_bins; ++b) sum += own[b] = weights[first + b];
    std::uint32_t above = __shfl_sync(all_lanes, before, which) + warp_prefix(sum);
    const int owner = __ffs(static_cast<int>(__ballot_sync(all_lanes, above < rank && rank - above <= sum))) - 1;
    rank_bin at{0, 0, 0};
#pragma unroll
    for (unsigned b = 0; b < own_bins; ++b) {
      if (above < rank && rank - above <= own[b]) at = {first + b, rank - above, own[b]};
      above += own[b];
    }
    return {__shfl_sync(all_lanes, at.bin, owner), __shfl_sync(all_lanes, at.rest, owner), __shfl_sync(all_lanes, at.weight, owner)};
  }

  /// The smallest and the largest key. Clears what find_two() needs; ends with a barrier.
  template <unsigned Count>
  __device__ key_range range_of(const std::uint32_t (&keys)[Count]) {
    std::uint32_t low = keys[0], high = keys[0];
#pragma unroll
    for (unsigned i = 1; i < Count; ++i) {
      low = keys[i] < low ? keys[i] : low;
      high = keys[i] > high ? keys[i] : high;
    }
    clear(weights_);
    if (threadIdx.x == 0) range_ = {0xffffffffu, 0}, ends_[0] = ends_[1] = {bins, 0, 0}, counts_[0] = counts_[1] = 0;
    __syncthreads();
    low = __reduce_min_sync(all_lanes, low);
    high = __reduce_max_sync(all_lanes, high);
    if (threadIdx.x % 32 == 0) atomicMin(&range_.low, low), atomicMax(&range_.high, high);
    __syncthreads();
    return range_;
  }
  __device__ void collect(unsigned which, std::uint32_t key) {
    const std::uint32_t at = atomicAdd(&counts_[which], 1u);
    if (at < few) candidates_[which * few + at] = {key, 1};
  }
  /// The keys of both ranks among the candidates of each. Half of the threads have one candidate of a rank each.
  __device__ uint2 decide_two() {
    static_assert(2 * few <= Threads);
    const unsigned which = threadIdx.x / few, own = threadIdx.x % few;
    if (which < 2 && own < counts_[which]) {
      const std::uint32_t key = candidates_[threadIdx.x].key, count = counts_[which], rest = ends_[which].rest;
      std::uint32_t above = 0, reached = 0;
#pragma unroll 8
      for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint32_t other = candidates_[which * few + i].key;
        above += other > key ? 1 : 0;
        reached += other >= key ? 1 : 0;
      }
      if (above < rest && rest <= reached) found_[which] = key;
    }
    __syncthreads();
    const uint2 keys{found_[0], found_[1]};
    __syncthreads();
    return keys;
  }

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
  key_range range_;   // of find_two(), as the next two lines
  rank_bin ends_[2];  // the bin of each rank, and the rank in it
  std::uint32_t counts_[2], found_[2], of_warp_[warps];
  reduction<std::uint32_t, Threads> prefix_;
};

}  // namespace pqkv::detail::block
