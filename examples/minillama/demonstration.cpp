// SPDX-License-Identifier: Apache-2.0
// full, pq at three budgets, and the two bounds beside it: the exact top-k above, sinks and window alone below.
#include "demonstration.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "command_line.hpp"
#include "tokenizer.hpp"

namespace minillama {
namespace {

/// Prints "key -> answer", byte by byte.
audience terminal_audience() {
  return {.asked = [](const question& asked) { std::printf("  %-18s -> ", asked.key.c_str()); },
          .spoken =
              [](char c) {
                std::putchar(c < ' ' ? ' ' : c);
                std::fflush(stdout);
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

void demonstrate(engine& computing, const model_config& config, pool_runner& runner, const std::string& text,
                 const demonstration_settings& settings) {
  random_source random(settings.seed);
  const std::size_t length = std::min(settings.length, config.max_positions - question_room);
  const question_context context = make_context(context_kind::needles, text, length, settings.questions, random);

  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<held_prompt> prefilled = [&] {
    progress_bar bar("prefill of " + std::to_string(length) + " tokens");
    return computing.prefill(byte_tokens(context.text), bar.report());
  }();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("prefilled %zu tokens of text with facts in it, once, in %.1f s\n", length, seconds);

  using enum policy_name;
  std::vector<interview> interviews;
  for (contestant who : {contestant_at(full, 1), contestant_at(pq, 5), contestant_at(pq, 10), contestant_at(pq, 20),
                         contestant_at(oracle, 10), contestant_at(streaming, 10)}) {
    who.settings.quantizer.path = settings.path;
    who.settings.quantizer.train.seed = settings.seed;
    std::printf("\n%s\n", who.label.c_str());
    interviews.emplace_back(who, config, host_policy{runner, {}});
    interviews.back().run(*prefilled, context.questions, terminal_audience());
  }
  std::printf("\n");
  print_table(interviews);
}

}  // namespace minillama
