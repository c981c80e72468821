// SPDX-License-Identifier: Apache-2.0
// A Hugging Face directory: config.json, and the weights in model.safetensors or, sharded, in the files that
// model.safetensors.index.json names. Where both are there the single file is read, as transformers does.
#pragma once
#include <filesystem>

#include "weight_source.hpp"

namespace minillama {

/// @throws load_error that names the file and the key or tensor: what load_config(), safetensors_file and match_tensors() refuse; an index
/// without
///         weight_map, with a shard outside the directory, a shard that is missing or lacks a tensor; a tensor in two shards
checkpoint open_hugging_face(const std::filesystem::path& directory);

/// Whether either of the two files is there.
bool has_hugging_face_weights(const std::filesystem::path& directory);

}  // namespace minillama
