// SPDX-License-Identifier: Apache-2.0
// Where a model's weights come from. Whatever the file is like, tensors are asked for by the names and shapes of Hugging Face's Llama.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "config.hpp"

namespace minillama {

class weight_source {
 public:
  virtual ~weight_source() = default;

  /// Reads one tensor as float, row major.
  ///
  /// @param shape  the shape that the model expects
  /// @param out    as many elements as the shape has, written
  /// @throws load_error that names file and tensor: missing, of another shape or an unknown type, NaN or infinity in it
  virtual void read(const std::string& name, std::span<const std::size_t> shape, std::span<float> out) const = 0;
};

/// A model's shape, and its weights.
struct checkpoint {
  model_config config;
  std::unique_ptr<weight_source> weights;
};

}  // namespace minillama
