// SPDX-License-Identifier: Apache-2.0
// What a selection finds, estimated while a session runs, from few keys: where they are in a file, reading them all would be the dense
// attention that a selection is there to save.
#pragma once
#include <optional>

#include "policy.hpp"
#include "random_source.hpp"
#include "session.hpp"

namespace minillama {

/// Tokens from one sample to the next, at least; each is of one layer, one after the other.
inline constexpr std::size_t tokens_between_samples = 16;

/// Estimates recall@k of a layer's last token. Of tokens drawn from the middle, spread evenly, the best by exact score are those that an
/// exact top-k would most likely have; of these it counts those that were selected. As many are drawn as hold 16 of the k on average, but
/// 256 at least.
///
/// @returns a share from 0 to 1; none where everything or nothing of the middle is selected
/// @cost    reads the drawn keys of every KV head, and selects once more
std::optional<double> sample_recall(const host_policy& cpu, const layer_step& step, const model_config& config, random_source& random);

}  // namespace minillama
