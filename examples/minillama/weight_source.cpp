// SPDX-License-Identifier: Apache-2.0
// The choice between the formats: a file is llama2.c's, anything else is taken for a directory.
#include "weight_source.hpp"

#include "hugging_face.hpp"
#include "llama2c.hpp"
#include "load_error.hpp"

namespace minillama {

namespace {

bool is_file(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path))
    throw load_error(path.string(), "does not exist; a model is a directory with a config.json, or a file in llama2.c's format");
  if (!std::filesystem::is_directory(path) && !std::filesystem::is_regular_file(path))
    throw load_error(path.string(), "is neither a file nor a directory");
  return std::filesystem::is_regular_file(path);
}

}  // namespace

void weight_source::read(const std::string& name, std::span<const std::size_t> shape, std::span<float> out) const {
  const weight_type type = type_of(name);
  read_rows(name, shape, [&](std::size_t row, std::span<const std::byte> elements) {
    to_floats(type, elements, out.subspan(row * shape.back(), shape.back()));
  });
}

checkpoint open_checkpoint(const std::filesystem::path& path) { return is_file(path) ? open_llama2c(path) : open_hugging_face(path); }

bool has_weights(const std::filesystem::path& path) { return is_file(path) || has_hugging_face_weights(path); }

}  // namespace minillama
