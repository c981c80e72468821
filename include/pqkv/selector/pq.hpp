// SPDX-License-Identifier: Apache-2.0
// Selection by product quantization, the library's own method: a selector around search/pq_index.hpp. A slot with too few keys has no
// codebook yet; it attends to everything until maintain() can train one. A slot with two stages of codes needs enough keys for both
// codebooks.
// Source: PQCache, SIGMOD 2025.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <optional>

#include "../core/float_environment.hpp"
#include "../quantize/overlap.hpp"
#include "../search/pq_index.hpp"
#include "../search/rerank.hpp"
#include "attended_sum.hpp"
#include "concept.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct rank_step {};  // run(policy, ranked_step, rows): op::plan_step and the selection in one launch; `attended` in that launch too, or in
                      // one before it; CUDA only; returns whether it did that
}  // namespace op

/// The arguments of op::rank_step: one pass of a step, its queries to plan and its lists to fill.
template <class Space>
struct ranked_step {
  planned_queries<Space> queries;
  step_plan<Space> plan;                 // written
  view<const float, 2, Space> query;     // [T * hq, d]
  pq_index_view<Space> index;            // of all slots
  view<std::int32_t, 2, Space> indices;  // [T * lists, k_max], written
  retrieve_params how;
  view<std::uint32_t, 1, Space> arrived{};  // [2 * T * lists] zeros, and zeros after it: pq_workspace::arrived; may be empty
  view<attended_sum, 1, Space> attended{};  // [T * hq], written: normalisation::attended; or empty
  view<float, 1, Space> bias{};             // [T * hq], written: biases of the queries' tables; empty where `attended` is
  view<std::uint32_t, 1, Space> summed{};   // [T * lists] zeros, and zeros after it: pq_workspace::summed; empty where `attended` is
};
}  // namespace pqkv

namespace pqkv::inline PQKV_MODE::selector {

/// The second stage of pq: residual codes.
struct residual_stage {
  std::size_t subspaces = 0;  // m2; 0: no second stage
  unsigned bits = 8;          // b2
  std::size_t shortlist = 4;  // length of the first stage's list, in multiples of k

  constexpr bool used() const { return subspaces != 0; }
};

/// The tokens over which a query head's probabilities add up to 1. The query heads of a KV head share one list, so this decides how much
/// weight each head has in it.
enum class normalisation : std::uint8_t {
  middle,   // the ranked tokens: every query head has the same weight
  attended  // sinks and window too: a head that attends mostly there has less weight. No second stage
};

/// What a renewal of a slot's codebook trains, and which keys it encodes anew.
enum class renewal_scope : std::uint8_t {
  all_keys,  // all centroids move, and all keys are encoded
  new_keys   // only replaced centroids move, to the keys that came since; these are encoded, and those whose centroid was replaced. A
             // sequence whose length has passed a power of two since then renews all keys
};

/// The quantizer, its training, and how scores are computed. 4 x 8 bits is what a real model needs (docs/quality.md). 2 x 6 bits ranks
/// faster, by the joint-code index, and finds less.
struct pq_params {
  std::size_t subspaces = 4;  // m
  unsigned bits = 8;          // b
  // Which coordinates form each subspace. Without a call of observe() weighted_pairs are rotary_halves
  axis_order axes = axis_order::weighted_pairs;
  key_metric metric = key_metric::squared_l2;
  group_reduction reduction = group_reduction::probability_sum;
  search_path path = search_path::automatic;
  std::optional<normalisation> over{};  // if not given: attended, but the middle with a second stage or over several ranks
  residual_stage residual{};
  kmeans_params train{};                           // of both stages; `start` must be drawn, since a slot begins empty
  std::optional<overlap_model> overlap{};          // if given, the overlap rule decides L in place of train.iterations
  std::size_t overlap_most = overlap_model::most;  // the largest L that the rule may choose
  std::size_t tail_tokens = 256;                   // maintain() merges once at least this many tokens are not yet in the id lists
  /// maintain() renews a slot that has grown by this factor since its last training or renewal; 0: never. If not given: 1.05 when renewals
  /// are of new keys, 1.1 when they are of all keys, and 1.5 when slots are trained anew, which costs more.
  std::optional<double> refresh{};
  renewal_scope renewal = renewal_scope::new_keys;
  /// L of a renewal (pq_index::renew). A renewal starts from the present codebook and keeps its order of axes. With 0 the slot is trained
  /// anew instead, as for a prompt; so are slots that have doubled since their last training or renewal, and all slots with a second stage.
  std::size_t refresh_iterations = 1;

  /// Whether an outgrown codebook is always trained anew.
  constexpr bool trains_anew() const { return refresh_iterations == 0 || residual.used(); }
  /// `over`, or its default.
  constexpr normalisation normalised_over() const {
    return over.value_or(residual.used() ? normalisation::middle : normalisation::attended);
  }
  /// `refresh`, or its default.
  constexpr double growth() const { return refresh.value_or(trains_anew() ? 1.5 : renewal == renewal_scope::all_keys ? 1.1 : 1.05); }

  /// The length at which a codebook trained on n tokens is due again; 0: never. Codebooks age, because later keys are distributed
  /// differently. Each renewal reads growth() times the rows of the one before, so all together read g / (g - 1) times the rows of the
  /// last, g = growth().
  std::uint32_t outgrown_at(std::size_t n) const {
    double next = 0;
    pqkv::detail::in_float_environment([&] { next = std::ceil(growth() * static_cast<double>(n)); });
    return growth() != 0 && next < 4294967295.0 ? static_cast<std::uint32_t>(next) : 0;
  }

  /// The index for a cache of this shape.
  constexpr pq_index_shape index_of(const cache_shape& shape) const {
    return {shape.batch, shape.kv_heads,     shape.head_dim, subspaces, bits, shape.capacity,
            metric,      residual.subspaces, residual.bits,  path,      axes};
  }
};

/// Computes how many bytes ranking reads: attention's rows are counted elsewhere.
struct pq_traffic {
  std::uint64_t cells, subspaces, fine_subspaces, shortlist, kv_heads, book_bytes;
  search_path path;

  PQKV_HD constexpr traffic operator()(const middle_range& middle) const {
    const bool joint = cells != 0 && resolve_path(path, cells, middle.size()) == search_path::joint;
    const std::uint64_t listed = fine_subspaces != 0 ? shortlist_size(middle, shortlist) : middle.selected();
    const std::uint64_t index = joint ? cells * sizeof(std::uint32_t) + listed * sizeof(std::int32_t) : subspaces * middle.size();
    const std::uint64_t codes = fine_subspaces != 0 ? listed * (subspaces + fine_subspaces) : 0;
    return {kv_heads * (index + codes), book_bytes};
  }
};

/// Ranks the middle by inner products with quantized keys.
///
/// @tparam Space  where the index is; a second stage and the overlap rule need host memory
template <class Space = space::host>
class basic_pq {
 public:
  using params = pq_params;

  static constexpr status can_construct(const cache_shape& shape, const params& settings) noexcept {
    if (const status s = can_quantize(settings.index_of(shape).coarse(), "pqcache"); !s.ok()) return s;
    if (const status s = can_order_axes("pqcache", "selector.axes", settings.axes, settings.subspaces, shape.head_dim); !s.ok()) return s;
    if (const status s = can_refine(shape, settings); !s.ok()) return s;
    if constexpr (!space::usable_from<Space, space::host>)
      if (const status s = can_use_device(settings); !s.ok()) return s;
    return pqkv::detail::checks("pqcache")
        .at_most("capacity", shape.capacity, (1u << 23) - 1, "tokens, below 2^23")
        .at_least("selector.train.iterations", settings.train.iterations, 1, "L")
        .that(settings.train.start == kmeans_start::drawn, status::code::value, "selector.train.start", relation::required,
              "kmeans_start::drawn: a slot has no centroids to begin from", 0, 0)
        .that(settings.growth() == 0 || (settings.growth() > 1 && is_finite(static_cast<float>(settings.growth()))), status::code::value,
              "selector.refresh", relation::stated, "above 1, times the length of the last training, or 0 for never", 0, settings.growth())
        .that(settings.normalised_over() == normalisation::middle || !settings.residual.used(), status::code::value, "selector.over",
              relation::required, "normalisation::middle with a second stage", 0, 1)
        .at_least("selector.overlap_most", settings.overlap_most, overlap_model::least, "L of the overlap rule")
        .that(!settings.overlap || settings.overlap->b1 > 0, status::code::value, "selector.overlap.b1", relation::above,
              "seconds per row and iteration", 0, settings.overlap ? settings.overlap->b1 : 0)
        .at_most("selector.path",
                 settings.path == search_path::joint ? static_cast<double>(settings.index_of(shape).coarse().joint_bits()) : 0,
                 max_joint_bits, "m * b of the joint path");
  }
  static constexpr std::size_t index_bytes(const cache_shape& shape, const params& settings) {
    arena count;
    place(count, shape, settings);
    return pq_index<Space>::required_bytes(settings.index_of(shape)) + count.used_bytes();
  }
  template <exec::policy P>
  static constexpr std::size_t scratch_bytes(const P& policy, const cache_shape& shape, const params& settings) {
    const std::size_t rows = shape.queries_at_once(), hq = rows * shape.query_heads;
    const std::size_t lists = score_lists(settings.reduction, rows * shape.kv_heads, hq);
    const pq_index_shape index = settings.index_of(shape);
    const pq_shape coarse = index.coarse();
    const std::size_t first = pqkv::scratch_bytes<op::retrieve>(
        policy, {lists, hq, index.subspaces, coarse.centroids(), shape.capacity, index.cells(), settings.reduction});
    const std::size_t training = pqkv::scratch_bytes<op::kmeans>(
        policy, {shape.kv_heads * index.subspaces, shape.capacity, coarse.row_dim(), coarse.centroids(), settings.train});
    const std::size_t merging =
        index.cells() == 0 ? 0 : pqkv::scratch_bytes<op::merge_tails>(policy, {shape.kv_heads, shape.capacity, index.cells()});
    const std::size_t dealing =
        settings.axes == axis_order::weighted_pairs ? pqkv::scratch_bytes<op::deal_pairs>(policy, {shape.kv_heads, shape.head_dim}) : 0;
    const std::size_t most = std::max({first, training, merging, dealing});
    if constexpr (space::usable_from<Space, space::host>) {
      if (settings.residual.used())
        return std::max(most,
                        pqkv::scratch_bytes<op::rerank>(
                            policy, {lists, hq, coarse.subspaces * coarse.centroids() + index.fine_subspaces * index.fine().centroids(),
                                     shape.capacity}));
    }
    return most;
  }

  /// @throws std::bad_alloc; on a device cuda_error
  /// @pre can_construct(shape, settings)
  template <exec::policy P>
  basic_pq(const P& policy, const cache_shape& shape, const params& settings)
      : shape_(shape), params_(settings), index_(policy, settings.index_of(shape)), slots_(shape.batch) {
    arena count;
    place(count, shape, settings);
    memory_ = make_owner<std::byte>(policy, count.used_bytes());
  }

  std::size_t lists() const { return score_lists(params_.reduction, shape_.kv_heads, shape_.query_heads); }
  static constexpr coverage_rule covers() { return {coverage::everything, coverage::listed}; }
  std::size_t least_rows() const { return index_.shape().least_rows(); }
  /// L of a slot's last training or renewal since its reset. It is 0 before the first one, for a codebook from a file, and after a training
  /// that failed on the host (the host does not know of failures on a device). Under the overlap rule it depends on the prompt and the
  /// machine.
  std::size_t iterations(std::size_t slot) const { return slots_[slot].iterations; }
  selector_signature signature() const {
    const pq_index_shape& s = index_.shape();
    return {1,
            static_cast<std::uint32_t>(s.subspaces),
            s.bits,
            static_cast<std::uint32_t>(s.metric),
            static_cast<std::uint32_t>(s.fine_subspaces),
            s.has_fine() ? s.fine_bits : 0,
            static_cast<std::uint32_t>(s.axes)};
  }
  /// How many KV heads got their own order of axes in a slot's last training: under axis_order::weighted_pairs all of them if observe() had
  /// been called before, otherwise none. The axes of the other heads are split as under rotary_halves.
  std::size_t weighted_heads(std::size_t slot) const requires space::usable_from<Space, space::host> {
    const auto dealt = index_.view().sequence(slot).pairs.is_dealt;
    std::size_t count = 0;
    for (std::size_t head = 0; head < dealt.size(); ++head) count += dealt(head);
    return count;
  }
  /// Codebooks, codes and joint-code index of all slots.
  pq_index_view<Space> index() const { return index_.view(); }

  pq_traffic traffic_of(std::size_t) const {
    const pq_index_shape& s = index_.shape();
    const std::size_t fine = s.has_fine() ? codebook::required_bytes(s.fine()) : 0;
    const std::size_t books = (codebook::required_bytes(s.coarse()) + fine) / s.sequences;
    return {s.cells(), s.subspaces, s.fine_subspaces, params_.residual.shortlist, s.kv_heads, books, params_.path};
  }

  /// Trains on the rows of middle and window, and encodes the middle. If the slot has grown by less than a factor of two since its last
  /// training or renewal, its codebook is renewed instead (pq_params::refresh_iterations, renewal).
  template <exec::policy P, class Rows>
  learning<Space> learn(const P& policy, std::size_t slot, const Rows& rows, const sequence& at, middle_range middle) {
    const std::size_t n = at.n, first = middle.begin;
    if (n < first + least_rows()) return {};
    kmeans_params settings = params_.train;
    if (params_.overlap)
      settings.iterations = params_.overlap->iterations(training_rows(settings, n - first, index_.shape().coarse().centroids()).count, n,
                                                        params_.overlap_most);
    const auto outcomes = workspace().outcomes;
    const std::size_t trained = renewable_from(at), h = index_.shape().kv_heads, m = index_.shape().subspaces;
    if (trained > first && params_.renewal == renewal_scope::new_keys && std::bit_width(n) == std::bit_width(trained)) {
      settings.iterations = params_.refresh_iterations;
      const std::uint64_t codes = index_.renew_replaced(policy, slot, rows, first, middle.end, trained, n, settings);
      slots_[slot] = {settings.iterations, middle.end, present_codes::any};
      return {true, {}, params_.outgrown_at(n), codes};
    }
    if (trained > first) {
      settings.iterations = params_.refresh_iterations;
      index_.renew(policy, slot, rows, first, middle.end, trained, n, settings, outcomes, slots_[slot].codes);
    } else {
      index_.learn(policy, slot, rows, first, middle.end, n, settings, outcomes);
    }
    slots_[slot] = {settings.iterations, middle.end, present_codes::nearest};
    if constexpr (std::is_same_v<typename P::backend_type, backend::host>)
      for (std::size_t i = 0; i < outcomes.size(); ++i)
        if (outcomes.data[i] != static_cast<std::uint8_t>(kmeans_outcome::trained)) slots_[slot].iterations = 0;
    return {true, as_const(outcomes), params_.outgrown_at(n), h * m * (middle.end - first)};
  }

  /// Plans a pass and selects, in one launch or two; with retrieve()'s scratch. Returns false and does nothing if that is not enough.
  template <exec::policy P, class Rows>
  requires std::same_as<typename P::backend_type, backend::cuda>
  bool select_planned(const P& policy, view<const float, 2, Space> query, const Rows& rows, const planned_queries<Space>& planned,
                      const step_plan<Space>& plan, view<std::int32_t, 2, Space> indices) const {
    const auto arrived = workspace().arrived.slice(0, 0, 2 * plan.ranges.extent(0));
    ranked_step<Space> step{planned, plan, query, index_.view(), indices, ranked_by(), arrived};
    if (normalises_over_attended()) {
      step.attended = workspace().attended.slice(0, 0, query.extent(0));
      step.bias = workspace().table_of(query.extent(0)).bias;
      step.summed = workspace().summed.slice(0, 0, plan.ranges.extent(0));
    }
    return detail::run_operation<op::rank_step>(policy, step, rows);
  }
  /// @param spans  the sinks and window that each query attends to, for normalisation::attended
  template <exec::policy P, class Rows>
  void select(const P& policy, view<const float, 2, Space> query, const Rows& rows, const head_map<Space>& map,
              view<const token_span, 1, Space> spans, view<const middle_range, 1, Space> ranges, view<std::int32_t, 2, Space> indices,
              view<std::uint32_t, 1, Space> counts) {
    if constexpr (space::usable_from<Space, space::host>) {
      bool listed = false;
      for (std::size_t i = 0; i < ranges.extent(0); ++i) listed |= ranges(i).size() != 0;
      if (!listed) return;
    }
    if (!normalises_over_attended()) return rank(policy, query, map, ranges, indices, counts);
    const auto sums = workspace().attended.slice(0, 0, query.extent(0));
    sum_attended(policy, query, mapped_store<Rows>{rows, map, ranges.extent(0)}, spans, sums, shape_.softmax_scale, ranges);
    rank(policy, query, map, ranges, indices, counts, as_const(sums));
  }

  static constexpr status can_observe(const params& settings) noexcept {
    return pqkv::detail::checks("observe").that(settings.axes == axis_order::weighted_pairs, status::code::value, "selector.axes",
                                                relation::required, "weighted_pairs: nothing else looks at queries", 2,
                                                static_cast<double>(settings.axes));
  }
  /// Adds queries [n, hq, d] of a slot for its next training. @pre can_observe(), and the shapes of pqcache_state::observe()
  template <exec::policy P, class Q>
  void observe(const P& policy, std::size_t slot, view<Q, 3, Space> queries) {
    detail::run_operation<op::observe_queries>(policy, queries, index_.view().sequence(slot).pairs);
  }

  /// Merges the tokens that the id lists lack into them, once there are pq_params::tail_tokens of them.
  template <exec::policy P>
  void maintain(const P& policy, std::size_t slot, const sequence& at, middle_range middle) {
    std::uint32_t& merged = slots_[slot].merged;
    merged = std::min(merged, middle.end);
    if (at.learned == 0 || middle.end - merged < params_.tail_tokens) return;
    index_.merge(policy, slot);
    merged = middle.end;
  }
  template <exec::policy P>
  void clear(const P& policy, std::size_t slot) {
    index_.clear(policy, slot);
    index_.clear_axes(policy, slot);
    slots_[slot] = {};
  }
  /// Copies the selector's host-side record of a slot.
  void copied(std::size_t from, std::size_t to) noexcept { slots_[to] = slots_[from]; }
  /// Rebuilds the id lists of a loaded slot from its codes.
  template <exec::policy P>
  void rebuild(const P& policy, std::size_t slot, middle_range middle) {
    index_.recount(policy, slot, middle.begin, middle.end);
    slots_[slot] = {0, middle.end, present_codes::any};  // a file does not say how its codes came to be
  }

 private:
  struct slot_record {
    std::size_t iterations = 0;
    std::uint32_t merged = 0;  // tokens below this were in the id lists after the last merge
    present_codes codes = present_codes::any;
  };

  template <class P>
  void rank(const P& policy, view<const float, 2, Space> query, const head_map<Space>& map, view<const middle_range, 1, Space> ranges,
            view<std::int32_t, 2, Space> indices, view<std::uint32_t, 1, Space> counts, view<const attended_sum, 1, Space> attended = {}) {
    index_.rank(policy, query, map, ranges, indices, counts, ranked_by(), params_.residual.shortlist, workspace(), attended);
  }
  /// Reductions of logits have no normaliser.
  bool normalises_over_attended() const {
    return params_.normalised_over() == normalisation::attended &&
           (params_.reduction == group_reduction::probability_sum || params_.reduction == group_reduction::probability_max);
  }
  retrieve_params ranked_by() const {
    return {.head_dim = shape_.head_dim, .reduction = params_.reduction, .path = params_.path, .scale = shape_.softmax_scale};
  }

  static constexpr status can_use_device(const params& settings) noexcept {
    return pqkv::detail::checks("pqcache")
        .at_most("selector.residual.subspaces", settings.residual.subspaces, 0, "no second stage on a device")
        .that(!settings.overlap, status::code::value, "selector.overlap", relation::required, "empty: no overlap rule on a device", 0, 1);
  }
  static constexpr status can_refine(const cache_shape& shape, const params& settings) noexcept {
    const residual_stage& stage = settings.residual;
    if (!stage.used()) return {};
    const std::size_t m = stage.subspaces;
    const bool power = (m & (m - 1)) == 0 && m <= max_subspaces;
    return pqkv::detail::checks("pqcache")
        .that(power, status::code::value, "selector.residual.subspaces", relation::stated, "0 for none, 1, 2, 4, 8 or 16", 4, m)
        .that(power && shape.head_dim % m == 0, status::code::value, "head_dim", relation::multiple_of, "m2", m, shape.head_dim)
        .at_least("selector.residual.bits", stage.bits, 4, "b2")
        .at_most("selector.residual.bits", stage.bits, 8, "b2")
        .at_least("selector.residual.shortlist", stage.shortlist, 1, "times k")
        .at_most("selector.residual.shortlist", stage.shortlist, 1024, "times k");
  }

  /// If a slot's codebook is to be renewed now, the length at which it was last trained or renewed; 0 if it is to be trained. Computed by
  /// inverting outgrown_at(), so that forks and saved slots need to keep only one length.
  std::size_t renewable_from(const sequence& at) const {
    if (at.learned == 0 || at.learn_again == 0 || params_.growth() == 0 || params_.trains_anew()) return 0;
    std::size_t trained = 0;
    pqkv::detail::in_float_environment([&] { trained = static_cast<std::size_t>(static_cast<double>(at.learn_again) / params_.growth()); });
    if (params_.outgrown_at(trained + 1) == at.learn_again) ++trained;  // the quotient was rounded down: 33 / 1.1 is less than 30
    return at.n < 2 * trained ? trained : 0;
  }
  static constexpr pq_workspace<Space> place(arena& memory, const cache_shape& shape, const params& settings) {
    return pq_workspace<Space>::place(memory, settings.index_of(shape), shape.queries_at_once(), shape.query_heads, settings.reduction);
  }
  pq_workspace<Space> workspace() const {
    arena memory(memory_);
    return place(memory, shape_, params_);
  }

  cache_shape shape_;
  params params_;
  pq_index<Space> index_;
  owner<std::byte, Space> memory_;
  buffer<slot_record> slots_;
};

/// The selector in host memory.
using pq = basic_pq<>;

}  // namespace pqkv::selector
