// SPDX-License-Identifier: Apache-2.0
// A whole file in memory without a copy.
#pragma once
#include <cstddef>
#include <filesystem>
#include <span>

namespace minillama {

/// A file mapped read-only, unmapped when it goes out of scope.
class mapped_file {
 public:
  /// @throws load_error when the file cannot be opened, is empty, or is no file: a pipe would be waited for
  explicit mapped_file(const std::filesystem::path& path);
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  ~mapped_file();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Says that a part was read: its pages are no longer counted as this process's, and come back when they are asked for. The page in
  /// which the part ends stays, for what follows it.
  void forget(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace minillama
