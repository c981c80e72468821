// SPDX-License-Identifier: Apache-2.0
// Plain file descriptors: a stream would not say whether the disk took the bytes. What a signal's handler reads is written before it is
// needed, and the handler calls nothing but what POSIX allows there.
#include "output_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>

#include "load_error.hpp"

namespace minillama {
namespace {

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw load_error(path.string(), "cannot be written: " + why);
}

struct ending_signal {
  int number;
  std::string_view name;
};
constexpr std::array<ending_signal, 4> ending_signals{{{SIGINT, "SIGINT"}, {SIGTERM, "SIGTERM"}, {SIGHUP, "SIGHUP"}, {SIGXFSZ, "SIGXFSZ"}}};

// For the handler: how far the file is, its name as it was given, and the path of the file beside it.
enum class stage { nothing, part, taking_name, whole };
std::atomic<stage> reached = stage::nothing;
static_assert(decltype(reached)::is_always_lock_free);
std::string shown_name, part_path;

void print(std::string_view text) { [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size()); }

void report_and_end(int number) {
  const stage at = reached;
  const bool part_is_gone = (at == stage::part || at == stage::taking_name) && ::unlink(part_path.c_str()) != 0;
  const bool whole = at == stage::whole || (at == stage::taking_name && part_is_gone);
  print("\n");  // ends a line that may have been begun
  print(program_invocation_short_name);
  for (const ending_signal& one : ending_signals)
    if (one.number == number) print(": ended by "), print(one.name);
  print("; "), print(shown_name), print(whole ? ": was written\n" : ": nothing was written\n");
  ::signal(number, SIG_DFL);
  ::raise(number);
}

/// A new file beside the target that goes away unless it took the target's name.
class neighbour {
 public:
  neighbour(const std::filesystem::path& named, const std::filesystem::path& target) : named_(named), target_(target), path_(target) {
    path_ += "." + std::to_string(::getpid()) + ".part";
    part_path = path_;
    reached = stage::part;
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_ >= 0) return;
    reached = stage::nothing;
    refuse(named_, std::strerror(errno));
  }
  neighbour(const neighbour&) = delete;
  neighbour& operator=(const neighbour&) = delete;
  ~neighbour() {
    if (file_ >= 0) ::close(file_);
    if (renamed_) return;
    ::unlink(path_.c_str());
    reached = stage::nothing;
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
    reached = stage::taking_name;
    if (::rename(path_.c_str(), target_.c_str()) != 0) refuse(named_, std::strerror(errno));
    reached = stage::whole;
    renamed_ = true;
  }

 private:
  const std::filesystem::path &named_, &target_;
  std::filesystem::path path_;
  int file_ = -1;
  bool renamed_ = false;
};

}  // namespace

ending_report::ending_report(const std::filesystem::path& path) {
  shown_name = path;
  reached = stage::nothing;
  struct sigaction wanted {};
  wanted.sa_handler = report_and_end;
  wanted.sa_flags = SA_RESTART;
  for (std::size_t i = 0; i < ending_signals.size(); ++i) {
    ::sigaction(ending_signals[i].number, nullptr, &before_[i]);
    if (before_[i].sa_handler != SIG_IGN) ::sigaction(ending_signals[i].number, &wanted, nullptr);
  }
}

ending_report::~ending_report() {
  for (std::size_t i = 0; i < ending_signals.size(); ++i) ::sigaction(ending_signals[i].number, &before_[i], nullptr);
}

output_file::output_file(const std::filesystem::path& path) : path_(path), report_(path) {
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
