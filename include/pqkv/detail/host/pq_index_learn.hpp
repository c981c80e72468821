// SPDX-License-Identifier: Apache-2.0
// Learns and renews the codebooks of one sequence on the host, where training looks at every key: the codes come with it, since k-means
// knows the nearest centroid of every row. A task is a head and subspace.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../core/owner.hpp"
#include "../../search/pq_index.hpp"
#include "codebook.hpp"
#include "codes.hpp"
#include "kmeans.hpp"
#include "pq_index.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Runs k-means in every head and subspace, and writes the codes of tokens first, first + 1, ... where it has trained.
///
/// @param keys      [h, n, d], axes in order
/// @param outcomes  [h, m], written
/// @param known     [h * m] nearest centroids of the keys, where they are known; null: none are
template <class P, class T>
void fit_and_encode(const P& policy, const pq_index_view<>& index, std::size_t first, view<T, 3> keys, const kmeans_params& params,
                    view<std::uint8_t, 2> outcomes, const known_nearest* known) {
  const std::size_t h = index.kv_heads, m = index.book.subspaces();
  const view<T, 4> points = split_subspaces(keys, m);
  const buffer<std::uint8_t> is_encoded(h * m);
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    run_tasks(policy, h * m, [&](std::size_t problem) {
      const std::size_t i = problem / m, j = problem % m;
      float* radius = index.book.metric() == key_metric::inner_product ? &index.book.squared_radius(i, j) : nullptr;
      kmeans_problem<kernels, std::remove_cv_t<T>> lloyd(points[i][j], &index.book.mean(i, j * index.book.sub_dim()),
                                                         &index.book.centroids(i, j, 0, 0), index.book.size(), radius, params);
      const kmeans_outcome outcome = lloyd.run(problem + 1, known == nullptr ? known_nearest{} : known[problem]);
      outcomes(i, j) = static_cast<std::uint8_t>(outcome);
      is_encoded[problem] = static_cast<std::uint8_t>(outcome == kmeans_outcome::trained && lloyd.write_nearest(&index.codes(i, j, first)));
    });
  });
  for (std::size_t i = 0; i < h; ++i)  // a key that k-means left out has code 0 in every subspace
    if (std::find(&is_encoded[i * m], &is_encoded[i * m] + m, 0) != &is_encoded[i * m] + m)
      kernel<op::encode, backend::host>::run(policy, keys.slice(0, i, 1), index.book.slice(i, 1),
                                             index.codes.slice(0, i, 1).slice(2, first, keys.extent(1)));
}

}  // namespace detail

template <>
struct kernel<op::learn_codebook, backend::host> {
  /// Trains on the keys and writes their codes, with the same bits as train() and encode(), and cheaper: k-means has rounded the rows that
  /// encoding would read, and most of them stay in their clusters after its last iteration.
  ///
  /// @param keys      [h, n, d] keys of tokens [first, first + n), axes in order; training is of all of them
  /// @param outcomes  [h, m], written. Codes are meaningless where it is not `trained`
  template <class P, class T>
  static void run(const P& policy, const pq_index_view<>& index, std::size_t first, view<T, 3> keys, const kmeans_params& params,
                  view<std::uint8_t, 2> outcomes);
};

template <class P, class T>
void kernel<op::learn_codebook, backend::host>::run(const P& policy, const pq_index_view<>& index, std::size_t first, view<T, 3> keys,
                                                    const kmeans_params& params, view<std::uint8_t, 2> outcomes) {
  kernel<op::mean_row, backend::host>::run(policy, keys, training_rows(params, keys.extent(1), index.book.size()), index.book.mean);
  detail::fit_and_encode(policy, index, first, keys, params, outcomes, nullptr);
}

template <>
struct kernel<op::renew_codebook, backend::host> {
  /// Replaces centroids, runs k-means from the result and writes the codes of all keys, with the same bits as the three operations one
  /// after the other. The first assignment is cheap: a row's old code names the nearest of the kept centroids, so only the replaced
  /// centroids are compared with that one. Encoding is cheap as in op::learn_codebook.
  ///
  /// @param keys      [h, n, d] keys of tokens [call.first, call.last), axes in order; their codes must be known
  /// @param outcomes  [h, m], written. Codes are written where it is `trained`
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<>& index, const replaced_centroids& call,
                  view<T, 3> keys, const kmeans_params& params, view<std::uint8_t, 2> outcomes);
};

template <class P, class Rows, class T>
void kernel<op::renew_codebook, backend::host>::run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<>& index,
                                                    const replaced_centroids& call, view<T, 3> keys, const kmeans_params& params,
                                                    view<std::uint8_t, 2> outcomes) {
  const std::size_t m = index.book.subspaces(), problems = index.kv_heads * m;
  const buffer<std::uint8_t> replaced(problems * max_centroids);
  const buffer<detail::known_nearest> known(problems);
  detail::run_tasks(policy, problems, [&](std::size_t problem) {
    std::uint8_t* const own = replaced.data() + problem * max_centroids;
    const std::size_t i = problem / m, j = problem % m;
    known[problem] = {&index.codes(i, j, call.first), own, detail::replace_least_used(rows, head, index, call, i, j, own)};
  });
  detail::fit_and_encode(policy, index, call.first, keys, params, outcomes, known.data());
}

}  // namespace pqkv
