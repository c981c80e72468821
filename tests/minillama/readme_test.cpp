// SPDX-License-Identifier: Apache-2.0
// The commands of examples/minillama/README.md, run as they stand there, on the shipped model; only the program is the one just built.
#include "program.hpp"
#include "../cases/sanitized.hpp"

using namespace minillama_test;

namespace {

/// The last shell block of a page.
std::string last_block(const std::string& page) {
  const std::string fence = "```sh\n";
  const std::size_t begin = page.rfind(fence) + fence.size();
  return page.substr(begin, page.find("```", begin) - begin);
}

}  // namespace

TEST_CASE("every command of the page works" * doctest::skip(pqkv_cases::under_sanitizers)) {
  const std::filesystem::path root = MINILLAMA_REPOSITORY;
  std::string commands = last_block(contents(root / "examples/minillama/README.md"));
  const std::string built = "build/native/examples/minillama/minillama";
  REQUIRE(commands.find(built) != std::string::npos);
  commands.replace(commands.find(built), built.size(), "\"" + std::string(MINILLAMA_PROGRAM) + "\"");
  const temporary_directory folder;
  write_text(folder.path() / "commands", "set -euo pipefail\ncd \"" + root.string() + "\"\nexport TMPDIR=\"" + folder.path().string() +
                                             "\"\n" + commands + "\ngrep -q departs_at \"$work/run.json\"\n");
  const std::string run = "bash \"" + (folder.path() / "commands").string() + "\" </dev/null >\"" + (folder.path() / "out").string() +
                          "\" 2>\"" + (folder.path() / "err").string() + "\"";
  const int status = std::system(run.c_str());
  const std::string out = contents(folder.path() / "out"), err = contents(folder.path() / "err");
  CHECK_MESSAGE(status == 0, err);
  std::size_t answers = 0;
  for (std::size_t at = out.find("48213\n"); at != std::string::npos; at = out.find("48213\n", at + 1)) ++answers;
  CHECK_MESSAGE(answers >= 7, out);  // of 9; rounding differs from one CPU to the next, and a fraction of the tokens is no guarantee
  CHECK(err.find("perplexity of full") != std::string::npos);
}
