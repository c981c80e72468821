// SPDX-License-Identifier: Apache-2.0
// Reader of one safetensors file: eight bytes with the header's length (little endian), a JSON header that maps each tensor's name
// to {dtype, shape, data_offsets}, then the tensors' bytes. The file is mapped, never copied; tensors are converted to float on request.
// Sharded checkpoints are several of these: hugging_face.hpp. Format: the safetensors project's README.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace minillama {

/// A whole file mapped read-only, unmapped when it goes out of scope.
class mapped_file {
 public:
  /// @throws load_error when the file cannot be opened, is empty or cannot be mapped
  explicit mapped_file(const std::filesystem::path& path);
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  ~mapped_file();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

class safetensors_file {
 public:
  /// Maps the file and checks every entry of its header.
  ///
  /// @throws load_error that names the file and the tensor: file truncated, header longer than the file or not the JSON expected,
  ///         offsets outside the file, shape times size of the type not equal to the bytes, a name given twice, bytes of
  ///         two tensors that overlap
  explicit safetensors_file(const std::filesystem::path& path);

  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  std::vector<std::string> names() const;

  /// Reads one tensor as float, row major.
  ///
  /// @param shape  the shape that the model expects
  /// @param out    as many elements as the shape has, written
  /// @throws load_error when the tensor is missing, has another shape or an unknown type, or holds NaN or infinity
  void read(const std::string& name, std::span<const std::size_t> shape, std::span<float> out) const;

 private:
  struct tensor {
    std::string type;
    std::vector<std::size_t> shape;
    std::span<const std::byte> bytes;
  };

  void refuse_overlaps() const;

  std::filesystem::path path_;
  mapped_file file_;
  std::map<std::string, tensor> tensors_;
};

}  // namespace minillama
