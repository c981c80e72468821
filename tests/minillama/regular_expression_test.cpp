// SPDX-License-Identifier: Apache-2.0
// The regular expressions of tokenizer files: white space as Unicode has it, bytes that are no UTF-8, and what is refused.
#include "regular_expression.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <vector>

using minillama::regular_expression;
using minillama::with_white_space;

namespace {

/// The matches, each followed by a bar.
std::string matches(const std::string& pattern, const std::string& text) {
  std::string all;
  regular_expression(pattern).each_match(text, [&](std::size_t begin, std::size_t end) { all += text.substr(begin, end - begin) + "|"; });
  return all;
}

bool is_white_space(const std::string& character) { return matches("\\s", character) == character + "|"; }

}  // namespace

TEST_CASE("white space is what Unicode calls so, in and out of brackets") {
  const std::vector<std::string> white{"\t",           "\n",           "\v",           "\f",           "\r",           " ",
                                       "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x8a", "\xe2\x80\xa8",
                                       "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
  for (const std::string& character : white) {
    CAPTURE(character);
    CHECK(is_white_space(character));
    CHECK(matches("[\\s]", character) == character + "|");
    CHECK(matches("[^\\s]", character) == "");
    CHECK(matches("\\S", character) == "");
  }
  // U+180E, which Unicode took out in version 6.3, and characters beside the ones above
  for (const std::string character :
       {"\xe1\xa0\x8e", "\xe2\x80\x8b", "\xe2\x80\xaa", "\xef\xbb\xbf", "\x08", "\x0e", "\x1f", "\xc2\x84", "a"}) {
    CAPTURE(character);
    CHECK_FALSE(is_white_space(character));
    CHECK(matches("\\S", character) == character + "|");
    CHECK(matches("[^\\s]", character) == character + "|");
  }
}

TEST_CASE("\\s and \\S are spelt out, everything else stays as it is") {
  const std::string space = with_white_space("[\\s]");
  CHECK(space.find("\\s") == std::string::npos);
  CHECK(with_white_space("\\s") == space);
  CHECK(with_white_space("\\S") == "[^" + space.substr(1));
  CHECK(with_white_space("[^\\s\\p{L}]") == "[^" + space.substr(1, space.size() - 2) + "\\p{L}]");
  for (const std::string plain : {"", "a|b", "\\\\s", "[\\]a]", "(?!x)", "\\p{N}{1,3}", "\\"}) CHECK(with_white_space(plain) == plain);
  CHECK(with_white_space("[\\]\\s]") == "[\\]" + space.substr(1));  // the first ] closes nothing
  CHECK_THROWS_WITH_AS(with_white_space("[\\S]"), "\\S inside brackets is not supported", std::invalid_argument);
  CHECK_THROWS_WITH_AS(with_white_space("[a[bc]]"), "brackets inside brackets are not supported", std::invalid_argument);
  CHECK_THROWS_WITH_AS(with_white_space("[a-z&&b]"), "&& inside brackets is not supported", std::invalid_argument);
  CHECK(with_white_space("[a]&&[b]") == "[a]&&[b]");
}

TEST_CASE("what tokenizers' patterns are made of") {
  CHECK(matches("\\s+(?!\\S)|\\s+", "a   b  ") == "  | |  |");
  CHECK(matches("\\s+(?!\\S)", "a b") == "");
  CHECK(matches("(?i:'s|'t)", "x's X'S y'T 't") == "'s|'S|'T|'t|");
  CHECK(matches("'s|'t", "X'S") == "");
  CHECK(matches("\\p{N}", "1\xc2\xbd\xe2\x85\xa3\xd9\xa3x") == "1|\xc2\xbd|\xe2\x85\xa3|\xd9\xa3|");
  CHECK(matches("\\w+|\\d", "d\xc3\xa9 \xd9\xa3") == "d\xc3\xa9|\xd9\xa3|");
  CHECK(matches("\\p{N}{1,3}", "12345") == "123|45|");
  CHECK(matches("\\p{L}+", "d\xc3\xa9j\xc3\xa0 vu") == "d\xc3\xa9j\xc3\xa0|vu|");
  CHECK(matches("[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", " a\n.b") == " a|.b|");
  CHECK(matches("a*", "baab") == "aa|");  // empty matches are left out
  CHECK(matches(".", "") == "");
  CHECK(matches("^a", "aa") == "a|");
}

TEST_CASE("bytes that are no UTF-8 match nothing, and do not join what stands around them") {
  CHECK(matches("[^x]+",
                "ab\xff"
                "cd") == "ab|cd|");
  CHECK(matches(".", "\xff\xfe") == "");
  CHECK(matches("b(?!c)",
                "b\xff"
                "c bc") == "b|");
  // a start without its end, an end without its start, too long forms, a surrogate, above U+10FFFF
  for (const std::string bad : {"\xc3", "\xe2\x96", "\xf0\x9f\x98", "\x81", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xf0\x80\x80\x80",
                                "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf8\x88\x80\x80\x80"}) {
    CAPTURE(bad);
    CHECK(matches("[^z]+", bad) == "");
    CHECK(matches("[^z]+", "a" + bad + "b") == "a|b|");
    CHECK(matches("[^z]", bad + "\xc3\xa9") == "\xc3\xa9|");
  }
  // the outermost of each length are characters
  for (const std::string& good : {std::string("\0", 1), std::string("\x7f"), std::string("\xc2\x80"), std::string("\xdf\xbf"),
                                  std::string("\xe0\xa0\x80"), std::string("\xed\x9f\xbf"), std::string("\xee\x80\x80"),
                                  std::string("\xef\xbf\xbf"), std::string("\xf0\x90\x80\x80"), std::string("\xf4\x8f\xbf\xbf")}) {
    CAPTURE(good);
    CHECK(matches("[^z]", good + good) == good + "|" + good + "|");
  }
}

TEST_CASE("a long text takes no long time") {
  std::string text;
  while (text.size() < (1 << 20)) text += "word ";  // minutes, were each match to look at the rest of the text
  std::size_t found = 0;
  regular_expression("\\p{L}+").each_match(text, [&](std::size_t, std::size_t) { ++found; });
  CHECK(found == text.size() / 5);
}

TEST_CASE("what is no regular expression is refused, and a search that takes too many steps ends with an error") {
  CHECK_THROWS_WITH_AS(regular_expression("(a"), "not a regular expression: missing closing parenthesis", std::invalid_argument);
  CHECK_THROWS_AS(regular_expression("[a"), std::invalid_argument);
  CHECK_THROWS_AS(regular_expression("\\p{Klingon}"), std::invalid_argument);
  CHECK_THROWS_AS(regular_expression("\\C"), std::invalid_argument);
  CHECK_THROWS_AS(regular_expression("\xff"), std::invalid_argument);
  const regular_expression slow("(a|aa)+b");  // as many ways as Fibonacci's numbers to read a row of a
  CHECK_THROWS_WITH_AS(slow.each_match(std::string(40, 'a') + "cb", [](std::size_t, std::size_t) {}),
                       "regular expression: match limit exceeded", std::runtime_error);
  std::size_t found = 0;
  slow.each_match("aaab", [&](std::size_t, std::size_t end) { found = end; });  // and serves again
  CHECK(found == 4);
}
