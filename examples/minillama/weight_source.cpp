// SPDX-License-Identifier: Apache-2.0
// The choice between the formats: a file is llama2.c's, anything else is taken for a directory.
#include "weight_source.hpp"

#include "hugging_face.hpp"
#include "llama2c.hpp"

namespace minillama {

checkpoint open_checkpoint(const std::filesystem::path& path) {
  return std::filesystem::is_regular_file(path) ? open_llama2c(path) : open_hugging_face(path);
}

model_config read_shape(const std::filesystem::path& path) {
  return std::filesystem::is_regular_file(path) ? open_llama2c(path).config : load_config(path / "config.json");
}

}  // namespace minillama
