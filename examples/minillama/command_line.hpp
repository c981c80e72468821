// SPDX-License-Identifier: Apache-2.0
// What the programs share on a terminal: one line and exit code 2 for bad input, and a progress bar on stderr.
#pragma once
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstddef>
#include <exception>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "load_error.hpp"
#include "prefill.hpp"

namespace minillama {

/// An option that CLI11 accepts but the program does not: "--ratio: ...".
struct usage_error : std::runtime_error {
  usage_error(const std::string& option, const std::string& what) : std::runtime_error(option + ": " + what) {}
};

/// Check of options that count something: CLI11 alone would take -3 for a very large number. The help shows a lower bound if it is not 0,
/// and an upper one if it was given.
CLI::Validator count_range(std::size_t least = 0, std::size_t most = std::size_t{1} << 31);

/// Check of a seed: a whole number of 64 bits.
CLI::Validator seed_number();

/// Check of options that choose one of the names. CLI11's own check would take the numbers of the names too.
///
/// @param listed  the names as the help shows them: "float|int8"
template <class T>
CLI::Validator one_of(const std::map<std::string, T>& names, const std::string& listed) {
  return CLI::Validator(
      [names, listed](std::string& text) {
        const auto found = names.find(text);
        if (found == names.end()) return "expected " + listed + ", got " + text;
        text = std::to_string(static_cast<int>(found->second));
        return std::string();
      },
      listed);
}

/// Parses the arguments, --version among them, and runs the program. Everything that goes wrong ends in one line on stderr,
/// "<program>: <what>". A word after a single dash is no option, and no bundle of options of one letter: -temp is refused. A number may
/// stand at such an option: -n20. Of an option that is not known, the message names the one that is probably meant: one that is spelled
/// nearly so, or the one that does here what it does in llama.cpp or llama2.c.
///
/// @returns the exit code: what `body` returns, 0 after --help and --version, 2 after bad input or when standard output cannot be written
int run_program(CLI::App& arguments, int argc, char** argv, const std::function<int()>& body);

/// Whole file as bytes, a pipe too. @throws load_error when it cannot be read, or has more bytes than a text may have: 256 MiB
std::string read_file(const std::filesystem::path& path);

/// Standard input up to its end. @throws load_error when it is closed or cannot be read, or has more bytes than a text may have
std::string read_standard_input();

/// Hands on what is left of the text. @throws load_error when standard output took less than was printed
void finish_standard_output();

/// Another answer to Ctrl-C (SIGINT) while it exists. The first one is answered, the next is answered as before it was made. Where the
/// program was started with SIGINT ignored, as by nohup, it stays ignored.
class interrupt_handler {
 public:
  explicit interrupt_handler(void (*answer)(int));
  interrupt_handler(const interrupt_handler&) = delete;
  interrupt_handler& operator=(const interrupt_handler&) = delete;
  ~interrupt_handler();

 private:
  static void step_back_and_answer(int signal);

  static interrupt_handler* innermost_;
  interrupt_handler* const outer_;
  void (*const answer_)(int);
  struct sigaction before_ {};
};

/// Notes the first Ctrl-C while it exists, for a program that has something to report before it ends; the second one ends the program.
class interrupt_watch {
 public:
  interrupt_watch();
  static bool is_interrupted() noexcept;

 private:
  interrupt_handler handler_;
};

/// The user has interrupted the program, which has reported and ends: exit code 130.
struct interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Prints "label [#####     ] 52 %" on stderr, over itself, when stderr is a terminal that can clear a line (TERM is not
/// "dumb"); otherwise nothing. Ctrl-C clears the line too.
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
  std::optional<interrupt_handler> clearing_;
};

}  // namespace minillama
