// SPDX-License-Identifier: Apache-2.0
// Partial results to merge, for the tests of both backends, and the merge in double straight from the formula.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "inputs.hpp"

namespace pqkv_cases {

/// Outputs [hq, d] with gaps behind each row, and log-sum-exps [hq] of one part.
struct partial_result {
  std::size_t hq, d, stride;
  std::vector<float> out, lse;

  partial_result(std::size_t query_heads, std::size_t dim, std::size_t gap)
      : hq(query_heads), d(dim), stride(dim + gap), out(query_heads * (dim + gap), -7.0f), lse(query_heads) {}
  pqkv::view<float, 2> out_view() { return {out.data(), {hq, d}, {stride, 1}}; }
  pqkv::view<float, 1> lse_view() { return pqkv::make_view(lse.data(), hq); }
};

/// Heads of every kind in turn: near weights, far weights of both signs, empty, NaN.
inline partial_result make_partial(std::size_t hq, std::size_t d, std::size_t gap, random_source& random) {
  partial_result part(hq, d, gap);
  for (std::size_t q = 0; q < hq; ++q) {
    const std::size_t what = random.below(8);
    const float size = what == 0 ? 100.0f : what == 1 ? 3000.0f : 4.0f;
    part.lse[q] = what == 6 ? -INFINITY : what == 7 && random.below(3) == 0 ? NAN : size * random.gaussian();
    for (std::size_t i = 0; i < d; ++i)
      part.out[q * part.stride + i] = what == 6 ? 0.0f : std::isnan(part.lse[q]) ? NAN : random.gaussian();
  }
  return part;
}

/// How far `merged` is from both parts merged in double: the largest error of an output and of a log-sum-exp, infinity where one is a
/// NaN and should not be, or is none and should be, or where a gap was written to.
inline double merge_error(const partial_result& a, const partial_result& b, const partial_result& merged) {
  double worst = 0;
  for (std::size_t q = 0; q < a.hq; ++q) {
    const double of_a = static_cast<double>(a.lse[q]), of_b = static_cast<double>(b.lse[q]);
    const bool nan = std::isnan(of_a) || std::isnan(of_b), empty = of_a == -HUGE_VAL && of_b == -HUGE_VAL;
    const double top = std::fmax(of_a, of_b), x = empty ? 0 : std::exp(of_a - top), y = empty ? 0 : std::exp(of_b - top);
    const double lse = empty ? -HUGE_VAL : top + std::log(x + y);
    const auto judge = [&](double wanted, float is) {
      const double got = static_cast<double>(is);
      if (nan || wanted == got)
        worst = nan && !std::isnan(got) ? HUGE_VAL : worst;
      else
        worst = std::isfinite(got) ? std::fmax(worst, std::fabs(got - wanted) / std::fmax(1.0, std::fabs(wanted))) : HUGE_VAL;
    };
    judge(lse, merged.lse[q]);
    for (std::size_t i = 0; i < a.d; ++i) {
      const double sum = x * static_cast<double>(a.out[q * a.stride + i]) + y * static_cast<double>(b.out[q * b.stride + i]);
      judge(empty ? 0 : sum / (x + y), merged.out[q * merged.stride + i]);
    }
    for (std::size_t i = a.d; i < a.stride; ++i) worst = merged.out[q * merged.stride + i] == -7.0f ? worst : HUGE_VAL;
  }
  return worst;
}

}  // namespace pqkv_cases
