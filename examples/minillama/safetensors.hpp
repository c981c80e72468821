// SPDX-License-Identifier: Apache-2.0
// Reader of one safetensors file: eight bytes with the header's length (little endian), a JSON header that maps each tensor's name
// to {dtype, shape, data_offsets}, then the tensors' bytes. The file is mapped, never copied; tensors are handed over on request.
// Sharded checkpoints are several of these: hugging_face.hpp. Format: the safetensors project's README.
#pragma once
#include <cstddef>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "mapped_rows.hpp"

namespace minillama {

class safetensors_file {
 public:
  /// Maps the file and checks every entry of its header, as strictly as the reference, safetensors 0.8.0: what that refuses is refused.
  ///
  /// @throws load_error that names the file and the tensor: file truncated, header longer than the file or than 16 MiB or not the JSON
  ///         expected, an unknown type, offsets outside the file, shape times size of the type not equal to the bytes, a name given twice,
  ///         tensors that overlap, leave a gap, or end before the file does
  explicit safetensors_file(const std::filesystem::path& path);

  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  std::vector<std::string> names() const;
  const std::filesystem::path& path() const { return path_; }

  /// Whether two tensors, this file's `name` and another's `other_name`, have the same type, shape and bytes. @pre both are there
  bool same(const std::string& name, const safetensors_file& other, const std::string& other_name) const;

  /// @throws load_error when the tensor is missing, has another shape, or a type that is not read
  void require(const std::string& name, std::span<const std::size_t> shape) const;

  /// @throws load_error when the tensor is missing, or of a type that is not read
  weight_type type_of(const std::string& name) const;

  /// Hands over one tensor row by row, as it is stored.
  ///
  /// @param shape  the shape that the model expects
  /// @throws load_error as require(), and when the tensor holds NaN or infinity
  void read_rows(const std::string& name, std::span<const std::size_t> shape, const row_taker& take) const;

 private:
  struct tensor {
    std::string type;
    std::vector<std::size_t> shape;
    std::span<const std::byte> bytes;
  };

  tensor entry_of(const std::string& name, const nlohmann::json& entry, std::span<const std::byte> data) const;
  const tensor& found(const std::string& name) const;
  const tensor& found(const std::string& name, std::span<const std::size_t> shape) const;
  void refuse_gaps(std::span<const std::byte> data) const;

  std::filesystem::path path_;
  mapped_file file_;
  std::map<std::string, tensor> tensors_;
};

}  // namespace minillama
