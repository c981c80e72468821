// SPDX-License-Identifier: Apache-2.0
// How near a text comes to the expected ones, 0 to 1: the metrics of LongBench and RULER, as those suites compute them. Where a reference
// package fails on valid input, or depends on what else is installed, this page says what is computed here.
// Sources: LongBench's metrics.py, with the packages rouge 1.0.1 and fuzzywuzzy 0.18; RULER's string matches.
// tests/peers/reference_metrics.sh compares scores with theirs.
#pragma once
#include <map>
#include <string>
#include <vector>

namespace minillama {

enum class metric {
  /// Words in common: F1 of the words as multisets, in lower case, without ASCII punctuation and without the words a, an, the.
  qa_f1,
  /// ROUGE-L of summaries: sentences end at every "."; the words of their longest common subsequences, each distinct word once. The package
  /// gives up on sentences of about a thousand words, and LongBench counts 0; here there is no such limit.
  rouge_l,
  /// The share 1 / (classes named in the text), if the expected one is among them. A class that is a part of the expected one's name is
  /// struck out, as the suite's loop does it: of two in a row, the second stays.
  classification,
  /// Of all numbers in the text, the share that is the paragraph's number in "Paragraph 7" (or its Chinese form). Digits of any script make
  /// a number, but equal only themselves.
  retrieval,
  /// The same, where the expected text is the number.
  count,
  /// Of the first line that has no "`", "#" or "//": 2 LCS / (sum of both lengths) in characters, rounded to a hundredth. So does
  /// fuzzywuzzy
  /// where python-Levenshtein is installed; without it, the package compares by another rule, which gives other values.
  code_similarity,
  /// The share of the expected texts that occur, whatever their case (RULER's string_match_all).
  all_found,
  /// Whether any of them occurs (RULER's string_match_part, for its question answering).
  any_found
};

/// qa-f1, rouge-l, classification, retrieval, count, code, all, any
const std::map<std::string, metric>& score_names();

/// What is wrong with expected texts for this metric; "" if nothing is.
///
/// @param classes  all names that there are; only for classification
std::string problem_of(metric by, const std::vector<std::string>& answers, const std::vector<std::string>& classes);

/// The score of a text. Where each of the answers would do, the best of their scores counts.
///
/// @pre  problem_of() is ""
/// @cost rouge_l takes time and memory of the product of both lengths, code_similarity time
double score_of(metric by, const std::string& text, const std::vector<std::string>& answers, const std::vector<std::string>& classes = {});

/// The first line after leading line feeds: what LongBench scores of its data sets with examples in the prompt.
std::string first_line(const std::string& text);

}  // namespace minillama
