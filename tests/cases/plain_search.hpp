// SPDX-License-Identifier: Apache-2.0
// The search stage as the method states it, slow and plain: canonical scores token by token, selection by a full sort, and a
// second opinion in double that starts from the same float table. Nothing here calls the library's SIMD kernels, and there is no joint
// path. As in the library, no rounded product feeds an add, so compiler flags change no bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <pqkv/search/retrieve.hpp>

namespace pqkv_cases {

/// What one list is selected from: tokens [begin, end) of one KV head, and the tables of g query heads.
struct plain_list {
  pqkv::view<const float, 3> entries;       // [g, m, c]
  pqkv::view<const float, 1> bias;          // [g]
  pqkv::view<const std::uint8_t, 2> codes;  // [m, n]
  std::size_t begin = 0, end = 0, head_dim = 0;
  pqkv::group_reduction reduction = pqkv::group_reduction::probability_sum;
  float logit_scale = 0;                     // 0: 1 / sqrt(head_dim)
  std::vector<pqkv::attended_sum> beside{};  // [g] sums over other tokens that the normalisers count too, or empty

  /// What logits are scaled by.
  double nats() const { return logit_scale == 0 ? 1 / std::sqrt(static_cast<double>(head_dim)) : static_cast<double>(logit_scale); }
  /// The same in the exponent of 2, as the method rounds it.
  float exponent_scale() const {
    const double log2_e = 1.4426950408889634074;
    return static_cast<float>(logit_scale == 0 ? log2_e / std::sqrt(static_cast<double>(head_dim))
                                               : log2_e * static_cast<double>(logit_scale));
  }
  std::size_t group() const { return entries.extent(0); }
  std::size_t subspaces() const { return entries.extent(1); }
  std::size_t centroids() const { return entries.extent(2); }
  bool probabilities() const {
    return reduction == pqkv::group_reduction::probability_sum || reduction == pqkv::group_reduction::probability_max;
  }
  /// A query head with a non-finite entry is left out; its bias counts only where it is used.
  bool left_out(std::size_t q) const {
    bool finite = reduction != pqkv::group_reduction::logit_max || std::isfinite(bias(q));
    for (std::size_t j = 0; j < subspaces(); ++j)
      for (std::size_t x = 0; x < centroids(); ++x) finite = finite && std::isfinite(entries(q, j, x));
    return !finite;
  }
};

/// What became of the query heads on the way.
struct plain_notes {
  std::size_t recentred = 0, clamped = 0, empty = 0, skipped = 0;
};

/// 2^(u * scale) by the method's chain; 0 below its floor.
inline float plain_exponential(float u, float scale) {
  if (u < -125.0f / scale) return 0.0f;
  const float t = std::fma(u, scale, 12582912.0f);
  const float i = t - 12582912.0f;
  const float r = std::fma(u, scale, -i);
  const float chain[] = {1.0f, 0x1.62e43p-1f, 0x1.ebfbep-3f, 0x1.c6aeccp-5f, 0x1.3b2a1cp-7f, 0x1.5f48cp-10f, 0x1.444p-13f};
  float p = chain[6];
  for (int power = 5; power >= 0; --power) p = std::fma(p, r, chain[power]);
  return std::ldexp(p, static_cast<int>(i));
}

/// F: P * 2^40, to nearest even.
inline std::uint64_t plain_fixed(float p) { return static_cast<std::uint64_t>(std::llrint(std::ldexp(static_cast<double>(p), 40))); }

/// The weight of a sum whose exponents are relative to this logit; at most 2^62.
inline std::uint64_t plain_relative(const pqkv::attended_sum& sum, float logit, float scale) {
  const float above = sum.top - logit, u = std::min(above, 60.0f / scale);
  const double weight = static_cast<double>(sum.weight) * static_cast<double>(plain_exponential(u, scale));
  return weight < 0x1p62 ? static_cast<std::uint64_t>(weight) : std::uint64_t{1} << 62;
}
/// The sum over the tokens of some runs, [begin, end) each, for one query: tiles of 64 tokens, merged in order.
/// @param key  key(t, i), as stored
template <class Key>
pqkv::attended_sum plain_attended(const float* query, std::size_t d, const std::vector<std::pair<std::size_t, std::size_t>>& runs,
                                  float scale, Key key) {
  pqkv::attended_sum all{};
  for (const auto& [begin, end] : runs)
    for (std::size_t first = begin; first < end; first += 64) {
      std::vector<float> logits;
      for (std::size_t t = first; t < std::min(first + 64, end); ++t) {
        float logit = 0;
        for (std::size_t i = 0; i < d; ++i) logit = std::fma(query[i], key(t, i), logit);
        if (std::isfinite(logit)) logits.push_back(logit);
      }
      if (logits.empty()) continue;
      pqkv::attended_sum tile{*std::max_element(logits.begin(), logits.end()), 0};
      for (const float logit : logits) tile.weight += plain_fixed(plain_exponential(logit - tile.top, scale));
      if (all.weight == 0)
        all = tile;
      else if (tile.top > all.top)
        all = {tile.top, tile.weight + plain_relative(all, tile.top, scale)};
      else
        all.weight += plain_relative(tile, all.top, scale);
    }
  return all;
}

inline float plain_product(const plain_list& list, const std::vector<float>& e, std::size_t t) {
  float p = e[list.codes(0, t)];
  for (std::size_t j = 1; j < list.subspaces(); ++j) p = p * e[j * list.centroids() + list.codes(j, t)];
  return p;
}
inline float plain_sum(const plain_list& list, const std::vector<float>& u, std::size_t t) {
  float z = u[list.codes(0, t)];
  for (std::size_t j = 1; j < list.subspaces(); ++j) z = z + u[j * list.centroids() + list.codes(j, t)];
  return z;
}

/// P and R of one query head.
struct plain_probabilities {
  std::vector<float> p;
  float r = 0;
};

inline plain_probabilities probabilities_of(const plain_list& list, std::size_t q, plain_notes& notes) {
  const std::size_t m = list.subspaces(), c = list.centroids(), tokens = list.end - list.begin;
  const float scale = list.exponent_scale();
  std::vector<float> u(m * c), e(m * c);
  for (std::size_t j = 0; j < m; ++j) {
    float most = list.entries(q, j, 0);
    for (std::size_t x = 0; x < c; ++x) most = list.entries(q, j, x) > most ? list.entries(q, j, x) : most;
    for (std::size_t x = 0; x < c; ++x) u[j * c + x] = list.entries(q, j, x) - most;
  }
  plain_probabilities out;
  std::uint64_t z = 0;
  float zero = list.bias(q);  // the logit whose product is 1
  for (std::size_t j = 0; j < m; ++j) {
    float most = list.entries(q, j, 0);
    for (std::size_t x = 0; x < c; ++x) most = list.entries(q, j, x) > most ? list.entries(q, j, x) : most;
    zero = zero + most;
  }
  const auto pass = [&] {
    for (std::size_t x = 0; x < m * c; ++x) e[x] = plain_exponential(u[x], scale);
    out.p.clear();
    z = 0;
    for (std::size_t t = list.begin; t < list.end; ++t) {
      out.p.push_back(plain_product(list, e, t));
      z += plain_fixed(out.p.back());
    }
  };
  pass();
  if (z < (std::uint64_t{tokens} << 20)) {
    float best = -INFINITY;
    for (std::size_t t = list.begin; t < list.end; ++t) best = std::max(best, plain_sum(list, u, t));
    const float a = std::max(best, -120.0f / scale), part = a / static_cast<float>(m);
    for (float& x : u) x = x - part;
    zero = zero + a;
    ++notes.recentred;
    notes.clamped += a > best ? 1 : 0;
    pass();
  }
  std::uint64_t all = z;
  if (!list.beside.empty() && list.beside[q].weight != 0 && std::isfinite(zero)) all += plain_relative(list.beside[q], zero, scale);
  out.r = z == 0 ? 0.0f : static_cast<float>(0x1p40 / static_cast<double>(all));
  notes.empty += z == 0 && tokens != 0 ? 1 : 0;
  return out;
}

/// Canonical scores of tokens [begin, end).
inline std::vector<float> plain_scores(const plain_list& list, plain_notes& notes) {
  using pqkv::group_reduction;
  const std::size_t tokens = list.end - list.begin;
  const bool maximum = list.reduction == group_reduction::logit_max;
  std::vector<float> scores(tokens, maximum ? -INFINITY : 0.0f);
  for (std::size_t q = 0; q < list.group(); ++q) {
    if (list.left_out(q)) {
      ++notes.skipped;
      continue;
    }
    if (list.probabilities()) {
      const plain_probabilities one = probabilities_of(list, q, notes);
      for (std::size_t i = 0; i < tokens && one.r != 0; ++i) {
        if (list.reduction == group_reduction::probability_sum) {
          scores[i] = std::fma(one.p[i], one.r, scores[i]);
        } else {
          const float p = one.p[i] * one.r;
          scores[i] = p > scores[i] ? p : scores[i];
        }
      }
      continue;
    }
    std::vector<float> table;
    for (std::size_t j = 0; j < list.subspaces(); ++j)
      for (std::size_t x = 0; x < list.centroids(); ++x) table.push_back(list.entries(q, j, x));
    for (std::size_t i = 0; i < tokens; ++i) {
      const float z = plain_sum(list, table, list.begin + i);
      if (maximum) {
        const float shifted = z + list.bias(q);
        scores[i] = shifted > scores[i] ? shifted : scores[i];
      } else {
        scores[i] = scores[i] + z;
      }
    }
  }
  return scores;
}

/// a ranks before b: larger, where -0 equals +0 and a NaN is below everything.
inline bool ranks_before(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return !std::isnan(a) && std::isnan(b);
  return a > b;
}

/// Positions of the k best scores, ties to the lower position; ascending.
inline std::vector<std::int32_t> plain_top_k(const std::vector<float>& scores, std::size_t k) {
  std::vector<std::int32_t> order(scores.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const float first = scores[static_cast<std::size_t>(a)], second = scores[static_cast<std::size_t>(b)];
    return ranks_before(first, second) || (!ranks_before(second, first) && a < b);
  });
  order.resize(std::min(k, order.size()));
  std::sort(order.begin(), order.end());
  return order;
}

/// What a double-precision score may be: both ends are the score itself, except where the method exempts a contribution.
struct score_range {
  double low = 0, high = 0;
};

/// Scores in double from the canonical float table. A contribution is exempt where it is under 2^-100, or where one factor is below
/// the exponential's floor; `known` is false where a table had to be clamped, which exempts the list.
inline std::vector<score_range> double_scores(const plain_list& list, const plain_notes& notes, bool& known) {
  using pqkv::group_reduction;
  const std::size_t tokens = list.end - list.begin, m = list.subspaces(), c = list.centroids();
  const bool maximum = list.reduction == group_reduction::probability_max || list.reduction == group_reduction::logit_max;
  known = notes.clamped == 0;
  const double first = list.reduction == group_reduction::logit_max ? -HUGE_VAL : 0;
  std::vector<score_range> scores(tokens, {first, first});
  for (std::size_t q = 0; q < list.group(); ++q) {
    if (list.left_out(q)) continue;
    std::vector<double> most(m, -HUGE_VAL), z(tokens), total(2, 0.0);
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t x = 0; x < c; ++x) most[j] = std::max(most[j], static_cast<double>(list.entries(q, j, x)));
    double best = -HUGE_VAL, top = 0;
    for (const double one : most) top += one;
    for (std::size_t i = 0; i < tokens; ++i) {
      for (std::size_t j = 0; j < m; ++j) z[i] += static_cast<double>(list.entries(q, j, list.codes(j, list.begin + i)));
      best = std::max(best, z[i]);
    }
    const double nats = list.nats(), floor = -125 * std::log(2.0) / nats;
    const auto exempt = [&](std::size_t i) {
      bool below = (z[i] - best) * nats < -100 * std::log(2.0);
      for (std::size_t j = 0; j < m; ++j)  // the shared shift of a recentred table raises the floor by its part
        below = below || static_cast<double>(list.entries(q, j, list.codes(j, list.begin + i))) - most[j] <
                             0.999 * floor + std::min(0.0, best - top) / static_cast<double>(m);
      return below;
    };
    for (std::size_t i = 0; i < tokens; ++i) {
      total[1] += std::exp((z[i] - best) * nats);
      total[0] += exempt(i) ? 0 : std::exp((z[i] - best) * nats);
    }
    for (std::size_t i = 0; i < tokens; ++i) {
      score_range one{z[i], z[i]};
      if (list.probabilities()) {
        const double p = std::exp((z[i] - best) * nats);
        one = {exempt(i) ? 0 : p / total[1], total[0] > 0 ? p / total[0] : p};
      } else if (maximum) {
        one = {z[i] + static_cast<double>(list.bias(q)), z[i] + static_cast<double>(list.bias(q))};
      }
      scores[i].low = maximum ? std::max(scores[i].low, one.low) : scores[i].low + one.low;
      scores[i].high = maximum ? std::max(scores[i].high, one.high) : scores[i].high + one.high;
    }
  }
  return scores;
}

/// Largest sum of magnitudes behind a logit of the list: what float summation errs relative to.
inline double logit_magnitude(const plain_list& list) {
  double most = 0;
  for (std::size_t t = list.begin; t < list.end; ++t) {
    double sum = 0;
    for (std::size_t q = 0; q < list.group(); ++q) {
      if (list.left_out(q)) continue;
      sum += list.reduction == pqkv::group_reduction::logit_max ? std::fabs(static_cast<double>(list.bias(q))) : 0;
      for (std::size_t j = 0; j < list.subspaces(); ++j) sum += std::fabs(static_cast<double>(list.entries(q, j, list.codes(j, t))));
    }
    most = std::max(most, sum);
  }
  return most;
}

/// The rule that binds a selection to the double scores: a token in one set and not in the other is within 2^-16 of the threshold,
/// relative to it (for logits, whose sums cancel, 2^-20 relative to the magnitudes summed). Returns "" or what is wrong.
/// @param chosen  ascending positions, absolute
inline std::string against_double(const plain_list& list, const std::vector<score_range>& scores, const std::vector<std::int32_t>& chosen) {
  const std::size_t k = chosen.size(), tokens = list.end - list.begin;
  if (k == 0 || k == tokens) return "";
  std::vector<double> low, high;
  for (const score_range& one : scores) low.push_back(one.low), high.push_back(one.high);
  const auto kth = [k](std::vector<double> all) {
    std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(k - 1), all.end(), std::greater<double>());
    return all[k - 1];
  };
  const double least = kth(low), most = kth(high);
  const double slack = list.probabilities() ? 0x1p-16 * most : 0x1p-20 * logit_magnitude(list);
  std::vector<bool> in(tokens, false);
  for (const std::int32_t t : chosen) in[static_cast<std::size_t>(t) - list.begin] = true;
  for (std::size_t i = 0; i < tokens; ++i) {
    if (in[i] && high[i] < least - slack)
      return "token " + std::to_string(list.begin + i) + " chosen with " + std::to_string(high[i] / least - 1) +
             " relative to the threshold";
    if (!in[i] && low[i] > most + slack)
      return "token " + std::to_string(list.begin + i) + " missing with " + std::to_string(low[i] / most - 1) +
             " relative to the threshold";
  }
  return "";
}

}  // namespace pqkv_cases
