// SPDX-License-Identifier: Apache-2.0
// A file that is written whole or not at all: its text goes into a file beside it, which then takes its name.
#pragma once
#include <signal.h>

#include <array>
#include <filesystem>
#include <string>

namespace minillama {

/// While it exists, a signal that ends the program (SIGINT, SIGTERM, SIGHUP, SIGXFSZ) takes away what is half written, and one line on
/// stderr says whether the file was written. The program then ends by that signal. A signal that was ignored stays ignored. Only one may
/// exist at a time.
class ending_report {
 public:
  explicit ending_report(const std::filesystem::path& path);
  ending_report(const ending_report&) = delete;
  ending_report& operator=(const ending_report&) = delete;
  ~ending_report();

 private:
  std::array<struct sigaction, 4> before_{};
};

class output_file {
 public:
  /// Checks that the file can be written, before the work whose outcome it is to hold. Leaves nothing behind.
  ///
  /// @throws load_error when the folder is missing or takes no file, the name is that of something that is no plain file or is protected,
  ///         or the name is "-": standard output has the program's text
  explicit output_file(const std::filesystem::path& path);

  /// Writes the text and gives the file its name; what stood there before stays until then.
  ///
  /// @throws load_error when it cannot be written; no part of it is left
  void write(const std::string& text) const;

  /// The file's name, as it was given.
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_, target_;  // as named, and without links
  ending_report report_;
};

}  // namespace minillama
