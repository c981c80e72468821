// SPDX-License-Identifier: Apache-2.0
// Files of JSON lines: what is read from them, and that every fault is said with file, line and key.
#include "jsonl_reader.hpp"

#include <doctest/doctest.h>

#include "load_error.hpp"
#include "tiny_model.hpp"

using namespace minillama_test;
using minillama::json_reader;
using minillama::jsonl_reader;

namespace {

/// Calls f with a reader of a file of this text, and takes the refusal, without the file's name in front; "" where there is none.
template <class F>
std::string problem_of(const std::string& text, F&& f) {
  const temporary_directory folder;
  const auto path = folder.path() / "set.jsonl";
  write_text(path, text);
  try {
    jsonl_reader lines(path);
    f(lines);
  } catch (const minillama::load_error& error) {
    const std::string what = error.what(), begin = path.string() + ": ";
    CHECK(what.substr(0, begin.size()) == begin);
    CHECK(what.find('\n') == what.npos);
    return what.substr(begin.size());
  }
  return "";
}

/// Of reading all lines, with a key of each.
std::string problem_of(const std::string& text, const std::string& key = "input") {
  return problem_of(text, [&](jsonl_reader& lines) {
    while (lines.next()) lines.record().text(key);
  });
}

}  // namespace

TEST_CASE("lines are read one by one, blank ones are counted and left out") {
  std::vector<std::string> seen;
  const std::string text = "{\"input\": \"a\\nb\"}\n\n  \t\r\n{\"input\": \"c\", \"answers\": [\"x\", \"y\"]}\r\n{\"input\": \"\"}";
  CHECK(problem_of(text, [&](jsonl_reader& lines) {
          while (lines.next()) seen.push_back(std::to_string(lines.line()) + " " + lines.record().text("input"));
          CHECK_FALSE(lines.next());
        }) == "");
  CHECK(seen == std::vector<std::string>{"1 a\nb", "4 c", "5 "});
  CHECK(problem_of(text, [](jsonl_reader& lines) {
          lines.next(), lines.next();
          CHECK(lines.record().texts("answers") == std::vector<std::string>{"x", "y"});
        }) == "");
  CHECK(problem_of("\n\n", [](jsonl_reader& lines) { CHECK_FALSE(lines.next()); }) == "");
  CHECK(problem_of("") == "is empty, or not a file that can be mapped");
  const temporary_directory folder;
  CHECK_THROWS_AS(jsonl_reader(folder.path() / "none"), minillama::load_error);
}

TEST_CASE("a line that is no JSON object is refused with its number") {
  const std::string good = "{\"input\": \"a\"}\n";
  for (const char* bad : {"{\"input\": \"a\"", "[1]", "\"a\"", "null", "{\"input\": \"a\"} {}", "{\"input\": \"\xff\"}", "{'input': 1}"})
    CHECK(problem_of(good + "\n" + bad + "\n" + good) == "line 3: is not a JSON object");
  CHECK(problem_of(good + std::string("{\"a\": \"\0\"}", 10)) == "line 2: is not a JSON object: there is a NUL byte in it");
  CHECK(problem_of(good + "{\"a\": " + std::string(40, '[') + std::string(40, ']') + "}") == "line 2: is nested deeper than 32 levels");
  CHECK(problem_of(good + "{\"a\": 1, \"b\": {\"c\": 1, \"c\": 2}}") == "line 2: c: is given twice");
}

TEST_CASE("keys are named with their line") {
  const std::string good = "{\"input\": \"a\"}\n";
  CHECK(problem_of(good + "{\"output\": \"a\"}") == "line 2: input: missing key");
  CHECK(problem_of(good + "{\"input\": null}") == "line 2: input: missing key");
  CHECK(problem_of("{\"input\": 3}") == "line 1: input: expected a text, got number");
  const auto of_answers = [](const std::string& value) {
    return problem_of("\n{\"answers\": " + value + "}", [](jsonl_reader& lines) {
      lines.next();
      lines.record().texts("answers");
    });
  };
  CHECK(of_answers("[]") == "line 2: answers: expected at least one text, got none");
  CHECK(of_answers("\"a\"") == "line 2: answers: expected an array, got string");
  CHECK(of_answers("[\"a\", 7]") == "line 2: answers[1]: expected a text, got number");
  CHECK(of_answers("[\"a\"]") == "");
}

TEST_CASE("a line may be as long as is said, and no longer") {
  const std::string open = "{\"input\": \"", close = "\"}";
  const auto line_of = [&](std::size_t bytes) { return open + std::string(bytes - open.size() - close.size(), 'x') + close; };
  CHECK(problem_of(line_of(1 << 20)) == "");
  const std::size_t most = jsonl_reader::most_line_bytes;
  CHECK(problem_of("{\"input\": \"a\"}\n" + line_of(most + 1)) ==
        "line 2: has " + std::to_string(most + 1) + " bytes; expected at most " + std::to_string(most));
}
