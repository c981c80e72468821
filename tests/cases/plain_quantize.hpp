// SPDX-License-Identifier: Apache-2.0
// Plain statements of k-means, encoding and tables, to the bit where the library promises bits and in double where only a
// bound can be checked. One thing after the other, nothing skipped: no early stop, no SIMD, rows copied out first. Written from
// the method's text (docs/numerics.md) and the headers' contracts, with libm where the library has its own arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <pqkv/core/random.hpp>
#include <pqkv/core/scalar.hpp>
#include <pqkv/core/view.hpp>
#include <pqkv/quantize/codes.hpp>

namespace pqkv_cases {

/// Whether two arrays of floats are the same bits.
inline bool same_bits(const float* a, const float* b, std::size_t n) { return n == 0 || std::memcmp(a, b, n * sizeof(float)) == 0; }

/// Word `i` of the stream (seed, stream), from the block function alone.
inline std::uint32_t plain_draw(std::uint64_t seed, std::uint64_t stream, std::uint64_t i) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  return pqkv::philox4x32(seed, {{low(i / 4), low(i / 4 >> 32), low(stream), low(stream >> 32)}}).word[i % 4];
}

/// Draw `i`, scaled to [0, bound).
inline std::size_t plain_draw_below(std::uint64_t seed, std::uint64_t stream, std::uint64_t i, std::size_t bound) {
  return static_cast<std::size_t>((std::uint64_t{plain_draw(seed, stream, i)} * bound) >> 32);
}

/// The rows that training looks at: all n, or one drawn from each of rows_per_centroid * c equal strata.
inline std::vector<std::size_t> plain_training_rows(const pqkv::kmeans_params& params, std::size_t n, std::size_t c) {
  const std::size_t count = params.rows_per_centroid * c;
  std::vector<std::size_t> chosen;
  if (params.rows_per_centroid == 0 || n <= count) {
    for (std::size_t t = 0; t < n; ++t) chosen.push_back(t);
    return chosen;
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t first = i * n / count, next = (i + 1) * n / count;
    chosen.push_back(first + plain_draw_below(params.seed, 0, i, next - first));
  }
  return chosen;
}

/// Sums of numbers of which none is larger than `largest`, in integers of a power of two.
class plain_sums {
 public:
  explicit plain_sums(float largest) {
    const int s = 29 - (largest == 0 ? -127 : std::ilogb(largest));
    exponent_ = s > 100 ? 100 : s < -100 ? -100 : s;
  }
  std::int64_t term(float x) const { return std::llrint(std::ldexp(static_cast<double>(x), exponent_)); }
  float mean(std::int64_t sum, std::size_t count) const {
    return static_cast<float>(std::ldexp(static_cast<double>(sum) / static_cast<double>(count), -exponent_));
  }

 private:
  int exponent_;
};

/// Squared distance as the method defines it.
inline float plain_distance(const float* y, const float* centroids, std::size_t x, std::size_t c, std::size_t ds) {
  float acc = 0;
  for (std::size_t i = 0; i < ds; ++i) {
    const float e = y[i] - centroids[i * c + x];
    acc = std::fma(e, e, acc);
  }
  return acc;
}

/// (index, distance) of the nearest of c centroids [ds, c], ties to the lower index.
inline std::pair<std::size_t, float> plain_nearest(const float* y, const float* centroids, std::size_t c, std::size_t ds) {
  std::pair<std::size_t, float> best{0, plain_distance(y, centroids, 0, c, ds)};
  for (std::size_t x = 1; x < c; ++x) {
    const float distance = plain_distance(y, centroids, x, c, ds);
    if (distance < best.second) best = {x, distance};
  }
  return best;
}

/// Squared norm as the inner-product metric defines it.
inline float plain_norm(const std::vector<float>& y) {
  float acc = 0;
  for (const float e : y) acc = std::fma(e, e, acc);
  return acc;
}

/// y with the coordinate that puts it on the sphere of squared radius R.
inline std::vector<float> plain_lifted(std::vector<float> y, float squared_radius) {
  const float rest = squared_radius - plain_norm(y);
  y.push_back(rest > 0 ? std::sqrt(rest) : 0.0f);
  return y;
}

/// The rows y = points[t] - offset of one problem that training uses.
template <class T>
std::vector<std::vector<float>> plain_rows(pqkv::view<T, 2> points, const float* offset, const std::vector<std::size_t>& chosen) {
  std::vector<std::vector<float>> y;
  for (const std::size_t t : chosen) {
    std::vector<float> row(points.extent(1));
    bool finite = true;
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] = float(points(t, i)) - offset[i];
      finite = finite && std::isfinite(row[i]);
    }
    if (finite) y.push_back(row);
  }
  return y;
}

/// c distinct rows by a Philox-driven shuffle, as [ds, c], repeated in turn where there are fewer; empty when there are fewer than c rows.
inline std::vector<float> plain_initial(const std::vector<std::vector<float>>& y, std::size_t c, std::uint64_t seed, std::uint64_t stream) {
  std::vector<std::size_t> order(y.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::vector<std::vector<float>> taken;
  for (std::size_t i = 0; i < order.size() && taken.size() < c; ++i) {
    std::swap(order[i], order[i + plain_draw_below(seed, stream, i, order.size() - i)]);
    const std::vector<float>& row = y[order[i]];
    bool is_new = true;
    for (const std::vector<float>& other : taken) is_new = is_new && !(other == row);
    if (is_new) taken.push_back(row);
  }
  if (y.size() < c) return {};
  for (std::size_t x = 0; taken.size() < c; ++x) taken.push_back(taken[x]);
  std::vector<float> centroids(c * taken[0].size());
  for (std::size_t x = 0; x < c; ++x)
    for (std::size_t i = 0; i < taken[x].size(); ++i) centroids[i * c + x] = taken[x][i];
  return centroids;
}

/// What one k-means problem gives. `moved[l]` is the number of rows that changed cluster in iteration l, `filled` the number of
/// empty clusters that took a row from a distance: tests ask for both, to know that a case exercised what it is there for.
struct plain_clusters {
  bool trained = false;
  std::vector<float> centroids;  // [ds, c], or [ds + 1, c]
  float squared_radius = 0;      // under the inner-product metric
  std::vector<std::size_t> moved;
  std::size_t filled = 0;
};

/// Problem number `problem` (head * m + subspace) of kmeans(): all L iterations, whatever happens.
/// @param given  [ds, c], or [ds + 1, c]: where kmeans_start::given begins
template <class T>
plain_clusters plain_kmeans(pqkv::view<T, 2> points, const float* offset, std::size_t c, const pqkv::kmeans_params& params,
                            std::uint64_t problem, pqkv::key_metric metric = pqkv::key_metric::squared_l2, const float* given = nullptr) {
  auto y = plain_rows(points, offset, plain_training_rows(params, points.extent(0), c));
  plain_clusters result;
  float reach = 0;  // what the sums have to hold, besides the elements
  if (metric == pqkv::key_metric::inner_product) {
    y.erase(std::remove_if(y.begin(), y.end(), [](const auto& row) { return !std::isfinite(plain_norm(row)); }), y.end());
    for (const auto& row : y) result.squared_radius = std::max(result.squared_radius, plain_norm(row));
    for (auto& row : y) row = plain_lifted(row, result.squared_radius);
    reach = std::sqrt(result.squared_radius);
  }
  const std::size_t ds = points.extent(1) + (metric == pqkv::key_metric::inner_product ? 1 : 0);
  if (params.start == pqkv::kmeans_start::drawn)
    result.centroids = plain_initial(y, c, params.seed, problem + 1);
  else if (y.size() >= c)
    result.centroids.assign(given, given + ds * c);
  if (result.centroids.empty()) return result;
  result.trained = true;
  float largest = reach;
  for (const auto& row : y)
    for (const float e : row) largest = std::max(largest, std::fabs(e));
  const plain_sums sums(largest);
  std::vector<std::size_t> owner(y.size(), c);
  std::vector<float> distance(y.size());
  for (std::size_t l = 0; l < params.iterations; ++l) {
    std::vector<std::size_t> count(c);
    result.moved.push_back(0);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const auto nearest = plain_nearest(y[i].data(), result.centroids.data(), c, ds);
      result.moved.back() += owner[i] != nearest.first;
      owner[i] = nearest.first;
      distance[i] = nearest.second;
      ++count[owner[i]];
    }
    for (std::size_t empty = 0; empty < c; ++empty) {
      if (count[empty] != 0) continue;
      std::size_t fullest = 0, farthest = y.size();
      for (std::size_t x = 1; x < c; ++x) fullest = count[x] > count[fullest] ? x : fullest;
      for (std::size_t i = y.size(); i-- > 0;)
        if (owner[i] == fullest && (farthest == y.size() || distance[i] >= distance[farthest])) farthest = i;
      result.filled += distance[farthest] > 0;
      --count[fullest];
      ++count[empty];
      owner[farthest] = empty;
    }
    std::vector<std::int64_t> sum(c * ds);
    for (std::size_t i = 0; i < y.size(); ++i)
      for (std::size_t e = 0; e < ds; ++e) sum[e * c + owner[i]] += sums.term(y[i][e]);
    for (std::size_t x = 0; x < c; ++x)
      for (std::size_t e = 0; e < ds; ++e) result.centroids[e * c + x] = sums.mean(sum[e * c + x], count[x]);
  }
  return result;
}

/// The bfloat16 mean of the training rows of one head [n, d], rows with a non-finite element left out; zeros without any.
template <class T>
std::vector<float> plain_mean_row(pqkv::view<T, 2> keys, std::size_t c, const pqkv::kmeans_params& params) {
  const std::size_t d = keys.extent(1);
  const std::vector<float> zero(d);
  const auto rows = plain_rows(keys, zero.data(), plain_training_rows(params, keys.extent(0), c));
  float largest = 0;
  for (const auto& row : rows)
    for (const float e : row) largest = std::max(largest, std::fabs(e));
  const plain_sums sums(largest);
  std::vector<float> mean(d);
  for (std::size_t e = 0; e < d && !rows.empty(); ++e) {
    std::int64_t sum = 0;
    for (const auto& row : rows) sum += sums.term(row[e]);
    mean[e] = float(pqkv::bfloat16(sums.mean(sum, rows.size())));
  }
  return mean;
}

/// Codes [h][m][n], flat.
template <class T>
std::vector<std::uint8_t> plain_encode(pqkv::view<T, 3> keys, pqkv::codebook_view<> book) {
  const std::size_t h = keys.extent(0), n = keys.extent(1), d = keys.extent(2), m = book.subspaces(), ds = d / m;
  std::vector<std::uint8_t> codes(h * m * n);
  std::vector<float> y(d);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t) {
      bool finite = true;
      for (std::size_t i = 0; i < d; ++i) {
        const float x = float(keys(head, t, i));
        finite = finite && std::isfinite(x);
        y[i] = x - book.mean(head, i);
      }
      for (std::size_t j = 0; j < m && finite; ++j) {
        std::vector<float> row(y.begin() + static_cast<std::ptrdiff_t>(j * ds), y.begin() + static_cast<std::ptrdiff_t>((j + 1) * ds));
        if (book.metric() == pqkv::key_metric::inner_product) {
          if (!std::isfinite(plain_norm(row))) continue;
          row = plain_lifted(row, book.squared_radius(head, j));
        }
        codes[(head * m + j) * n + t] =
            static_cast<std::uint8_t>(plain_nearest(row.data(), &book.centroids(head, j, 0, 0), book.size(), row.size()).first);
      }
    }
  return codes;
}

/// The inner-product table [hq][m][c], flat: chains of std::fma.
inline std::vector<float> plain_inner_product_table(pqkv::view<const float, 2> query, pqkv::codebook_view<> book) {
  const std::size_t hq = query.extent(0), g = hq / book.heads(), m = book.subspaces(), ds = book.sub_dim(), c = book.size();
  std::vector<float> table(hq * m * c);
  for (std::size_t q = 0; q < hq; ++q)
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t i = 0; i < ds; ++i)
        for (std::size_t x = 0; x < c; ++x) {
          float& entry = table[(q * m + j) * c + x];
          entry = std::fma(query(q, j * ds + i), book.centroids(q / g, j, i, x), entry);
        }
  return table;
}

/// The table of negated squared distances [hq][m][c], flat.
inline std::vector<float> plain_squared_l2_table(pqkv::view<const float, 2> query, pqkv::codebook_view<> book) {
  const std::size_t hq = query.extent(0), g = hq / book.heads(), m = book.subspaces(), ds = book.sub_dim(), c = book.size();
  std::vector<float> table(hq * m * c), y(ds);
  for (std::size_t q = 0; q < hq; ++q)
    for (std::size_t j = 0; j < m; ++j) {
      for (std::size_t i = 0; i < ds; ++i) y[i] = query(q, j * ds + i) - book.mean(q / g, j * ds + i);
      for (std::size_t x = 0; x < c; ++x) table[(q * m + j) * c + x] = -plain_distance(y.data(), &book.centroids(q / g, j, 0, 0), x, c, ds);
    }
  return table;
}

}  // namespace pqkv_cases
