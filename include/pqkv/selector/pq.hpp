// SPDX-License-Identifier: Apache-2.0
// Selection by product quantization, the library's own method: a codebook per slot trained at prefill, codes of every token, and
// where the joint code is short an index of its cells. On request a second stage: finer codes of the residuals, by which a shortlist
// is ranked again. A slot without enough distinct keys has no codebook yet: it covers everything until maintain() can train one, both
// of them where there are two stages. Source: PQCache, SIGMOD 2025.
#pragma once

#include <algorithm>
#include <optional>

#include "../quantize/overlap.hpp"
#include "../search/rerank.hpp"
#include "concept.hpp"

namespace pqkv::selector {

/// The second stage of pq.
struct residual_stage {
  std::size_t subspaces = 0;  // m2; 0: one stage alone
  unsigned bits = 8;          // b2
  std::size_t shortlist = 4;  // tokens of the first stage's list, in multiples of k

  constexpr bool used() const { return subspaces != 0; }
};

/// Ranks the middle by inner products with quantized keys.
class pq {
 public:
  /// Quantizer, its training, and the way that scores are computed.
  struct params {
    std::size_t subspaces = 2;  // m
    unsigned bits = 6;          // b
    key_metric metric = key_metric::squared_l2;
    group_reduction reduction = group_reduction::probability_sum;
    search_path path = search_path::automatic;
    residual_stage residual{};
    kmeans_params train{};                           // of both stages; a slot begins empty, so start is drawn
    std::optional<overlap_model> overlap{};          // given: L by the overlap rule, instead of train.iterations
    std::size_t overlap_most = overlap_model::most;  // its upper bound of L
    std::size_t tail_tokens = 256;                   // maintain() merges an index whose tail is at least as long
  };

  static constexpr status can_construct(const cache_shape& shape, const params& settings) noexcept {
    if (const status s = can_quantize(quantizer(shape, settings), "pqcache"); !s.ok()) return s;
    if (const status s = can_refine(shape, settings); !s.ok()) return s;
    return pqkv::detail::checks("pqcache")
        .at_most("capacity", static_cast<double>(shape.capacity), (1u << 23) - 1, "tokens, below 2^23 at most")
        .at_least("selector.train.iterations", static_cast<double>(settings.train.iterations), 1, "L, at least")
        .that(settings.train.start == kmeans_start::drawn, status::code::value, "selector.train.start",
              "drawn: a slot has no centroids to begin from", static_cast<double>(kmeans_start::drawn),
              static_cast<double>(settings.train.start))
        .at_least("selector.overlap_most", static_cast<double>(settings.overlap_most), overlap_model::least,
                  "L of the overlap rule, at least")
        .that(!settings.overlap || settings.overlap->b1 > 0, status::code::value, "selector.overlap.b1",
              "seconds per row and iteration, above", 0, settings.overlap ? settings.overlap->b1 : 0)
        .at_most("selector.path", settings.path == search_path::joint ? static_cast<double>(quantizer(shape, settings).joint_bits()) : 0,
                 max_joint_bits, "m * b of the joint path, at most");
  }
  static constexpr std::size_t index_bytes(const cache_shape& shape, const params& settings) {
    const pq_shape q = quantizer(shape, settings);
    const std::size_t hq = shape.batch * shape.query_heads;
    return codebook::required_bytes(q) + codes::required_bytes(q, shape.capacity) + distance_table::required_bytes(hq, q) +
           (cells(shape, settings) != 0 ? cell_index::required_bytes(q, shape.capacity) : 0) + shape.batch * sizeof(slot_state) +
           shape.kv_heads * std::max(settings.subspaces, settings.residual.subspaces) + hq + residual_bytes(shape, settings);
  }
  static constexpr std::size_t scratch_bytes(const cache_shape& shape, const params& settings) {
    const std::size_t hq = shape.batch * shape.query_heads, c = std::size_t{1} << settings.bits;
    const std::size_t lists = score_lists(settings.reduction, shape.batch * shape.kv_heads, hq);
    const std::size_t first =
        retrieve_scratch_bytes(lists, hq, settings.subspaces, c, shape.capacity, cells(shape, settings), settings.reduction);
    if (!settings.residual.used()) return first;
    const std::size_t entries = settings.subspaces * c + settings.residual.subspaces * (std::size_t{1} << settings.residual.bits);
    return std::max(first, rerank_scratch_bytes(lists, hq, entries, shape.capacity));
  }

  /// @throws value_error as can_construct() says
  pq(const cache_shape& shape, const params& settings)
      : shape_(shape),
        params_(settings),
        book_(quantizer(shape, settings)),
        codes_(quantizer(shape, settings), shape.capacity),
        table_(shape.batch * shape.query_heads, quantizer(shape, settings)),
        slots_(shape.batch) {
    if (cells(shape, settings) != 0) index_ = cell_index(quantizer(shape, settings), shape.capacity);
    outcome_ = buffer<std::uint8_t>(shape.kv_heads * std::max(settings.subspaces, settings.residual.subspaces));
    skipped_ = buffer<std::uint8_t>(shape.batch * shape.query_heads);
    if (!settings.residual.used()) return;
    const std::size_t rows = shape.batch * lists();
    fine_book_ = codebook(fine_quantizer(shape, settings));
    fine_codes_ = residual_codes(fine_quantizer(shape, settings), shape.capacity);
    fine_table_ = distance_table(shape.batch * shape.query_heads, fine_quantizer(shape, settings));
    shortlist_ = buffer<std::int32_t>(rows * shape.capacity);
    lengths_ = buffer<std::uint32_t>(rows);
    shortlist_ranges_ = buffer<middle_range>(shape.batch * shape.kv_heads);
  }

  std::size_t lists() const { return score_lists(params_.reduction, shape_.kv_heads, shape_.query_heads); }
  /// L that trained a slot's codebook; 0 without one. Under the overlap rule it depends on the prompt and the machine.
  std::size_t iterations(std::size_t slot) const { return slots_[slot].iterations; }
  coverage covers(std::size_t slot) const { return slots_[slot].trained ? coverage::listed : coverage::everything; }

  traffic step_traffic(middle_range middle, std::size_t) const {
    const std::uint64_t h = shape_.kv_heads, m = params_.subspaces, used = cells(shape_, params_);
    const bool joint = used != 0 && resolve_path(params_.path, used, middle.size()) == search_path::joint;
    const std::uint64_t listed = two_stages() ? shortlist_size(middle, params_.residual.shortlist) : middle.selected();
    const std::uint64_t index = joint ? used * sizeof(std::uint32_t) + listed * sizeof(std::int32_t) : m * middle.size();
    const std::uint64_t codes = two_stages() ? listed * (m + params_.residual.subspaces) : 0;
    return {h * (index + codes), (book_.size_bytes() + fine_book_.size_bytes()) / shape_.batch};
  }

  /// Trains on all rows but the sinks, the window's too, and encodes them.
  template <exec::policy P, class T>
  void observe_prefill(const P& policy, std::size_t slot, view<T, 3> keys, middle_range middle) {
    learn(policy, slot, keys, middle);
  }

  template <exec::policy P, class T>
  void append(const P& policy, std::size_t slot, view<T, 3> keys, std::size_t first, std::size_t last) {
    slot_state& state = slots_[slot];
    if (!state.trained) return;
    if (last > state.encoded) {  // the prompt's window was encoded with it
      const std::size_t from = state.encoded > first ? state.encoded : first;
      encode_rows(policy, slot, keys, from, last);
    }
    if (!index_view(slot).empty()) count_cells(policy, codes_view_of(slot), first, last, index_view(slot));
  }

  template <exec::policy P, class T>
  void select(const P& policy, view<const float, 2> query, view<T, 3>, view<const middle_range, 1> ranges, view<std::int32_t, 2> indices,
              view<std::uint32_t, 1> counts) {
    inner_product_table(policy, query, book_.view(), table_.mutable_view());
    cell_index_view<> index;
    if (cells(shape_, params_) != 0) index = index_.view();
    const retrieve_params first{.head_dim = shape_.head_dim, .reduction = params_.reduction, .path = params_.path};
    const auto skipped = make_view(skipped_.data(), skipped_.size());
    if (!two_stages()) return retrieve(policy, table_.view(), codes_.view(), index, ranges, indices, counts, first, skipped);
    std::size_t longest = 0;
    for (std::size_t head = 0; head < ranges.extent(0); ++head) {
      const middle_range range = ranges(head);
      shortlist_ranges_[head] = {range.begin, range.end, shortlist_size(range, params_.residual.shortlist)};
      longest = std::max<std::size_t>(longest, shortlist_ranges_[head].retrieve);
    }
    inner_product_table(policy, query, fine_book_.view(), fine_table_.mutable_view());
    const auto shortlist = make_view(shortlist_.data(), lengths_.size(), longest);
    const auto lengths = make_view(lengths_.data(), lengths_.size());
    retrieve(policy, table_.view(), codes_.view(), index, as_const(make_view(shortlist_ranges_.data(), shortlist_ranges_.size())),
             shortlist, lengths, first, skipped);
    rerank(policy, {table_.view(), fine_table_.view()}, {codes_.view(), fine_codes_.view()}, as_const(shortlist), as_const(lengths), ranges,
           indices, counts, {.head_dim = shape_.head_dim, .reduction = params_.reduction}, skipped);
  }

  template <exec::policy P>
  void fork(const P& policy, std::size_t from, std::size_t to, std::size_t tokens) {
    static_cast<void>(policy), static_cast<void>(tokens);
    const std::size_t h = shape_.kv_heads;
    copy_part(book_of(from).centroids, book_of(to).centroids);
    copy_part(book_of(from).mean, book_of(to).mean);
    copy_part(book_of(from).squared_radius, book_of(to).squared_radius);
    copy_part(codes_.mutable_view().slice(0, from * h, h), codes_.mutable_view().slice(0, to * h, h));
    if (two_stages()) {
      copy_part(part_of(fine_book_, from).centroids, part_of(fine_book_, to).centroids);
      copy_part(fine_codes_.mutable_view().slice(0, from * h, h), fine_codes_.mutable_view().slice(0, to * h, h));
    }
    if (cells(shape_, params_) != 0) {
      const auto source = index_view(from), target = index_view(to);
      copy_part(source.counts, target.counts);
      copy_part(source.offsets, target.offsets);
      copy_part(source.ids, target.ids);
      copy_part(source.first, target.first);
      copy_part(source.merged, target.merged);
      copy_part(source.last, target.last);
    }
    slots_[to] = slots_[from];
  }

  void reset(std::size_t slot) {
    slots_[slot] = {};
    clear_index(slot);
  }

  /// Trains a codebook that is due, or merges a long tail.
  template <exec::policy P, class T>
  void maintain(const P& policy, std::size_t slot, view<T, 3> keys, middle_range middle) {
    if (!slots_[slot].trained) {
      if (keys.extent(1) >= slots_[slot].next_try) learn(policy, slot, keys, middle);
      return;
    }
    const auto index = index_view(slot);
    if (!index.empty() && index.last(0) - index.merged(0) >= params_.tail_tokens) merge_tails(policy, codes_view_of(slot), index);
  }

 private:
  struct slot_state {
    bool trained = false;
    std::size_t iterations = 0;
    std::size_t encoded = 0;   // tokens [sinks, encoded) have codes
    std::size_t next_try = 0;  // length at which training is worth another try
  };

  static constexpr pq_shape quantizer(const cache_shape& shape, const params& settings) {
    return {shape.batch * shape.kv_heads, shape.head_dim, settings.subspaces, settings.bits, settings.metric};
  }
  static constexpr pq_shape fine_quantizer(const cache_shape& shape, const params& settings) {
    return residual_shape(quantizer(shape, settings), settings.residual.subspaces, settings.residual.bits);
  }
  static constexpr status can_refine(const cache_shape& shape, const params& settings) noexcept {
    const residual_stage& stage = settings.residual;
    if (!stage.used()) return {};
    const std::size_t m = stage.subspaces;
    const bool power = (m & (m - 1)) == 0 && m <= max_subspaces;
    return pqkv::detail::checks("pqcache")
        .that(power, status::code::value, "selector.residual.subspaces", "m2: 0 for none, 1, 2, 4, 8 or 16", 4, static_cast<double>(m))
        .that(power && shape.head_dim % m == 0, status::code::value, "head_dim", "d, a multiple of m2", static_cast<double>(m),
              static_cast<double>(shape.head_dim))
        .at_least("selector.residual.bits", stage.bits, 4, "b2, at least")
        .at_most("selector.residual.bits", stage.bits, 8, "b2, at most")
        .at_least("selector.residual.shortlist", static_cast<double>(stage.shortlist), 1, "times k, at least")
        .at_most("selector.residual.shortlist", static_cast<double>(stage.shortlist), 1024, "times k, at most");
  }
  static constexpr std::size_t residual_bytes(const cache_shape& shape, const params& settings) {
    if (!settings.residual.used()) return 0;
    const pq_shape fine = fine_quantizer(shape, settings);
    const std::size_t rows = shape.batch * score_lists(settings.reduction, shape.kv_heads, shape.query_heads);
    return codebook::required_bytes(fine) + residual_codes::required_bytes(fine, shape.capacity) +
           distance_table::required_bytes(shape.batch * shape.query_heads, fine) + rows * shape.capacity * sizeof(std::int32_t) +
           rows * sizeof(std::uint32_t) + shape.batch * shape.kv_heads * sizeof(middle_range);
  }
  bool two_stages() const { return params_.residual.used(); }
  /// Cells of the index, 0 where there is none or it could never be used.
  static constexpr std::size_t cells(const cache_shape& shape, const params& settings) {
    const pq_shape s = quantizer(shape, settings);
    if (!has_cell_index(s)) return 0;
    return resolve_path(settings.path, s.cells(), shape.capacity) == search_path::joint ? s.cells() : 0;
  }

  mutable_codebook_view<> book_of(std::size_t slot) { return part_of(book_, slot); }
  mutable_codebook_view<> part_of(codebook& book, std::size_t slot) const {
    const auto all = book.mutable_view();
    const std::size_t first = slot * shape_.kv_heads, h = shape_.kv_heads;
    mutable_codebook_view<> one{all.centroids.slice(0, first, h), all.mean.slice(0, first, h)};
    if (all.squared_radius.data != nullptr) one.squared_radius = all.squared_radius.slice(0, first, h);
    return one;
  }
  mutable_codes_view<> codes_view_of(std::size_t slot) { return codes_.mutable_view().slice(0, slot * shape_.kv_heads, shape_.kv_heads); }
  mutable_cell_index_view<> index_view(std::size_t slot) {
    if (cells(shape_, params_) == 0) return {};
    return index_.mutable_view().heads(slot * shape_.kv_heads, shape_.kv_heads);
  }
  void clear_index(std::size_t slot) {
    const auto index = index_view(slot);
    for (std::size_t head = 0; !index.empty() && head < shape_.kv_heads; ++head) {
      for (std::size_t cell = 0; cell < index.cells(); ++cell) index.counts(head, cell) = 0;
      for (std::size_t cell = 0; cell <= index.cells(); ++cell) index.offsets(head, cell) = 0;
      index.first(head) = index.merged(head) = index.last(head) = 0;
    }
  }

  template <exec::policy P, class T>
  void learn(const P& policy, std::size_t slot, view<T, 3> keys, middle_range middle) {
    const std::size_t n = keys.extent(1), first = middle.begin, c = book_.shape().centroids();
    if (n < first + std::max(c, two_stages() ? fine_book_.shape().centroids() : 0)) return;
    const auto outcome = make_view(outcome_.data(), shape_.kv_heads, params_.subspaces);
    kmeans_params settings = params_.train;
    if (params_.overlap)
      settings.iterations = params_.overlap->iterations(training_rows(settings, n - first, c).count, n, params_.overlap_most);
    train(policy, keys.slice(1, first, n - first), book_of(slot), outcome, settings);
    slots_[slot].trained = false;
    slots_[slot].next_try = n + n / 64 + 1;  // a failed try reads all rows: not in every step of a long sequence
    if (!all_trained(outcome)) return;
    encode(policy, keys.slice(1, first, n - first), book_of(slot), codes_view_of(slot).slice(2, first, n - first));
    if (two_stages()) {
      const auto fine_outcome = make_view(outcome_.data(), shape_.kv_heads, params_.residual.subspaces);
      train_residual(policy, keys.slice(1, first, n - first), codes_view_of(slot).slice(2, first, n - first), book_of(slot),
                     part_of(fine_book_, slot), fine_outcome, settings);
      if (!all_trained(fine_outcome)) return;
      encode_fine(policy, slot, keys, first, n);
    }
    slots_[slot].encoded = n;
    slots_[slot].trained = true;
    slots_[slot].iterations = settings.iterations;
    clear_index(slot);
    if (!index_view(slot).empty()) {
      count_cells(policy, codes_view_of(slot), middle.begin, middle.end, index_view(slot));
      merge_tails(policy, codes_view_of(slot), index_view(slot));
    }
  }

  template <exec::policy P, class T>
  void encode_rows(const P& policy, std::size_t slot, view<T, 3> keys, std::size_t first, std::size_t last) {
    encode(policy, keys.slice(1, first, last - first), book_of(slot), codes_view_of(slot).slice(2, first, last - first));
    if (two_stages()) encode_fine(policy, slot, keys, first, last);
    slots_[slot].encoded = last;
  }
  template <exec::policy P, class T>
  void encode_fine(const P& policy, std::size_t slot, view<T, 3> keys, std::size_t first, std::size_t last) {
    encode_residual(policy, keys.slice(1, first, last - first), codes_view_of(slot).slice(2, first, last - first), book_of(slot),
                    part_of(fine_book_, slot),
                    fine_codes_.mutable_view().slice(0, slot * shape_.kv_heads, shape_.kv_heads).slice(1, first, last - first));
  }
  static bool all_trained(view<const std::uint8_t, 2> outcome) {
    for (std::size_t i = 0; i < outcome.size(); ++i)
      if (outcome.data[i] != static_cast<std::uint8_t>(kmeans_outcome::trained)) return false;
    return true;
  }

  /// Copies between slots of one owner: same extents, each dense inside its first axis.
  template <class T, std::size_t Rank>
  static void copy_part(view<T, Rank> from, view<T, Rank> to) {
    const std::size_t count = from.extent(0) * from.stride(0);
    for (std::size_t i = 0; i < count; ++i) to.data[i] = from.data[i];
  }

  cache_shape shape_;
  params params_;
  codebook book_;
  codes codes_;
  cell_index index_;
  distance_table table_;
  buffer<slot_state> slots_;
  buffer<std::uint8_t> outcome_, skipped_;

  // Of the second stage; empty without one.
  codebook fine_book_;
  residual_codes fine_codes_;
  distance_table fine_table_;
  buffer<std::int32_t> shortlist_;  // [batch * lists, shortlist's length], at most the capacity
  buffer<std::uint32_t> lengths_;
  buffer<middle_range> shortlist_ranges_;
};

}  // namespace pqkv::selector
