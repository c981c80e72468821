// SPDX-License-Identifier: Apache-2.0
// A file of fixed size as memory. Its room on the disk is reserved before the first byte is written, so a full disk is an error of the
// constructor and never a later one. Unless the caller brings an open file it has no name: nobody can remove or shorten it, and it is gone
// when the process ends, however that happens. For systems with POSIX files, mmap and posix_fallocate.
//
// A mapping cannot report errors. Reading past the end of a file that somebody has shortened, or from a failing disk, ends the process by a
// signal (SIGBUS). ensure_readable() detects a shortened file before that happens; wait_for() and read() report both as errors.
#pragma once

#if defined(_WIN32) || defined(__APPLE__)
#error "pqkv: cache/mapped_file.hpp needs posix_fallocate, which only Linux has; on Windows build under WSL"
#endif

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "../core/error.hpp"

namespace pqkv::inline PQKV_MODE {

/// A call on a file failed, or the file has changed. what() names the function and the call, and has the system's message.
struct storage_error : std::runtime_error {
  storage_error(int code, const std::string& message) : std::runtime_error(message), error(code) {}

  int error;  // errno; 0: the file was shortened
};

namespace detail {
[[noreturn]] inline void raise_storage(const char* function, const char* call, int error) {
  char text[320];
  if (error != 0)
    std::snprintf(text, sizeof text, "pqkv::%s: %s: %s", function, call, std::strerror(error));
  else
    std::snprintf(text, sizeof text, "pqkv::%s: %s", function, call);
#if PQKV_HAS_EXCEPTIONS
  throw storage_error(error, text);
#else
  PQKV_ON_ERROR(text);
  std::abort();
#endif
}
}  // namespace detail

/// Where the file is: in a folder, where one without a name is made, or an open file of the caller's.
struct file_place {
  const char* folder = nullptr;  // on the disk that will hold the file
  int file = -1;                 // or instead a descriptor, open for reading and writing; its first bytes are overwritten
};

/// Owns a descriptor and a mapping of `size` bytes; moves, never copies.
class mapped_file {
 public:
  mapped_file() = default;
  /// @param function  the public function, named in errors
  /// @param place     a descriptor is duplicated: the caller may close its own at once. The file grows to `size`, and never shrinks
  /// @throws storage_error when the file cannot be made, there is no room for it, or it cannot be mapped; then nothing is left behind
  /// @cost   reserves the room on the disk; writes nothing where the file system can reserve
  mapped_file(const char* function, const file_place& place, std::size_t size) : size_(size) {
    file_ = place.file >= 0 ? ::fcntl(place.file, F_DUPFD_CLOEXEC, 0) : without_name(place.folder);
    if (file_ < 0) detail::raise_storage(function, place.file >= 0 ? "fcntl" : place.folder, errno);
    if (size == 0) return;
    if (const int error = ::posix_fallocate(file_, 0, static_cast<off_t>(size)); error != 0) fail(function, size, error);
    void* const data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    if (data == MAP_FAILED) fail(function, size, errno);
    data_ = data;
  }
  mapped_file(mapped_file&& other) noexcept
      : file_(std::exchange(other.file_, -1)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(file_, other.file_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  ~mapped_file() {
    if (data_ != nullptr) ::munmap(data_, size_);
    if (file_ >= 0) ::close(file_);
  }

  std::byte* data() const noexcept { return static_cast<std::byte*>(data_); }
  std::size_t size() const noexcept { return size_; }
  int descriptor() const noexcept { return file_; }

  /// Asks the system to read these bytes into its memory, and does not wait for them. They need not begin or end a page, here and below.
  /// @pre  they are the file's
  void read_ahead(const void* first, std::size_t bytes) const noexcept {
    const auto [begin, size] = pages_of(first, bytes);
    ::madvise(begin, size, MADV_WILLNEED);
  }
  /// Waits until these bytes are in memory and mapped, so that touching them does not wait. Systems before Linux 5.14 cannot: there it
  /// returns at once, and touching waits. @pre they are the file's
  /// @return 0; or the error, where touching them would have ended the process by a signal: the disk has failed, or the file is shorter
  int wait_for(const void* first, std::size_t bytes) const noexcept {
#if defined(MADV_POPULATE_READ)
    const auto [begin, size] = pages_of(first, bytes);
    if (::madvise(begin, size, MADV_POPULATE_READ) != 0 && errno == EFAULT) return EFAULT;
#endif
    return 0;
  }
  /// Copies bytes of the file by calls of the system, which report what a mapping cannot. What was written through the mapping is read.
  /// @param from  in the mapping
  /// @return 0, or the error; `short_read` where the file has ended
  int read(void* to, const void* from, std::size_t bytes) const noexcept {
    auto* at = static_cast<std::byte*>(to);
    for (off_t offset = static_cast<const std::byte*>(from) - data(); bytes != 0;) {
      const ssize_t got = ::pread(file_, at, bytes, offset);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return got == 0 ? short_read : errno;
      at += got, offset += got, bytes -= static_cast<std::size_t>(got);
    }
    return 0;
  }
  static constexpr int short_read = -1;
  /// @param error  of wait_for() or read(), not 0
  [[noreturn]] void fail_reading(const char* function, int error) const {
    ensure_readable(function);
    detail::raise_storage(function, "the file could not be read", error == short_read ? EIO : error);
  }

  /// Checks that the file still has all its bytes; call it before they are touched.
  /// @param function  the public function, named in errors
  /// @throws storage_error
  void ensure_readable(const char* function) const {
    struct stat now {};
    if (size_ == 0) return;
    if (::fstat(file_, &now) != 0) detail::raise_storage(function, "fstat", errno);
    if (static_cast<std::size_t>(now.st_size) >= size_) return;
    char text[160];
    std::snprintf(text, sizeof text, "the file must have %zu bytes, got %lld: somebody has shortened it", size_,
                  static_cast<long long>(now.st_size));
    detail::raise_storage(function, text, 0);
  }

 private:
  struct page_run {
    std::byte* begin;
    std::size_t size;
  };
  static std::size_t page_bytes() noexcept { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }
  /// The pages that have these bytes; the last one may be cut.
  page_run pages_of(const void* first, std::size_t bytes) const noexcept {
    const auto before = static_cast<std::size_t>(static_cast<const std::byte*>(first) - data()) % page_bytes();
    return {const_cast<std::byte*>(static_cast<const std::byte*>(first)) - before, bytes + before};
  }
  static int without_name(const char* folder) {
#if defined(O_TMPFILE)
    const int made = ::open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
    if (made >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return made;  // some file systems have only files with names
#endif
    std::string name = std::string(folder) + "/pqkv.XXXXXX";
    const int named = ::mkstemp(name.data());
    if (named < 0) return named;
    ::unlink(name.c_str());
    ::fcntl(named, F_SETFD, FD_CLOEXEC);
    return named;
  }
  [[noreturn]] void fail(const char* function, std::size_t size, int error) {
    ::close(std::exchange(file_, -1));
    char text[96];
    std::snprintf(text, sizeof text, "no file of %zu bytes", size);
    detail::raise_storage(function, text, error);
  }

  int file_ = -1;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace pqkv
