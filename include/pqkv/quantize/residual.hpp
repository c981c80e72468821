// SPDX-License-Identifier: Apache-2.0
// The second stage of a quantizer: a finer code of the residual. The residual of a key is the key minus the mean and minus the centroids of
// its codes. K-means in subspaces of its own gives a second codebook. A token's fine codes are contiguous and read by one load, since only
// tokens of a shortlist are looked up (search/rerank.hpp). Not for a scan of all tokens, which needs planes. Source: Jegou, Tavenard,
// Douze, Amsaleg, "Searching in one billion vectors: re-rank with source coding", 2011.
#pragma once

#include <cstdint>

#include "codes.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct residual_rows {};
struct encode_residual {};
}  // namespace op

template <class Space = space::host>
using residual_codes_view = view<const std::uint8_t, 3, Space>;  // [h, n, m2], token-major, last axis contiguous
/// Writable fine codes; as residual_codes_view.
template <class Space = space::host>
using mutable_residual_codes_view = view<std::uint8_t, 3, Space>;

/// The shape of the residual quantizer of a first one: same heads and head dimension, squared distance under either key_metric.
constexpr pq_shape residual_shape(const pq_shape& first, std::size_t subspaces, unsigned bits) {
  return {first.kv_heads, first.head_dim, subspaces, bits, key_metric::squared_l2};
}

/// Owner of the fine codes of `capacity` tokens in host memory. One thread may write at a time, or any number read. Its views end with it.
class residual_codes {
 public:
  residual_codes() = default;
  /// @param shape  of the residuals' quantizer
  /// @throws value_error when the shape is out of bounds
  residual_codes(const pq_shape& shape, std::size_t capacity) : shape_(shape), capacity_(capacity) {
    require_ok(can_quantize(shape, "residual_codes"));
    bytes_ = buffer<std::uint8_t>(required_bytes(shape, capacity));
  }
  static constexpr std::size_t required_bytes(const pq_shape& shape, std::size_t capacity) {
    return shape.kv_heads * capacity * shape.subspaces;
  }
  /// Takes fine codes from the caller's memory of any space, or counts the bytes.
  template <class Space = space::host>
  static constexpr mutable_residual_codes_view<Space> place(arena& memory, const pq_shape& shape, std::size_t capacity) {
    return make_view<Space>(memory.take<std::uint8_t>(required_bytes(shape, capacity)), shape.kv_heads, capacity, shape.subspaces);
  }
  std::size_t capacity() const { return capacity_; }
  std::size_t size_bytes() const { return bytes_.size_bytes(); }
  mutable_residual_codes_view<> mutable_view() { return make_view(bytes_.data(), shape_.kv_heads, capacity_, shape_.subspaces); }
  residual_codes_view<> view() const { return as_const(make_view(bytes_.data(), shape_.kv_heads, capacity_, shape_.subspaces)); }

 private:
  pq_shape shape_{};
  std::size_t capacity_{};
  buffer<std::uint8_t> bytes_;
};

/// Whether a codebook can be the second stage of another. Every function that takes both checks this first.
template <class Book, class Fine>
constexpr status can_refine(const Book& book, const Fine& fine, const char* function) noexcept {
  if (const status s = can_use_codebook(book, function); !s.ok()) return s;
  if (const status s = can_use_codebook(fine, function); !s.ok()) return s;
  return detail::checks(function)
      .extent("fine.centroids.extent(0)", fine.heads(), book.heads(), "h, from codebook")
      .extent("fine.mean.extent(1)", fine.head_dim(), book.head_dim(), "d, from codebook")
      .that(fine.metric() == key_metric::squared_l2, status::code::value, "fine.squared_radius", relation::required,
            "empty: residuals have key_metric::squared_l2", 0, fine.squared_radius.size());
}

namespace detail {
/// Whether codes [h, m, n] fit keys [h, n, d].
template <class Keys, class Codes, class Book>
constexpr status can_take_residuals(const Keys& keys, const Codes& codes, const Book& book, const char* function) noexcept {
  return checks(function)
      .extent("keys.extent(0)", keys.extent(0), book.heads(), "h, from codebook")
      .extent("keys.extent(2)", keys.extent(2), book.head_dim(), "d, from codebook")
      .extent("codes.extent(0)", codes.extent(0), book.heads(), "h, from codebook")
      .extent("codes.extent(1)", codes.extent(1), book.subspaces(), "m, from codebook")
      .extent("codes.extent(2)", codes.extent(2), keys.extent(1), "n, from keys")
      .extent("codes.stride(2)", codes.stride(2), 1, "last axis contiguous");
}

/// Most bytes of residuals in memory at once in training. The k-means problems of the heads in memory run in parallel.
inline constexpr std::size_t residual_training_bytes = std::size_t{1} << 28;
constexpr std::size_t residual_training_heads(std::size_t h, std::size_t rows, std::size_t d) {
  const std::size_t one = rows * d * sizeof(float), fitting = one == 0 ? h : residual_training_bytes / one;
  return fitting == 0 ? 1 : fitting < h ? fitting : h;
}
}  // namespace detail

/// The checks of train_residual().
template <class Keys, class Codes, class Book, class Fine, class Outcome>
constexpr status can_train_residual(const Keys& keys, const Codes& codes, const Book& book, const Fine& fine, const Outcome& outcome,
                                    const kmeans_params& params) noexcept {
  if (const status s = can_refine(book, fine, "train_residual"); !s.ok()) return s;
  if (const status s = detail::can_take_residuals(keys, codes, book, "train_residual"); !s.ok()) return s;
  return detail::checks("train_residual")
      .extent("outcome.extent(0)", outcome.extent(0), book.heads(), "h, from codebook")
      .extent("outcome.extent(1)", outcome.extent(1), fine.subspaces(), "m2, from fine")
      .at_most("keys.extent(1)", keys.extent(1), 4294967295.0, "n")
      .at_least("params.iterations", params.iterations, 1, "L");
}

/// Trains the codebook of residuals by k-means in every fine subspace. A residual is r = (keys - mean) - centroids of the codes, with both
/// differences rounded; residuals are not centred on a mean of their own. A key with a non-finite element takes no part.
/// kmeans_start::given begins from fine's centroids.
///
/// @param keys   [h, n, d] float, half or bfloat16, any strides
/// @param codes  [h, m, n] uint8, from encode() with the same keys and book
/// @param book   [h, m, ds, c] trained; of either key_metric, the added coordinate of which has no residual
/// @param fine   [h, m2, d / m2, c2], written, its mean zeros; meaningless where the outcome is not `trained`
/// @param outcome [h, m2] uint8, a kmeans_outcome each, written
/// @throws shape_error, value_error; std::bad_alloc
/// @cost   as kmeans(), with the training rows' residuals on the heap: rows * d floats a head, for as many heads at a time as fit in 256
///         MiB
template <exec::policy P, class T, class Space>
requires storage_scalar<T> && reachable_from<Space, P> && reachable_from<space::host, P>
void train_residual(const P& policy, view<T, 3, Space> keys, codes_view<> codes, codebook_view<> book, mutable_codebook_view<> fine,
                    view<std::uint8_t, 2> outcome, const kmeans_params& params = {}) {
  if constexpr (requires { typename P::runner_type; })
    static_assert(exec::runs_whole_call<typename P::runner_type>,
                  "pqkv: train_residual shares rows between tasks; give it a runner of whole calls, not exec::slice");
  require_ok(can_train_residual(keys, codes, book, fine, outcome, params));
  const std::size_t h = book.heads(), d = book.head_dim(), m = fine.subspaces();
  const stratified_sample sample = training_rows(params, keys.extent(1), fine.size());
  const std::size_t heads = detail::residual_training_heads(h, sample.count, d);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t i = 0; i < d; ++i) fine.mean(head, i) = 0;
  kmeans_params all = params;
  all.rows_per_centroid = 0;  // the sample is drawn here
  const buffer<float> memory(heads * sample.count * d);
  for (std::size_t first = 0; first < h; first += heads) {
    const std::size_t count = heads < h - first ? heads : h - first;
    const auto rows = make_view(memory.data(), count, sample.count, d);
    detail::run_operation<op::residual_rows>(
        policy, keys.slice(0, first, count), codes.slice(0, first, count),
        codebook_view<>{book.centroids.slice(0, first, count), book.mean.slice(0, first, count)}, sample, rows);
    const view<const float, 3> zeros{&fine.mean(first, 0), {count, m, d / m}, {fine.mean.stride(0), d / m, 1}};
    kmeans(policy, split_subspaces(rows, m), zeros, fine.centroids.slice(0, first, count), outcome.slice(0, first, count), all);
  }
}

/// The checks of encode_residual().
template <class Keys, class Codes, class Book, class Fine, class FineCodes>
constexpr status can_encode_residual(const Keys& keys, const Codes& codes, const Book& book, const Fine& fine,
                                     const FineCodes& fine_codes) noexcept {
  if (const status s = can_refine(book, fine, "encode_residual"); !s.ok()) return s;
  if (const status s = detail::can_take_residuals(keys, codes, book, "encode_residual"); !s.ok()) return s;
  return detail::checks("encode_residual")
      .extent("fine_codes.extent(0)", fine_codes.extent(0), book.heads(), "h, from codebook")
      .extent("fine_codes.extent(1)", fine_codes.extent(1), keys.extent(1), "n, from keys")
      .extent("fine_codes.extent(2)", fine_codes.extent(2), fine.subspaces(), "m2, from fine")
      .extent("fine_codes.stride(2)", fine_codes.stride(2), 1, "last axis contiguous");
}

/// Encodes residuals: fine_codes[h, t, j] = argmin over x of |r[h, t, j] - fine.centroids[h, j, :, x]|^2, ties to the lower index, with r
/// as in train_residual().
///
/// @param keys   [h, n, d] float, half or bfloat16, any strides
/// @param codes  [h, m, n] uint8, from encode() with the same keys and book, each below c
/// @param book   a trained codebook
/// @param fine   the trained codebook of its residuals; its mean is not used
/// @param fine_codes  [h, n, m2] uint8, written; a key with a non-finite element gets code 0 everywhere, and so does a sub-vector whose
///                    residual overflows
/// @throws shape_error, value_error
/// @cost   n * c2 * d distance terms a head; no allocation
template <exec::policy P, class T, class Space>
requires storage_scalar<T> && reachable_from<Space, P>
void encode_residual(const P& policy, view<T, 3, Space> keys, codes_view<typename P::space_type> codes,
                     codebook_view<typename P::space_type> book, codebook_view<typename P::space_type> fine,
                     mutable_residual_codes_view<typename P::space_type> fine_codes) {
  require_ok(can_encode_residual(keys, codes, book, fine, fine_codes));
  detail::run_operation<op::encode_residual>(policy, keys, codes, book, fine, fine_codes);
}

}  // namespace pqkv
