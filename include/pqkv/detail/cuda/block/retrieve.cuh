// SPDX-License-Identifier: Apache-2.0
// The scores of one list by one CTA: exponentials of the table's entries, normalisers over all items, recentring where they are too small,
// scores. For as many items as a CTA can go through by itself; scan.cuh spreads the same steps over the device.
#pragma once

#include "../scan.cuh"

namespace pqkv::detail::block {

/// Numbers of `Pack` query heads that are looked up together.
template <unsigned Pack>
struct alignas(Pack * sizeof(float)) query_pack {
  float of[Pack];
};

/// @tparam Pack  query heads that share the read of an item's codes, and one look-up a subspace
template <unsigned Threads, unsigned Pack>
class list_scorer {
  static constexpr unsigned warps = Threads / 32;
  using pack = query_pack<Pack>;
  static_assert(Threads % max_centroids == 0 && Pack <= warps);

 public:
  struct scratch {
    std::uint64_t sums[Pack][warps];
    std::uint32_t tops[Pack][warps], ceiling, again;
  };

  /// Dynamic shared memory.
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t g, std::size_t m, std::size_t c) {
    const std::size_t padded = (g + Pack - 1) / Pack * Pack;
    return shared_memory::bytes<float>(padded * m * c) + 2 * shared_memory::bytes<float>(padded * m) + shared_memory::bytes<float>(padded) +
           shared_memory::bytes<std::uint64_t>(padded) + shared_memory::bytes<std::uint32_t>(padded);
  }

  __device__ list_scorer(const scoring& call, unsigned list, scratch& own, shared_memory& memory)
      : call_(call), scratch_(own), first_(list * call.g), padded_((call.g + Pack - 1) / Pack * Pack) {
    entries_ = memory.take<pack>(padded_ / Pack * call.m * call.c);
    tops_ = memory.take<float>(padded_ * call.m);
    finite_ = memory.take<std::uint32_t>(padded_ * call.m);
    factor_ = memory.take<float>(padded_);
    total_ = memory.take<std::uint64_t>(padded_);
    highest_ = memory.take<std::uint32_t>(padded_);
  }

  /// Exponentials of the entries, or the entries of the logits; writes `skipped` if given. A warp is a row. The caller's
  /// next barrier completes it.
  __device__ void stage(std::uint8_t* skipped) {
    const bool probabilities = uses_probabilities(call_.reduction);
    for (unsigned row = threadIdx.x / 32; row < padded_ * call_.m; row += warps) {
      const unsigned q = row / call_.m, j = row - q * call_.m, lane = threadIdx.x % 32;
      const float lowest = float_from_bits(0xff800000u), *from = q < call_.g ? call_.row(first_ + q, j) : nullptr;
      float top = lowest;
      bool finite = from != nullptr;
      for (unsigned x = lane; x < call_.c; x += 32) {
        const float entry = from != nullptr ? from[x] : lowest;
        finite &= is_finite(entry);
        top = canonical::max(entry, top);
        entry_of(q, j, x) = entry;
      }
      for (int step = 16; step > 0; step /= 2) top = canonical::max(__shfl_xor_sync(all_lanes, top, step), top);
      finite = __all_sync(all_lanes, finite) != 0;
      if (lane == 0) tops_[row] = top, finite_[row] = finite ? 1 : 0;
      for (unsigned x = lane; probabilities && x < call_.c; x += 32) {  // a row that cannot be used makes every product of its query head 0
        float& entry = entry_of(q, j, x);
        entry = finite ? canonical::exponential(canonical::sub(entry, top), call_.scale) : 0.0f;
      }
    }
    __syncthreads();
    for (unsigned q = threadIdx.x; q < padded_; q += Threads) {
      const bool usable = is_usable(q);
      if (skipped != nullptr && q < call_.g) skipped[first_ + q] = usable ? 0 : 1;
      factor_[q] = usable && !probabilities ? call_.table.bias(first_ + q) : 0.0f;
    }
    if (probabilities) return;
    for (unsigned at = threadIdx.x; at < padded_ * call_.m * call_.c; at += Threads) {
      const unsigned row = at >> call_.bits, q = row / call_.m, j = row - q * call_.m;
      if (!is_usable(q)) entry_of(q, j, at & (call_.c - 1)) = nothing(call_.reduction);
    }
  }

  /// After stage(): normalisers, and a bound of the scores' order keys, close for probabilities. Ends with a barrier.
  /// @param tokens  what the items stand for in all
  __device__ std::uint32_t prepare(const scored_items& items, std::uint32_t tokens) {
    if (uses_probabilities(call_.reduction)) add_up(items);
    if (settle(tokens)) {
      for (unsigned q = 0; q < call_.g; ++q)
        if (finite_[q * call_.m] == recentred) recentre(items, q);
      add_up(items);
      settle(0);
    }
    return scratch_.ceiling;
  }

  /// keys[i] = order key of the score of item i, for all items.
  __device__ void score(const scored_items& items, std::uint32_t* keys) const {
    switch (call_.reduction) {
      case group_reduction::probability_sum: return score_by<group_reduction::probability_sum>(items, keys);
      case group_reduction::probability_max: return score_by<group_reduction::probability_max>(items, keys);
      case group_reduction::logit_max: return score_by<group_reduction::logit_max>(items, keys);
      case group_reduction::logit_sum:
      case group_reduction::none: return score_by<group_reduction::logit_sum>(items, keys);
    }
  }

 private:
  static constexpr std::uint32_t recentred = 2;  // in finite_

  __device__ float& entry_of(unsigned q, unsigned j, unsigned x) {
    return entries_[((q / Pack * call_.m + j) << call_.bits) + x].of[q % Pack];
  }
  __device__ bool is_usable(unsigned q) const {
    if (q >= call_.g) return false;
    bool usable = call_.reduction != group_reduction::logit_max || is_finite(call_.table.bias(first_ + q));
    for (unsigned j = 0; j < call_.m; ++j) usable &= finite_[q * call_.m + j] != 0;
    return usable;
  }

  /// Calls take(i, what item i looks up in the tables of a group, a number a query head) for this thread's items.
  template <bool Products, class Take>
  __device__ void for_items(const scored_items& items, unsigned group, Take take) const {
    const pack* table = entries_ + (group * call_.m << call_.bits);
    const auto join = [](const pack& a, const pack& b) {
      pack both;
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) both.of[q] = Products ? canonical::mul(a.of[q], b.of[q]) : canonical::add(a.of[q], b.of[q]);
      return both;
    };
    if (items.are_cells() && call_.m == 2) {  // the usual case; the lower digit of all cells of a thread is the same
      const pack lower = table[call_.c + (threadIdx.x & (call_.c - 1))];
#pragma unroll 4
      for (std::uint32_t i = threadIdx.x; i < items.n; i += Threads) take(i, join(table[i >> call_.bits], lower));
      return;
    }
#pragma unroll 1
    for (std::uint32_t i = threadIdx.x; i < items.n; i += Threads) {
      pack value = table[items.code(0, i)];
      for (unsigned j = 1; j < call_.m; ++j) value = join(value, table[(j << call_.bits) + items.code(j, i)]);
      take(i, value);
    }
  }

  /// Z and the largest product of every query head. Ends with a barrier.
  __device__ void add_up(const scored_items& items) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (unsigned group = 0; group < padded_ / Pack; ++group) {
      std::uint64_t z[Pack] = {};
      std::uint32_t top[Pack] = {};
      for_items<true>(items, group, [&](std::uint32_t i, const pack& product) {
        const std::uint32_t weight = items.weight(i);
#pragma unroll
        for (unsigned q = 0; q < Pack; ++q) {  // of an empty cell it may be anything, times 0
          z[q] += canonical::to_fixed(product.of[q]) * weight;
          const std::uint32_t bits = weight != 0 ? float_bits(product.of[q]) : 0;
          top[q] = bits > top[q] ? bits : top[q];
        }
      });
      const std::uint64_t of_warp = warp_sums(z);
      if (lane % (32 / Pack) == 0) scratch_.sums[lane / (32 / Pack)][warp] = of_warp;
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) {
        top[q] = __reduce_max_sync(all_lanes, top[q]);
        if (lane == q) scratch_.tops[q][warp] = top[q];
      }
      __syncthreads();
      if (warp < Pack) {
        const std::uint64_t sum = warp_sum(lane < warps ? scratch_.sums[warp][lane] : 0);
        const std::uint32_t most = __reduce_max_sync(all_lanes, lane < warps ? scratch_.tops[warp][lane] : 0);
        if (lane == 0) total_[group * Pack + warp] = sum, highest_[group * Pack + warp] = most;
      }
      __syncthreads();
    }
  }

  /// Factors and the bound, from what add_up() left; whether a query head is to be recentred, which marks its first row. By the first warp,
  /// for all; ends with a barrier.
  __device__ bool settle(std::uint32_t tokens) {
    if (threadIdx.x < 32) {
      const bool probabilities = uses_probabilities(call_.reduction);
      // Every step of a score rounds what grows with its operands, so that the largest operands give the bound.
      float bound = first_score(call_.reduction);
      bool again = false;
      for (unsigned first = 0; first < call_.g; first += 32) {
        const unsigned q = first + threadIdx.x;
        const bool usable = is_usable(q);
        float most = 0, factor = 0;
        if (q >= call_.g) {  // a lane without a query head
        } else if (probabilities) {
          const std::uint64_t z = total_[q];
          most = float_from_bits(highest_[q]);
          factor = canonical::inverse_normaliser(z);
          factor_[q] = factor;
          if (usable && canonical::needs_recentring(z, tokens)) {
            finite_[q * call_.m] = recentred;
            again = true;
          }
        } else {
          most = nothing(call_.reduction);
          if (usable) most = tops_[q * call_.m];
          for (unsigned j = 1; usable && j < call_.m; ++j) most = canonical::add(most, tops_[q * call_.m + j]);
          factor = factor_[q];
        }
        const unsigned here = call_.g - first < 32 ? call_.g - first : 32;
        for (unsigned i = 0; i < here; ++i)
          bound = add_query(call_.reduction, bound, __shfl_sync(all_lanes, most, static_cast<int>(i)),
                            __shfl_sync(all_lanes, factor, static_cast<int>(i)));
      }
      again = __any_sync(all_lanes, again) != 0;
      const std::uint32_t key = canonical::order_key(bound);
      // A NaN, out of infinities of both signs, bounds nothing.
      if (threadIdx.x == 0) scratch_.ceiling = key != 0 ? key : 0xffffffffu, scratch_.again = again ? 1 : 0;
    }
    __syncthreads();
    return scratch_.again != 0;
  }

  /// Exponentials of one query head again, from entries shifted by its best item's sum. Ends with a barrier.
  __device__ void recentre(const scored_items& items, unsigned q) {
    const auto shifted = [&](unsigned j, std::uint32_t code) {
      return canonical::sub(call_.row(first_ + q, j)[code], tops_[q * call_.m + j]);
    };
    std::uint32_t best = 0;
    for (std::uint32_t i = threadIdx.x; i < items.n; i += Threads) {
      if (items.weight(i) == 0) continue;
      float z = shifted(0, items.code(0, i));
      for (unsigned j = 1; j < call_.m; ++j) z = canonical::add(z, shifted(j, items.code(j, i)));
      const std::uint32_t key = canonical::order_key(z);
      best = key > best ? key : best;
    }
    best = __reduce_max_sync(all_lanes, best);
    if (threadIdx.x % 32 == 0) scratch_.tops[0][threadIdx.x / 32] = best;
    __syncthreads();
    best = __reduce_max_sync(all_lanes, threadIdx.x % 32 < warps ? scratch_.tops[0][threadIdx.x % 32] : 0);
    const float shift = call_.recentring_shift(best);
    for (unsigned at = threadIdx.x; at < call_.m * call_.c; at += Threads) {
      const unsigned j = at >> call_.bits, x = at & (call_.c - 1);
      entry_of(q, j, x) = canonical::exponential(canonical::sub(shifted(j, x), shift), call_.scale);
    }
    __syncthreads();
  }

  __device__ static float add_query(group_reduction reduction, float score, float value, float factor) {
    switch (reduction) {
      case group_reduction::probability_sum: return canonical::fma(value, factor, score);
      case group_reduction::probability_max: return canonical::max(canonical::mul(value, factor), score);
      case group_reduction::logit_max: return canonical::max(canonical::add(value, factor), score);
      case group_reduction::logit_sum:
      case group_reduction::none: break;
    }
    return canonical::add(score, value);
  }

  template <group_reduction Reduction>
  __device__ void score_by(const scored_items& items, std::uint32_t* keys) const {
    constexpr bool products = Reduction == group_reduction::probability_sum || Reduction == group_reduction::probability_max;
    for (unsigned group = 0; group < padded_ / Pack; ++group) {
      const bool is_first = group == 0, is_last = group + 1 == padded_ / Pack;
      for_items<products>(items, group, [&](std::uint32_t i, const pack& value) {
        float score = is_first ? first_score(Reduction) : float_from_bits(keys[i]);
#pragma unroll
        for (unsigned q = 0; q < Pack; ++q) score = add_query(Reduction, score, value.of[q], factor_[group * Pack + q]);
        // A sum of probabilities is not negative, so that its key is its bits with the highest set.
        keys[i] = !is_last ? float_bits(score) : products ? float_bits(score) | 0x80000000u : canonical::order_key(score);
      });
    }
  }

  const scoring& call_;
  scratch& scratch_;
  unsigned first_, padded_;  // query head of the table; query heads, up to whole packs
  pack* entries_;            // [padded / Pack, m, c]
  float *tops_, *factor_;    // [padded, m]; [padded] R, or the bias
  std::uint32_t* finite_;    // [padded, m]
  std::uint64_t* total_;     // [padded] Z
  std::uint32_t* highest_;   // [padded] largest product, as bits
};

}  // namespace pqkv::detail::block
