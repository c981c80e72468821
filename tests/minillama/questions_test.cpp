// SPDX-License-Identifier: Apache-2.0
// Generated contexts: as long as asked for, every key once and its value beside it, and the same from the same seed on every machine.
#include "questions.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "load_error.hpp"
#include "prose.hpp"
#include "text_cases.hpp"

using namespace minillama;
using minillama_test::occurrences;

namespace {

std::string running_text() {
  std::string text;
  while (text.size() < 20000) text += "the quick brown fox jumps over the lazy dog and runs on. ";
  return text;
}

}  // namespace

TEST_CASE("a context is as long as asked for and holds each answer once") {
  const std::string text = running_text();
  for (const auto kind : {context_kind::needles, context_kind::list}) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      random_source random(seed);
      const auto context = make_context(kind, text, 4096, 10, random);
      CHECK(context.text.size() == 4096);
      REQUIRE(context.questions.size() == 10);
      std::set<std::string> keys;
      for (const question& asked : context.questions) {
        CAPTURE(asked.key);
        CHECK(keys.insert(asked.key).second);
        const auto at = context.text.find(asked.key);
        REQUIRE(at != std::string::npos);
        if (kind == context_kind::list)
          CHECK(occurrences(context.text, "\"" + asked.key + "\": \"" + asked.value + "\",\n") == 1);
        else
          CHECK(context.text.substr(at, 64).find(asked.value) != std::string::npos);
        CHECK(asked.text() == "\nQuestion: what is the code of " + asked.key + "?\nAnswer: ");
        CHECK(asked.value.size() <= 8);
      }
    }
  }
}

TEST_CASE("numbers have seven digits and stand where a sentence or a line has ended") {
  std::string text;
  while (text.size() < 20000) text += "The quick fox jumps 3.5 times. It runs on\nand on. ";
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    random_source random(seed);
    const auto context = make_context(context_kind::numbers, text, 4096, 40, random);
    CHECK(context.kind == context_kind::numbers);
    CHECK(context.text.size() == 4096);
    REQUIRE(context.questions.size() == 40);
    std::set<std::string> keys;
    std::size_t last = 0;
    for (const question& asked : context.questions) {
      CAPTURE(asked.key);
      CHECK(keys.insert(asked.key).second);
      CHECK(asked.key.find(' ') != std::string::npos);
      CHECK(asked.value.size() == 7);
      CHECK(asked.value.find_first_not_of("0123456789") == std::string::npos);
      CHECK(asked.value.front() != '0');
      const std::string fact = "The magic number of the " + asked.key + " is " + asked.value + ".\n";
      CHECK(occurrences(context.text, asked.key) == 1);
      REQUIRE(occurrences(context.text, fact) == 1);
      const auto at = context.text.find(fact);
      REQUIRE(at > 1);
      const std::string before = context.text.substr(at - 2, 2);
      CHECK((before[1] == '\n' || before == ". " || at + fact.size() == context.text.size()));
      last = std::max(last, at);
    }
    CHECK(last > 2048);  // all over the text
  }
  CHECK(name_of(context_kind::numbers) == std::string("numbers"));
}

TEST_CASE("there are keys for so many numbers, and for no more") {
  const std::string text(400000, '\n');
  random_source random(1);
  CHECK(make_context(context_kind::numbers, text, 200000, 2048, random).questions.size() == 2048);
  CHECK_THROWS_WITH_AS(make_context(context_kind::numbers, text, 300000, 2049, random),
                       "--questions: 2049 about one context; there are keys for 2048", std::invalid_argument);
}

TEST_CASE("the seed alone decides") {
  const std::string text = running_text();
  random_source one(5), same(5), other(6);
  const auto context = make_context(context_kind::needles, text, 2048, 3, one);
  CHECK(context.text == make_context(context_kind::needles, text, 2048, 3, same).text);
  CHECK(context.text != make_context(context_kind::needles, text, 2048, 3, other).text);
  random_source known(0);
  CHECK(known.next() == 0xe220a8397b1dcdafu);  // splitmix64's published first value of seed 0
  for (int i = 0; i < 1000; ++i) CHECK(known.below(7) < 7);
}

TEST_CASE("a context too short for its facts, or a text too short for the context, is refused") {
  random_source random(1);
  CHECK_THROWS_AS(make_context(context_kind::needles, running_text(), 100, 10, random), std::invalid_argument);
  CHECK_THROWS_AS(make_context(context_kind::list, running_text(), 100, 10, random), std::invalid_argument);
  CHECK_THROWS_AS(make_context(context_kind::numbers, running_text(), 100, 10, random), std::invalid_argument);
  CHECK_THROWS_AS(make_context(context_kind::needles, "short", 4096, 10, random), std::invalid_argument);
}

TEST_CASE("text files are joined, and only ASCII is kept") {
  const minillama_test::temporary_directory folder;
  minillama_test::write_text(folder.path() / "a", "one\n");
  minillama_test::write_text(folder.path() / "b", "t\xc3\xb6wo\r\n");
  CHECK(load_text({folder.path() / "a", folder.path() / "b"}) == "one\ntwo\n");
  CHECK_THROWS_AS(load_text({folder.path() / "c"}), load_error);
}

TEST_CASE("a folder of texts is its regular files in sorted order") {
  const minillama_test::temporary_directory folder;
  minillama_test::write_text(folder.path() / "b", "two\n");
  minillama_test::write_text(folder.path() / "a", "one\n");
  std::filesystem::create_symlink(folder.path() / "b", folder.path() / "link");
  std::filesystem::create_directory(folder.path() / "empty");
  CHECK(load_text({folder.path()}) == "one\ntwo\n");
  CHECK(load_text({folder.path() / "b", folder.path()}) == "two\none\ntwo\n");
  CHECK_THROWS_AS(load_text({folder.path() / "empty"}), load_error);
}

TEST_CASE("the prose is the same bytes on every machine") {
  const std::string& text = prose();
  CHECK(load_text({}) == text);
  CHECK(text.size() == 512 * 1024);
  std::uint64_t sum = 14695981039346656037u;  // 64-bit FNV-1a
  for (const char c : text) sum = (sum ^ static_cast<unsigned char>(c)) * 1099511628211u;
  CHECK(sum == 12178824739875344365u);
  std::size_t column = 0, longest = 0, others = 0;
  for (const char c : text) {
    others += c != '\n' && (c < ' ' || c > '~');
    column = c == '\n' ? 0 : column + 1;
    longest = std::max(longest, column);
  }
  CHECK(others == 0);
  CHECK(longest <= 78);
  CHECK(text.find_first_of("{}") == std::string::npos);
}

TEST_CASE("no key of a fact occurs in the prose") {
  std::set<std::string> words;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    random_source random(seed);
    for (const question& asked : make_context(context_kind::numbers, prose(), 8192, 60, random).questions) {
      const auto space = asked.key.find(' ');
      words.insert({asked.key.substr(0, space), asked.key.substr(space + 1)});
    }
  }
  CHECK(words.size() == 64);
  for (const std::string& word : words) {
    CAPTURE(word);
    for (auto at = prose().find(word); at != std::string::npos; at = prose().find(word, at + 1)) {
      const auto in_a_word = [](char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; };
      CHECK((in_a_word(prose()[at - 1]) || in_a_word(prose()[at + word.size()])));
    }
  }
}
