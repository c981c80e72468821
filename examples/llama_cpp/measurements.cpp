// SPDX-License-Identifier: Apache-2.0
#include "measurements.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "thread_clock.hpp"

namespace llama_example {
namespace {
double middle_of(std::vector<double> numbers) {
  std::sort(numbers.begin(), numbers.end());
  const std::size_t n = numbers.size();
  return n % 2 != 0 ? numbers[n / 2] : (numbers[n / 2 - 1] + numbers[n / 2]) / 2;
}

/// How far two logit vectors are from each other, over many tokens.
struct distance {
  double largest = 0, sum = 0;
  std::size_t count = 0;

  double add(std::span<const float> a, std::span<const float> b) {
    const double most = farthest(a, b);
    largest = std::max(largest, most);
    sum += most;
    ++count;
    return most;
  }
  double mean() const { return count == 0 ? 0 : sum / static_cast<double>(count); }
};

}  // namespace

double farthest(std::span<const float> a, std::span<const float> b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double apart = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(apart <= most)) most = apart;  // a NaN too
    if (std::isnan(most)) break;
  }
  return a.size() == b.size() ? most : std::numeric_limits<double>::quiet_NaN();
}

engine_settings without_pqkv(engine_settings settings, ggml_type cache_type, bool flash_attention) {
  settings.variants.clear();
  settings.cache_type = cache_type;
  settings.flash_attention = flash_attention;
  return settings;
}

int compare(const model& file, const options& o, std::span<const llama_token> prompt) {
  const engine_settings settings = o.engine_of(prompt.size() + o.answer);
  engine ours(file, settings), plain(file, without_pqkv(settings, o.cache_type, true)),
      other(file, without_pqkv(settings, GGML_TYPE_F16, false));
  if (!plain.read(prompt) || !other.read(prompt) || !ours.read(prompt)) return interrupted;
  distance of_ours, of_other, between;
  std::size_t differing = 0, differing_other = 0;
  for (std::size_t i = 0; i < o.answer; ++i) {
    const llama_token next = plain.best_token(), mine = ours.best_token();
    const double far = of_ours.add(plain.logits(), ours.logits()), usual = of_other.add(plain.logits(), other.logits());
    between.add(other.logits(), ours.logits());
    differing_other += other.best_token() != next;
    if (mine != next && differing++ == 0) {
      const auto logits = plain.logits();
      std::printf(
          "token %zu: llama.cpp takes '%s', pqkv '%s'. In llama.cpp they are %.4f of a logit apart; logits differ by %.4f at most, and\n"
          "by %.4f where llama.cpp runs without flash attention\n",
          i, file.text_of(next).c_str(), file.text_of(mine).c_str(),
          static_cast<double>(logits[static_cast<std::size_t>(next)] - logits[static_cast<std::size_t>(mine)]), far, usual);
    }
    if (i + 1 < o.answer && (!plain.read(next) || !other.read(next) || !ours.read(next))) return interrupted;
  }
  std::printf("%zu tokens after a prompt of %zu, %.0f attended a step: %zu tokens are others than llama.cpp's\n", o.answer, prompt.size(),
              ours.hook()->attended_tokens(), differing);
  std::printf("largest difference of a logit   mean over tokens   at most   other tokens\n");
  std::printf("  pqkv                                    %8.4f  %8.4f   %12zu\n", of_ours.mean(), of_ours.largest, differing);
  std::printf("  llama.cpp without flash attention       %8.4f  %8.4f   %12zu\n", of_other.mean(), of_other.largest, differing_other);
  std::printf("  pqkv, from that                         %8.4f  %8.4f\n", between.mean(), between.largest);
  return differing == 0 ? 0 : 3;
}

namespace {
/// Seconds of o.steps steps of the first `sequences` sequences, or nothing after Ctrl-C.
std::optional<double> seconds_of_steps(engine& e, const options& o, std::size_t sequences, std::span<const llama_token> text) {
  std::vector<llama_token> tokens(sequences);
  const double begin = seconds_of_work(o.threads);
  for (std::size_t i = 0; i < o.steps; ++i) {
    for (std::size_t sequence = 0; sequence < sequences; ++sequence) tokens[sequence] = text[(i + 7 * sequence) % text.size()];
    if (!e.read_each(tokens)) return {};
  }
  return seconds_of_work(o.threads) - begin;
}

/// Seconds of reading the prompt into an empty engine, or nothing after Ctrl-C.
std::optional<double> seconds_of_prompt(engine& e, const options& o, std::span<const llama_token> prompt) {
  e.truncate(0);
  if (e.hook()) e.hook()->clear_times();
  const double begin = seconds_of_work(o.threads);
  if (!e.read(prompt)) return {};
  return seconds_of_work(o.threads) - begin;
}

/// Reads the prompt in turns, and prints a line; all sequences have it then. A second llama.cpp takes turns too: what it differs by from
/// the first is what this measurement cannot tell. @returns false after Ctrl-C
bool bench_prompts(engine& plain, engine& again, engine& ours, const options& o, std::span<const llama_token> prompt) {
  std::vector<double> theirs, mine, times, noise, taking;
  for (std::size_t round = 0; round < o.prompts; ++round) {
    engine& first = round % 2 == 0 ? plain : again;
    engine& last = round % 2 == 0 ? again : plain;
    const auto a = seconds_of_prompt(first, o, prompt), b = seconds_of_prompt(ours, o, prompt), c = seconds_of_prompt(last, o, prompt);
    if (!a || !b || !c) return false;
    const double mean = (*a + *c) / 2;
    theirs.push_back(mean), mine.push_back(*b), times.push_back(*b / mean), taking.push_back(ours.hook()->times().taking / *b);
    noise.push_back(round % 2 == 0 ? *c / *a : *a / *c);
  }
  std::printf(
      "%8zu to the first token, median of %zu: llama.cpp %.2f s, pqkv %.2f s, %.3f times as long, pqkv's own part %.1f %%; a second\n"
      "         llama.cpp %.3f times the first\n",
      prompt.size(), o.prompts, middle_of(theirs), middle_of(mine), middle_of(times), 100 * middle_of(taking), middle_of(noise));
  std::fflush(stdout);
  for (std::size_t sequence = 1; sequence < o.sequences; ++sequence) plain.fork(0, sequence), ours.fork(0, sequence);
  return true;
}

/// Decodes in turns and prints a line. @returns false after Ctrl-C
bool bench_steps(engine& plain, engine& ours, const options& o, std::size_t length, std::size_t sequences,
                 std::span<const llama_token> text) {
  std::vector<double> plain_rate, our_rate, share, between;
  if (!seconds_of_steps(plain, o, sequences, text) || !seconds_of_steps(ours, o, sequences, text)) return false;  // graphs and caches warm
  for (std::size_t round = 0; round < o.rounds; ++round) {
    const auto theirs = seconds_of_steps(plain, o, sequences, text);
    ours.hook()->clear_times();
    const auto mine = seconds_of_steps(ours, o, sequences, text);
    if (!theirs || !mine) return false;
    const double tokens = static_cast<double>(o.steps * sequences);
    plain_rate.push_back(tokens / *theirs);
    our_rate.push_back(tokens / *mine);
    share.push_back(ours.hook()->times().attending / *mine);
    between.push_back(ours.hook()->times().between / *mine);
  }
  const double a = middle_of(plain_rate), b = middle_of(our_rate);
  std::printf("%8zu %9zu %9.2f %9.2f %6.2fx %10.0f %9.1f%% %8.1f%%\n", length, sequences, a, b, b / a, ours.hook()->attended_tokens(),
              100 * middle_of(share), 100 * middle_of(between));
  std::fflush(stdout);
  return true;
}
}  // namespace

int bench(const model& file, const options& o, std::span<const llama_token> text) {
  std::printf("tokens/s of decoding, median of %zu rounds of %zu steps, %zu thread%s, %s; llama.cpp's cache in %s\n", o.rounds, o.steps,
              o.threads, o.threads == 1 ? "" : "s", o.threads == 1 ? "by its time on the CPU" : "by the clock",
              ggml_type_name(o.cache_type));
  std::printf("%8s %9s %9s %9s %7s %10s %10s %9s\n", "prompt", "sequences", "llama.cpp", "pqkv", "times", "attended", "attention",
              "maintain");
  for (const std::size_t length : o.bench) {
    engine_settings settings = o.engine_of(length + 2 * o.steps * (o.rounds + 1));
    settings.sequences = o.sequences;
    const engine_settings unmodified = without_pqkv(settings, o.cache_type, true);
    engine ours(file, settings), plain(file, unmodified), again(file, unmodified);
    std::vector<llama_token> prompt(length);
    for (std::size_t i = 0; i < length; ++i) prompt[i] = text[i % text.size()];
    if (!bench_prompts(plain, again, ours, o, prompt)) return interrupted;
    if (!bench_steps(plain, ours, o, length, 1, text)) return interrupted;
    if (o.sequences > 1 && !bench_steps(plain, ours, o, length, o.sequences, text)) return interrupted;
  }
  return 0;
}

}  // namespace llama_example
