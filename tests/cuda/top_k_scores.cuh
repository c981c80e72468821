// SPDX-License-Identifier: Apache-2.0
// Scores that top_k is tested on: random ones, and those whose sample, ties or places are the worst that a row can have.
#pragma once

#include <pqkv/detail/cuda/block/bracket.cuh>

#include <vector>

#include "cases/inputs.hpp"

namespace pqkv_cases {

enum class score_kind {
  normal,
  three_values,  // -0 among them
  nonfinite,     // a quarter of them
  any_bits,
  one_value,
  many_ties,
  ascending,
  best_first,      // the best of the row are together at its beginning
  runs,            // neighbours are alike
  sampled_lowest,  // the sample has no other
  sampled_highest
};
inline constexpr score_kind every_score[] = {score_kind::normal,         score_kind::three_values,   score_kind::nonfinite,
                                             score_kind::any_bits,       score_kind::one_value,      score_kind::many_ties,
                                             score_kind::ascending,      score_kind::best_first,     score_kind::runs,
                                             score_kind::sampled_lowest, score_kind::sampled_highest};

/// Scores of rows that begin `stride` after each other, and one more.
inline std::vector<float> make_scores(score_kind kind, std::size_t rows, std::size_t n, std::size_t stride, random_source& random) {
  std::vector<float> scores(rows * stride + 1);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    float& x = scores[i] = random.gaussian();
    const std::size_t t = stride == 0 ? 0 : i % stride;
    if (kind == score_kind::three_values) x = static_cast<float>(random.below(3)) - 1.0f;
    if (kind == score_kind::three_values && x == 0 && random.below(2) == 0) x = -0.0f;
    if (kind == score_kind::nonfinite && random.below(4) == 0) x = nonfinite(random.below(3));
    if (kind == score_kind::any_bits) x = pqkv::float_from_bits(static_cast<std::uint32_t>(random.bits()));
    if (kind == score_kind::one_value) x = 0.25f;
    if (kind == score_kind::many_ties) x = static_cast<float>(random.below(200));
    if (kind == score_kind::ascending) x = static_cast<float>(t);
    if (kind == score_kind::best_first && t < n / 8) x += 100;
    if (kind == score_kind::runs && t / 700 % 5 == 0) x += 3;
  }
  if (n <= pqkv::detail::block::bracket_sample || (kind != score_kind::sampled_lowest && kind != score_kind::sampled_highest))
    return scores;
  for (std::size_t row = 0; row < rows; ++row)
    for (std::uint32_t i = 0; i < pqkv::detail::block::bracket_sample; ++i)
      scores[row * stride + pqkv::detail::block::sample_pair_place(i, static_cast<std::uint32_t>(n))] =
          kind == score_kind::sampled_lowest ? -200.0f : 200.0f;
  return scores;
}

}  // namespace pqkv_cases
