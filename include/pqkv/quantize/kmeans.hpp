// SPDX-License-Identifier: Apache-2.0
// Lloyd's k-means for many small problems at once: it trains codebooks, and can be used without the rest of the library. Deterministic: the
// bits of the centroids depend on points, offset and parameters, not on ISA, thread count or backend. Sums are in fixed point, so their
// order does not matter. Not for d > 256 or c > 256, where pruned or hierarchical methods win.
// Sources: Lloyd, "Least squares quantization in PCM", 1982; empty clusters as faiss splits them, with a fixed rule; the added coordinate:
// Bachrach et al., "Speeding up the Xbox recommender system using a Euclidean transformation for inner-product spaces", 2014.
#pragma once

#include <cstdint>

#include "../core/random.hpp"
#include "../core/scalar.hpp"
#include "../core/view.hpp"
#include "../exec/kernel.hpp"
#include "shape.hpp"

namespace pqkv::inline PQKV_MODE {
/// Where Lloyd's iterations begin.
enum class kmeans_start : std::uint8_t {
  drawn,  // from distinct rows, drawn by Philox
  given   // from the centroids that the caller's view holds: of an earlier training, or of a sequence with the same prompt
};

/// How a codebook is trained.
struct kmeans_params {
  std::size_t iterations = 10;          // L; stops early once no assignment changes, with the same result
  std::uint64_t seed = 0;               // of the Philox streams that draw the sample and the initial rows
  std::size_t rows_per_centroid = 256;  // trains on a stratified sample of at most this many rows per centroid; 0: on all rows
  kmeans_start start = kmeans_start::drawn;
};

/// What became of one problem.
enum class kmeans_outcome : std::uint8_t {
  trained,
  too_few_rows  // fewer than c finite points: centroids left as they were
};

/// The rows that training looks at: all, or one of each of rows_per_centroid * c strata.
PQKV_HD constexpr stratified_sample training_rows(const kmeans_params& params, std::size_t n, std::size_t c) {
  const bool all = params.rows_per_centroid == 0 || params.rows_per_centroid > n / c;
  return {n, all ? n : params.rows_per_centroid * c, {params.seed, 0}};
}

namespace op {
struct kmeans {
  /// What scratch_bytes() must know, of kmeans() and train().
  struct sizes {
    std::size_t problems = 0;   // h * m
    std::size_t rows = 0;       // n
    std::size_t width = 0;      // coordinates of a centroid: ds, or ds + 1 with squared_radius
    std::size_t centroids = 0;  // c
    kmeans_params params{};
  };
};
}  // namespace op

namespace detail {
constexpr std::size_t kmeans_device_scratch_bytes(const op::kmeans::sizes& s) {
  constexpr std::size_t gaps = 8 * 64;  // each array begins on a cache line
  return gaps + s.problems * (training_rows(s.params, s.rows, s.centroids).count * 13 + s.centroids * s.width * 12 + s.centroids * 4 + 32);
}
}  // namespace detail

/// The checks of kmeans(), for engines without exceptions. Shapes as there.
template <class Points, class Offset, class Centroids, class Outcome, class Radius = view<float, 2>>
constexpr status can_kmeans(const Points& points, const Offset& offset, const Centroids& centroids, const Outcome& outcome,
                            const kmeans_params& params, const Radius& squared_radius = {}) noexcept {
  const std::size_t h = points.extent(0), m = points.extent(1), ds = points.extent(3), c = centroids.extent(3);
  const bool on_sphere = squared_radius.data != nullptr;
  return detail::checks("kmeans")
      .extent("offset.extent(0)", offset.extent(0), h, "h, from points")
      .extent("offset.extent(1)", offset.extent(1), m, "m, from points")
      .extent("offset.extent(2)", offset.extent(2), ds, "ds, from points")
      .extent("centroids.extent(0)", centroids.extent(0), h, "h, from points")
      .extent("centroids.extent(1)", centroids.extent(1), m, "m, from points")
      .extent("centroids.extent(2)", centroids.extent(2), ds + (on_sphere ? 1 : 0),
              on_sphere ? "ds + 1, from points and squared_radius" : "ds, from points")
      .extent("squared_radius.extent(0)", on_sphere ? squared_radius.extent(0) : h, h, "h, from points")
      .extent("squared_radius.extent(1)", on_sphere ? squared_radius.extent(1) : m, m, "m, from points")
      .extent("outcome.extent(0)", outcome.extent(0), h, "h, from points")
      .extent("outcome.extent(1)", outcome.extent(1), m, "m, from points")
      .at_least("points.extent(3)", ds, 1, "ds")
      .at_most("points.extent(3)", ds, max_head_dim, "ds")
      .that(c >= 16 && c <= max_centroids && (c & (c - 1)) == 0, status::code::value, "centroids.extent(3)", relation::stated,
            "16, 32, 64, 128 or 256", 64, c)
      .extent("centroids.stride(3)", centroids.stride(3), 1, "last axis contiguous")
      .extent("centroids.stride(2)", centroids.stride(2), c, "ds and c dense")
      .extent("offset.stride(2)", offset.stride(2), 1, "last axis contiguous")
      .at_most("points.extent(2)", points.extent(2), 4294967295.0, "n")
      .at_least("params.iterations", params.iterations, 1, "L");
}

/// Clusters h * m independent sets of n points into c centroids each.
///
/// Let y = points[h, j, t] - offset[h, j]. The initial centroids are distinct rows y drawn by Philox4x32-10; if there are fewer than c
/// distinct rows, all of them, repeated in turn. Then, L times: every row joins its nearest centroid (canonical distance, ties to the lower
/// index); every empty cluster, in ascending order, takes the farthest row of the fullest one (ties: lower index); every centroid becomes
/// the mean of its rows. Rows with a non-finite y are left out.
/// With squared_radius every y gets one more coordinate, sqrt(R - |y|^2), where R is the largest |y|^2 of its set's training rows. This is
/// clustering for inner products (key_metric). Rows whose |y|^2 overflows are then left out too.
///
/// With kmeans_start::given, iterations begin from the centroids in the view instead of drawn rows; sample, scale of the sums and R come
/// from the rows in either case. On the same points, offset and sample, L iterations followed by L2 iterations from their result have the
/// same bits as one run of L + L2. Given centroids may repeat and may lie anywhere. A centroid that no row joins is an empty cluster.
/// Centroids far from all rows only make the first iteration slower: it then has no shortlist. Fewer than c usable rows are refused here
/// too, but repeated rows are not looked for.
/// @pre    given centroids are finite; otherwise the result is unspecified, though nothing outside it is touched
///
/// @param points     [h, m, n, ds] float, half or bfloat16, any strides
/// @param offset     [h, m, ds] float, subtracted from every point
/// @param centroids  [h, m, ds, c] float, ([h, m, ds + 1, c] with squared_radius), written, and read first where they are
///                   given; c in {16, 32, 64, 128, 256}; last two axes dense
/// @param outcome    [h, m] uint8, a kmeans_outcome each, written
/// @param squared_radius  [h, m] float, R, written; empty: the plain squared L2 distance
/// @throws shape_error, value_error; capacity_error when a device policy's scratch is too small
/// @cost   L * rows * c * ds distance terms a problem, one task a problem; on the host allocates about rows * (2 * ds + 9) bytes of
///         scratch from the heap for each problem in progress (training is not part of a decode step), on a device
///         scratch_bytes<op::kmeans>() of the policy's
template <exec::policy P, class T, class Space>
requires storage_scalar<T> && reachable_from<Space, P>
void kmeans(const P& policy, view<T, 4, Space> points, view<const float, 3, typename P::space_type> offset,
            view<float, 4, typename P::space_type> centroids, view<std::uint8_t, 2, typename P::space_type> outcome,
            const kmeans_params& params = {}, view<float, 2, typename P::space_type> squared_radius = {}) {
  require_ok(can_kmeans(points, offset, centroids, outcome, params, squared_radius));
  detail::run_operation<op::kmeans>(policy, points, offset, centroids, outcome, params, squared_radius);
}

}  // namespace pqkv
