// SPDX-License-Identifier: Apache-2.0
// full, pq at three budgets, and the two bounds beside it: the exact top-k above, sinks and window alone below.
#include "demonstration.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <stdexcept>

#include "command_line.hpp"

namespace minillama {
namespace {

/// Prints "key -> answer", byte by byte.
audience terminal_audience() {
  return {.asked = [](const question& asked) { std::printf("  %-18s -> ", asked.key.c_str()); },
          .spoken =
              [](const std::string& added) {
                for (const char c : added) std::putchar(c >= 0 && c < ' ' ? ' ' : c);
                finish_standard_output();
              },
          .answered =
              [](const question& asked, const answer& given) {
                if (given.right)
                  std::printf("\n");
                else
                  std::printf("   (wrong: it is %s)\n", asked.value.c_str());
              }};
}

}  // namespace

void demonstrate(engine& computing, const model_config& config, const examiner& examining, pool_runner& runner, const std::string& text,
                 const demonstration_settings& settings) {
  if (config.max_positions <= question_room)
    throw std::invalid_argument("--demo: the model's " + std::to_string(config.max_positions) + " positions hold no context and question");
  random_source random(settings.seed);
  const std::size_t length = std::min(settings.length, config.max_positions - question_room);
  const examination exam = examining.prepare(0, text, length, settings.questions, random);

  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<held_prompt> prefilled = [&] {
    progress_bar bar("prefill of " + std::to_string(exam.context.size()) + " tokens");
    return computing.prefill(exam.context, bar.report());
  }();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("prefilled %zu tokens of text with facts in it, once, in %.1f s\n", exam.context.size(), seconds);

  using enum policy_name;
  std::vector<interview> interviews;
  for (contestant who : {contestant_at(full, 1), contestant_at(pq, 5), contestant_at(pq, 10), contestant_at(pq, 20),
                         contestant_at(oracle, 10), contestant_at(streaming, 10)}) {
    who.settings.quantizer.path = settings.path;
    who.settings.quantizer.train.seed = settings.seed;
    std::printf("\n%s\n", who.label.c_str());
    interviews.emplace_back(who, config, examining.words(), host_policy{runner, {}});
    interviews.back().run(*prefilled, exam, terminal_audience());
  }
  std::printf("\n");
  print_table(interviews);
}

}  // namespace minillama
