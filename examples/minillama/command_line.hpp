// SPDX-License-Identifier: Apache-2.0
// What the programs share on a terminal: one line and exit code 2 for bad input, and a progress bar on stderr.
#pragma once
#include <CLI/CLI.hpp>
#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>

#include "load_error.hpp"
#include "prefill.hpp"

namespace minillama {

/// An option that CLI11 accepts but the program does not: "--ratio: ...".
struct usage_error : std::runtime_error {
  usage_error(const std::string& option, const std::string& what) : std::runtime_error(option + ": " + what) {}
};

/// Check of options that count something: CLI11 alone would take -3 for a very large number.
inline CLI::Range count_range(std::size_t least = 0, std::size_t most = std::size_t{1} << 31) { return {least, most}; }

/// Parses the arguments and runs the program. Everything that goes wrong ends in one line on stderr, "<program>: <what>".
///
/// @returns the exit code: what `body` returns, 0 after --help, 2 after bad input
int run_program(CLI::App& arguments, int argc, char** argv, const std::function<int()>& body);

/// Whole file as bytes. @throws load_error
std::string read_file(const std::filesystem::path& path);

/// Standard input up to its end. @throws load_error when it is closed or cannot be read
std::string read_standard_input();

/// Hands on what is left of the text. @throws load_error when standard output took less than was printed
void finish_standard_output();

/// Prints "label [#####     ] 52 %" on stderr, over itself, when stderr is a terminal; otherwise nothing.
class progress_bar {
 public:
  explicit progress_bar(std::string label);
  /// To be handed to prefill(); the bar outlives it.
  progress_report report();
  /// Clears the line.
  ~progress_bar();

 private:
  std::string label_;
  int shown_percent_ = -1;
  bool terminal_;
};

}  // namespace minillama
