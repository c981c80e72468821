// SPDX-License-Identifier: Apache-2.0
// Rotary embedding: how far one position turns each pair of a head, and the turning itself, by halves as Hugging Face stores heads.
#pragma once
#include <pqkv/config.hpp>
#include <span>
#include <vector>

#include "config.hpp"

namespace minillama {

/// Angle of one position for each pair of a head, [d/2]; pairs that pad a head do not turn.
///
/// frequency[i] = theta^(-2i/d) with d as stored, scaled as the model asks for it. linear: `factor` times slower. llama3: a pair that
/// turns fewer than low_freq_factor times in original_positions turns `factor` times slower, one that turns more than high_freq_factor
/// times stays, and between the two the speed goes over linearly in the number of turns. yarn: the same between beta_slow and beta_fast
/// turns, but linearly in i.
///
/// @source transformers, modeling_rope_utils.py, _compute_llama3_parameters and _compute_yarn_parameters
std::vector<float> rotary_frequencies(const model_config& config);

/// What turns together: elements i and i + d/2 of a head.
struct rotary_pair {
  float first, second;
};
/// The same on the host and in kernels, but for how a compiler joins products and sums.
PQKV_HD constexpr rotary_pair turned(rotary_pair pair, float cosine, float sine) {
  return {pair.first * cosine - pair.second * sine, pair.second * cosine + pair.first * sine};
}

/// Turns each pair (i, i + d/2) of every head by its angle.
///
/// @param heads    [heads, d], updated
/// @param cosines  [d/2] of the position's angles
/// @param sines    [d/2]
void rotate(std::span<float> heads, std::span<const float> cosines, std::span<const float> sines);

}  // namespace minillama
