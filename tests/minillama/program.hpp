// SPDX-License-Identifier: Apache-2.0
// Runs the programs as a user does, for the tests. MINILLAMA_PROGRAM and MINILLAMA_ASK_PROGRAM are their paths, set by the build.
#pragma once
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "tiny_model.hpp"

namespace minillama_test {

struct outcome {
  int code = -1;
  std::string out, err;
};

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A tiny model on disk, and the program run with it.
class bench {
 public:
  explicit bench(const tiny_shape& shape = {}) : shape_(shape) { write_model(path(), shape_, random_weights(shape_, 1)); }

  const std::filesystem::path& path() const { return folder_.path(); }
  const tiny_shape& shape() const { return shape_; }

  /// The arguments go through a shell; stderr is a file, so no progress bar is drawn. Standard input is empty unless they redirect it.
  outcome run(const std::string& arguments, const char* program = MINILLAMA_PROGRAM) const {
    return shell("\"" + std::string(program) + "\" " + arguments);
  }
  /// Runs a shell's command, with empty standard input; what it prints is kept as of the program.
  outcome shell(const std::string& command) const {
    const auto out = scratch_.path() / "out", err = scratch_.path() / "err";
    const std::string kept = "{ " + command + "\n} </dev/null >\"" + out.string() + "\" 2>\"" + err.string() + "\"";
    const int status = std::system(kept.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents(out), contents(err)};
  }
  outcome generate(const std::string& arguments) const { return run("-m \"" + path().string() + "\" -t 2 " + arguments); }

 private:
  tiny_shape shape_;
  temporary_directory folder_, scratch_;
};

/// Checks the form that all errors share, and that the line names `what`.
inline void check_refused(const outcome& got, const std::string& what, const std::string& program = "minillama") {
  CHECK_MESSAGE(got.code == 2, got.err);
  CHECK(got.out == "");
  CHECK_MESSAGE(std::count(got.err.begin(), got.err.end(), '\n') == 1, got.err);
  CHECK_MESSAGE(got.err.rfind(program + ": ", 0) == 0, got.err);
  CHECK_MESSAGE(got.err.find(what) != std::string::npos, got.err);
}

}  // namespace minillama_test
