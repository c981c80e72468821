// SPDX-License-Identifier: Apache-2.0
// Metrics of answers: cases by hand, each with its trap, and random texts against the references' words written out plainly.
#include "metrics.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>
#include <list>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "unicode_text.hpp"

using minillama::metric;
using minillama::score_of;

namespace {

double of(metric by, const std::string& text, const std::string& answer) { return score_of(by, text, {answer}); }

std::vector<std::string> split(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

/// QA F1 of ASCII texts: marks out, then articles between what is no letter, digit or underscore.
double plain_f1(const std::string& text, const std::string& answer) {
  const auto words = [](const std::string& of) {
    std::string kept, without;
    for (const char c : of)
      if (!std::ispunct(static_cast<unsigned char>(c))) kept += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const auto is_letter = [&](std::size_t at) { return at < kept.size() && std::isalnum(static_cast<unsigned char>(kept[at])); };
    for (std::size_t at = 0; at < kept.size();) {
      std::size_t article = 0;
      for (const std::string one : {"a", "an", "the"})
        if (kept.compare(at, one.size(), one) == 0 && !is_letter(at + one.size()) && !(at > 0 && is_letter(at - 1))) article = one.size();
      without += article != 0 ? ' ' : kept[at];
      at += std::max<std::size_t>(article, 1);
    }
    return split(without);
  };
  std::map<std::string, int> wanted;
  const auto answered = words(text), expected = words(answer);
  for (const auto& word : expected) ++wanted[word];
  double same = 0;
  for (const auto& word : answered) same += wanted[word]-- > 0 ? 1 : 0;
  if (same == 0) return 0;
  const double p = same / static_cast<double>(answered.size()), r = same / static_cast<double>(expected.size());
  return 2 * p * r / (p + r);
}

using words_of = std::vector<std::string>;

/// One longest common subsequence by the definition: of equal last words, both go; else where dropping the last of `a` leaves a longer one.
words_of plain_common(const words_of& a, const words_of& b) {
  std::map<std::pair<std::size_t, std::size_t>, std::size_t> known;
  const std::function<std::size_t(std::size_t, std::size_t)> length = [&](std::size_t i, std::size_t j) -> std::size_t {
    if (i == 0 || j == 0) return 0;
    const auto found = known.find({i, j});
    if (found != known.end()) return found->second;
    return known[{i, j}] = a[i - 1] == b[j - 1] ? 1 + length(i - 1, j - 1) : std::max(length(i - 1, j), length(i, j - 1));
  };
  const std::function<words_of(std::size_t, std::size_t)> build = [&](std::size_t i, std::size_t j) -> words_of {
    if (i == 0 || j == 0) return {};
    if (a[i - 1] == b[j - 1]) {
      words_of before = build(i - 1, j - 1);
      before.push_back(a[i - 1]);
      return before;
    }
    return length(i - 1, j) > length(i, j - 1) ? build(i - 1, j) : build(i, j - 1);
  };
  return build(a.size(), b.size());
}

double plain_rouge(const std::string& text, const std::string& answer) {
  const auto sentences = [](const std::string& whole) {
    std::vector<words_of> all;
    std::istringstream in(whole);
    for (std::string part; std::getline(in, part, '.');)
      if (!part.empty()) all.push_back(split(part).empty() ? words_of{""} : split(part));
    return all;
  };
  const auto found = sentences(text), wanted = sentences(answer);
  std::set<std::string> in_text, in_answer, in_both;
  for (const auto& one : found) in_text.insert(one.begin(), one.end());
  for (const auto& one : wanted) in_answer.insert(one.begin(), one.end());
  for (const auto& one : wanted)
    for (const auto& other : found)
      for (const auto& word : plain_common(one, other)) in_both.insert(word);
  if (found.empty() || wanted.empty()) return 0;
  const double p = static_cast<double>(in_both.size()) / static_cast<double>(in_text.size());
  const double r = static_cast<double>(in_both.size()) / static_cast<double>(in_answer.size());
  return 2 * p * r / (p + r + 1e-8);
}

/// The longest common subsequence of two short texts, by trying all of one.
std::size_t tried_common(const std::string& a, const std::string& b) {
  std::size_t most = 0;
  for (unsigned chosen = 0; chosen < 1u << a.size(); ++chosen) {
    std::size_t at = 0, count = 0;
    bool fits = true;
    for (std::size_t i = 0; i < a.size() && fits; ++i)
      if (chosen >> i & 1u) {
        at = b.find(a[i], at);
        fits = at++ != b.npos, ++count;
      }
    if (fits) most = std::max(most, count);
  }
  return most;
}

/// A random text of these parts.
std::string made_of(const std::vector<std::string>& parts, std::size_t most, std::mt19937& random) {
  std::string text;
  for (std::size_t left = random() % (most + 1); left > 0; --left) text += parts[random() % parts.size()];
  return text;
}

}  // namespace

TEST_CASE("QA F1: case, punctuation and articles do not count, repeated words do") {
  CHECK(of(metric::qa_f1, "The box!", "a Box") == 1);
  CHECK(of(metric::qa_f1, "in the red box", "box") == 0.5);  // three words, one of them right
  CHECK(of(metric::qa_f1, "box box", "box") == doctest::Approx(2.0 / 3));
  CHECK(of(metric::qa_f1, "", "box") == 0);
  CHECK(of(metric::qa_f1, "the", "a") == 0);                   // nothing is left of either
  CHECK(of(metric::qa_f1, "the-end", "theend") == 1);          // the hyphen goes before articles do
  CHECK(of(metric::qa_f1, "the\u2013end", "\u2013end") == 1);  // a dash beyond ASCII stays, and parts words
  CHECK(of(metric::qa_f1, "\u00c9COLE", "\u00e9cole") == 1);
  CHECK(of(metric::qa_f1, "two\u00a0words", "two words") == 1);
  CHECK(of(metric::qa_f1, "x\xff", "x\xfe") == 1);  // broken characters are all the same one
  CHECK(score_of(metric::qa_f1, "red box", {"blue hat", "red box", "red"}) == 1);
  std::mt19937 random(5);
  for (int round = 0; round < 400; ++round) {
    const std::vector<std::string> parts{"a", "an ", " the", "The ", "box", " Box", "-", "_the ", "'s ", "\n", "9", ". ", "(red)"};
    const std::string text = made_of(parts, 9, random), answer = made_of(parts, 9, random);
    CAPTURE(text);
    CAPTURE(answer);
    CHECK(of(metric::qa_f1, text, answer) == doctest::Approx(plain_f1(text, answer)));
  }
}

TEST_CASE("ROUGE-L: sentences at full stops, distinct words, no limit of length") {
  CHECK(of(metric::rouge_l, "one two three", "one two three") == doctest::Approx(1));
  CHECK(of(metric::rouge_l, "one one one", "one") == doctest::Approx(1));  // distinct words
  CHECK(of(metric::rouge_l, "three two one", "one two three") == doctest::Approx(1.0 / 3));
  CHECK(of(metric::rouge_l, "three. two. one", "one two three") == doctest::Approx(1));  // a sentence each
  CHECK(of(metric::rouge_l, "", "one") == 0);
  CHECK(of(metric::rouge_l, "...", "one") == 0);
  CHECK(of(metric::rouge_l, "One", "one") == 0);  // case counts here
  std::string longest;
  for (int i = 0; i < 1500; ++i) longest += "w" + std::to_string(i) + " ";
  CHECK(of(metric::rouge_l, longest, longest) == doctest::Approx(1));  // where the package's recursion ends
  std::mt19937 random(6);
  for (int round = 0; round < 300; ++round) {
    const std::vector<std::string> parts{"a ", "b ", "c ", "d\n", ".", ". ", "  ", "e"};
    const std::string text = made_of(parts, 14, random), answer = made_of(parts, 14, random);
    CAPTURE(text);
    CAPTURE(answer);
    CHECK(of(metric::rouge_l, text, answer) == doctest::Approx(plain_rouge(text, answer)));
  }
}

TEST_CASE("classification: the share of one among the classes that are named") {
  const std::vector<std::string> classes{"Food", "Food type", "Date", "Place"};
  const auto score = [&](const std::string& text, const std::string& answer) {
    return score_of(metric::classification, text, {answer}, classes);
  };
  CHECK(score("It is Date.", "Date") == 1);
  CHECK(score("Date or Place", "Date") == 0.5);
  CHECK(score("Place", "Date") == 0);
  CHECK(score("date", "Date") == 0);            // case counts
  CHECK(score("Food type", "Food type") == 1);  // "Food" is a part of it
  CHECK(score("Food type", "Food") == 0.5);     // "Food type" is no part of "Food"
  // Two parts of the expected name in a row: the loop passes over the second.
  const auto tricky = [](const std::string& answer) {
    return score_of(metric::classification, "a b a b c", {answer}, {"a", "a b", "a b c", "a b a b c"});
  };
  CHECK(tricky("a b a b c") == 0.5);
  // The same loop on a linked list, with positions counted.
  std::mt19937 random(7);
  const std::vector<std::string> all{"a", "b", "ab", "abc", "bc", "c", "abcd"};
  for (int round = 0; round < 200; ++round) {
    const std::string text = made_of({"a", "b", "c", "d", " "}, 8, random), answer = all[random() % all.size()];
    std::list<std::string> named;
    for (const auto& one : all)
      if (text.find(one) != text.npos) named.push_back(one);
    for (std::size_t place = 0; place < named.size(); ++place) {
      const std::string one = *std::next(named.begin(), static_cast<std::ptrdiff_t>(place));
      if (answer.find(one) != answer.npos && one != answer) named.remove(one);  // names are different
    }
    const bool is_named = std::find(named.begin(), named.end(), answer) != named.end();
    CHECK(score_of(metric::classification, text, {answer}, all) == (is_named ? 1 / static_cast<double>(named.size()) : 0));
  }
}

TEST_CASE("retrieval and count: the share of the right number among all numbers") {
  CHECK(of(metric::retrieval, "Paragraph 7", "Paragraph 7") == 1);
  CHECK(of(metric::retrieval, "7 or 12", "Paragraph 7") == 0.5);
  CHECK(of(metric::retrieval, "Paragraph 17", "Paragraph 7") == 0);
  CHECK(of(metric::retrieval, "Paragraph 07", "Paragraph 7") == 0);
  CHECK(of(metric::retrieval, "none", "Paragraph 7") == 0);
  CHECK(of(metric::retrieval, "\u6bb5\u843d3", "\u6bb5\u843d3") == 1);
  CHECK(of(metric::count, "There are 5, not 6 or 7.5", "5") == 0.5);  // 5, 6, 7 and 5
  CHECK(of(metric::count, "five", "5") == 0);
  CHECK(of(metric::count, "5, \uff15 or \u096b", "5") == doctest::Approx(1.0 / 3));  // digits of other scripts make other numbers
  CHECK(of(metric::retrieval, "\u6bb5\u843d\uff13", "\u6bb5\u843d3") == 0);
  CHECK(of(metric::count, "5 \u00b2 \u2460", "5") == 1);  // no decimal digits
  CHECK(minillama::problem_of(metric::retrieval, {"7"}, {}) == "expected \"Paragraph\" and a number, got \"7\"");
  CHECK(minillama::problem_of(metric::count, {"5", "x5"}, {}) == "expected a number, got \"x5\"");
  CHECK(minillama::problem_of(metric::count, {""}, {}) == "expected a number, got \"\"");
  CHECK(minillama::problem_of(metric::qa_f1, {}, {}) == "expected at least one text, got none");
  CHECK(minillama::problem_of(metric::classification, {"A", "B"}, {"A"}) == "\"B\" is not among the classes");
  CHECK(minillama::problem_of(metric::classification, {"A"}, {"A"}) == "");
  CHECK(minillama::problem_of(metric::any_found, {"17", ""}, {}) == "an empty text occurs in every reply");
}

TEST_CASE("code: the first line that is code, by characters in common") {
  CHECK(of(metric::code_similarity, "\n\nreturn x;\nmore", "return x;") == 1);
  CHECK(of(metric::code_similarity, "```cpp\n# note\n// note\nreturn x;", "return x;") == 1);
  CHECK(of(metric::code_similarity, "# note", "return x;") == 0);
  CHECK(of(metric::code_similarity, "abcd", "abxd") == 0.75);
  CHECK(of(metric::code_similarity, "ab", "ba") == 0.5);
  CHECK(of(metric::code_similarity, "\u00e9", "\u00e8") == 0);  // one character each, which share a byte
  std::mt19937 random(8);
  for (int round = 0; round < 300; ++round) {
    const std::string text = made_of({"a", "b", "c"}, 9, random), answer = made_of({"a", "b", "c"}, 9, random);
    const double sizes = static_cast<double>(text.size() + answer.size());
    const double wanted = sizes == 0 ? 1 : std::nearbyint(200 * static_cast<double>(tried_common(text, answer)) / sizes) / 100;
    CAPTURE(text);
    CAPTURE(answer);
    CHECK(of(metric::code_similarity, text, answer) == wanted);
  }
}

TEST_CASE("RULER: all expected texts count by their share, or any of them in full") {
  const std::vector<std::string> expected{"17", "Oslo", "\u00c5s"};
  CHECK(score_of(metric::all_found, "It is 170 in OSLO.", expected) == doctest::Approx(2.0 / 3));
  CHECK(score_of(metric::any_found, "It is 170 in OSLO.", expected) == 1);  // not the share of them
  CHECK(score_of(metric::all_found, "\u00e5s", expected) == doctest::Approx(1.0 / 3));
  CHECK(score_of(metric::any_found, "nothing", expected) == 0);
  CHECK(score_of(metric::all_found, "", expected) == 0);
}

TEST_CASE("the first line stands behind leading line feeds") {
  CHECK(minillama::first_line("\n\nParis\nLondon") == "Paris");  // not an empty answer
  CHECK(minillama::first_line("Paris") == "Paris");
  CHECK(minillama::first_line(" \nParis") == " ");
  CHECK(minillama::first_line("\n\n") == "");
}

TEST_CASE("characters: UTF-8 as it should be, and each other byte as a replacement") {
  CHECK(minillama::code_points("a\u00e9\u6bb5\U0001f600") == U"a\u00e9\u6bb5\U0001f600");
  for (const char* bad : {"\x80", "\xff", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80"}) {
    const std::string text = bad;
    CHECK(minillama::code_points(text) == std::u32string(text.size(), U'\ufffd'));
  }
  CHECK(minillama::code_points("\xe6\xae"
                               "a") == U"\ufffd\ufffda");
  CHECK(minillama::lower_case(U"AZ\u00c0\u00d7\u00de\u0178\u0100\u0101\u0139\u0391\u03a9\u0410\u042f\u0401\u1ea4") ==
        U"az\u00e0\u00d7\u00fe\u00ff\u0101\u0101\u013a\u03b1\u03c9\u0430\u044f\u0451\u1ea5");
}

TEST_CASE("characters: decimal digits of any script") {
  for (const char32_t zero : {U'0', U'\u0660', U'\u0966', U'\uff10', U'\U0001d7ce', U'\U0001d7d8', U'\U0001fbf0'})
    for (char32_t digit = 0; digit < 10; ++digit) CHECK(minillama::is_decimal_digit(zero + digit));
  for (const char32_t other :
       {U'/', U':', U'a', U'\0', U'\u065f', U'\u066a', U'\u00b2', U'\u2460', U'\u4e09', U'\U0001d7cd', U'\U0001fbfa'})
    CHECK_FALSE(minillama::is_decimal_digit(other));
}
