// SPDX-License-Identifier: Apache-2.0
// A checkpoint in llama2.c's legacy format (version 0): seven int32 of shape, then all weights as float32, little endian. Its rotary
// embedding turns adjacent pairs of a head, where Hugging Face turns halves: rows of queries and keys are reordered while reading, which
// leaves every product of a query and a key as it was. Later versions of the format, with a magic number, are refused.
#pragma once
#include <filesystem>

#include "weight_source.hpp"

namespace minillama {

/// Tokens 1 and 2, which begin and end a text, both end generation.
///
/// @throws load_error that names the file and what is wrong: an extent out of range, heads that do not divide, a size other than the
///         shape makes
checkpoint open_llama2c(const std::filesystem::path& path);

}  // namespace minillama
