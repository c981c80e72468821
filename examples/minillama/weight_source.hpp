// SPDX-License-Identifier: Apache-2.0
// Where a model's weights come from. Whatever the file is like, tensors are asked for by the names and shapes of Hugging Face's Llama.
#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "config.hpp"
#include "mapped_rows.hpp"
#include "weight_type.hpp"

namespace minillama {

class weight_source {
 public:
  virtual ~weight_source() = default;

  /// Of every tensor.
  virtual std::vector<std::string> names() const = 0;
  /// Ends with a load_error that names the file where the tensor is, or would be.
  [[noreturn]] virtual void refuse(const std::string& name, const std::string& what) const = 0;
  /// Looks at the header alone. @throws load_error when the tensor is missing, of another shape, or of a type that is not read
  virtual void require(const std::string& name, std::span<const std::size_t> shape) const = 0;
  /// Whether two tensors that are there hold the same bytes.
  virtual bool same(const std::string& one, const std::string& other) const = 0;

  /// The type that a tensor is stored in. @throws load_error as require(), but for the shape
  virtual weight_type type_of(const std::string& name) const = 0;

  /// Hands over one tensor row by row, in any order; a tensor of one extent is one row.
  ///
  /// @param shape  the shape that the model expects
  /// @param take   gets each row once, as type_of() says it is stored
  /// @throws load_error as require(), and where there is NaN or infinity in it
  virtual void read_rows(const std::string& name, std::span<const std::size_t> shape, const row_taker& take) const = 0;

  /// Reads one tensor as float, row major.
  ///
  /// @param out  as many elements as the shape has, written
  /// @throws load_error as read_rows()
  void read(const std::string& name, std::span<const std::size_t> shape, std::span<float> out) const;
};

/// A model's shape, and its weights.
struct checkpoint {
  model_config config;
  std::unique_ptr<weight_source> weights;
  std::string prefix = "model.";  // of the names of all tensors but the head
  std::string head = "lm_head.weight";
};

/// Opens a Hugging Face directory, or a file in llama2.c's format, and checks what is in it. Weights are read on request.
/// @throws load_error as open_hugging_face() and open_llama2c()
checkpoint open_checkpoint(const std::filesystem::path& path);

/// Whether there is a file of weights: a directory may hold config.json alone, which tells the shape.
/// @throws load_error when there is neither a file nor a directory
bool has_weights(const std::filesystem::path& path);

}  // namespace minillama
