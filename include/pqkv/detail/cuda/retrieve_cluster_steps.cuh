// SPDX-License-Identifier: Apache-2.0
// What one CTA of a cluster does to rank a list's tokens, step by step. retrieve_cluster.cuh has the kernel and says how it works.
#pragma once

#include <algorithm>

#include "../../search/retrieve.hpp"
#include "block/bitmap.cuh"
#include "block/bracket.cuh"
#include "block/scan_comparison.cuh"
#include "block/cluster.cuh"
#include "block/copy.cuh"
#include "block/select.cuh"
#include "block/scan_lookups.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// How the CTAs of a call share its lists, and what each has in shared memory.
struct cluster_shape {
  static constexpr unsigned most_ctas = 16;
  unsigned ctas;        // of a list
  unsigned log_copies;  // of the table
  unsigned kept;        // tokens inside the bracket that a CTA has room for
  unsigned copied;      // keys of all CTAs' kept tokens that the memory of the table has room for
  unsigned words;       // of each bitmap

  /// The positions of one CTA: whole warps' tiles.
  __host__ __device__ static std::uint32_t share(std::uint32_t tokens, unsigned of_ctas) {
    constexpr std::uint32_t granule = 256;
    return ((tokens + of_ctas - 1) / of_ctas + granule - 1) / granule * granule;
  }
};

/// One CTA of a list. Lists gives the list's range and table, as it does to retrieve_kernel.
template <unsigned Threads, unsigned Pack, class Lists>
class cluster_ranking {
  using scorer_type = block::list_scorer<Threads, Pack, typename Lists::entries>;
  using lookups_type = block::token_lookups<Threads, Pack>;
  using radix_type = block::radix_select<Threads>;
  using shared_memory = block::shared_memory;
  using comparison = block::bracket_comparison<lookups_type::at_once>;
  using storing = block::key_storing<lookups_type::at_once>;
  static constexpr unsigned sampled = block::bracket_sample;

 public:
  struct scratch {
    typename scorer_type::scratch scoring;
    block::list_select<Threads> select;
    block::reduction<std::uint64_t, Threads> sums;
    std::uint32_t range[sizeof(middle_range) / sizeof(std::uint32_t)];
    block::bracket_counts found;                                 // by this CTA
    block::bracket_counts of_members[cluster_shape::most_ctas];  // by all
  };

  static constexpr std::size_t packs_of(unsigned g) { return (g + Pack - 1) / Pack; }
  /// Bytes of the memory that first has centroids, then copies of the table, and at the end keys.
  static constexpr std::size_t table_bytes(const block::scoring& call, const Lists& lists, unsigned log_copies) {
    const std::size_t least = std::max(tuning::cluster_copied * sizeof(std::uint32_t), lists.centroid_bytes(call));
    return std::max(least, shared_memory::bytes<block::query_pack<Pack>>((packs_of(call.g) * call.m * call.c) << log_copies));
  }
  static constexpr std::size_t kept_bytes(std::size_t kept) {
    return std::max({shared_memory::bytes<uint2>(kept), shared_memory::bytes<std::uint32_t>(sampled), sizeof(radix_type)});
  }
  /// Dynamic shared memory but for the table's copies and the kept tokens.
  static constexpr std::size_t other_bytes(const block::scoring& call, const Lists& lists, unsigned ctas, unsigned words) {
    return lists.shared_bytes(call) + scorer_type::shared_bytes(call.g, call.m, call.c) +
           shared_memory::bytes<std::uint64_t>(ctas * call.g) + shared_memory::bytes<block::head_numbers>(call.g) +
           2 * shared_memory::bytes<std::uint32_t>(words);
  }

  __device__ cluster_ranking(const block::scoring& call, const Lists& lists, const cluster_shape& shape, unsigned list, scratch& own,
                             shared_memory memory)
      : call_(call),
        shape_(shape),
        own_(own),
        team_(shape.ctas),
        list_(list),
        copied_(memory.take<std::uint32_t>(shape.copied)),
        of_list_(lists, call, list, team_.rank(), shape.ctas),
        entries_(of_list_.begin(memory, copied_)),
        scorer_(call, list, 0, call.g, own.scoring, memory, entries_),
        totals_(memory.take<std::uint64_t>(shape.ctas * call.g)),
        numbers_(memory.take<block::head_numbers>(call.g)),
        upper_(memory.take<std::uint32_t>(shape.words)),
        lower_(memory.take<std::uint32_t>(shape.words)),
        lookups_(call, scorer_.packs(), reinterpret_cast<block::query_pack<Pack>*>(copied_), shape.log_copies),
        kept_(reinterpret_cast<uint2*>(memory.take<unsigned char>(0))) {
    if (threadIdx.x == 0) own_.found = {};
  }

  __device__ const block::cluster_team& team() const { return team_; }

  /// Stores the exponentials. Returns the list's range, which is read or planned meanwhile.
  __device__ middle_range stage(std::uint8_t* skipped) {
    if constexpr (Lists::plans) {
      of_list_.finish(entries_);
      range_ = of_list_.range(entries_);
      scorer_.stage(nullptr);
    } else {
      constexpr unsigned words = sizeof(middle_range) / sizeof(std::uint32_t);
      if (call_.ranges.data != nullptr && threadIdx.x < words)
        block::copy_word_async(block::shared_address(own_.range + threadIdx.x),
                               reinterpret_cast<const std::uint32_t*>(&call_.ranges(call_.row_head_of(list_))) + threadIdx.x);
      scorer_.stage(team_.rank() == 0 ? skipped : nullptr);
      block::wait_copies<0>();
      __syncthreads();
      range_ = call_.ranges.data == nullptr ? call_.range(list_) : call_.limited(*reinterpret_cast<const middle_range*>(own_.range));
    }
    items_ = call_.items(range_, of_list_.head(), false);
    tokens_ = block::token_positions(items_);
    const std::uint32_t share = cluster_shape::share(tokens_.end, team_.size());
    begin_ = share * team_.rank() < tokens_.end ? share * team_.rank() : tokens_.end;
    end_ = tokens_.end - begin_ < share ? tokens_.end : begin_ + share;
    return range_;
  }
  /// Computes the normaliser R of each query head.
  __device__ void normalise(std::uint32_t k) {
    k_ = k;
    sum();
    if (team_.size() > 1) team_.wait();  // all have called arrive() at the kernel's beginning: now their shared memory may be written
    share_totals();
    bool any = false;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      const std::uint64_t z = total(q);
      const bool is_short = canonical::needs_recentring(z, range_.size()) && scorer_.is_usable(q);
      numbers_[q] = {canonical::inverse_normaliser(z), 0.0f, is_short ? 1u : 0u};
      any |= is_short;
    }
    if (__syncthreads_or(any ? 1 : 0) != 0) recentre();
    scorer_.resume(numbers_ - std::size_t{list_} * call_.g);
  }

  /// The bracket around the k-th largest score. It is open if every token can be kept.
  __device__ block::bracket find_bracket() {
    if (!has_sample()) return {0, 0xffffffffu};
    std::uint32_t* keys = reinterpret_cast<std::uint32_t*>(kept_);
    const unsigned first = sample_begin(team_.rank()), count = sample_begin(team_.rank() + 1) - first;
    for (unsigned i = threadIdx.x; i < count; i += Threads) {
      const std::uint8_t* codes = sample_codes(first + i);
      const std::uint32_t key = lookups_.score_one(i < Threads ? sample_ : lookups_.product(codes, items_.stride, 0), codes, items_.stride,
                                                   call_.reduction, scorer_.factors());
#pragma unroll 4
      for (unsigned rank = 0; rank < team_.size(); ++rank) *team_.remote(&keys[first + i], rank) = key;
    }
    team_.sync();
    return block::bracket_of_sample(own_.select, keys, ranks_, 0);
  }

  /// Compares the own tokens with the bracket: two bits a token, and the tokens inside.
  __device__ void compare(const block::bracket& limits) {
    const comparison filter{limits,
                            limits.low < limits.high ? limits.low : 0xffffffffu,
                            begin_,
                            end_,
                            tokens_.lead,
                            tokens_.end,
                            block::shared_address(upper_),
                            block::shared_address(lower_),
                            block::shared_address(kept_),
                            shape_.kept,
                            block::shared_address(&own_.found.inside)};
    block::bracket_counts counts = lookups_.for_scores(tokens_, begin_, end_, call_.reduction, scorer_.factors(), filter).counts;
    __syncthreads();
    counts.above = __reduce_add_sync(block::all_lanes, counts.above);
    counts.at_high = __reduce_add_sync(block::all_lanes, counts.at_high);
    counts.at_low = __reduce_add_sync(block::all_lanes, counts.at_low);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(&own_.found.above, counts.above);
      atomicAdd(&own_.found.at_high, counts.at_high);
      atomicAdd(&own_.found.at_low, counts.at_low);
    }
    __syncthreads();
    if (threadIdx.x < team_.size()) *team_.remote(&own_.of_members[team_.rank()], threadIdx.x) = own_.found;
    team_.sync();
  }

  /// Selects the list's tokens and writes this CTA's. If the bracket does not hold the threshold, writes nothing and returns false: in
  /// all CTAs of the list.
  __device__ bool write(const block::bracket& limits, std::uint32_t k, std::int32_t* out) {
    // Lane r has the counts of CTA r, in every warp.
    const unsigned lane = threadIdx.x % 32;
    const block::bracket_counts of_lane = lane < team_.size() ? own_.of_members[lane] : block::bracket_counts{};
    const block::bracket_counts before = of_lane.up_to(team_.rank()), all = of_lane.up_to(team_.size());
    const bool has_room = __all_sync(block::all_lanes, of_lane.inside <= shape_.kept) != 0;
    if (!has_room || all.inside > shape_.copied || all.above >= k || k - all.above > all.at_high + all.inside + all.at_low) return false;
    std::uint32_t rest = k - all.above;
    const bool is_high = rest <= all.at_high, is_low = !is_high && rest - all.at_high > all.inside;
    rest -= is_high ? 0 : all.at_high;
    block::threshold limit{is_high ? 0xffffffffu : 0, is_low ? rest - all.inside : rest};  // of those inside, none or all are selected
    std::uint64_t marked = std::uint64_t{before.above + (is_high ? 0 : before.at_high) + (is_low ? before.inside : 0)} << 32 |
                           (is_high  ? before.at_high
                            : is_low ? before.at_low
                                     : 0);  // how many tokens the CTAs before this one have above the threshold, and equal to it
    if (!is_high && !is_low) {
      limit = threshold_inside(limits, of_lane.inside, all.inside, rest);
      std::uint64_t inside = 0;
      for (std::uint32_t i = threadIdx.x; i < before.inside; i += Threads)
        if (copied_[i] >= limit.key) inside += block::token_count(copied_[i] > limit.key);
      if (before.inside != 0) marked += own_.sums.sum(inside);
    }
    if (team_.size() > 1) team_.arrive();  // from here on this CTA reads nothing of the others
    block::release_dependents();
    mark(limit, is_high, is_low);
    block::bitmap_emission<Threads> emission(own_.sums);
    emission.count(upper_, lower_, words());
    emission.emit(marked, limit.of_equal, first_token(), out, k);
    if (team_.size() > 1) team_.wait();
    return true;
  }

  /// Selects by all scores, after write() has returned false.
  /// @param keys  [tokens of the range] scratch of the list
  __device__ void write_by_radix(std::uint32_t k, std::uint32_t* keys, std::int32_t* out) {
    lookups_.copy(scorer_.entries());  // where write() may have had keys
    __syncthreads();
    const std::uint32_t first = begin_ < tokens_.lead ? 0 : begin_ - tokens_.lead, last = end_ < tokens_.lead ? 0 : end_ - tokens_.lead;
    lookups_.for_scores_slowly(tokens_, begin_, end_, call_.reduction, scorer_.factors(), storing{end_, tokens_.lead, tokens_.end, keys});
    team_.sync();  // no CTA reads kept tokens any more: the selection below uses their memory
    radix_type& radix = *reinterpret_cast<radix_type*>(kept_);
    const auto key_at = [&](std::uint32_t i) { return keys[first + i]; };
    const block::threshold limit = radix.find(team_, last - first, k, key_at, [](std::uint32_t) { return 1u; });
    radix.emit(team_, last - first, limit, key_at, static_cast<std::int32_t>(range_.begin + first), out, k);
  }

 private:
  __device__ std::uint32_t words() const { return (end_ - begin_ + 31) / 32; }
  __device__ std::int32_t first_token() const { return static_cast<std::int32_t>(range_.begin + begin_ - tokens_.lead); }

  /// The sums of the own tokens, in scorer_.
  __device__ void sum() {
    __syncthreads();
    lookups_.copy(scorer_.entries());
    __syncthreads();
    for (unsigned group = 0; group < scorer_.packs(); ++group) {
      scorer_.set_totals(group, lookups_.sum(tokens_, begin_, end_, group).of);
    }
  }
  /// Gives this CTA's numbers of scorer_.total() to all CTAs of the list. Meanwhile looks up the first tokens of the sample.
  __device__ void share_totals() {
    for (unsigned i = threadIdx.x; i < team_.size() * call_.g; i += Threads) {
      const unsigned rank = i / call_.g, q = i - rank * call_.g;
      *team_.remote(&totals_[team_.rank() * call_.g + q], rank) = scorer_.total(q);
    }
    if (team_.size() > 1) team_.arrive();
    if (has_sample()) {  // while the others' sums are under way
      ranks_ = {items_.n, k_, shape_.copied};
      const unsigned which = sample_begin(team_.rank()) + threadIdx.x;
      if (which < sample_begin(team_.rank() + 1)) sample_ = lookups_.product(sample_codes(which), items_.stride, 0);
    }
    if (team_.size() > 1)
      team_.wait();
    else
      __syncthreads();
  }
  /// Whether the list has more tokens than can be kept.
  __device__ bool has_sample() const { return items_.n > shape_.kept || items_.n > shape_.copied; }
  /// A CTA's first token of the sample.
  __device__ unsigned sample_begin(unsigned rank) const { return sampled * rank / team_.size(); }
  __device__ const std::uint8_t* sample_codes(unsigned which) const { return items_.codes + block::sample_place(which, items_.n); }
  __device__ std::uint64_t total(unsigned q) const {
    std::uint64_t z = 0;
#pragma unroll 8
    for (unsigned rank = 0; rank < team_.size(); ++rank) z += totals_[rank * call_.g + q];
    return z;
  }
  /// Recentres the query heads that need it on the best token of the list, and normalises them again.
  __device__ void recentre() {
    const std::uint32_t first = begin_ < tokens_.lead ? 0 : begin_ - tokens_.lead, last = end_ < tokens_.lead ? 0 : end_ - tokens_.lead;
    const block::scored_items own{items_.codes + first, items_.stride, nullptr, last - first, items_.m, items_.bits};
    for (unsigned q = 0; q < call_.g; ++q) {
      if (numbers_[q].is_recentred == 0) continue;
      const std::uint32_t best = scorer_.largest(own, q);
      if (threadIdx.x == 0) scorer_.give_total(q, best);
    }
    __syncthreads();
    team_.sync();  // all CTAs have read the sums
    share_totals();
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      if (numbers_[q].is_recentred == 0) continue;
      std::uint64_t best = 0;
      for (unsigned rank = 0; rank < team_.size(); ++rank) {
        const std::uint64_t of_rank = totals_[rank * call_.g + q];
        best = of_rank > best ? of_rank : best;
      }
      numbers_[q].shift = call_.recentring_shift(static_cast<std::uint32_t>(best));
    }
    scorer_.resume(numbers_ - std::size_t{list_} * call_.g);
    sum();
    team_.sync();  // all CTAs have read the largest sums
    share_totals();
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) numbers_[q].factor = canonical::inverse_normaliser(total(q));
  }

  /// Copies the keys inside the bracket from all CTAs, in their order, and selects among them. A warp copies from one CTA at a time.
  /// @param of_lane  lane r: how many CTA r has; inside: how many there are
  __device__ block::threshold threshold_inside(const block::bracket& limits, std::uint32_t of_lane, std::uint32_t inside, std::uint32_t k) {
    const std::uint32_t first = block::warp_prefix(of_lane);
    for (unsigned rank = threadIdx.x / 32; rank < team_.size(); rank += Threads / 32) {
      const std::uint32_t count = __shfl_sync(block::all_lanes, of_lane, static_cast<int>(rank));
      std::uint32_t* to = copied_ + __shfl_sync(block::all_lanes, first, static_cast<int>(rank));
      const uint2* from = team_.remote(kept_, rank);
#pragma unroll 8
      for (std::uint32_t i = threadIdx.x % 32; i < count; i += 32) to[i] = from[i].x;
    }
    __syncthreads();
    return own_.select.find(
        inside, k, limits.high, block::list_select<Threads>::shift_of(limits.low, limits.high), [&](std::uint32_t i) { return copied_[i]; },
        [](std::uint32_t) { return 1u; });
  }
  /// Turns the bits of a comparison into those of selected tokens, and of tokens that equal the threshold. Ends with a barrier.
  __device__ void mark(const block::threshold& limit, bool is_high, bool is_low) {
    for (std::uint32_t w = threadIdx.x; w < words(); w += Threads) {
      const std::uint32_t upper = upper_[w], lower = lower_[w];
      upper_[w] = is_high ? upper & lower : upper;
      lower_[w] = is_high ? upper & ~lower : is_low ? lower & ~upper : 0;
    }
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; !is_high && i < own_.found.inside; i += Threads) {
      const uint2 token = kept_[i];
      const std::uint32_t place = token.y - begin_;
      if (token.x >= limit.key) atomicOr(&(token.x > limit.key ? upper_ : lower_)[place / 32], 1u << place % 32);
    }
    __syncthreads();
  }

  const block::scoring& call_;
  const cluster_shape& shape_;
  scratch& own_;
  block::cluster_team team_;
  unsigned list_;
  std::uint32_t* copied_;  // [copied] keys; before, the copies of the table
  typename Lists::one of_list_;
  typename Lists::entries entries_;
  middle_range range_{};
  block::scored_items items_{};
  block::token_positions tokens_{items_};
  scorer_type scorer_;
  std::uint64_t* totals_;          // [ctas, g] a number of each CTA for each query head
  block::head_numbers* numbers_;   // [g]
  std::uint32_t *upper_, *lower_;  // [words] two bits a token: both set above the bracket, upper_ at its high end, lower_ at its low end
  lookups_type lookups_;
  uint2* kept_;                       // [kept] key and position; at first the keys of the sample
  block::query_pack<Pack> sample_{};  // products of this thread's first token of the sample, in the first pack
  block::bracket_ranks ranks_;
  std::uint32_t begin_ = 0, end_ = 0;  // positions
  std::uint32_t k_ = 0;
};

}  // namespace pqkv::detail
