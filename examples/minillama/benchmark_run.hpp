// SPDX-License-Identifier: Apache-2.0
// Runs a question set (benchmark_file.hpp): every record's prompt is prefilled once with dense attention, then each policy decodes its own
// reply after it, the likeliest token at every step, and the replies are scored.
#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "benchmark_file.hpp"
#include "chat.hpp"
#include "engine.hpp"
#include "interview.hpp"

namespace minillama {

/// A record's prompt as the model gets it.
struct benchmark_prompt {
  std::vector<token_id> tokens{};
  bool is_shortened = false;
};

/// Prompts of all records, in the model's form where one is given and the data set is asked in it. LongBench's are shortened in the middle.
///
/// @param source  the set's file, for messages
/// @param chat    none: prompts are texts that the model goes on with
/// @param most    tokens of a prompt at most, without the marks of a chat; 0: what the model's positions leave
/// @throws load_error that names file, line and key for a prompt that the model's positions do not hold with its answer
std::vector<benchmark_prompt> prompts_of(const benchmark& set, const std::filesystem::path& source, const model_config& config,
                                         const tokenizer& words, const chat_template* chat, std::size_t most);

/// One policy's replies.
struct benchmark_result {
  contestant who;
  std::vector<std::string> replies{};
  std::vector<double> scores{};  // 0 to 1
  session_statistics statistics{};
  double index_seconds = 0;

  double mean() const;
};

/// @param prompts  of the set's records
/// @returns a result for each contestant
std::vector<benchmark_result> run_benchmark(engine& computing, const model_config& config, const tokenizer& words, const benchmark& set,
                                            const std::vector<benchmark_prompt>& prompts, const std::vector<contestant>& contestants);

/// Prints a line for each policy: its score of 100, tokens attended, and bytes read per token, where they are counted.
void print_table(const std::vector<benchmark_result>& results);

/// Everything: the set, the policies with their scores, and each record with all replies.
nlohmann::json json_of(const benchmark& set, const std::filesystem::path& source, const std::vector<benchmark_prompt>& prompts,
                       const std::vector<benchmark_result>& results);

}  // namespace minillama
