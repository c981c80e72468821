// SPDX-License-Identifier: Apache-2.0
// Everything that product quantization stores for a batch of sequences, as one object: codebooks, codes, the joint-code index and, on
// request, codebooks and codes of residuals. The data of a sequence are learnt from its keys, grow as tokens leave the window, and can be
// cut, copied and used for ranking. It can be in any memory space. Its parts can be used alone (quantize/, search/).
// Source: PQCache, SIGMOD 2025, sections 3.2 and 3.3.
#pragma once

#include <algorithm>

#include "../exec/memory.hpp"
#include "../exec/sync.hpp"
#include "pq_index_view.hpp"

namespace pqkv::inline PQKV_MODE {

/// What the codes of a sequence's tokens name before a renewal.
enum class present_codes : std::uint8_t {
  any,     // any centroid, as after renew_replaced()
  nearest  // each key's nearest centroid, as after learn() and renew()
};

/// Owner of an index. Not thread-safe: make one call at a time. Its views end with it.
///
/// @tparam Space  the memory space of the index and of every call's policy
template <class Space = space::host>
class pq_index {
 public:
  using space_type = Space;
  using view_type = pq_index_view<Space>;

  static constexpr std::size_t required_bytes(const pq_index_shape& shape) {
    arena count;
    view_type::place(count, shape);
    return count.used_bytes();
  }

  pq_index() = default;
  /// @pre can_quantize(shape.coarse()), and shape.fine() where there is one
  /// @throws std::bad_alloc; on a device cuda_error
  template <exec::policy P>
  pq_index(const P& policy, const pq_index_shape& shape) : shape_(shape), memory_(make_owner<std::byte>(policy, required_bytes(shape))) {
    if (shape.cells() == 0) return;
    const buffer<std::uint8_t> digits(shape.subspaces * shape.cells());
    cell_index::write_cell_codes(shape.coarse(), digits.data());
    copy_bytes(policy, const_cast<std::uint8_t*>(view().index.cell_codes.data), digits.data(), digits.size());
    sync(policy);  // the digits are in host memory that is freed here
  }

  const pq_index_shape& shape() const { return shape_; }
  std::size_t size_bytes() const { return memory_.size_bytes(); }
  view_type view() const {
    arena memory(memory_);
    return view_type::place(memory, shape_);
  }

  /// Trains a sequence's codebooks on tokens [first, n), then encodes tokens [first, ranked) and counts them in their cells. The old index
  /// is overwritten: no query may use the index until the outcomes are known. On a device the call only enqueues.
  ///
  /// @param rows      keys of all sequences (cache/kv_store.hpp)
  /// @param ranked    `first`: only trains and writes no codes; n may then exceed the sequence's capacity
  /// @param outcomes  [h, m + m2] uint8, a kmeans_outcome each, written; the index can be used if all of them are `trained`
  /// @throws std::bad_alloc; on a device capacity_error when the policy's scratch is too small, cuda_error
  /// @cost   train(), and c distance terms for every coordinate of every key; on the host about half of that if training uses every key and
  ///         not a sample. Keys that are not strided, or whose axes are reordered, are copied first: all at once with a second stage or if
  ///         training uses every key; otherwise the sample at once, and then 4096 keys at a time for encoding
  template <exec::policy P, class Rows>
  void learn(const P& policy, std::size_t which, const Rows& rows, std::size_t first, std::size_t ranked, std::size_t n,
             const kmeans_params& train_params, pqkv::view<std::uint8_t, 2, Space> outcomes) const {
    const view_type own = view().sequence(which);
    if (!own.pairs.empty())
      detail::run_operation<op::deal_pairs>(policy, rows, which * shape_.kv_heads,
                                            training_rows(train_params, n - first, shape_.coarse().centroids()), first, shape_.subspaces,
                                            own.pairs);
    learn_rows(policy, which, rows, first, ranked, n, train_params, outcomes, [&](const auto& keys, const kmeans_params& params) {
      if constexpr (space::usable_from<Space, space::host>)
        if (ranked != first && !shape_.has_fine() && sees_all(keys, params, n - first)) {
          detail::run_operation<op::learn_codebook>(policy, own, first, keys, params, outcomes);
          return true;
        }
      train(policy, keys, own.book, outcomes.slice(1, 0, shape_.subspaces), params);
      return false;
    });
  }

  /// Renews codebooks that were learnt from tokens [first, trained), now that the sequence has n tokens: much cheaper than learn(). A share
  /// (n - trained) / (n - first) of the centroids, those with the fewest tokens, is replaced by keys drawn from [trained, n)
  /// (replaced_centroids). Then k-means runs for train_params.iterations; the mean key and the order of axes stay. Everything else is as in
  /// learn().
  /// @pre    the sequence has codebooks and tokens [first, ranked) their codes; first < trained <= n; no second stage
  /// @param codes  those of tokens [first, ranked)
  /// @cost   as learn() with as many iterations. On the host, if training uses every key and not a sample, and codes are the nearest, the
  ///         first iteration compares most keys with the replaced centroids only
  template <exec::policy P, class Rows>
  void renew(const P& policy, std::size_t which, const Rows& rows, std::size_t first, std::size_t ranked, std::size_t trained,
             std::size_t n, kmeans_params train_params, pqkv::view<std::uint8_t, 2, Space> outcomes, present_codes codes) const {
    const view_type own = view().sequence(which);
    const std::size_t h = shape_.kv_heads, m = shape_.subspaces, ds = own.book.sub_dim();
    const std::uint64_t fresh = n - trained, replaced = own.book.size() * fresh / (n - first);
    encode_copies(policy, which, rows, ranked, n);  // the window's keys too: their codes are read only after they leave
    const replaced_centroids call{first, n, trained, {fresh, replaced, {train_params.seed, ~std::uint64_t{0}}}};
    train_params.start = kmeans_start::given;
    const pqkv::view<const float, 3, Space> offset{own.book.mean.data, {h, m, ds}, {own.book.mean.stride(0), ds, 1}};
    learn_rows(policy, which, rows, first, ranked, n, train_params, outcomes, [&](const auto& keys, const kmeans_params& params) {
      if constexpr (space::usable_from<Space, space::host>)
        if (codes == present_codes::nearest && sees_all(keys, params, n - first)) {
          detail::run_operation<op::renew_codebook>(policy, rows, which * h, own, call, keys, params, outcomes.slice(1, 0, m));
          return true;
        }
      detail::run_operation<op::replace_centroids>(policy, rows, which * h, own, call);
      kmeans(policy, split_subspaces(keys, m), offset, own.book.centroids, outcomes.slice(1, 0, m), params, own.book.squared_radius);
      return false;
    });
  }

  /// Renews codebooks as renew() does, but reads only the new keys and those whose centroid is replaced. The centroids with the fewest of
  /// the tokens [first, ranked) are replaced. Then, train_params.iterations times, every token of [trained, n) joins its nearest centroid,
  /// and each replaced centroid becomes the mean of its tokens if it has any. At the end tokens [trained, n), and those whose centroid was
  /// replaced, get the codes of their nearest centroids. The other centroids do not move, and the codes that name them stay: for some of
  /// their keys a replaced centroid may now be nearer, but the distance to their own centroid has not changed. A key with an element that
  /// is not finite is left out and gets code 0.
  /// @pre    as renew()
  /// @return how many codes were written. On a device the call waits for that
  /// @throws as learn()
  /// @cost   iterations + 1 times c distance terms for each coordinate of tokens [trained, n), whose keys are copied; a pass over all codes
  template <exec::policy P, class Rows>
  std::uint64_t renew_replaced(const P& policy, std::size_t which, const Rows& rows, std::size_t first, std::size_t ranked,
                               std::size_t trained, std::size_t n, const kmeans_params& train_params) const {
    const view_type own = view().sequence(which);
    const std::uint64_t h = shape_.kv_heads, d = shape_.head_dim, m = shape_.subspaces, fresh = n - trained,
                        count = own.book.size() * fresh / (n - first);
    const bool is_on_host = space::usable_from<Space, space::host>;
    const auto work =
        make_owner<std::uint64_t>(policy, is_on_host ? 1 : op::renew_replaced::words(h * m, own.book.size(), own.book.row_dim()));
    std::uint64_t written = 0;
    with_copied_element<Rows>([&]<class T>(copy_type<T>) {
      const auto memory = make_owner<T>(policy, h * fresh * d);
      const auto keys = make_view<Space>(memory.data(), h, fresh, d);
      gather(policy, own, rows, which * h, stratified_sample{fresh, fresh, {}}, trained, keys);
      const replaced_centroids call{first, ranked, trained, {fresh, count, {train_params.seed, ~std::uint64_t{0}}}};
      detail::run_operation<op::renew_replaced>(policy, rows, which * h, own, call, as_const(keys), train_params.iterations, work.data());
      copy_bytes(policy, &written, work.data(), sizeof written);
      sync(policy);  // `written` is known, and the copies are freed here
    });
    recount(policy, which, first, ranked);
    return written + h * m * fresh;
  }

  /// Trains a sequence's codebooks on tokens [0, count) of `rows`, count = ordered.extent(1), and encodes nothing. Allocates nothing.
  /// @param ordered  [h, count, d] scratch for keys whose axes are put in order
  template <exec::policy P, class Rows, class T>
  void train_in(const P& policy, std::size_t which, const Rows& rows, pqkv::view<T, 3, Space> ordered, const kmeans_params& params,
                pqkv::view<std::uint8_t, 2, Space> outcomes) const {
    const view_type own = view().sequence(which);
    const std::uint64_t count = ordered.extent(1);
    gather(policy, own, rows, which * shape_.kv_heads, stratified_sample{count, count, {}}, 0, ordered);
    train(policy, as_const(ordered), own.book, outcomes.slice(1, 0, shape_.subspaces), params);
  }

  /// Encodes tokens [begin, end) of a sequence, begin <= end, by copying runs of their keys.
  template <exec::policy P, class Rows>
  void encode_copies(const P& policy, std::size_t which, const Rows& rows, std::size_t begin, std::size_t end) const {
    const std::size_t h = shape_.kv_heads, d = shape_.head_dim, run = std::min(end - begin, most_copied);
    with_copied_element<Rows>([&]<class T>(copy_type<T>) {
      const auto memory = make_owner<T>(policy, h * run * d);
      encode_in(policy, which, rows, begin, end, make_view<Space>(memory.data(), h, run, d));
      sync(policy);  // the copies are freed here
    });
  }
  /// The most keys that encode_copies() copies at once.
  static constexpr std::size_t most_copied = 4096;
  /// The same in the caller's memory: allocates nothing, and does not wait. @param run  [h, keys at once, d], at least one key if any is
  /// encoded
  template <exec::policy P, class Rows, class T>
  void encode_in(const P& policy, std::size_t which, const Rows& rows, std::size_t begin, std::size_t end,
                 pqkv::view<T, 3, Space> run) const {
    const view_type own = view().sequence(which);
    for (; begin < end; begin += std::min(run.extent(1), end - begin)) {
      const std::size_t count = std::min(run.extent(1), end - begin);
      const auto keys = make_view<Space>(run.data, shape_.kv_heads, count, shape_.head_dim);
      gather(policy, own, rows, which * shape_.kv_heads, stratified_sample{count, count, {}}, begin, keys);
      pqkv::encode(policy, as_const(keys), own.book, own.codes.slice(2, begin, count));
    }
  }

  /// Builds a sequence's joint-code index from the codes of tokens [first, ranked).
  template <exec::policy P>
  void recount(const P& policy, std::size_t which, std::size_t first, std::size_t ranked) const {
    const view_type own = view().sequence(which);
    if (own.index.empty()) return;
    clear(policy, which);
    if (first == ranked) return;
    count_cells(policy, as_const(own.codes), first, ranked, own.index);
    merge_tails(policy, as_const(own.codes), own.index);
  }

  /// The first step of rank(), with the same arguments: computes the queries' tables. If the codebooks' axes are reordered, the queries'
  /// axes are put in the same order first, and `query` is set to the reordered queries.
  template <exec::policy P>
  mutable_distance_table_view<Space> tabulate(const P& policy, pqkv::view<const float, 2, Space>& query, const head_map<Space>& map,
                                              const pq_workspace<Space>& work) const {
    const view_type own = view();
    const auto table = work.table_of(query.extent(0));
    if (!own.axes.is_identity()) {
      const auto ordered = work.ordered.slice(0, 0, query.extent(0));
      order(policy, query, own, map, ordered);
      query = as_const(ordered);
    }
    inner_product_table(policy, query, own.book, table, map);
    return table;
  }

  /// The k best tokens of every range, by retrieve(). With a second stage, retrieve() gives a shortlist that the residual codes rank again.
  ///
  /// @param query    [rows * hq, d] float
  /// @param map      the sequence that each row asks
  /// @param ranges   [rows * h]
  /// @param indices  [lists, k_max] int32, written as by retrieve()
  /// @param counts   [lists] uint32, written
  /// @param attended [rows * hq], or empty: sums over the unranked tokens that each query attends to (retrieve()); not with a second stage
  template <exec::policy P>
  void rank(const P& policy, pqkv::view<const float, 2, Space> query, const head_map<Space>& map,
            pqkv::view<const middle_range, 1, Space> ranges, pqkv::view<std::int32_t, 2, Space> indices,
            pqkv::view<std::uint32_t, 1, Space> counts, const retrieve_params& how, std::size_t shortlist_factor,
            const pq_workspace<Space>& work, pqkv::view<const attended_sum, 1, Space> attended = {}) const {
    const view_type own = view();
    const std::size_t hq = query.extent(0), lists = counts.extent(0);
    const auto skipped = work.skipped.slice(0, 0, hq);
    const auto table = tabulate(policy, query, map, work);
    if (!shape_.has_fine() && attended.data != nullptr)
      return retrieve(policy, table, as_const(own.codes), own.index, ranges, indices, counts, how, skipped, map, attended);
    if (!shape_.has_fine()) return retrieve(policy, table, as_const(own.codes), own.index, ranges, indices, counts, how, skipped, map);
    if constexpr (space::usable_from<Space, space::host>) {
      std::size_t longest = 0;
      for (std::size_t i = 0; i < ranges.extent(0); ++i) {
        work.shortlist_ranges(i) = {ranges(i).begin, ranges(i).end, shortlist_size(ranges(i), shortlist_factor)};
        longest = std::max<std::size_t>(longest, work.shortlist_ranges(i).retrieve);
      }
      const auto fine_table = part_of(work.fine_table, hq);
      inner_product_table(policy, query, own.fine_book, fine_table, map);
      const auto shortlist = make_view<Space>(work.shortlist.data, lists, longest);
      const auto lengths = work.lengths.slice(0, 0, lists);
      retrieve(policy, table, as_const(own.codes), own.index, as_const(work.shortlist_ranges.slice(0, 0, ranges.extent(0))), shortlist,
               lengths, how, skipped, map);
      rerank(policy, {table, fine_table}, {as_const(own.codes), as_const(own.fine_codes)}, as_const(shortlist), as_const(lengths), ranges,
             indices, counts, {.head_dim = how.head_dim, .reduction = how.reduction, .scale = how.scale}, skipped, map);
    }
  }

  /// Merges a sequence's newer tokens into its id lists. @throws capacity_error when a device policy's scratch is too small
  template <exec::policy P>
  void merge(const P& policy, std::size_t which) const {
    const view_type own = view().sequence(which);
    if (!own.index.empty()) merge_tails(policy, as_const(own.codes), own.index);
  }

  /// Empties a sequence's joint-code index. Its codebook stays in memory, but must not be used before learn() has been called again.
  template <exec::policy P>
  void clear(const P& policy, std::size_t which) const {
    const view_type own = view().sequence(which);
    if (own.index.empty()) return;
    zero(policy, own.index.counts);
    zero(policy, own.index.offsets);
    zero(policy, own.index.first);
    zero(policy, own.index.merged);
    zero(policy, own.index.last);
  }
  /// Forgets the queries that were shown for a sequence's heads, and the order of axes derived from them.
  template <exec::policy P>
  void clear_axes(const P& policy, std::size_t which) const {
    const view_type own = view().sequence(which);
    if (own.pairs.empty()) return;
    zero(policy, own.pairs.energy);
    zero(policy, own.pairs.is_dealt);
    zero(policy, own.pairs.source);  // read with is_dealt, whatever that says
    zero(policy, own.pairs.weight);
  }

 private:
  /// Whether training is known to have failed. On a device this is not known yet.
  template <class P>
  static bool has_failed(pqkv::view<const std::uint8_t, 2, Space> outcomes) {
    bool failed = false;
    if constexpr (std::is_same_v<typename P::backend_type, backend::host>)
      for (std::size_t h = 0; h < outcomes.extent(0); ++h)
        for (std::size_t j = 0; j < outcomes.extent(1); ++j) failed |= outcomes(h, j) != static_cast<std::uint8_t>(kmeans_outcome::trained);
    return failed;
  }
  template <class P, class V>
  static void zero(const P& policy, const V& part) {
    zero_bytes(policy, part.data, part.extent(0) * part.stride(0) * sizeof(*part.data));
  }
  template <class P>
  static void order(const P& policy, pqkv::view<const float, 2, Space> query, const view_type& own, const head_map<Space>& map,
                    pqkv::view<float, 2, Space> out) {
    if (!own.pairs.empty()) return detail::run_operation<op::order_axes>(policy, query, own.pairs, map, own.book.heads(), out);
    detail::run_operation<op::order_axes>(policy, query, own.axes, out);
  }
  static mutable_distance_table_view<Space> part_of(const mutable_distance_table_view<Space>& table, std::size_t query_heads) {
    return {table.entries.slice(0, 0, query_heads), table.bias.slice(0, 0, query_heads)};
  }

  template <class T>
  struct copy_type {};
  /// Calls f(copy_type<T>{}) with the element type of copied keys. In host memory one type serves for weighted and for other axes; on a
  /// device, halves train faster than floats.
  template <class Rows, class F>
  void with_copied_element(const F& f) const {
    using plain = copied_element<typename Rows::value_type>;
    using weighted = ordered_element<plain>;
    if constexpr (!space::usable_from<Space, space::host> && !std::is_same_v<plain, weighted>)
      if (shape_.axes != axis_order::weighted_pairs) return f(copy_type<plain>{});
    f(copy_type<weighted>{});
  }

  template <exec::policy P, class Rows, class T>
  static void gather(const P& policy, const view_type& own, const Rows& rows, std::size_t head, const stratified_sample& sample,
                     std::size_t begin, const pqkv::view<T, 3, Space>& out) {
    detail::run_operation<op::gather_keys>(policy, rows, head, sample, begin, own.pairs, out);
  }

  /// Learns from tokens [first, n). The caller's fit(keys [h, rows, d], params) trains the coarse codebook, and returns whether it has
  /// encoded the keys too.
  template <exec::policy P, class Rows, class Fit>
  void learn_rows(const P& policy, std::size_t which, const Rows& rows, std::size_t first, std::size_t ranked, std::size_t n,
                  const kmeans_params& params, pqkv::view<std::uint8_t, 2, Space> outcomes, const Fit& fit) const {
    const view_type own = view().sequence(which);
    const std::size_t h = shape_.kv_heads, d = shape_.head_dim, m = shape_.subspaces, head = which * h, all = n - first;
    const auto coarse_outcomes = outcomes.slice(1, 0, m), fine_outcomes = outcomes.slice(1, m, shape_.fine_subspaces);
    const auto learn_from = [&](const auto& keys, const kmeans_params& how) {  // of tokens [first, n)
      const bool is_encoded = fit(keys, how);
      const bool failed = has_failed<P>(coarse_outcomes);
      if (!failed && !is_encoded) encode_all(policy, keys, own, first, ranked, fine_outcomes, how);
      return !failed;
    };
    if constexpr (requires { rows.strided_keys(head, h, first, all); })
      if (own.axes.is_identity()) {  // in place
        if (learn_from(rows.strided_keys(head, h, first, all), params)) recount(policy, which, first, ranked);
        return;
      }
    const stratified_sample sample = training_rows(params, all, shape_.coarse().centroids());
    const bool copies_all = shape_.has_fine() || sample.count == all;
    const std::size_t count = copies_all ? all : static_cast<std::size_t>(sample.count);
    with_copied_element<Rows>([&]<class T>(copy_type<T>) {
      const auto memory = make_owner<T>(policy, h * count * d);
      const auto keys = make_view<Space>(memory.data(), h, count, d);
      if (copies_all) {
        gather(policy, own, rows, head, stratified_sample{all, all, {}}, first, keys);
        if (!learn_from(as_const(keys), params)) return;
      } else {
        kmeans_params of_sample = params;
        of_sample.rows_per_centroid = 0;
        gather(policy, own, rows, head, sample, first, keys);
        fit(as_const(keys), of_sample);
        if (has_failed<P>(coarse_outcomes)) return;
        encode_copies(policy, which, rows, first, ranked);
      }
      sync(policy);  // the copies are freed here
      recount(policy, which, first, ranked);
    });
  }

  /// Whether `keys` holds all `count` tokens, and training uses every one of them.
  template <class Keys>
  bool sees_all(const Keys& keys, const kmeans_params& params, std::size_t count) const {
    return keys.extent(1) == count && training_rows(params, count, shape_.coarse().centroids()).count == count;
  }

  template <exec::policy P, class Keys>
  void encode_all(const P& policy, const Keys& keys, const view_type& own, std::size_t first, std::size_t ranked,
                  pqkv::view<std::uint8_t, 2, Space> fine_outcomes, const kmeans_params& train_params) const {
    const std::size_t n = keys.extent(1);
    if (!shape_.has_fine())
      return pqkv::encode(policy, keys.slice(1, 0, ranked - first), own.book, own.codes.slice(2, first, ranked - first));
    if constexpr (space::usable_from<Space, space::host>) {
      // Residual codebooks are trained on every row, the window's too, so every row is encoded first. A row of the window is encoded again
      // when it leaves.
      const auto codes = own.codes.slice(2, first, n);
      pqkv::encode(policy, keys, own.book, codes);
      train_residual(policy, keys, as_const(codes), own.book, own.fine_book, fine_outcomes, train_params);
      encode_residual(policy, keys, as_const(codes), own.book, own.fine_book, own.fine_codes.slice(1, first, n));
    }
  }

  pq_index_shape shape_{};
  owner<std::byte, Space> memory_;
};

}  // namespace pqkv
