// SPDX-License-Identifier: Apache-2.0
// Plain file descriptors: a stream would not say whether the disk took the bytes.
#include "output_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "load_error.hpp"

namespace minillama {
namespace {

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw load_error(path.string(), "cannot be written: " + why);
}

/// A new file beside the target that goes away unless it took the target's name.
class neighbour {
 public:
  neighbour(const std::filesystem::path& named, const std::filesystem::path& target) : named_(named), target_(target), path_(target) {
    path_ += "." + std::to_string(::getpid()) + ".part";
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_ < 0) refuse(named_, std::strerror(errno));
  }
  neighbour(const neighbour&) = delete;
  neighbour& operator=(const neighbour&) = delete;
  ~neighbour() {
    if (file_ >= 0) ::close(file_);
    if (!renamed_) ::unlink(path_.c_str());
  }

  void write(const std::string& text) {
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t written = ::write(file_, text.data() + done, text.size() - done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) refuse(named_, std::strerror(errno));
      done += static_cast<std::size_t>(written);
    }
    if (::fsync(file_) != 0) refuse(named_, std::strerror(errno));
  }

  void take_name() {
    if (::rename(path_.c_str(), target_.c_str()) != 0) refuse(named_, std::strerror(errno));
    renamed_ = true;
  }

 private:
  const std::filesystem::path &named_, &target_;
  std::filesystem::path path_;
  int file_ = -1;
  bool renamed_ = false;
};

}  // namespace

output_file::output_file(const std::filesystem::path& path) : path_(path) {
  if (path == "-") refuse(path, "standard output has the text; a file of that name is ./-");
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) refuse(path, "is a directory");
  target_ = std::filesystem::weakly_canonical(path, error);  // a link stays a link: the file behind it is replaced
  if (error) refuse(path, error.message());
  if (path.empty() || !path.has_filename()) refuse(path, "is no name of a file");
  if (std::filesystem::exists(status)) {
    if (!std::filesystem::is_regular_file(status)) refuse(path, "is no plain file");
    if (::access(target_.c_str(), W_OK) != 0) refuse(path, std::strerror(errno));
  }
  const neighbour tried(path_, target_);
}

void output_file::write(const std::string& text) const {
  neighbour file(path_, target_);
  file.write(text);
  file.take_name();
}

}  // namespace minillama
