// SPDX-License-Identifier: Apache-2.0
// Runs the toy engine over ragged sequences, one of which leaves and makes room for another, tries a draft on a fork, and holds every
// attention output against dense attention. Exit code 0 when within bounds, 1 when not, 2 when the settings are refused.
#include <cstdio>
#include <cstring>

#include "engine.hpp"

void engine::fail(const char* message) {
  std::fprintf(stderr, "%s\n", message);
  std::_Exit(2);
}

namespace {

struct options {
  std::size_t head_dim = 32, threads = 2, steps = 40;
};

options read(int argc, char** argv) {
  options o;
  for (int i = 1; i < argc; ++i) {
    std::size_t* number = std::strcmp(argv[i], "--head-dim") == 0  ? &o.head_dim
                          : std::strcmp(argv[i], "--threads") == 0 ? &o.threads
                          : std::strcmp(argv[i], "--steps") == 0   ? &o.steps
                                                                   : nullptr;
    char* end = nullptr;
    const unsigned long value = number != nullptr && i + 1 < argc ? std::strtoul(argv[i + 1], &end, 10) : 0;
    if (value == 0 || *end != '\0' || value > 1024)
      engine::fail("toy_engine: usage: toy_engine [--head-dim N] [--threads N] [--steps N], each from 1 to 1024");
    *number = value, ++i;
  }
  return o;
}

std::vector<unsigned> text(std::size_t tokens, std::uint64_t stream) {
  const pqkv::random_stream draws{3, stream};
  std::vector<unsigned> drawn(tokens);
  for (std::size_t i = 0; i < tokens; ++i) drawn[i] = draws.below(i, 64);
  return drawn;
}

/// One token for every sequence that is there.
bool step_all(engine::decoder& decoder, std::size_t slots, const std::vector<unsigned>& next) {
  std::vector<engine::fed_tokens> rows;
  for (std::uint32_t slot = 0; slot < slots; ++slot)
    if (decoder.size(slot) != 0) rows.push_back({slot, std::span(next).subspan(slot, 1)});
  return decoder.step(rows);
}

/// A draft of four tokens goes through the fork of a sequence in one step; all but the first are rejected, and another one follows.
bool draft_on_fork(engine::decoder& decoder, std::uint32_t from, std::uint32_t to) {
  const std::size_t n = decoder.size(from), pages = decoder.free_pages();
  decoder.fork(from, to);
  const bool shared = decoder.free_pages() == pages;
  const std::vector<unsigned> draft = text(4, 4), instead = text(1, 5);
  const engine::fed_tokens drafted{to, draft}, corrected{to, instead};
  if (!decoder.step({&drafted, 1})) return false;
  decoder.truncate(to, n + 1);
  if (!decoder.step({&corrected, 1})) return false;
  const bool right = shared && decoder.size(to) == n + 2 && decoder.size(from) == n;
  decoder.release(to);
  return right && decoder.free_pages() == pages;
}

}  // namespace

int main(int argc, char** argv) {
  const options o = read(argc, argv);
  engine::engine_settings settings;
  settings.model.head_dim = o.head_dim;
  if (const pqkv::status checked = engine::decoder::can_run(settings); !checked.ok()) engine::fail(checked.message().c_str());

  engine::team threads(o.threads);
  engine::slab memory(engine::decoder::memory_bytes(settings));
  engine::decoder decoder(settings, memory, threads);
  const std::size_t all_pages = decoder.free_pages();

  // Ragged: the second prompt is too short for a codebook; the third sequence comes when the first has left its pages.
  if (!decoder.admit(0, text(1500, 1)) || !decoder.admit(1, text(25, 2))) engine::fail("toy_engine: too few pages for the prompts");
  const std::size_t too_long = 2000;
  if (decoder.admit(2, text(too_long, 3))) return std::puts("a prompt was admitted that has no pages"), 1;
  if (!draft_on_fork(decoder, 0, 2)) return std::puts("a draft on a fork did not leave things as they were"), 1;
  for (std::size_t step = 0; step < o.steps; ++step) {
    if (step == o.steps / 2) {
      decoder.release(0);
      if (!decoder.admit(2, text(too_long, 3))) return std::puts("released pages were not given out again"), 1;
    }
    if (!step_all(decoder, settings.slots, text(settings.slots, 100 + step))) engine::fail("toy_engine: too few pages for another step");
  }
  const engine::dense_check& checked = decoder.checked();
  std::printf("%zu threads, %zu pages, %zu steps, %zu KB of the engine's memory in use\n", o.threads, all_pages, o.steps,
              memory.used_bytes() / 1024);
  std::printf("%.1f %% of the tokens attended hold %.1f %% of the weight (%.1f %% for as many of the first and last); error %.3f\n",
              100 * checked.tokens(), 100 * checked.mass(), 100 * checked.recent_mass(), checked.error());
  std::printf("where all tokens are attended the output is dense attention's within %.1e\n", checked.dense_error());

  const bool right = checked.complete() && checked.mass() > 0.9 && checked.largest_mass() < 1 + 1e-4 && checked.error() < 0.1 &&
                     checked.dense_error() < 1e-4 && checked.tokens() < 0.15 && checked.recent_mass() < 0.5;
  if (!right)
    std::puts(
        "out of bounds: wanted under 15 % of the tokens, over 90 % of the weight, under 50 % without retrieval, errors below 0.1 and 1e-4");
  return right ? 0 : 1;
}
