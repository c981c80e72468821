// SPDX-License-Identifier: Apache-2.0
// What a pqcache must do, kept as plainly as can be: every row ever given, the three classes of token by the method's rules, and for
// product quantization a codebook trained and codes made by the public parts. It asks nothing of the cache under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "plain_attention.hpp"
#include "plain_rerank.hpp"

namespace pqkv_cases {

/// The budget rule, from its text.
struct plain_budget {
  std::size_t sinks, window, retrieve;
};
inline plain_budget budget_at(const pqkv::budget_rule& rule, std::size_t n) {
  std::size_t total = std::max(rule.min_tokens, static_cast<std::size_t>(std::floor(rule.ratio * static_cast<double>(n))));
  if (rule.tokens != 0) total = rule.tokens;
  const std::size_t rest = total - std::min(total, rule.sinks);
  const auto part = static_cast<std::size_t>(std::floor(rule.window_share * static_cast<double>(rest)));
  const std::size_t most = rule.window_share > 0.5 ? rest : rest / 2;
  const std::size_t w = rule.window.value_or(std::min(std::max<std::size_t>(16, part), std::max<std::size_t>(1, most)));
  return {rule.sinks, w, rule.retrieve.value_or(rest - std::min(rest, w))};
}

/// One sequence. T is the stored type.
template <class T>
class slot_model {
 public:
  /// @param scale  of logits; 0: 1 / sqrt(d)
  slot_model(std::size_t h, std::size_t d, const pqkv::budget_rule& rule, float scale = 0)
      : h_(h), d_(d), rule_(rule), scale_(scale), keys_(h), values_(h) {}

  std::size_t size() const { return n_; }
  std::size_t first() const { return std::min(rule_.sinks, window_begin_); }
  std::size_t window_begin() const { return window_begin_; }
  plain_budget budget() const { return budget_at(rule_, rule_.growth == pqkv::budget_growth::frozen_at_prompt ? prompt_ : n_); }
  std::size_t middle_size() const { return window_begin_ - first(); }
  bool trained() const { return book_.has_value(); }
  pqkv::codebook_view<> book() const { return book_->view(); }
  /// Whether upkeep trains again: the codebook is of a sequence that was shorter by the factor.
  bool outgrown(const pqkv::selector::pq::params& settings) const {
    return trained() && settings.growth() != 0 && static_cast<double>(n_) >= settings.growth() * static_cast<double>(trained_at_);
  }

  /// What was added so far was the prompt.
  void end_prompt() { prompt_ = n_; }
  /// Rows [h, n, d] join; a prompt's window is cut when it ends.
  template <class U>
  void add(pqkv::view<U, 3> keys, pqkv::view<U, 3> values) {
    for (std::size_t head = 0; head < h_; ++head)
      for (std::size_t t = 0; t < keys.extent(1); ++t)
        for (std::size_t i = 0; i < d_; ++i) {
          keys_[head].push_back(T(static_cast<float>(keys(head, t, i))));
          values_[head].push_back(T(static_cast<float>(values(head, t, i))));
        }
    n_ += keys.extent(1);
  }
  /// Tokens older than the window leave it; none comes back.
  void commit() {
    const std::size_t w = budget().window;
    const std::size_t wanted = std::max(n_ > w ? n_ - w : 0, std::min(rule_.sinks, n_));
    window_begin_ = std::max(window_begin_, wanted);
  }
  /// The sequence when it had n tokens, as a query of that time sees it.
  slot_model when_it_had(std::size_t n) const {
    slot_model then(h_, d_, rule_, scale_);
    then.copy_from(*this);
    if (n != n_) then.truncate(n);
    return then;
  }
  /// Trains on all rows but the sinks; stays untrained with too few distinct rows.
  void train(const pqkv::selector::pq::params& settings) {
    book_.reset(), fine_.reset();
    trained_at_ = n_;
    const pqkv::pq_shape shape{h_, d_, settings.subspaces, settings.bits, settings.metric};
    std::vector<T> all;
    for (const auto& head : keys_) all.insert(all.end(), head.begin(), head.end());
    all = ordered(all, settings);
    const auto rows = pqkv::as_const(pqkv::make_view(all.data(), h_, n_, d_)).slice(1, first(), n_ - first());
    pqkv::codebook book(shape);
    if (rows.extent(1) < shape.centroids()) return;
    const pqkv::exec::host<pqkv::isa::scalar> cpu;
    if (pqkv::train(cpu, rows, book, settings.train) != pqkv::kmeans_outcome::trained) return;
    if (settings.residual.used()) {
      pqkv::codebook fine(pqkv::residual_shape(shape, settings.residual.subspaces, settings.residual.bits));
      if (rows.extent(1) < fine.shape().centroids()) return;
      pqkv::codes codes(shape, rows.extent(1));
      pqkv::encode(cpu, rows, book.view(), codes.mutable_view());
      std::vector<std::uint8_t> outcome(h_ * settings.residual.subspaces);
      pqkv::train_residual(cpu, rows, codes.view(), book.view(), fine.mutable_view(),
                           pqkv::make_view(outcome.data(), h_, settings.residual.subspaces), settings.train);
      for (const std::uint8_t one : outcome)
        if (one != static_cast<std::uint8_t>(pqkv::kmeans_outcome::trained)) return;
      fine_.emplace(std::move(fine));
    }
    book_.emplace(std::move(book));
  }
  /// Upkeep of an outgrown codebook: trained anew, or renewed where it has grown by less than a factor of two.
  void refresh(const pqkv::selector::pq::params& settings) {
    const bool anew = settings.trains_anew() || n_ >= 2 * trained_at_ || trained_at_ <= first();
    if (anew) return train(settings);
    const std::size_t trained = trained_at_, all = n_ - first(), m = settings.subspaces, ds = d_ / m;
    trained_at_ = n_;
    std::vector<T> stored;
    for (const auto& head : keys_) stored.insert(stored.end(), head.begin(), head.end());
    stored = ordered(stored, settings);
    const auto rows = pqkv::as_const(pqkv::make_view(stored.data(), h_, n_, d_));
    const pqkv::exec::host<pqkv::isa::scalar> cpu;
    pqkv::codes codes(book_->shape(), n_);
    pqkv::encode(cpu, rows, book_->view(), codes.mutable_view());
    const auto book = book_->mutable_view();
    const std::size_t c = book.size(), count = c * (n_ - trained) / all;
    const pqkv::stratified_sample fresh{n_ - trained, count, {settings.train.seed, ~std::uint64_t{0}}};
    for (std::size_t head = 0; head < h_; ++head)
      for (std::size_t j = 0; j < m; ++j) {
        std::vector<std::pair<std::size_t, std::size_t>> order;  // tokens of a centroid, its number
        for (std::size_t x = 0; x < c; ++x) order.emplace_back(0, x);
        for (std::size_t t = first(); t < n_; ++t) ++order[codes.view()(head, j, t)].first;
        std::sort(order.begin(), order.end());
        for (std::size_t i = 0; i < count; ++i) {
          std::vector<float> y;
          float norm = 0;
          for (std::size_t e = 0; e < ds; ++e) {
            y.push_back(static_cast<float>(rows(head, trained + fresh(i), j * ds + e)) - book.mean(head, j * ds + e));
            norm = std::fma(y[e], y[e], norm);
          }
          const bool on_sphere = settings.metric == pqkv::key_metric::inner_product;
          if (on_sphere) y.push_back(std::sqrt(std::max(book.squared_radius(head, j) - norm, 0.0f)));
          if (std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); }) && (!on_sphere || std::isfinite(norm)))
            for (std::size_t e = 0; e < y.size(); ++e) book.centroids(head, j, e, order[i].second) = y[e];
        }
      }
    pqkv::kmeans_params params = settings.train;
    params.iterations = settings.refresh_iterations;
    params.start = pqkv::kmeans_start::given;
    std::vector<std::uint8_t> outcome(h_ * m);
    const pqkv::view<const float, 3> offset{book.mean.data, {h_, m, ds}, {d_, ds, 1}};
    pqkv::kmeans(cpu, pqkv::split_subspaces(rows.slice(1, first(), all), m), offset, book.centroids, pqkv::make_view(outcome.data(), h_, m),
                 params, book.squared_radius);
    for (const std::uint8_t one : outcome)
      if (one != static_cast<std::uint8_t>(pqkv::kmeans_outcome::trained)) return book_.reset();
  }
  /// Forgets all but the first n tokens, and the codebook where nothing is left. Where the window begins is found again by growing from the
  /// prompt on, a token at a time.
  void truncate(std::size_t n) {
    for (auto& head : keys_) head.resize(n * d_);
    for (auto& head : values_) head.resize(n * d_);
    prompt_ = std::min(prompt_, n);
    window_begin_ = 0;
    for (n_ = prompt_; n_ < n; ++n_) commit();
    commit();
    if (n == 0) book_.reset(), fine_.reset();
  }
  void copy_from(const slot_model& other) {
    keys_ = other.keys_, values_ = other.values_, n_ = other.n_, prompt_ = other.prompt_, window_begin_ = other.window_begin_;
    trained_at_ = other.trained_at_;
    copy_book(other.book_, book_);
    copy_book(other.fine_, fine_);
  }

  /// The lists that product quantization retrieves, [lists]; the whole middle without a codebook.
  std::vector<std::vector<std::int32_t>> lists(const std::vector<float>& asked, const pqkv::selector::pq::params& settings) const {
    const std::vector<float> query = ordered(asked, settings);
    const std::size_t hq = query.size() / d_, count = pqkv::score_lists(settings.reduction, h_, hq), k = budget().retrieve;
    std::vector<std::vector<std::int32_t>> chosen(count);
    if (!book_ || k >= middle_size()) {
      for (auto& list : chosen)
        for (std::size_t t = first(); t < window_begin_; ++t) list.push_back(static_cast<std::int32_t>(t));
      return chosen;
    }
    if (k == 0) return chosen;
    const pqkv::exec::host<pqkv::isa::scalar> cpu;
    std::vector<T> all;
    for (const auto& head : keys_) all.insert(all.end(), head.begin(), head.end());
    all = ordered(all, settings);
    pqkv::codes codes(book_->shape(), n_);
    pqkv::encode(cpu, pqkv::as_const(pqkv::make_view(all.data(), h_, n_, d_)), book_->view(), codes.mutable_view());
    pqkv::distance_table table(hq, book_->shape());
    pqkv::inner_product_table(cpu, pqkv::make_view(query.data(), hq, d_), book_->view(), table.mutable_view());
    for (std::size_t which = 0; which < count; ++which) {
      const std::size_t g = hq / count, head = which * h_ / count;
      plain_list list{table.view().entries.slice(0, which * g, g),
                      table.view().bias.slice(0, which * g, g),
                      codes.view()[head],
                      first(),
                      window_begin_,
                      d_,
                      settings.reduction,
                      scale_};
      for (std::size_t q = which * g; settings.normalised_over() == pqkv::selector::normalisation::attended && q < (which + 1) * g; ++q)
        list.beside.push_back(plain_attended(&asked[q * d_], d_, {{0, first()}, {window_begin_, n_}}, list.exponent_scale(),
                                             [&](std::size_t t, std::size_t i) { return static_cast<float>(keys_[head][t * d_ + i]); }));
      plain_notes notes;
      chosen[which] = plain_top_k(plain_scores(list, notes), fine_ ? k * settings.residual.shortlist : k);
      for (std::int32_t& t : chosen[which]) t += static_cast<std::int32_t>(first());
    }
    if (fine_) rerank(query, chosen, table.view(), codes.view(), pqkv::as_const(pqkv::make_view(all.data(), h_, n_, d_)), k, settings);
    return chosen;
  }

  /// The lists that the ranks of a context_parallel retrieve together in local mode: each rank the best of its own tokens, by scores that
  /// are normalised over these alone, and of k as many as floor(k (rank + 1) / ranks) - floor(k rank / ranks).
  /// @param owner  owner(token) -> the rank that holds it
  template <class Owner>
  std::vector<std::vector<std::int32_t>> local_lists(const std::vector<float>& asked, const pqkv::selector::pq::params& settings,
                                                     std::size_t ranks, const Owner& owner) const {
    const std::size_t hq = asked.size() / d_, count = pqkv::score_lists(settings.reduction, h_, hq), k = budget().retrieve;
    if (!book_ || k >= middle_size()) return lists(asked, settings);
    const std::vector<float> query = ordered(asked, settings);
    const pqkv::exec::host<pqkv::isa::scalar> cpu;
    pqkv::distance_table table(hq, book_->shape());
    pqkv::inner_product_table(cpu, pqkv::make_view(query.data(), hq, d_), book_->view(), table.mutable_view());
    std::vector<std::vector<std::int32_t>> chosen(count);
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      std::vector<std::size_t> own;
      for (std::size_t t = first(); t < window_begin_; ++t)
        if (owner(t) == rank) own.push_back(t);
      if (own.empty()) continue;
      std::vector<T> keys;
      for (const auto& head : keys_)
        for (const std::size_t t : own)
          for (std::size_t i = 0; i < d_; ++i) keys.push_back(head[t * d_ + i]);
      keys = ordered(keys, settings);
      pqkv::codes codes(book_->shape(), own.size());
      pqkv::encode(cpu, pqkv::as_const(pqkv::make_view(keys.data(), h_, own.size(), d_)), book_->view(), codes.mutable_view());
      for (std::size_t which = 0; which < count; ++which) {
        const std::size_t g = hq / count;
        const plain_list list{table.view().entries.slice(0, which * g, g),
                              table.view().bias.slice(0, which * g, g),
                              codes.view()[which * h_ / count],
                              0,
                              own.size(),
                              d_,
                              settings.reduction,
                              scale_};
        plain_notes notes;
        for (const std::int32_t i : plain_top_k(plain_scores(list, notes), k * (rank + 1) / ranks - k * rank / ranks))
          chosen[which].push_back(static_cast<std::int32_t>(own[static_cast<std::size_t>(i)]));
      }
    }
    for (auto& list : chosen) std::sort(list.begin(), list.end());
    return chosen;
  }

  /// Attention of query head q over sinks, `middle` and window.
  plain_result attend(const std::vector<float>& query, std::size_t q, const std::vector<std::int32_t>& middle) const {
    return attend(query, q, middle, first(), window_begin_);
  }
  /// The same where `middle` is of tokens [begin, end).
  plain_result attend(const std::vector<float>& query, std::size_t q, const std::vector<std::int32_t>& middle, std::size_t begin,
                      std::size_t end) const {
    std::vector<std::size_t> tokens;
    for (std::size_t t = 0; t < begin; ++t) tokens.push_back(t);
    for (const std::int32_t t : middle) tokens.push_back(static_cast<std::size_t>(t));
    for (std::size_t t = end; t < n_; ++t) tokens.push_back(t);
    const std::size_t head = q * h_ / (query.size() / d_);
    const auto store = pqkv::dense_kv(keys_[head].data(), values_[head].data(), 1, n_, d_);
    return plain_attention(query.data() + q * d_, store, 0, tokens, scale_);
  }

 private:
  /// Rows whose coordinates stand as the quantizer cuts them: those of rotary pairs (i, i + d / 2) in one subspace.
  template <class U>
  std::vector<U> ordered(const std::vector<U>& rows, const pqkv::selector::pq::params& settings) const {
    if (settings.axes == pqkv::axis_order::contiguous) return rows;
    std::vector<U> all;
    for (std::size_t row = 0; row < rows.size(); row += d_)
      for (std::size_t j = 0; j < settings.subspaces; ++j)
        for (const std::size_t half : {std::size_t{0}, d_ / 2})
          for (std::size_t pair = j; pair < d_ / 2; pair += settings.subspaces) all.push_back(rows[row + half + pair]);
    return all;
  }

  static void copy_book(const std::optional<pqkv::codebook>& from, std::optional<pqkv::codebook>& to) {
    to.reset();
    if (!from) return;
    to.emplace(from->shape());
    const auto source = from->view();
    const auto target = to->mutable_view();
    std::copy_n(source.centroids.data, source.centroids.size(), target.centroids.data);
    std::copy_n(source.mean.data, source.mean.size(), target.mean.data);
    std::copy_n(source.squared_radius.data, source.squared_radius.size(), target.squared_radius.data);
  }

  /// The second stage, on shortlists in `chosen`.
  void rerank(const std::vector<float>& query, std::vector<std::vector<std::int32_t>>& chosen, pqkv::distance_table_view<> table,
              pqkv::codes_view<> codes, pqkv::view<const T, 3> keys, std::size_t k, const pqkv::selector::pq::params& settings) const {
    const std::size_t hq = query.size() / d_, m = fine_->shape().subspaces;
    const std::vector<std::uint8_t> rows = plain_encode_residual(keys, codes, book_->view(), fine_->view());
    const std::vector<float> entries = plain_inner_product_table(pqkv::make_view(query.data(), hq, d_), fine_->view());
    for (std::size_t which = 0; which < chosen.size(); ++which) {
      const std::size_t g = hq / chosen.size(), head = which * h_ / chosen.size();
      const plain_shortlist list{
          {table.entries.slice(0, which * g, g), table.bias.slice(0, which * g, g), codes[head], 0, 0, d_, settings.reduction, scale_},
          pqkv::make_view(entries.data(), hq, m, fine_->shape().centroids()).slice(0, which * g, g),
          pqkv::make_view(rows.data(), h_, n_, m)[head],
          chosen[which]};
      chosen[which] = plain_rerank(list, k);
    }
  }

  std::size_t h_, d_, n_ = 0, prompt_ = 0, window_begin_ = 0, trained_at_ = 0;
  pqkv::budget_rule rule_;
  float scale_;
  std::vector<std::vector<T>> keys_, values_;  // [h][n * d]
  std::optional<pqkv::codebook> book_, fine_;
};

}  // namespace pqkv_cases
