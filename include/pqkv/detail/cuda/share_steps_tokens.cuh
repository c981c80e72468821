// SPDX-License-Identifier: Apache-2.0
// The selection of all ranks in one launch, where lists are ranked token by token and messages travel in kernels: retrieve_cluster.cuh's
// steps, with a cluster for each list on every rank. The clusters exchange the sums of their tokens for the normalisers, the scores of a
// sample that all ranks draw together, and the scores inside the bracket that this sample gives. Then every CTA knows the threshold of all
// ranks. If not all tokens at the threshold are selected, the ranks also exchange the positions of these. If the sample misled, each rank
// selects its own best by radix, and the ranks choose among these as share_steps_choice.cuh does.
#pragma once

#include <algorithm>

#include "pq_step.cuh"
#include "share_steps_choice.cuh"
#include "share_steps_in_one.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Where a rank's tokens are, for planned_lists whose tokens are ranked by the clusters of all ranks.
template <class Mail>
struct token_places {
  using mail_type = Mail;
  static constexpr bool exchanges = false;  // what list_exchange does
  share_places share;
  Mail tokens, candidates;
  scale::token_message message;  // of a list in `tokens`
  std::uint32_t most;            // candidates of a list

  __device__ middle_range local(const middle_range& range) const { return share.local(range); }
  __device__ token_span local(const token_span& span) const { return share.local(span); }
};

/// How a CTA of a list exchanges numbers with the list's CTAs on other ranks. Messages arrive in the memory of the rank that reads them.
template <class Mail>
class token_exchange {
  using message = typename Mail::message;
  static_assert(scale::token_message::sampled == block::bracket_sample && scale::token_message::parts >= cluster_shape::most_ctas &&
                scale::token_message::most_kept <= tuning::cluster_copied);

 public:
  using team_type = block::cluster_team;
  static constexpr bool is_shared = true, is_spread = false;
  __device__ static team_type team(unsigned ctas) { return team_type(ctas); }

  __device__ token_exchange(const token_places<Mail>& places, unsigned list, unsigned part, unsigned parts)
      : places_(places), mail_(places.tokens.open(list)), first_(list * places.message.words()), part_(part), parts_(parts) {}

  /// The most CTAs that the list may have on other ranks. A CTA that does not exist counts as one without tokens.
  __device__ unsigned other_parts() const { return scale::token_message::parts * (mail_.ranks - 1); }
  __device__ bool has_sample() const { return tokens_ > block::bracket_sample; }
  __device__ std::uint32_t most_inside() const { return places_.message.kept; }

  /// Divides the sample among the ranks by their tokens of the range. Returns this rank's first key, and how many it has.
  __device__ uint2 divide_sample(const middle_range& whole) {
    tokens_ = whole.size();
    if (!has_sample()) return {0, 0};
    const unsigned lane = threadIdx.x % 32;
    const std::uint32_t own = lane < mail_.ranks ? places_.share.of(lane).local(whole).size() : 0;
    sample_of_lane_ = static_cast<std::uint32_t>(std::uint64_t{block::bracket_sample} * block::warp_prefix(own) / tokens_);
    const std::uint32_t first = sample_begin(mail_.rank);
    return {first, sample_begin(mail_.rank + 1) - first};
  }

  /// Sends this CTA's total of each query head. @param round  of cluster_ranking::share_totals()
  template <unsigned Threads, class TotalOf>
  __device__ void send_totals(unsigned round, unsigned g, TotalOf total_of) const {
    for (unsigned i = threadIdx.x; i < scale::token_message::parts * g; i += Threads) {
      const unsigned part = i / g;
      if (part % parts_ != part_) continue;
      const std::uint64_t total = part == part_ ? total_of(i - part * g) : 0;  // 0: this rank has no such part
      const std::size_t at = first_ + places_.message.totals(round) + 2 * i;
      mail_.give(at, static_cast<std::uint32_t>(total)), mail_.give(at + 1, static_cast<std::uint32_t>(total >> 32));
    }
  }
  /// @param to  [other_parts(), g] written. A barrier must follow
  template <unsigned Threads>
  __device__ void take_totals(unsigned round, unsigned g, std::uint64_t* to) const {
    const unsigned of_rank = scale::token_message::parts * g;
    for (unsigned i = threadIdx.x; i < other_parts() * g; i += Threads) {
      const unsigned other = i / of_rank;
      const std::size_t at = first_ + places_.message.totals(round) + 2 * (i - other * of_rank);
      std::uint32_t halves[2];
      mail_.take(other < mail_.rank ? other : other + 1, at, 1, at + 2, halves);
      to[i] = halves[0] | std::uint64_t{halves[1]} << 32;
    }
  }

  /// Sends a key of the sample.
  __device__ void send_sampled(unsigned which, std::uint32_t key) const { mail_.give(first_ + places_.message.sample() + which, key); }
  /// @param keys  [bracket_sample] those of other ranks are written. A barrier must follow
  template <unsigned Threads>
  __device__ void take_sample(std::uint32_t* keys) const {
    for (unsigned rank = 0; rank < mail_.ranks; ++rank) {
      const std::uint32_t begin = sample_begin(rank), end = sample_begin(rank + 1);
      if (rank != mail_.rank) take_words<Threads>(rank, places_.message.sample() + begin, end - begin, keys + begin);
    }
  }

  /// Sends what the list's CTAs of this rank have found, and the keys of this CTA's tokens inside the bracket.
  /// @param own    of this rank; `fits` says whether all its tokens inside are kept
  /// @param first  how many tokens inside this rank's earlier CTAs have
  template <unsigned Threads>
  __device__ void send_found(const block::bracket_counts& own, bool fits, std::uint32_t first, const uint2* kept,
                             std::uint32_t count) const {
    if (part_ == 0 && threadIdx.x < counted) {
      const std::uint32_t number = threadIdx.x == 0   ? own.above
                                   : threadIdx.x == 1 ? own.at_high
                                   : threadIdx.x == 2 ? own.inside
                                   : threadIdx.x == 3 ? own.at_low
                                   : fits             ? 1
                                                      : 0;
      mail_.give(first_ + places_.message.counts() + threadIdx.x, number);
    }
    for (std::uint32_t i = threadIdx.x; fits && i < count && first + i < most_inside(); i += Threads)
      mail_.give(first_ + places_.message.keys() + first + i, kept[i].x);
  }
  /// What each rank has found, in the lane of its number, in every warp. `fits` becomes whether all ranks' tokens inside are kept.
  __device__ block::bracket_counts take_found(const block::bracket_counts& own, bool& fits) const {
    const unsigned lane = threadIdx.x % 32;
    block::bracket_counts of_lane{};
    bool fits_there = true;
    if (lane == mail_.rank) {
      of_lane = own, fits_there = fits;
    } else if (lane < mail_.ranks) {
      const std::size_t at = first_ + places_.message.counts();
      std::uint32_t numbers[counted];
      mail_.take(lane, at, 1, at + counted, numbers);
      of_lane = {numbers[0], numbers[1], numbers[2], numbers[3]};
      fits_there = numbers[4] != 0;
    }
    fits = __all_sync(block::all_lanes, fits_there) != 0;
    return of_lane;
  }
  /// Copies the other ranks' keys inside the bracket, rank after rank. A barrier must follow.
  template <unsigned Threads>
  __device__ void copy_inside(const block::bracket_counts& of_lane, std::uint32_t* to) const {
    for (unsigned rank = 0; rank < mail_.ranks; ++rank) {
      if (rank == mail_.rank) continue;
      const std::uint32_t count = __shfl_sync(block::all_lanes, of_lane.inside, static_cast<int>(rank));
      take_words<Threads>(rank, places_.message.keys(), count, to);
      to += count;
    }
  }
  __device__ unsigned ranks() const { return mail_.ranks; }
  /// Counts the message. By one CTA, when all CTAs of the list have begun theirs.
  __device__ void taken() const { mail_.taken(); }

 private:
  static constexpr unsigned counted = scale::token_message::counted;

  /// The number, in the sample, of a rank's first key.
  __device__ std::uint32_t sample_begin(unsigned rank) const {
    return __shfl_sync(block::all_lanes, sample_of_lane_, static_cast<int>(rank));
  }
  template <unsigned Threads>
  __device__ void take_words(unsigned rank, std::size_t word, std::uint32_t count, std::uint32_t* to) const {
    constexpr unsigned at_once = 4;
    const std::size_t begin = first_ + word;
#pragma unroll 1
    for (std::uint32_t i = threadIdx.x; i < count; i += at_once * Threads) {
      std::uint32_t words[at_once];
      mail_.take(rank, begin + i, Threads, begin + count, words);
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a)
        if (i + a * Threads < count) to[i + a * Threads] = words[a];
    }
  }

  const token_places<Mail>& places_;
  message mail_;
  std::size_t first_;
  unsigned part_, parts_;
  std::uint32_t tokens_ = 0;          // of the range, on all ranks
  std::uint32_t sample_of_lane_ = 0;  // lane r: number, in the sample, of rank r's first key
};

/// One CTA of a list on one rank.
template <unsigned Threads, unsigned Pack, class Lists, class Mail>
class share_ranking : public cluster_ranking<Threads, Pack, Lists, token_exchange<Mail>> {
  using base = cluster_ranking<Threads, Pack, Lists, token_exchange<Mail>>;
  using message = typename Mail::message;

 public:
  struct scratch : base::scratch {
    block::reduction<std::uint32_t, Threads> places;
  };

  __device__ share_ranking(const block::scoring& call, const Lists& lists, const cluster_shape& shape, unsigned list, scratch& own,
                           block::shared_memory memory)
      : base(call, lists, shape, list, own, memory,
             token_exchange<Mail>(lists.places, list, block::cluster_team(shape.ctas).rank(), shape.ctas)),
        places_(lists.places),
        candidates_(lists.places.candidates.open(list)),
        scratch_(own) {}

  /// Returns this rank's range; whole() is that of all ranks.
  __device__ middle_range stage() {
    const middle_range own = base::stage(nullptr);
    ranked_ = whole().size();
    const uint2 sample = ranks_.divide_sample(whole());
    sample_of_rank_ = {sample.x, sample.y < own.size() ? sample.y : own.size()};
    return own;
  }
  __device__ middle_range whole() const { return of_list_.whole(entries_); }

  /// Selects the list's tokens and writes this CTA's, as in cluster_ranking.
  __device__ bool write(std::uint32_t k, const retrieved_lists& out) {
    const block::bracket_counts of_part = this->counts_of_lane(), before = of_part.up_to(team_.rank()), own = of_part.up_to(team_.size());
    bool fits = this->kept_all(of_part);
    ranks_.template send_found<Threads>(own, fits, before.inside, kept_, own_.found.inside);
    const block::bracket_counts of_rank = ranks_.take_found(own, fits), all = of_rank.up_to(ranks_.ranks());
    if (!fits || all.inside > ranks_.most_inside() || !all.holds(k)) return false;
    const block::bracket_place place(all, k);
    block::threshold limit = place.limit();
    bool all_equal = limit.of_equal == (place.is_high ? all.at_high : all.at_low);
    // Counts of the CTAs before this one; in the first CTA, of the whole rank.
    const bool is_first = team_.rank() == 0;
    std::uint64_t marked = place.marked(is_first ? own : before);
    if (place.is_inside()) {
      own_.select.clear(own_.finer);
      this->copy_inside(of_part);
      ranks_.template copy_inside<Threads>(of_rank, copied_ + own.inside);
      __syncthreads();
      limit = this->threshold_inside(all.inside, place.rest, all_equal);
      marked += this->reached(limit, is_first ? own.inside : before.inside);
    }
    if (team_.size() > 1) team_.arrive();  // from here on this CTA reads nothing of the others
    block::release_dependents();
    this->mark(limit, place);
    const std::uint32_t quota = all_equal ? 0xffffffffu : own_equal(limit.of_equal, static_cast<std::uint32_t>(marked));
    if (is_first) {
      const std::uint32_t equal = static_cast<std::uint32_t>(marked);
      if (threadIdx.x == 0) out.counts(list_) = static_cast<std::uint32_t>(marked >> 32) + (equal < quota ? equal : quota);
      marked = 0;
    }
    block::bitmap_emission<Threads> emission(own_.sums);
    emission.count(upper_, lower_, this->words());
    emission.emit(marked, quota, this->first_token(), out.list(list_), out.room());
    if (team_.size() > 1) team_.wait();
    if (is_first) {
      if (!all_equal) candidates_.taken();
      ranks_.taken();
    }
    return true;
  }

  /// Selects by all scores, after write() has returned false.
  /// @param keys  [tokens of the range] scratch of the list
  __device__ void write_by_radix(std::uint32_t k, std::uint32_t* keys, const retrieved_lists& out) {
    const std::uint32_t count = range_.size() < k ? range_.size() : k;
    base::write_by_radix(count, keys, out.list(list_));
    if (team_.rank() != 0) return;
    if (threadIdx.x == 0) out.counts(list_) = count;
    __syncthreads();
    const candidate_mail<message> mail(candidates_, list_, places_.most);
    send_known<Threads>(list_, out, places_.share, mail, keys, range_.begin);
    __syncthreads();
    constexpr unsigned other_words = 64;  // at most, of all_candidates
    keep_chosen<Threads>(list_, out, k, mail, shape_.copied / 2 - other_words, own_.select, scratch_.places);
    __syncthreads();
    candidates_.taken();
    ranks_.taken();
  }
  __device__ void finish(std::uint32_t count, const retrieved_lists& out) const {
    if (team_.rank() == 0 && threadIdx.x == 0) out.counts(list_) = count;
  }

 private:
  using base::own_, base::ranks_, base::ranked_, base::team_, base::range_, base::list_, base::entries_, base::of_list_, base::kept_,
      base::copied_, base::upper_, base::lower_, base::sample_of_rank_, base::shape_;

  /// How many of this rank's tokens at the threshold are selected: the ranks exchange the positions of these tokens.
  /// @param marked  how many of them earlier CTAs have; in the first CTA, all of this rank's
  __device__ std::uint32_t own_equal(std::uint32_t wanted, std::uint32_t marked) {
    const list_exchange<Threads, message> exchange(candidates_, candidates_, places_.share, list_, team_.rank(), team_.size(),
                                                   2 * std::size_t{places_.most} + 1);
    const bool is_first = team_.rank() == 0;
    if (is_first) exchange.end_equal(marked, wanted);
    exchange.send_marked(scratch_.places, wanted, lower_, this->words(), static_cast<std::uint32_t>(this->first_token()),
                         is_first ? 0 : marked);
    const std::uint32_t end = exchange.end_of_equal(wanted, copied_, shape_.copied);
    return exchange.equal_below(scratch_.places, wanted, end, copied_, shape_.copied);
  }

  const token_places<Mail>& places_;
  message candidates_;  // opened before any CTA counts the message
  scratch& scratch_;
};

/// As cluster_kernel, over all ranks.
/// @param keys  [lists, n] scratch
template <unsigned Threads, unsigned Pack, class Lists, class Mail>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    share_cluster_kernel(const __grid_constant__ block::scoring call, const __grid_constant__ Lists lists,
                         const __grid_constant__ cluster_shape shape, retrieved_lists out, view<std::uint32_t, 2, space::device> keys) {
  using ranking_type = share_ranking<Threads, Pack, Lists, Mail>;
  __shared__ typename ranking_type::scratch scratch;
  if (shape.ctas > 1) block::cluster_team(shape.ctas).arrive();
  block::wait_for_last_kernel();
  const unsigned list = blockIdx.y;
  ranking_type ranking(call, lists, shape, list, scratch, block::shared_memory());
  const middle_range range = ranking.stage();
  const std::uint32_t k = ranking.whole().selected();
  if (k == 0 || k == ranking.whole().size()) {  // on every rank
    const std::uint32_t count = k == 0 ? 0 : range.size();
    ranking.finish(count, out);
    return ranking.write_all(count, out.list(list));
  }
  ranking.normalise(k, [&] { return rounded_of(call, keys, list); });
  const block::bracket limits = ranking.find_bracket();
  ranking.compare(limits, [&] { return rounded_of(call, keys, list); });
  if (!ranking.write(k, out)) ranking.write_by_radix(k, &keys(list, 0), out);
}

/// Launches share_cluster_kernel. @return false, on every rank, if one launch is not enough; then nothing is enqueued
/// @param policy   with scratch for retrieve()
/// @param longest  the most tokens of any rank's share
template <class P, class Mail>
bool rank_share_in_clusters(const P& policy, ranked_step<space::device> step, const token_places<Mail>& places, std::size_t longest) {
  constexpr unsigned together = 4, threads = tuning::cluster_threads;
  using lists_type = planned_lists<threads, together, token_places<Mail>>;
  using ranking_type = share_ranking<threads, together, lists_type, Mail>;
  step.how.path = search_path::scan;
  const block::scoring call = planned_call(step);
  const launcher launch(policy, "rank_share");
  const auto kernel = share_cluster_kernel<threads, together, lists_type, Mail>;
  if (!can_plan_in_one(step, call) || !launch.is_built_for_hopper(kernel)) return false;
  const std::size_t n = call.codes.extent(2);
  const lists_type lists(step, call.g, places);
  const unsigned other_parts = scale::token_message::parts * (places.tokens.ranks - 1);
  // Devices of one kind differ in how large their clusters can be, but all ranks must decide alike: by clusters that every device can run.
  cluster_shape least{};
  least.ctas = std::clamp(tuning::multiprocessors / 2 / call.lists, 1u, tuning::select_cluster);
  longest = (longest + 127) / 128 * 128;  // at least any rank's n
  if (divide_memory<ranking_type>(least, call, lists, longest, other_parts + cluster_shape::most_ctas, launch.shared_limit(kernel)) == 0)
    return false;
  arena memory = device_scratch(
      policy.scratch, retrieve_device_scratch_bytes({.lists = call.lists, .query_heads = call.query_heads(), .tokens = n}), "rank_share");
  nothing_beside beside;
  const cluster_launch chosen =
      choose_clusters<ranking_type>(launch, "share_cluster_kernel", kernel, call, lists, longest, other_parts, beside);
  return start_clusters(chosen, longest, beside, [&](const launcher::shape& how, const cluster_shape& shape) {
    launch("share_cluster_kernel", kernel, how, call, lists, shape, retrieved_lists{step.indices, step.plan.counts},
           filter_memory(memory, call).keys);
  });
}

}  // namespace detail

template <>
struct kernel<op::rank_share, backend::cuda> {
  static_assert(scale::rank_share_parts >= detail::tuning::fused_parts);

  template <class P, class Mail>
  static bool run(const P& policy, const scale::planned_share<space::device>& plan, const scale::ranked_share<space::device>& call,
                  const pq_index_view<space::device>& index, view<const float, 2, space::device> query,
                  const scale::rank_share_mails<Mail>& mails) {
    const ranked_step<space::device> step{plan.queries, plan.plan, query, index, call.found.indices, call.how};
    const detail::share_places share(call.share);
    if (plan.mode == scale::selection_mode::local) {
      const detail::local_places places{share};
      return call.index.cells() <= most_cells &&
             (detail::rank_step_in_one(policy, step, places) || detail::rank_step_in_clusters(policy, step, places));
    }
    const std::uint32_t k = static_cast<std::uint32_t>(call.k);
    if (mails.cells != 0)
      return mails.cells <= most_cells &&
             detail::rank_step_in_one(policy, step,
                                      detail::exact_places<Mail>{share, mails.counts, mails.candidates, mails.numbers, call.k});
    return mails.message.kept != 0 &&
           detail::rank_share_in_clusters(policy, step, detail::token_places<Mail>{share, mails.tokens, mails.candidates, mails.message, k},
                                          mails.longest);
  }

 private:
  static constexpr std::size_t most_cells = detail::block::reached_cells<detail::tuning::fused_threads>::most;  // collected at once
};

}  // namespace pqkv
