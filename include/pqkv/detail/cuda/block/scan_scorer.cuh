// SPDX-License-Identifier: Apache-2.0
// One CTA computes the scores of one list, in four steps: exponentials of the table's entries, normalisers over all items, recentring of
// the query heads whose normaliser is too small, scores. With few items one CTA takes all four steps; with many, scan.cuh distributes them
// over the device.
#pragma once

#include "reduce.cuh"
#include "scan.cuh"
#include "scan_items.cuh"
#include "shared.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

/// The call's table, in device memory: the entries of query head `first + q` and subspace j.
struct table_entries {
  __device__ const float* operator()(const scoring& call, unsigned first, unsigned q, unsigned j) const { return call.row(first + q, j); }
};

/// Scores the items of a list for some or all of its query heads.
/// @tparam Pack  query heads that share each read of an item's codes and each look-up; Entries says where the table is
template <unsigned Threads, unsigned Pack, class Entries = table_entries>
class list_scorer {
  static constexpr unsigned warps = Threads / 32;
  using pack = query_pack<Pack>;
  static_assert(Threads % max_centroids == 0 && Pack <= warps);

 public:
  struct scratch {
    std::uint64_t sums[Pack][warps];
  };

  /// Bytes of dynamic shared memory for this many query heads.
  __host__ __device__ static constexpr std::size_t shared_bytes(std::size_t queries, std::size_t m, std::size_t c) {
    const std::size_t padded = (queries + Pack - 1) / Pack * Pack;
    return shared_memory::bytes<float>(padded * m * c) + 2 * shared_memory::bytes<float>(padded * m) +
           2 * shared_memory::bytes<float>(padded) + shared_memory::bytes<std::uint64_t>(padded);
  }

  /// @param from, queries  the scorer takes query heads [from, from + queries) of the list; the scorer with `from` 0 initialises the scores
  __device__ list_scorer(const scoring& call, unsigned list, unsigned from, unsigned queries, scratch& own, shared_memory& memory,
                         Entries entries = {})
      : call_(call),
        rows_(entries),
        scratch_(own),
        first_(list * call.g + from),
        queries_(queries),
        padded_((queries + Pack - 1) / Pack * Pack),
        begins_(from == 0),
        ends_(from + queries == call.g) {
    entries_ = memory.take<pack>(padded_ / Pack * call.m * call.c);
    tops_ = memory.take<float>(padded_ * call.m);
    finite_ = memory.take<std::uint32_t>(padded_ * call.m);
    factor_ = memory.take<float>(padded_);
    centre_ = memory.take<float>(padded_);
    total_ = memory.take<std::uint64_t>(padded_);
  }

  /// Stores the exponential of every table entry, or the entry itself where the reduction sums logits; writes `skipped` if given. A warp
  /// takes a row of the table. Call a barrier before the entries are used.
  __device__ void stage(std::uint8_t* skipped) {
    const bool probabilities = uses_probabilities(call_.reduction);
    for (unsigned row = threadIdx.x / 32; row < padded_ * call_.m; row += warps) {
      const unsigned q = row / call_.m, j = row - q * call_.m, lane = threadIdx.x % 32;
      const float lowest = float_from_bits(0xff800000u), *from = q < queries_ ? rows_(call_, first_, q, j) : nullptr;
      constexpr unsigned most = max_centroids / 32;
      float top = lowest;
      bool finite = from != nullptr;
#pragma unroll
      for (unsigned a = 0; a < most; ++a) {
        if (a * 32 + lane >= call_.c || from == nullptr) continue;
        const float entry = from[a * 32 + lane];
        finite &= is_finite(entry);
        top = canonical::max(entry, top);
      }
      for (int step = 16; step > 0; step /= 2) top = canonical::max(__shfl_xor_sync(all_lanes, top, step), top);
      finite = __all_sync(all_lanes, finite) != 0;
      if (lane == 0) tops_[row] = top, finite_[row] = finite ? 1 : 0;
      // Entries are read again, two at a time: with all of a lane unrolled, fetching the code would take longer than running it.
#pragma unroll 2
      for (unsigned x = lane; x < call_.c; x += 32) {
        float entry = from != nullptr ? from[x] : lowest;
        if (probabilities)  // a row that is not finite makes every product of its query head 0
          entry = finite ? canonical::exponential(canonical::sub(entry, top), call_.scale) : 0.0f;
        entry_of(q, j, x) = entry;
      }
    }
    __syncthreads();
    for (unsigned q = threadIdx.x; q < padded_; q += Threads) {
      const bool usable = is_usable(q);
      if (skipped != nullptr && q < queries_) skipped[first_ + q] = usable ? 0 : 1;
      factor_[q] = usable && !probabilities ? call_.table.bias(first_ + q) : 0.0f;
    }
    if (probabilities) return;
    for (unsigned at = threadIdx.x; at < padded_ * call_.m * call_.c; at += Threads) {
      const unsigned row = at >> call_.bits, q = row / call_.m, j = row - q * call_.m;
      if (!is_usable(q)) entry_of(q, j, at & (call_.c - 1)) = nothing(call_.reduction);
    }
  }

  /// After stage() and a barrier: computes the normalisers. Ends with a barrier.
  /// @param tokens  how many tokens the items stand for in all
  __device__ void prepare(const scored_items& items, std::uint32_t tokens) {
    if (!uses_probabilities(call_.reduction)) return;  // stage() has set the factors
    if (is_given()) return resume(nullptr);
    add_up<false>(items, 0, items.n);
    complete(items, tokens);
  }

  /// The steps of prepare() where many CTAs share the items. Each CTA sums its own items, [begin, end); total() then returns its part of Z.
  __device__ void add_up(const scored_items& items, std::uint32_t begin, std::uint32_t end) { add_up<true>(items, begin, end); }
  __device__ std::uint64_t total(unsigned q) const { return total_[q]; }
  /// Sets Z to the sum of all parts. One CTA calls this, then, after a barrier, complete().
  __device__ void give_total(unsigned q, std::uint64_t z) { total_[q] = z; }
  /// Sets the totals of a pack of query heads to sums over the CTA. Ends with a barrier.
  __device__ void set_totals(unsigned group, const std::uint64_t (&z)[Pack]) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const std::uint64_t of_warp = warp_sums(z);
    if (lane % (32 / Pack) == 0) scratch_.sums[lane / (32 / Pack)][warp] = of_warp;
    __syncthreads();
    if (warp < Pack) {
      const std::uint64_t sum = warp_sum(lane < warps ? scratch_.sums[warp][lane] : 0);
      if (lane == 0) total_[group * Pack + warp] = sum;
    }
    __syncthreads();
  }
  /// One CTA recentres the query heads that need it, over all items, and writes `numbers`; a barrier must follow.
  __device__ void complete(const scored_items& items, std::uint32_t tokens, head_numbers* numbers) {
    complete(items, tokens);
    for (unsigned q = threadIdx.x; q < queries_; q += Threads)
      numbers[first_ + q] = {factor_[q], centre_of(q), finite_[q * call_.m] == recentred ? 1u : 0u};
  }
  /// R of a query head, after stage(). @param z  Z over the items, around `centre`
  __device__ float factor_of(unsigned q, std::uint64_t z, float centre) const { return factor_of(q, z, centre, call_.beside(first_ + q)); }
  __device__ float factor_of(unsigned q, std::uint64_t z, float centre, const attended_head& beside) const {
    return canonical::inverse_normaliser(call_.with_attended(beside, z, tops_ + q * call_.m, centre));
  }
  /// Every CTA calls this after its stage(); then it can score any items. Begins and ends with a barrier.
  /// @param numbers  what complete() wrote; not read if the caller has given normalisers
  __device__ void resume(const head_numbers* numbers) {
    if (!take_numbers(numbers)) return;
    for (unsigned q = 0; q < queries_; ++q)
      if (finite_[q * call_.m] == recentred) shift_entries(q);
    __syncthreads();
  }
  /// The same where the exponentials are already around their centres. Returns whether a query head is recentred.
  __device__ bool take_numbers(const head_numbers* numbers) {
    __syncthreads();
    if (!uses_probabilities(call_.reduction)) return false;  // stage() has set the factors
    bool any = false;
    for (unsigned q = threadIdx.x; q < queries_; q += Threads) {
      const head_numbers own = is_given() ? head_numbers::of(call_.given[first_ + q]) : numbers[first_ + q];
      factor_[q] = own.factor;
      centre_[q] = own.centre;
      finite_[q * call_.m] = own.is_recentred != 0 ? recentred : finite_[q * call_.m];
      any |= own.is_recentred != 0;
    }
    return __syncthreads_or(any ? 1 : 0) != 0;
  }

  /// Writes scores[i - begin], the score of item i, for begin <= i < end; as an order key where Score is an unsigned 32-bit type. A thread
  /// writes items begin + threadIdx.x and every Threads-th after it. A scorer that does not begin at the list's first query head goes on
  /// from the scores that are there.
  /// @return the thread's largest key of an item that is not an empty cell; 0 if scores are not keys, or not complete yet
  template <class Score>
  __device__ std::uint32_t score(const scored_items& items, std::uint32_t begin, std::uint32_t end, Score* scores) const {
    switch (call_.reduction) {
      case group_reduction::probability_sum:
        return score_by<group_reduction::probability_sum>(items, begin, end, scores);
      case group_reduction::probability_max:
        return score_by<group_reduction::probability_max>(items, begin, end, scores);
      case group_reduction::logit_max:
        return score_by<group_reduction::logit_max>(items, begin, end, scores);
      case group_reduction::logit_sum:
      case group_reduction::none:
        return score_by<group_reduction::logit_sum>(items, begin, end, scores);
    }
    return 0;
  }

  /// Replaces the exponentials of the query heads that which(q) names by u = entry - row maximum. Ends with a barrier.
  template <class Which>
  __device__ void stage_sums(Which which) {
    constexpr unsigned at_once = 8;  // entries of a thread that are read together: they may come from device memory
    const unsigned count = queries_ * call_.m << call_.bits;
    for (unsigned base = threadIdx.x; base < count; base += at_once * Threads) {
      float u[at_once];
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        const unsigned at = base + a * Threads, row = at >> call_.bits, q = row / call_.m;
        u[a] = at < count && which(q) ? below_top(q, row - q * call_.m, at & (call_.c - 1)) : 0.0f;
      }
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) {
        const unsigned at = base + a * Threads, row = at >> call_.bits, q = row / call_.m;
        if (at < count && which(q)) entry_of(q, row - q * call_.m, at & (call_.c - 1)) = u[a];
      }
    }
    __syncthreads();
  }
  /// After stage_sums(): turns the sums into exponentials around centre(q) of each query head. Ends with a barrier.
  template <class Which, class Centre>
  __device__ void centre_sums(Which which, Centre centre) {
    const unsigned count = queries_ * call_.m << call_.bits;
    for (unsigned at = threadIdx.x; at < count; at += Threads) {
      const unsigned row = at >> call_.bits, q = row / call_.m;
      if (!which(q)) continue;
      float& entry = entry_of(q, row - q * call_.m, at & (call_.c - 1));
      entry = canonical::exponential(canonical::sub(entry, shift_of(centre(q))), call_.scale);
    }
    __syncthreads();
  }
  /// For the query heads of stage_sums(): total() becomes the order key of the largest sum of u among the items, that of -infinity without
  /// items. Ends with a barrier.
  __device__ void find_largest(const scored_items& items) {
    for (unsigned group = 0; group < padded_ / Pack; ++group) {
      pack top;
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) top.of[q] = float_from_bits(0xff800000u);
      for_items<false>(items, 0, items.n, group, [&](std::uint32_t, std::uint32_t weight, const pack& sum) {
        if (weight == 0) return;
#pragma unroll
        for (unsigned q = 0; q < Pack; ++q) top.of[q] = canonical::max(top.of[q], sum.of[q]);
      });
      set_largest(group, top);
    }
  }
  /// Sets the totals of a pack of query heads to the order keys of the largest numbers of the CTA. Ends with a barrier.
  __device__ void set_largest(unsigned group, const pack& top) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned q = 0; q < Pack; ++q) {
      const std::uint32_t key = __reduce_max_sync(all_lanes, canonical::order_key(top.of[q]));
      if (lane == 0) scratch_.sums[q][warp] = key;
    }
    __syncthreads();
    if (warp < Pack) {
      const std::uint32_t key = __reduce_max_sync(all_lanes, lane < warps ? static_cast<std::uint32_t>(scratch_.sums[warp][lane]) : 0);
      if (lane == 0) total_[group * Pack + warp] = key;
    }
    __syncthreads();
  }

  /// Whether a query head takes part: its table is finite.
  __device__ bool is_usable(unsigned q) const {
    if (q >= queries_) return false;
    bool usable = call_.reduction != group_reduction::logit_max || is_finite(call_.table.bias(first_ + q));
    for (unsigned j = 0; j < call_.m; ++j) usable &= finite_[q * call_.m + j] != 0;
    return usable;
  }
  /// What stage() stores, [packs, m, c], and the factors of the query heads, [packs * Pack].
  __device__ const query_pack<Pack>* entries() const { return entries_; }
  __device__ const float* factors() const { return factor_; }
  __device__ unsigned packs() const { return padded_ / Pack; }

 private:
  static constexpr std::uint32_t recentred = 2;  // a value in finite_

  __device__ bool is_given() const { return call_.given != nullptr && uses_probabilities(call_.reduction); }

  __device__ float& entry_of(unsigned q, unsigned j, unsigned x) {
    return entries_[((q / Pack * call_.m + j) << call_.bits) + x].of[q % Pack];
  }

  /// Calls take(i, weight, value) for this thread's items of [begin, end), as item_entries.
  template <bool Products, class Take>
  __device__ void for_items(const scored_items& items, std::uint32_t begin, std::uint32_t end, unsigned group, Take take) const {
    item_entries<Threads, Pack, Products>::for_each(entries_ + (group * call_.m << call_.bits), items, begin, end, take);
  }

  /// Computes Z of every query head over [begin, end). Ends with a barrier.
  /// @tparam Shared  whether CTAs share the items. If so, each product is summed as two integers, which is faster there. In a CTA that has
  ///                 the whole list two integers take a quarter more instructions, and are slower
  // measured: retrieve/joint, n 131072, k 2048 of bench/cuda/retrieve.cu, H100, 2026-11: 16.6 us, as two integers 17.2; retrieve/scan 44.4
  // and 43.5
  template <bool Shared>
  __device__ void add_up(const scored_items& items, std::uint32_t begin, std::uint32_t end) {
    for (unsigned group = 0; group < padded_ / Pack; ++group) {
      std::uint64_t z[Pack] = {};
      for_items<true>(items, begin, end, group, [&](std::uint32_t, std::uint32_t weight, const pack& product) {
#pragma unroll
        for (unsigned q = 0; q < Pack; ++q) {  // the product of an empty cell may be anything: its weight is 0
          if constexpr (Shared) {
            const canonical::fixed_parts parts = canonical::to_fixed_parts(product.of[q]);
            const std::int32_t times = static_cast<std::int32_t>(weight);
            z[q] += (static_cast<std::uint64_t>(std::int64_t{parts.upper} * times) << 22) +
                    static_cast<std::uint64_t>(std::int64_t{parts.lower} * times);
          } else {
            z[q] += canonical::to_fixed(product.of[q]) * weight;
          }
        }
      });
      set_totals(group, z);
    }
  }

  /// Turns the sums of add_up() into factors, recentring query heads where that is needed. Ends with a barrier.
  __device__ void complete(const scored_items& items, std::uint32_t tokens) {
    if (!resolve(tokens)) return;
    const auto is_recentred = [&](unsigned q) { return finite_[q * call_.m] == recentred; };
    stage_sums(is_recentred);
    find_largest(items);
    for (unsigned q = threadIdx.x; q < queries_; q += Threads)
      if (is_recentred(q)) centre_[q] = call_.recentring(static_cast<std::uint32_t>(total_[q]));
    __syncthreads();
    centre_sums(is_recentred, [&](unsigned q) { return centre_[q]; });
    add_up<false>(items, 0, items.n);
    resolve(0);
  }

  /// Computes factors from the sums of add_up(). Returns whether some query head must be recentred; finite_ of each such head's first row
  /// is then `recentred`. Ends with a barrier.
  __device__ bool resolve(std::uint32_t tokens) {
    bool again = false;
    for (unsigned q = threadIdx.x; uses_probabilities(call_.reduction) && q < queries_; q += Threads) {
      factor_[q] = factor_of(q, total_[q], centre_of(q));
      if (!canonical::needs_recentring(total_[q], tokens) || !is_usable(q)) continue;
      finite_[q * call_.m] = recentred;
      again = true;
    }
    return __syncthreads_or(again ? 1 : 0) != 0;
  }

  /// u = entry - row maximum, for one code of one query head. Recentring subtracts A / m from it.
  __device__ float below_top(unsigned q, unsigned j, std::uint32_t code) const {
    return canonical::sub(rows_(call_, first_, q, j)[code], tops_[q * call_.m + j]);
  }
  /// A of a query head; 0 unless it is recentred.
  __device__ float centre_of(unsigned q) const { return finite_[q * call_.m] == recentred ? centre_[q] : 0.0f; }
  /// What is subtracted from an entry's u for a centre.
  __device__ float shift_of(float centre) const { return canonical::div(centre, static_cast<float>(call_.m)); }
  /// Recomputes the exponentials of one query head around its centre.
  __device__ void shift_entries(unsigned q) {
    const float shift = shift_of(centre_[q]);
    for (unsigned at = threadIdx.x; at < call_.m * call_.c; at += Threads) {
      const unsigned j = at >> call_.bits, x = at & (call_.c - 1);
      entry_of(q, j, x) = canonical::exponential(canonical::sub(below_top(q, j, x), shift), call_.scale);
    }
  }

  template <group_reduction Reduction, class Score>
  __device__ std::uint32_t score_by(const scored_items& items, std::uint32_t begin, std::uint32_t end, Score* scores) const {
    constexpr bool products = Reduction == group_reduction::probability_sum || Reduction == group_reduction::probability_max;
    std::uint32_t largest = 0;
    for (unsigned group = 0; group < padded_ / Pack; ++group) {
      const bool is_first = begins_ && group == 0, is_last = ends_ && group + 1 == padded_ / Pack;
      float factor[Pack];
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) factor[q] = factor_[group * Pack + q];
      for_items<products>(items, begin, end, group, [&](std::uint32_t i, std::uint32_t weight, const pack& value) {
        float score = is_first ? first_score(Reduction) : so_far(scores[i - begin]);
#pragma unroll
        for (unsigned q = 0; q < Pack; ++q) score = add_query(Reduction, score, value.of[q], factor[q]);
        const std::uint32_t key = store_score<products>(&scores[i - begin], score, is_last);
        if (is_last && weight != 0) largest = key > largest ? key : largest;
      });
    }
    return largest;
  }

  const scoring& call_;
  Entries rows_;
  scratch& scratch_;
  unsigned first_, queries_, padded_;  // first query head in the table; number of query heads; that number rounded up to whole packs
  bool begins_, ends_;                 // whether the list's first query head is among them; whether the last one is
  pack* entries_;                      // [padded / Pack, m, c]
  float *tops_, *factor_, *centre_;    // [padded, m]; [padded] R, or the bias; [padded] A, where recentred
  std::uint32_t* finite_;              // [padded, m]
  std::uint64_t* total_;               // [padded] Z
};

}  // namespace pqkv::detail::block
