// SPDX-License-Identifier: Apache-2.0
// The codebook of a product quantizer for keys: c centroids for each KV head and subspace, stored relative to the head's mean key. <q,
// mean> is the same for all tokens and cancels in every softmax. Real keys carry large offsets in some dimensions; centring keeps the
// table's entries small and near-ties rare. Sources: Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", 2011;
// PQCache, SIGMOD 2025, for its use on keys.
#pragma once

#include <cstdint>

#include "../core/arena.hpp"
#include "../core/scalar.hpp"
#include "../exec/runner.hpp"
#include "kmeans.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct mean_row {};
}  // namespace op

/// @tparam T  float or const float
template <class T, class Space = space::host>
struct basic_codebook_view {
  view<T, 4, Space> centroids;            // [h, m, ds, c], centred; [h, m, ds + 1, c] under key_metric::inner_product
  view<T, 2, Space> mean;                 // [h, d], each a bfloat16 value
  view<T, 2, Space> squared_radius = {};  // [h, m] under key_metric::inner_product, else empty

  PQKV_HD constexpr std::size_t heads() const { return centroids.extent(0); }
  PQKV_HD constexpr std::size_t subspaces() const { return centroids.extent(1); }
  PQKV_HD constexpr std::size_t sub_dim() const { return head_dim() / subspaces(); }  // ds
  PQKV_HD constexpr std::size_t row_dim() const { return centroids.extent(2); }       // ds, or ds + 1
  PQKV_HD constexpr std::size_t size() const { return centroids.extent(3); }
  PQKV_HD constexpr std::size_t head_dim() const { return mean.extent(1); }
  PQKV_HD constexpr key_metric metric() const {
    return squared_radius.data == nullptr ? key_metric::squared_l2 : key_metric::inner_product;
  }

  /// The part of heads [from, from + count).
  PQKV_HD constexpr basic_codebook_view slice(std::size_t from, std::size_t count) const {
    basic_codebook_view part{centroids.slice(0, from, count), mean.slice(0, from, count)};
    if (squared_radius.data != nullptr) part.squared_radius = squared_radius.slice(0, from, count);
    return part;
  }
  template <class To>
  requires space::usable_from<Space, To> PQKV_HD constexpr operator basic_codebook_view<const T, To>() const {
    return {centroids, mean, squared_radius};
  }
};

/// A read-only codebook.
template <class Space = space::host>
using codebook_view = basic_codebook_view<const float, Space>;
/// A writable codebook, for training.
template <class Space = space::host>
using mutable_codebook_view = basic_codebook_view<float, Space>;

/// Owner of a codebook in host memory. One thread may write at a time, or any number read. Its views end with it.
class codebook {
 public:
  codebook() = default;
  /// @throws value_error when the shape is out of bounds
  explicit codebook(const pq_shape& shape) : shape_(shape) {
    require_ok(can_quantize(shape, "codebook"));
    centroids_ = buffer<float>(shape.kv_heads * shape.subspaces * shape.row_dim() * shape.centroids());
    mean_ = buffer<float>(shape.kv_heads * shape.head_dim);
    if (shape.metric == key_metric::inner_product) squared_radius_ = buffer<float>(shape.kv_heads * shape.subspaces);
  }

  const pq_shape& shape() const { return shape_; }
  static constexpr std::size_t required_bytes(const pq_shape& shape) {
    const std::size_t radii = shape.metric == key_metric::inner_product ? shape.subspaces : 0;
    return shape.kv_heads * (shape.subspaces * shape.row_dim() * shape.centroids() + shape.head_dim + radii) * sizeof(float);
  }
  /// Takes a codebook from the caller's memory of any space, or counts the bytes. The memory must be zeros or hold a trained codebook.
  template <class Space = space::host>
  static constexpr mutable_codebook_view<Space> place(arena& memory, const pq_shape& shape) {
    const std::size_t h = shape.kv_heads, m = shape.subspaces, width = shape.row_dim(), c = shape.centroids();
    mutable_codebook_view<Space> all{make_view<Space>(memory.take<float>(h * m * width * c), h, m, width, c),
                                     make_view<Space>(memory.take<float>(h * shape.head_dim), h, shape.head_dim)};
    if (shape.metric == key_metric::inner_product) all.squared_radius = make_view<Space>(memory.take<float>(h * m), h, m);
    return all;
  }
  std::size_t size_bytes() const { return centroids_.size_bytes() + mean_.size_bytes() + squared_radius_.size_bytes(); }
  mutable_codebook_view<> mutable_view() {
    mutable_codebook_view<> all{make_view(centroids_.data(), shape_.kv_heads, shape_.subspaces, shape_.row_dim(), shape_.centroids()),
                                make_view(mean_.data(), shape_.kv_heads, shape_.head_dim)};
    if (squared_radius_.size() != 0) all.squared_radius = make_view(squared_radius_.data(), shape_.kv_heads, shape_.subspaces);
    return all;
  }
  codebook_view<> view() const { return const_cast<codebook*>(this)->mutable_view(); }

  kmeans_params trained_with{};  // L, seed and start, as recorded by train()

 private:
  pq_shape shape_{};
  buffer<float> centroids_, mean_, squared_radius_;
};

/// The subspaces of a row axis: [h, n, d] seen as [h, m, n, ds].
template <class T, class Space>
constexpr view<T, 4, Space> split_subspaces(view<T, 3, Space> rows, std::size_t m) {
  const std::size_t ds = rows.extent(2) / m;
  return {rows.data, {rows.extent(0), m, rows.extent(1), ds}, {rows.stride(0), ds * rows.stride(2), rows.stride(1), rows.stride(2)}};
}

/// Whether a view is a codebook that kernels can use. Every function that takes a codebook checks this first.
template <class Book>
constexpr status can_use_codebook(const Book& book, const char* function) noexcept {
  const std::size_t c = book.size(), d = book.head_dim();
  const bool on_sphere = book.metric() == key_metric::inner_product;
  return detail::checks(function)
      .at_least("codebook.centroids.extent(0)", book.heads(), 1, "h")
      .extent("codebook.mean.extent(0)", book.mean.extent(0), book.heads(), "h, from codebook.centroids")
      .at_least("codebook.mean.extent(1)", d, 1, "d")
      .at_most("codebook.mean.extent(1)", d, max_head_dim, "d")
      .that(book.subspaces() != 0 && book.sub_dim() * book.subspaces() == d, status::code::shape, "codebook.mean.extent(1)",
            relation::multiple_of, "m", book.subspaces(), d)
      .extent("codebook.centroids.extent(2)", book.row_dim(), book.subspaces() == 0 ? 0 : book.sub_dim() + (on_sphere ? 1 : 0),
              on_sphere ? "ds + 1 = d / m + 1, beside a squared_radius" : "ds = d / m")
      .extent("codebook.squared_radius.extent(0)", on_sphere ? book.squared_radius.extent(0) : book.heads(), book.heads(),
              "h, from codebook.centroids")
      .extent("codebook.squared_radius.extent(1)", on_sphere ? book.squared_radius.extent(1) : book.subspaces(), book.subspaces(),
              "m, from codebook.centroids")
      .that(c >= 16 && c <= max_centroids && (c & (c - 1)) == 0, status::code::value, "codebook.centroids.extent(3)", relation::stated,
            "16, 32, 64, 128 or 256", 64, c)
      .extent("codebook.centroids.stride(3)", book.centroids.stride(3), 1, "last axis contiguous")
      .extent("codebook.centroids.stride(2)", book.centroids.stride(2), c, "ds and c dense")
      .extent("codebook.mean.stride(1)", book.mean.stride(1), 1, "last axis contiguous");
}

/// The checks of train().
template <class Keys, class Book, class Outcome>
constexpr status can_train(const Keys& keys, const Book& book, const Outcome& outcome, const kmeans_params& params) noexcept {
  if (const status s = can_use_codebook(book, "train"); !s.ok()) return s;
  return detail::checks("train")
      .extent("keys.extent(0)", keys.extent(0), book.heads(), "h, from codebook")
      .extent("keys.extent(2)", keys.extent(2), book.head_dim(), "d, from codebook")
      .extent("outcome.extent(0)", outcome.extent(0), book.heads(), "h, from codebook")
      .extent("outcome.extent(1)", outcome.extent(1), book.subspaces(), "m, from codebook")
      .at_most("keys.extent(1)", keys.extent(1), 4294967295.0, "n")
      .at_least("params.iterations", params.iterations, 1, "L");
}

/// Trains a codebook on keys: the mean training row of each head (rounded to bfloat16), then k-means of every subspace around it.
///
/// @param keys  [h, n, d] float, half or bfloat16, any strides; written rows only, after rotary embedding
/// @param book  [h, m, ds, c] and [h, d], written; meaningless where the outcome is not `trained`. With a squared_radius it gets the
///              inner-product metric
/// @param outcome [h, m] uint8, a kmeans_outcome each, written
/// With kmeans_start::given, training begins from the book's centroids. They are relative to its mean, and the mean is computed anew.
/// Under exec::slice give a barrier: the means must be complete before k-means begins.
///
/// @throws shape_error, value_error
/// @cost   as kmeans(); reads the training rows L + 2 times
/// @source PQCache section 3.2; centring: docs/numerics.md
template <exec::policy P, class T, class Space>
requires storage_scalar<T> && reachable_from<Space, P>
void train(const P& policy, view<T, 3, Space> keys, mutable_codebook_view<typename P::space_type> book,
           view<std::uint8_t, 2, typename P::space_type> outcome, const kmeans_params& params = {}) {
  require_ok(can_train(keys, book, outcome, params));
  const std::size_t h = book.heads(), m = book.subspaces(), ds = book.sub_dim();
  detail::run_operation<op::mean_row>(policy, keys, training_rows(params, keys.extent(1), book.size()), book.mean);
  const view<const float, 3, typename P::space_type> offset{book.mean.data, {h, m, ds}, {book.mean.stride(0), ds, 1}};
  kmeans(policy, split_subspaces(keys, m), offset, book.centroids, outcome, params, book.squared_radius);
}

/// Trains an owner in host memory.
/// @return trained when every head and subspace had at least c finite rows; otherwise the codebook must not be used
template <exec::policy P, class T, class Space>
requires storage_scalar<T> && reachable_from<Space, P> && reachable_from<space::host, P> kmeans_outcome
train(const P& policy, view<T, 3, Space> keys, codebook& book, const kmeans_params& params = {}) {
  if constexpr (requires { typename P::runner_type; })
    static_assert(exec::runs_whole_call<typename P::runner_type>,
                  "pqkv: train on an owner reports one outcome per call; give it a runner of whole calls, not exec::slice");
  const std::size_t problems = book.shape().kv_heads * book.shape().subspaces;
  buffer<std::uint8_t> outcome(problems);
  train(policy, keys, book.mutable_view(), make_view(outcome.data(), book.shape().kv_heads, book.shape().subspaces), params);
  book.trained_with = params;
  for (const std::uint8_t o : outcome)
    if (o != static_cast<std::uint8_t>(kmeans_outcome::trained)) return kmeans_outcome::too_few_rows;
  return kmeans_outcome::trained;
}

}  // namespace pqkv
