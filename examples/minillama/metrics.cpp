// SPDX-License-Identifier: Apache-2.0
// Each metric follows the steps of its reference, in characters, not bytes.
#include "metrics.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <set>

#include "unicode_text.hpp"

namespace minillama {
namespace {

using word_list = std::vector<std::u32string>;

bool is_ascii_punctuation(char32_t c) {
  return (c > 0x20 && c < 0x30) || (c > 0x39 && c < 0x41) || (c > 0x5a && c < 0x61) || (c > 0x7a && c < 0x7f);
}

/// Words in lower case, without punctuation and articles. An article is a run of letters: "the-end" has lost its hyphen before and is one
/// word, but a dash beyond ASCII parts words.
word_list plain_words(const std::string& text) {
  std::u32string kept;
  for (const char32_t c : lower_case(code_points(text)))
    if (!is_ascii_punctuation(c)) kept += c;
  std::u32string without;
  for (auto at = kept.begin(); at != kept.end();) {
    const auto end = std::find_if_not(at, kept.end(), is_word_character);
    const std::u32string run(at, end);
    without += run == U"a" || run == U"an" || run == U"the" ? std::u32string(U" ") : run;
    at = std::find_if(end, kept.end(), is_word_character);
    without.append(end, at);
  }
  return split_at_blanks(without);
}

double qa_f1(const std::string& text, const std::string& answer) {
  word_list found = plain_words(text), wanted = plain_words(answer), common;
  std::sort(found.begin(), found.end());
  std::sort(wanted.begin(), wanted.end());
  std::set_intersection(found.begin(), found.end(), wanted.begin(), wanted.end(), std::back_inserter(common));
  if (common.empty()) return 0;
  const double same = static_cast<double>(common.size());
  const double precision = same / static_cast<double>(found.size()), recall = same / static_cast<double>(wanted.size());
  return 2 * precision * recall / (precision + recall);
}

/// Lengths of longest common subsequences of all beginnings: [a + 1, b + 1].
std::vector<std::uint32_t> common_lengths(const word_list& a, const word_list& b) {
  const std::size_t row = b.size() + 1;
  std::vector<std::uint32_t> table((a.size() + 1) * row);
  for (std::size_t i = 1; i <= a.size(); ++i)
    for (std::size_t j = 1; j <= b.size(); ++j)
      table[i * row + j] =
          a[i - 1] == b[j - 1] ? table[(i - 1) * row + j - 1] + 1 : std::max(table[(i - 1) * row + j], table[i * row + j - 1]);
  return table;
}

/// Sentences as lists of words. A sentence of blanks alone has one word, the empty one.
std::vector<word_list> sentences_of(const std::string& text) {
  std::vector<word_list> all;
  const std::u32string whole = code_points(text);
  for (std::size_t at = 0; at <= whole.size();) {
    const std::size_t end = std::min(whole.find(U'.', at), whole.size());
    if (end > at) {
      all.push_back(split_at_blanks(std::u32string_view(whole).substr(at, end - at)));
      if (all.back().empty()) all.back().emplace_back();
    }
    at = end + 1;
  }
  return all;
}

/// Adds the words of one longest common subsequence. Of several, the one that goes back along `b` first.
void add_common(const word_list& a, const word_list& b, std::set<std::u32string>& words) {
  const auto table = common_lengths(a, b);
  const std::size_t row = b.size() + 1;
  for (std::size_t i = a.size(), j = b.size(); i > 0 && j > 0;) {
    if (a[i - 1] == b[j - 1])
      words.insert(a[i - 1]), --i, --j;
    else if (table[(i - 1) * row + j] > table[i * row + j - 1])
      --i;
    else
      --j;
  }
}

double rouge_l(const std::string& text, const std::string& answer) {
  const auto found = sentences_of(text), wanted = sentences_of(answer);
  if (found.empty() || wanted.empty()) return 0;
  const auto distinct = [](const std::vector<word_list>& sentences) {
    std::set<std::u32string> words;
    for (const word_list& one : sentences) words.insert(one.begin(), one.end());
    return static_cast<double>(words.size());
  };
  std::set<std::u32string> common;
  for (const word_list& reference : wanted)
    for (const word_list& sentence : found) add_common(reference, sentence, common);
  const double same = static_cast<double>(common.size()), precision = same / distinct(found), recall = same / distinct(wanted);
  return 2 * (precision * recall / (precision + recall + 1e-8));
}

double classification(const std::string& text, const std::string& answer, const std::vector<std::string>& classes) {
  std::vector<std::string> named;
  for (const std::string& one : classes)
    if (text.find(one) != text.npos) named.push_back(one);
  // As a loop over a list that shrinks under it: what follows a name that was struck out is not looked at.
  for (std::size_t i = 0; i < named.size(); ++i) {
    const std::string one = named[i];
    if (one != answer && answer.find(one) != answer.npos) named.erase(std::find(named.begin(), named.end(), one));
  }
  return std::find(named.begin(), named.end(), answer) == named.end() ? 0 : 1 / static_cast<double>(named.size());
}

std::vector<std::u32string> numbers_in(const std::string& text) {
  std::vector<std::u32string> all;
  const std::u32string whole = code_points(text);
  for (auto at = whole.begin();;) {
    at = std::find_if(at, whole.end(), is_decimal_digit);
    if (at == whole.end()) return all;
    const auto end = std::find_if_not(at, whole.end(), is_decimal_digit);
    all.emplace_back(at, end);
    at = end;
  }
}

/// The number after the first "Paragraph "; empty where there is none.
std::u32string paragraph_of(const std::string& answer) {
  const std::u32string whole = code_points(answer);
  for (const std::u32string_view mark : {std::u32string_view(U"Paragraph "), std::u32string_view(U"\u6bb5\u843d")})
    for (std::size_t at = whole.find(mark); at != whole.npos; at = whole.find(mark, at + 1)) {
      const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(at + mark.size()),
                 end = std::find_if_not(begin, whole.end(), is_decimal_digit);
      if (begin != end) return {begin, end};
    }
  return {};
}

double share_of_numbers(const std::string& text, const std::u32string& wanted) {
  const auto numbers = numbers_in(text);
  if (numbers.empty()) return 0;
  return static_cast<double>(std::count(numbers.begin(), numbers.end(), wanted)) / static_cast<double>(numbers.size());
}

/// The first line that is code and no comment or mark; empty where there is none.
std::string code_line(const std::string& text) {
  for (std::size_t at = std::min(text.find_first_not_of('\n'), text.size()); at <= text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    if (line.find_first_of("`#") == line.npos && line.find("//") == line.npos) return line;
    at = end + 1;
  }
  return "";
}

double code_similarity(const std::string& text, const std::string& answer) {
  const std::u32string found = code_points(code_line(text)), wanted = code_points(answer);
  if (found == wanted) return 1;
  if (found.empty() || wanted.empty()) return 0;
  std::vector<std::uint32_t> before(wanted.size() + 1), row(wanted.size() + 1);  // of common_lengths(), two rows at a time
  for (const char32_t c : found) {
    for (std::size_t j = 1; j < row.size(); ++j) row[j] = c == wanted[j - 1] ? before[j - 1] + 1 : std::max(before[j], row[j - 1]);
    before.swap(row);
  }
  const double common = static_cast<double>(before.back());
  return std::nearbyint(200 * common / static_cast<double>(found.size() + wanted.size())) / 100;
}

/// How many of the answers occur.
std::size_t occurring(const std::string& text, const std::vector<std::string>& answers) {
  const std::u32string whole = lower_case(code_points(text));
  return static_cast<std::size_t>(std::count_if(
      answers.begin(), answers.end(), [&](const std::string& one) { return whole.find(lower_case(code_points(one))) != whole.npos; }));
}

double score_against(metric by, const std::string& text, const std::string& answer, const std::vector<std::string>& classes) {
  switch (by) {
    case metric::qa_f1:
      return qa_f1(text, answer);
    case metric::rouge_l:
      return rouge_l(text, answer);
    case metric::classification:
      return classification(text, answer, classes);
    case metric::retrieval:
      return share_of_numbers(text, paragraph_of(answer));
    case metric::count:
      return share_of_numbers(text, code_points(answer));
    case metric::code_similarity:
      return code_similarity(text, answer);
    case metric::all_found:
    case metric::any_found:
      break;
  }
  return occurring(text, {answer}) == 0 ? 0 : 1;
}

}  // namespace

const std::map<std::string, metric>& score_names() {
  static const std::map<std::string, metric> names{
      {"qa-f1", metric::qa_f1},         {"rouge-l", metric::rouge_l}, {"classification", metric::classification},
      {"retrieval", metric::retrieval}, {"count", metric::count},     {"code", metric::code_similarity},
      {"all", metric::all_found},       {"any", metric::any_found}};
  return names;
}

std::string problem_of(metric by, const std::vector<std::string>& answers, const std::vector<std::string>& classes) {
  if (answers.empty()) return "expected at least one text, got none";
  for (const std::string& one : answers) {
    if ((by == metric::all_found || by == metric::any_found) && one.empty()) return "an empty text occurs in every reply";
    if (by == metric::classification && std::find(classes.begin(), classes.end(), one) == classes.end())
      return "\"" + one + "\" is not among the classes";
    if (by == metric::retrieval && paragraph_of(one).empty()) return "expected \"Paragraph\" and a number, got \"" + one + "\"";
    if (by == metric::count && (one.empty() || !std::all_of(one.begin(), one.end(), [](char c) { return c >= '0' && c <= '9'; })))
      return "expected a number, got \"" + one + "\"";
  }
  return "";
}

double score_of(metric by, const std::string& text, const std::vector<std::string>& answers, const std::vector<std::string>& classes) {
  if (by == metric::all_found) return static_cast<double>(occurring(text, answers)) / static_cast<double>(answers.size());
  double best = 0;
  for (const std::string& one : answers) best = std::max(best, score_against(by, text, one, classes));
  return best;
}

std::string first_line(const std::string& text) {
  const std::size_t begin = std::min(text.find_first_not_of('\n'), text.size());
  return text.substr(begin, text.find('\n', begin) - begin);
}

}  // namespace minillama
