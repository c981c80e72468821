// SPDX-License-Identifier: Apache-2.0
#include "mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "load_error.hpp"

namespace minillama {

mapped_file::mapped_file(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // opening a pipe would wait for who writes it
  if (descriptor < 0) throw load_error(path.string(), std::string("cannot be opened: ") + std::strerror(errno));
  struct stat facts {};
  const bool regular = ::fstat(descriptor, &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_size > 0;
  void* data = regular ? ::mmap(nullptr, static_cast<std::size_t>(facts.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0) : MAP_FAILED;
  ::close(descriptor);
  if (data == MAP_FAILED) throw load_error(path.string(), "is empty, or not a file that can be mapped");
  data_ = static_cast<const std::byte*>(data);
  size_ = static_cast<std::size_t>(facts.st_size);
}

void mapped_file::forget(std::span<const std::byte> part) const {
  constexpr std::uintptr_t step = 64 << 10;  // pages come in groups of so many bytes; a multiple of every page size
  const auto address = [](const std::byte* at) { return reinterpret_cast<std::uintptr_t>(at); };
  const std::byte* const last = part.data() + part.size();
  const std::uintptr_t begin = std::max(address(part.data()) / step * step, address(data_));
  const std::uintptr_t end = last == data_ + size_ ? address(last) : address(last) / step * step;
  // A hint to the system: where it fails, the pages stay.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

mapped_file::~mapped_file() { ::munmap(const_cast<std::byte*>(data_), size_); }

}  // namespace minillama
