// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets share: bytes as a file that readers open by its path, and the rule for what a reader may say of them.
//
// A target is one function of bytes, as libFuzzer calls it. PQKV_FUZZ_ENTRY is its name: libFuzzer's own where a target is a program,
// another where all of them are in one (every_target.cpp).
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "load_error.hpp"

#if !defined(PQKV_FUZZ_ENTRY)
#define PQKV_FUZZ_ENTRY LLVMFuzzerTestOneInput
#endif

namespace pqkv_fuzz {

/// How many inputs readers took as whole; a corpus without one would test nothing but the first check.
inline std::size_t accepted = 0;

/// A file in memory, of which the path is a number.
class input_file {
 public:
  input_file() : descriptor_(::memfd_create("input", 0)) {
    if (descriptor_ < 0) throw std::runtime_error("no file in memory");
  }
  input_file(const input_file&) = delete;
  input_file& operator=(const input_file&) = delete;
  ~input_file() { ::close(descriptor_); }

  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }
  void set(const std::uint8_t* data, std::size_t size) {
    bool whole = ::ftruncate(descriptor_, 0) == 0;
    for (std::size_t done = 0; whole && done < size;) {
      const auto wrote = ::pwrite(descriptor_, data + done, size - done, static_cast<off_t>(done));
      whole = wrote > 0;
      if (whole) done += static_cast<std::size_t>(wrote);
    }
    if (!whole) throw std::runtime_error("a file in memory cannot be written");
  }

 private:
  int descriptor_;
};

/// Calls read(), which may take the input or refuse it with a load_error of one line; anything else ends the program.
template <class Read>
void read_untrusted(Read&& read) {
  try {
    read();
    ++accepted;
  } catch (const minillama::load_error& refusal) {
    const std::string what = refusal.what();
    for (const char c : what)
      if (static_cast<unsigned char>(c) < 0x20) std::abort();  // a line of the file's own making
    if (what.find(": ") == what.npos) std::abort();
  }
}

}  // namespace pqkv_fuzz
