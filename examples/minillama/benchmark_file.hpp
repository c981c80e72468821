// SPDX-License-Identifier: Apache-2.0
// Question sets as LongBench and RULER distribute them: one record a line (jsonl_reader.hpp). A record of LongBench has `context`, `input`,
// `answers`, `dataset` and perhaps `all_classes`; one of RULER has `input`, `outputs` and perhaps `answer_prefix`. What each data set of
// LongBench is scored by is known here. How it is asked, and how long an answer may be, the suite's own files say: hand them in.
#pragma once
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "metrics.hpp"
#include "tokenizer.hpp"

namespace minillama {

enum class benchmark_suite { longbench, ruler };
const char* name_of(benchmark_suite suite);

struct benchmark_record {
  std::size_t line = 0;                // in the file, from 1
  std::string id{};                    // `_id` or `index`; the line where there is none
  std::string prompt{};                // what the model is asked
  std::string begun{};                 // what its reply begins with: `answer_prefix`
  std::vector<std::string> answers{};  // `answers` or `outputs`
  std::vector<std::string> classes{};  // `all_classes`
};

/// What is scored of a reply.
enum class scored_part { everything, first_line };
/// Whether an instructed model is asked in its own form, or goes on with the text.
enum class asked_as { chat, text };

struct benchmark {
  benchmark_suite suite = benchmark_suite::longbench;
  std::string dataset{};  // of LongBench; "ruler" else
  metric by = metric::qa_f1;
  scored_part part = scored_part::everything;
  asked_as form = asked_as::chat;
  std::size_t tokens = 128;  // of an answer, at most
  std::vector<benchmark_record> records{};

  double score(const benchmark_record& record, const std::string& reply) const;
};

/// What may be said besides the file.
struct benchmark_request {
  std::optional<metric> by{};                                 // default: the data set's; the share of `outputs` for RULER
  std::optional<std::size_t> tokens{};                        // of an answer; default: the lengths' file, else 128
  std::optional<std::size_t> records{};                       // the first so many; default: all
  std::optional<std::filesystem::path> prompts{}, lengths{};  // dataset2prompt.json and dataset2maxlen.json of LongBench
};

/// Reads a whole file before anything is computed. Without a file of prompts, a record's context, its input and "Answer:" are asked, a
/// blank line between them.
///
/// @throws load_error that names file, line and key: a key that is missing or of another type, an empty context, answers that the metric
///         cannot score, another data set than in the lines before, a data set that is not known, or one whose metric needs words cut by a
///         Chinese dictionary
/// @cost   all texts are held in memory
benchmark read_benchmark(const std::filesystem::path& path, const benchmark_request& request);

/// A template with {context} and {input} filled in, once: what they bring is not looked at again. {{ and }} stand for braces.
///
/// @throws load_error, on behalf of `source` and `key`, for another name in braces, or a brace alone
std::string filled_template(const std::filesystem::path& source, const std::string& key, const std::string& form,
                            const std::string& context, const std::string& input);

/// A text of at most `most` tokens: what is longer loses its middle, so that half of the tokens stay at either end.
///
/// The halves are joined as text, as LongBench does it, so the result may take a token more or less than `most`.
std::string shortened(const tokenizer& words, const std::string& text, std::size_t most);

}  // namespace minillama
