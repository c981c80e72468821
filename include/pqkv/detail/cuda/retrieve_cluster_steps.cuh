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
#include "block/scan_screen.cuh"
#include "retrieve_cluster_shape.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// One CTA of a list. Lists gives the list's range and table, as it does to retrieve_kernel.
/// @tparam Ranks  one_rank, or how the CTA exchanges with those of other ranks, which have more of the list's tokens
template <unsigned Threads, unsigned Pack, class Lists, class Ranks = one_rank>
class cluster_ranking {
 protected:
  using scorer_type = block::list_scorer<Threads, Pack, typename Lists::entries>;
  using lookups_type = block::token_lookups<Threads, Pack>;
  using radix_type = block::radix_select<Threads>;
  using shared_memory = block::shared_memory;
  using comparison = block::bracket_comparison<lookups_type::at_once>;
  using storing = block::key_storing<lookups_type::at_once>;
  using screen = block::token_screen<Threads, Pack>;
  static constexpr unsigned sampled = block::bracket_sample;
  static constexpr unsigned rounded_from = Ranks::is_spread ? tuning::rounded_from_spread : tuning::rounded_from;

 public:
  static constexpr unsigned list_threads = Threads;
  static constexpr unsigned rounds = 3;  // of totals: sums; largest sums and sums around the centre, where a query head is recentred
  struct scratch {
    typename scorer_type::scratch scoring;
    block::list_select<Threads> select;
    typename block::list_select<Threads>::finer_bins finer;
    block::reduction<std::uint64_t, Threads> sums;
    std::uint32_t range[sizeof(middle_range) / sizeof(std::uint32_t)];
    block::bracket limits;
    block::bracket_counts found;                                 // by this CTA
    std::uint32_t doubtful;                                      // tokens of this CTA whose rounded products do not say where they are
    // by all CTAs of the list on this device
    block::bracket_counts of_members[Ranks::is_spread ? cluster_shape::most_parts : cluster_shape::most_ctas];
  };

  static constexpr std::size_t packs_of(unsigned g) { return (g + Pack - 1) / Pack; }
  /// Bytes of the memory that first holds centroids, then copies of the table, and at the end keys.
  static constexpr std::size_t table_bytes(const block::scoring& call, const Lists& lists, unsigned log_copies) {
    const std::size_t least = std::max(tuning::cluster_copied * sizeof(std::uint32_t), lists.centroid_bytes(call));
    return std::max(least, shared_memory::bytes<block::query_pack<Pack>>((packs_of(call.g) * call.m * call.c) << log_copies));
  }
  static constexpr std::size_t kept_bytes(std::size_t kept) {
    return std::max(shared_memory::bytes<uint2>(kept), shared_memory::bytes<std::uint32_t>(sampled));
  }
  /// Bytes of dynamic shared memory, without the table's copies and the kept tokens.
  /// @param parts  CTAs of the list, on all ranks
  static constexpr std::size_t other_bytes(const block::scoring& call, const Lists& lists, unsigned parts, unsigned words) {
    return lists.shared_bytes(call) + scorer_type::shared_bytes(call.g, call.m, call.c) +
           shared_memory::bytes<std::uint64_t>(rounds * parts * call.g) + numbers_bytes(call.g) +
           2 * shared_memory::bytes<std::uint32_t>(words);
  }

  __device__ cluster_ranking(const block::scoring& call, const Lists& lists, const cluster_shape& shape, unsigned list, scratch& own,
                             shared_memory memory, const Ranks& ranks = {})
      : call_(call),
        shape_(shape),
        own_(own),
        ranks_(ranks),
        team_(ranks.team(shape.ctas)),
        list_(list),
        copied_(memory.take<std::uint32_t>(shape.copied)),
        of_list_(lists, call, list, team_.rank(), shape.ctas),
        entries_(of_list_.begin(memory, copied_)),
        scorer_(call, list, 0, call.g, own.scoring, memory, entries_),
        totals_(memory.take<std::uint64_t>(rounds * (shape.ctas + ranks.other_parts()) * call.g)),
        numbers_(reinterpret_cast<block::head_numbers*>(memory.take<unsigned char>(numbers_bytes(call.g)))),
        upper_(memory.take<std::uint32_t>(shape.words)),
        lower_(memory.take<std::uint32_t>(shape.words)),
        lookups_(call, scorer_.packs(), reinterpret_cast<block::query_pack<Pack>*>(copied_), shape.log_copies),
        kept_(reinterpret_cast<uint2*>(memory.take<unsigned char>(0))) {
    if (threadIdx.x == 0) own_.found = {}, own_.doubtful = 0;
  }

  __device__ const typename Ranks::team_type& team() const { return team_; }

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
    ranked_ = range_.size();
    tokens_ = block::token_positions(call_.items(range_, of_list_.head(), false));
    const std::uint32_t share = cluster_shape::share(tokens_.end, team_.size());
    begin_ = first_position(team_.rank());
    end_ = tokens_.end - begin_ < share ? tokens_.end : begin_ + share;
    return range_;
  }
  /// Writes a list that needs no ranking. @param count  the size of the range, or 0
  __device__ void write_all(std::uint32_t count, std::int32_t* out) const {
    for (std::uint32_t i = team_.rank() * Threads + threadIdx.x; i < count; i += team_.size() * Threads)
      out[i] = static_cast<std::int32_t>(range_.begin + i);
    forget_attended();
    if (!Ranks::is_spread && team_.size() > 1) team_.wait();  // for arrive() at the kernel's beginning
  }
  /// Takes back what was or will be added to the list's count of sums, once its CTAs have taken them or if they take none.
  __device__ void forget_attended() const {
    if (call_.summed != nullptr && team_.rank() == 0 && threadIdx.x == 0) atomicSub(&call_.summed[list_], call_.g);
  }
  /// Computes the normaliser R of each query head.
  /// @param rounded  rounded(): where the rounded products of the list's tokens are; this CTA's are written
  template <class Rounded>
  __device__ void normalise(std::uint32_t k, Rounded rounded) {
    k_ = k;
    sum(rounded);
    // all have called arrive() at the kernel's beginning: now their shared memory may be written
    if (!Ranks::is_spread && team_.size() > 1) team_.wait();
    share_totals(0);
    bool any = false;
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      const std::uint64_t z = total(0, q);
      const bool is_short = canonical::needs_recentring(z, ranked_) && scorer_.is_usable(q);
      numbers_[q] = {scorer_.factor_of(q, z, 0.0f, beside(q)), 0.0f, is_short ? 1u : 0u};
      any |= is_short;
    }
    if (__syncthreads_or(any ? 1 : 0) != 0) recentre(rounded);
    scorer_.take_numbers(numbers_ - std::size_t{list_} * call_.g);
  }

  /// The bracket around the k-th largest score. If every token can be kept, no sample is drawn and every score is inside.
  __device__ block::bracket find_bracket() {
    if (!has_sample()) return {0, 0xffffffffu};
    std::uint32_t* keys = reinterpret_cast<std::uint32_t*>(kept_);
    const unsigned first = sample_begin(team_.rank()), count = sample_begin(team_.rank() + 1) - first;
    std::uint32_t* const own_keys = keys + sample_of_rank_.first;
    for (unsigned i = threadIdx.x; i < count; i += Threads) {
      const std::uint8_t* codes = sample_codes(first + i);
      const auto products = i < Threads ? sample_ : lookups_.product(codes, tokens_.stride, 0);
      const std::uint32_t key = lookups_.score_one(products, codes, tokens_.stride, call_.reduction, scorer_.factors());
      if constexpr (Ranks::is_spread) {
        ranks_.sample(team_.size())[first + i] = key;
      } else {
#pragma unroll 4
        for (unsigned rank = 0; rank < team_.size(); ++rank) *team_.remote(&own_keys[first + i], rank) = key;
      }
      if constexpr (Ranks::is_shared) ranks_.send_sampled(sample_of_rank_.first + first + i, key);
    }
    if constexpr (Ranks::is_shared) ranks_.template take_sample<Threads>(keys);
    team_.sync();
    if constexpr (Ranks::is_spread) {
      const uint4* const from = reinterpret_cast<const uint4*>(ranks_.sample(team_.size()));
#pragma unroll
      for (unsigned i = threadIdx.x; i < sampled / 4; i += Threads) reinterpret_cast<uint4*>(keys)[i] = __ldcg(from + i);
      __syncthreads();
    }
    return block::bracket_of_sample(own_.select, keys, sought_, 0);
  }

  /// Compares this CTA's tokens with the bracket: writes two bits for each token, and keeps the tokens inside.
  template <class Rounded>
  __device__ void compare(const block::bracket& limits, Rounded rounded);

  /// Selects the list's tokens and writes this CTA's. If the threshold is outside the bracket, or more tokens are inside than fit, every
  /// CTA of the list writes nothing and returns false.
  __device__ bool write(std::uint32_t k, std::int32_t* out);

  /// Selects by all scores, after write() has returned false.
  /// @param keys  [tokens of the range] scratch of the list
  __device__ void write_by_radix(std::uint32_t k, std::uint32_t* keys, std::int32_t* out);

 protected:
  /// A rank's part of the sample.
  struct sample_part {
    unsigned first, count;
  };
  __host__ __device__ static constexpr std::size_t numbers_bytes(std::size_t g) {
    return shared_memory::bytes<block::head_numbers>(g) + shared_memory::bytes<block::attended_head>(g);
  }
  /// What is added to a query head's normaliser; its thread's own. A pointer that lives while the look-ups run would take their registers.
  __device__ block::attended_head& beside(unsigned q) const {
    return reinterpret_cast<block::attended_head*>(reinterpret_cast<unsigned char*>(numbers_) +
                                                   shared_memory::bytes<block::head_numbers>(call_.g))[q];
  }
  /// Whether the look-ups for the normalisers store rounded products.
  __device__ bool has_rounded() const { return call_.m >= rounded_from; }
  __device__ std::uint32_t words() const { return (end_ - begin_ + 31) / 32; }
  __device__ std::int32_t first_token() const { return static_cast<std::int32_t>(range_.begin + begin_ - tokens_.lead); }

  /// Sums the products of this CTA's tokens; scorer_ keeps the totals.
  template <class Rounded>
  __device__ void sum(Rounded rounded) {
    __syncthreads();
    lookups_.copy(scorer_.entries());
    __syncthreads();
    for (unsigned group = 0; group < scorer_.packs(); ++group) {
      scorer_.set_totals(group, lookups_.template sum<rounded_from>(tokens_, begin_, end_, group, rounded().pack(group)).of);
    }
  }
  /// Sends scorer_.total() of every query head to all CTAs of the list. While these travel, looks up the first tokens of the sample.
  /// @param round  how often it was called before for this list; the table is not one of products in round 1
  __device__ void share_totals(unsigned round) {
    std::uint64_t* exchanged = nullptr;
    if constexpr (Ranks::is_spread) {
      exchanged = ranks_.totals(team_.size()) + round * team_.size() * call_.g;
      for (unsigned q = threadIdx.x; q < call_.g; q += Threads) exchanged[team_.rank() * call_.g + q] = scorer_.total(q);
    } else {
      for (unsigned i = threadIdx.x; i < team_.size() * call_.g; i += Threads) {
        const unsigned rank = i / call_.g, q = i - rank * call_.g;
        *team_.remote(&totals_of(round)[team_.rank() * call_.g + q], rank) = scorer_.total(q);
      }
    }
    if constexpr (Ranks::is_shared) ranks_.template send_totals<Threads>(round, call_.g, [&](unsigned q) { return scorer_.total(q); });
    if (team_.size() > 1) team_.arrive();
    if (has_sample() && round != 1) {  // while the others' sums are under way
      sought_ = {ranked_, k_, most_inside()};
      const unsigned which = sample_begin(team_.rank()) + threadIdx.x;
      if (which < sample_begin(team_.rank() + 1)) sample_ = lookups_.product(sample_codes(which), tokens_.stride, 0);
    }
    if (round == 0) take_attended();
    if constexpr (Ranks::is_shared) ranks_.template take_totals<Threads>(round, call_.g, totals_of(round) + team_.size() * call_.g);
    if (team_.size() > 1) team_.wait();
    if constexpr (Ranks::is_spread)
      for (unsigned i = threadIdx.x; i < team_.size() * call_.g; i += Threads) totals_of(round)[i] = __ldcg(exchanged + i);
    if (Ranks::is_shared || Ranks::is_spread || team_.size() == 1) __syncthreads();
  }
  /// Reads what is added to the normalisers. If other CTAs of this launch compute it, waits for it first.
  __device__ void take_attended() {
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      while (call_.summed != nullptr && block::read_acquired(&call_.summed[list_]) != call_.g) continue;
      if constexpr (Lists::plans)
        beside(q) = of_list_.beside(entries_, q);
      else
        beside(q) = call_.beside(list_ * call_.g + q);
    }
  }
  /// Whether the list has more tokens than can be kept.
  __device__ bool has_sample() const {
    if constexpr (Ranks::is_shared) return ranks_.has_sample();
    // Up to `sampled`, a CTA's part has room in cluster_shape::least_kept().
    return tokens_.count() > shape_.kept && tokens_.count() > sampled;
  }
  /// How many tokens inside the bracket all CTAs together can use.
  __device__ std::uint32_t most_inside() const {
    if constexpr (Ranks::is_shared) return ranks_.most_inside();
    return shape_.copied;
  }
  /// A CTA's first token of this rank's part of the sample.
  __device__ unsigned sample_begin(unsigned rank) const { return sample_of_rank_.count * rank / team_.size(); }
  __device__ const std::uint8_t* sample_codes(unsigned which) const {
    if constexpr (Ranks::is_shared) return tokens_.first() + block::sample_place(which, sample_of_rank_.count, tokens_.count());
    return tokens_.first() + block::sample_place(which, tokens_.count());
  }
  /// CTAs of the list, on all ranks.
  __device__ unsigned parts() const { return team_.size() + ranks_.other_parts(); }
  /// What the parts have sent in a round, [parts, g]. A round has memory of its own, so none waits until the last one has been read.
  __device__ std::uint64_t* totals_of(unsigned round) const { return totals_ + round * parts() * call_.g; }
  __device__ std::uint64_t total(unsigned round, unsigned q) const {
    std::uint64_t z = 0;
#pragma unroll 8
    for (unsigned part = 0; part < parts(); ++part) z += totals_of(round)[part * call_.g + q];
    return z;
  }
  /// Recentres the query heads that need it on the best token of the list, and normalises them again.
  template <class Rounded>
  __device__ void recentre(Rounded rounded) {
    const auto is_recentred = [&](unsigned q) { return numbers_[q].is_recentred != 0; };
    scorer_.stage_sums(is_recentred);
    lookups_.copy(scorer_.entries());
    __syncthreads();
    for (unsigned group = 0; group < scorer_.packs(); ++group) scorer_.set_largest(group, lookups_.largest(tokens_, begin_, end_, group));
    share_totals(1);
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads) {
      if (numbers_[q].is_recentred == 0) continue;
      std::uint64_t best = 0;
      for (unsigned part = 0; part < parts(); ++part) {
        const std::uint64_t of_part = totals_of(1)[part * call_.g + q];
        best = of_part > best ? of_part : best;
      }
      numbers_[q].centre = call_.recentring(static_cast<std::uint32_t>(best));
    }
    __syncthreads();
    scorer_.centre_sums(is_recentred, [&](unsigned q) { return numbers_[q].centre; });
    sum(rounded);
    share_totals(2);
    for (unsigned q = threadIdx.x; q < call_.g; q += Threads)
      numbers_[q].factor = scorer_.factor_of(q, total(2, q), numbers_[q].centre, beside(q));
  }

  /// What each CTA of the list has found, in the lane of its number, in every warp.
  __device__ block::bracket_counts counts_of_lane() const {
    const unsigned lane = threadIdx.x % 32;
    return lane < team_.size() ? own_.of_members[lane] : block::bracket_counts{};
  }
  __device__ bool kept_all(const block::bracket_counts& of_lane) const {
    return __all_sync(block::all_lanes, of_lane.inside <= shape_.kept) != 0;
  }
  /// The position of a CTA's first token.
  __device__ std::uint32_t first_position(unsigned rank) const {
    const std::uint32_t share = cluster_shape::share(tokens_.end, team_.size());
    return share * rank < tokens_.end ? share * rank : tokens_.end;
  }
  /// Compares by rounded products, then by the scores of those that these leave in doubt. Returns false, and has written bits only, where
  /// there are too many. @param counts  of the thread, added to
  __device__ bool compare_rounded(const block::bracket& limits, const block::rounded_tokens& rounded, block::bracket_counts& counts);
  __device__ block::bracket_counts compare_scores(const block::bracket& limits);
  /// Copies the keys inside the bracket from all CTAs, in their order. A warp copies from one CTA at a time. A barrier must follow.
  __device__ void copy_inside(const block::bracket_counts& of_lane);
  /// The k-th largest of the copied keys, at most their number. own_.select.clear() has been called, then a barrier.
  /// @param all_equal  written: whether all that equal it are selected
  __device__ block::threshold threshold_inside(std::uint32_t inside, std::uint32_t k, bool& all_equal) {
    const auto key_at = [&](std::uint32_t i) { return copied_[i]; };
    return own_.select.find_between(inside, k, own_.limits.low, own_.limits.high, own_.finer, key_at, all_equal);
  }
  /// How many of the first copied keys are above the threshold, and how many equal it, as block::token_count().
  __device__ std::uint64_t reached(const block::threshold& limit, std::uint32_t first) {
    if (first == 0) return 0;
    std::uint64_t own = 0;
    for (std::uint32_t i = threadIdx.x; i < first; i += Threads)
      if (copied_[i] >= limit.key) own += block::token_count(copied_[i] > limit.key);
    return own_.sums.sum(own);
  }
  /// Turns the bits of a comparison into those of selected tokens, and of tokens that equal the threshold. Ends with a barrier.
  __device__ void mark(const block::threshold& limit, const block::bracket_place& place);

  const block::scoring& call_;
  const cluster_shape& shape_;
  scratch& own_;
  Ranks ranks_;
  typename Ranks::team_type team_;
  unsigned list_;
  std::uint32_t* copied_;  // [copied] keys; before, the copies of the table
  typename Lists::one of_list_;
  typename Lists::entries entries_;
  middle_range range_{};
  block::token_positions tokens_{block::scored_items{}};
  scorer_type scorer_;
  std::uint64_t* totals_;          // [rounds, parts, g] a number of each CTA for each query head
  block::head_numbers* numbers_;   // [g], then what beside() returns
  std::uint32_t *upper_, *lower_;  // [words] two bits a token: both set above the bracket, upper_ at its high end, lower_ at its low end
  lookups_type lookups_;
  uint2* kept_;                       // [kept] key and position; at first the keys of the sample
  block::query_pack<Pack> sample_{};  // products of this thread's first token of the sample, in the first pack
  block::bracket_ranks sought_;
  sample_part sample_of_rank_{0, sampled};
  std::uint32_t begin_ = 0, end_ = 0;  // positions
  std::uint32_t ranked_ = 0;           // tokens of all ranks
  std::uint32_t k_ = 0;
};

}  // namespace pqkv::detail
