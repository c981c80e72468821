// SPDX-License-Identifier: Apache-2.0
// What a config.json says of rotary embedding, in its older and its newer spelling.
#pragma once
#include <cstddef>

#include "config.hpp"
#include "json_reader.hpp"

namespace minillama {

/// Reads base and scaling: rope_theta at the top and rope_scaling beside it, or all of it in rope_parameters.
///
/// @param positions  max_position_embeddings
/// @throws load_error that names the key: a base of 1 or less, a scaling that is not known, both spellings where they differ
void read_rotary(const json_reader& object, std::size_t positions, model_config& config);

}  // namespace minillama
