// SPDX-License-Identifier: Apache-2.0
// The second stage as docs/numerics.md states it, slow and plain: residuals and their codes row by row, scores of a shortlist token by
// token, a second opinion in double. Nothing here calls the library's SIMD kernels.
#pragma once

#include "plain_quantize.hpp"
#include "plain_search.hpp"

namespace pqkv_cases {

/// The residual of a key, [d]; empty for a key with a non-finite element.
template <class T>
std::vector<float> plain_residual(pqkv::view<T, 3> keys, pqkv::codes_view<> codes, pqkv::codebook_view<> book, std::size_t head,
                                  std::size_t t) {
  const std::size_t d = keys.extent(2), ds = d / book.subspaces();
  std::vector<float> r(d);
  for (std::size_t i = 0; i < d; ++i) {
    const float x = float(keys(head, t, i));
    if (!std::isfinite(x)) return {};
    const float y = x - book.mean(head, i);
    r[i] = y - book.centroids(head, i / ds, i % ds, codes(head, i / ds, t));
  }
  return r;
}

/// Fine codes [h][n][m2], flat.
template <class T>
std::vector<std::uint8_t> plain_encode_residual(pqkv::view<T, 3> keys, pqkv::codes_view<> codes, pqkv::codebook_view<> book,
                                                pqkv::codebook_view<> fine) {
  const std::size_t h = keys.extent(0), n = keys.extent(1), m = fine.subspaces(), ds = fine.sub_dim();
  std::vector<std::uint8_t> made(h * n * m);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t) {
      const std::vector<float> r = plain_residual(keys, codes, book, head, t);
      for (std::size_t j = 0; j < m && !r.empty(); ++j) {
        bool finite = true;
        for (std::size_t i = j * ds; i < (j + 1) * ds; ++i) finite = finite && std::isfinite(r[i]);
        if (finite)
          made[(head * n + t) * m + j] =
              static_cast<std::uint8_t>(plain_nearest(r.data() + j * ds, &fine.centroids(head, j, 0, 0), fine.size(), ds).first);
      }
    }
  return made;
}

/// One list's shortlist, and both stages' tables of its g query heads.
struct plain_shortlist {
  plain_list coarse;                       // begin and end are not looked at
  pqkv::view<const float, 3> fine;         // [g, m2, c2]
  pqkv::view<const std::uint8_t, 2> rows;  // [n, m2]
  std::vector<std::int32_t> tokens;        // ascending

  float sum(std::size_t q, std::size_t i) const {
    const auto t = static_cast<std::size_t>(tokens[i]);
    float z = coarse.entries(q, 0, coarse.codes(0, t));
    for (std::size_t j = 1; j < coarse.subspaces(); ++j) z = z + coarse.entries(q, j, coarse.codes(j, t));
    for (std::size_t j = 0; j < fine.extent(1); ++j) z = z + fine(q, j, rows(t, j));
    return z;
  }
  bool left_out(std::size_t q) const {
    bool finite = !coarse.left_out(q);
    for (std::size_t j = 0; j < fine.extent(1); ++j)
      for (std::size_t x = 0; x < fine.extent(2); ++x) finite = finite && std::isfinite(fine(q, j, x));
    for (std::size_t i = 0; i < tokens.size(); ++i) finite = finite && std::isfinite(sum(q, i));
    return !finite;
  }
};

/// Canonical scores of the shortlist, in its order.
inline std::vector<float> plain_rerank_scores(const plain_shortlist& list) {
  using pqkv::group_reduction;
  const group_reduction reduction = list.coarse.reduction;
  const float scale = list.coarse.exponent_scale();
  std::vector<float> scores(list.tokens.size(), reduction == group_reduction::logit_max ? -INFINITY : 0.0f);
  for (std::size_t q = 0; q < list.coarse.group(); ++q) {
    if (list.left_out(q) || list.tokens.empty()) continue;
    std::vector<float> z, p;
    for (std::size_t i = 0; i < list.tokens.size(); ++i) z.push_back(list.sum(q, i));
    const float top = *std::max_element(z.begin(), z.end());
    std::uint64_t total = 0;
    for (const float one : z) {
      p.push_back(plain_exponential(one - top, scale));
      total += plain_fixed(p.back());
    }
    const float r = static_cast<float>(0x1p40 / static_cast<double>(total));
    for (std::size_t i = 0; i < z.size(); ++i) {
      float one = 0;
      switch (reduction) {
        case group_reduction::probability_sum:
          scores[i] = std::fma(p[i], r, scores[i]);
          break;
        case group_reduction::probability_max:
          one = p[i] * r;
          scores[i] = one > scores[i] ? one : scores[i];
          break;
        case group_reduction::logit_max:
          one = z[i] + list.coarse.bias(q);
          scores[i] = one > scores[i] ? one : scores[i];
          break;
        case group_reduction::logit_sum:
        case group_reduction::none:
          scores[i] = scores[i] + z[i];
          break;
      }
    }
  }
  return scores;
}

/// Positions of the k best of the shortlist, ascending.
inline std::vector<std::int32_t> plain_rerank(const plain_shortlist& list, std::size_t k) {
  std::vector<std::int32_t> chosen = plain_top_k(plain_rerank_scores(list), k);
  for (std::int32_t& i : chosen) i = list.tokens[static_cast<std::size_t>(i)];
  return chosen;
}

/// Probabilities of the reduction in double, and by how much rounding of the sums may move one, relative to it.
struct double_shortlist {
  std::vector<double> scores;
  double slack = 0;
};
inline double_shortlist double_probability_sums(const plain_shortlist& list) {
  double_shortlist out{std::vector<double>(list.tokens.size()), 0x1p-18};
  const double nats = list.coarse.nats();
  for (std::size_t q = 0; q < list.coarse.group(); ++q) {
    if (list.left_out(q)) continue;
    std::vector<double> z(list.tokens.size());
    double top = -HUGE_VAL, total = 0, magnitude = 0;
    for (std::size_t i = 0; i < z.size(); ++i) {
      const auto t = static_cast<std::size_t>(list.tokens[i]);
      double size = 0;
      const auto add = [&](float entry) {
        z[i] += static_cast<double>(entry);
        size += std::fabs(static_cast<double>(entry));
      };
      for (std::size_t j = 0; j < list.coarse.subspaces(); ++j) add(list.coarse.entries(q, j, list.coarse.codes(j, t)));
      for (std::size_t j = 0; j < list.fine.extent(1); ++j) add(list.fine(q, j, list.rows(t, j)));
      top = std::max(top, z[i]);
      magnitude = std::max(magnitude, size);
    }
    for (const double one : z) total += std::exp((one - top) * nats);
    for (std::size_t i = 0; i < z.size(); ++i) out.scores[i] += std::exp((z[i] - top) * nats) / total;
    // Each of m + m2 additions, and the subtraction of the greatest, rounds to 2^-24 of the magnitudes, in nats after scaling.
    out.slack =
        std::max(out.slack, static_cast<double>(list.coarse.subspaces() + list.fine.extent(1) + 2) * 4 * 0x1p-24 * magnitude * nats);
  }
  return out;
}

}  // namespace pqkv_cases
