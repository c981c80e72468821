// SPDX-License-Identifier: Apache-2.0
// Keys and values in a file: the same logits as with all of them in memory, to the bit, whatever memory has room for and whichever block
// leaves; indexes built beside the prefill; what is counted.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>

#include "../cases/sanitized.hpp"
#include "decoder.hpp"
#include "engine.hpp"
#include "index_worker.hpp"
#include "plain_llama.hpp"
#include "process_memory.hpp"
#include "program.hpp"
#include "tokenizer.hpp"

using namespace minillama_test;
using namespace minillama;

namespace {

policy_settings in_memory(double ratio, unsigned bits) {
  policy_settings settings;
  settings.budget.ratio = ratio;
  settings.quantizer.bits = bits;
  return settings;
}

policy_settings in_file(policy_settings settings, const std::filesystem::path& folder, std::size_t cache, std::size_t block,
                        eviction_name eviction) {
  settings.tier = {.folder = folder.string(), .cache_tokens = cache, .block_tokens = block, .eviction = eviction};
  return settings;
}

/// Two sessions of one prompt, given the same tokens, which are those that the first one finds likeliest.
void check_same(session& wanted, session& got, token_id first, std::size_t tokens) {
  token_id next = first;
  for (std::size_t i = 0; i < tokens; ++i) {
    CAPTURE(i);
    const std::span<const float> a = wanted.step(next), b = got.step(next);
    REQUIRE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
    next = greedy(a);
  }
}

constexpr eviction_name every_eviction[] = {eviction_name::lfu, eviction_name::lru, eviction_name::tiny_lfu};

}  // namespace

TEST_CASE("the shipped model continues a text from a file as from memory, to the bit" * doctest::skip(pqkv_cases::under_sanitizers)) {
  const std::filesystem::path root = MINILLAMA_REPOSITORY;
  const std::string text = contents(root / "LICENSE").substr(0, 1500);
  const temporary_directory folder;
  const model llama(root / "examples/minillama/model");
  pool_runner runner(2);
  const policy_settings memory = in_memory(0.1, 6);
  const prefilled_prompt prompt = prefill(llama, byte_tokens(text), runner, {}, memory.shown_queries());
  struct room {
    std::size_t cache, block;
  };
  constexpr room rooms[] = {{16, 16}, {1, 1}, {512, 4}, {4096, 128}};  // one block, one row, some, everything
  const std::size_t steps = 20;
  host_session wanted(llama, runner, memory, prompt, 64, session_kind::single);
  std::vector<token_id> tokens{' '};
  std::vector<std::vector<float>> logits;
  for (std::size_t i = 0; i < steps; ++i) {
    const auto found = wanted.step(tokens.back());
    logits.emplace_back(found.begin(), found.end());
    tokens.push_back(greedy(found));
  }
  CHECK(!wanted.statistics().tiers);
  for (const eviction_name eviction : every_eviction)
    for (const room& in : rooms) {
      CAPTURE(static_cast<int>(eviction));
      CAPTURE(in.cache);
      host_session got(llama, runner, in_file(memory, folder.path(), in.cache, in.block, eviction), prompt, 64, session_kind::single);
      for (std::size_t i = 0; i < steps; ++i) {
        const auto found = got.step(tokens[i]);
        REQUIRE(std::equal(found.begin(), found.end(), logits[i].begin(), logits[i].end()));
      }
      const tier_record tiers = got.statistics().tiers.value();
      CHECK(tiers.counts.hits + tiers.counts.misses > steps * 8 * 2 * 100);  // layers, KV heads, and a tenth of the text
      CHECK(tiers.counts.slow_bytes > 0);
      if (in.cache == 4096) CHECK(tiers.counts.hit_rate() > 0.5);
      if (in.cache == 16) CHECK(tiers.counts.hit_rate() < 0.5);
      CHECK(tiers.samples == 2);  // at the first token and 16 tokens later
      CHECK(tiers.sampled_recall() > 0.2);
      CHECK(tiers.sampled_recall() <= 1);
      CHECK(got.memory().kv_bytes < wanted.memory().kv_bytes * (in.cache == 4096 ? 4 : 1));
    }
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("turns, forks and a prompt handed over layer by layer, from a file as from memory") {
  const tiny_shape shape{.max_positions = 1024};
  const temporary_directory folder, files;
  write_model(folder.path(), shape, random_weights(shape, 4));
  const model llama(folder.path());
  pool_runner runner(2);
  const auto text = random_tokens(700, 12);
  const std::unique_ptr<engine> computing = make_engine(device_name::host, llama, runner);
  std::size_t turn = 0;
  for (const eviction_name eviction : every_eviction)
    for (const session_kind kind : {session_kind::single, session_kind::forked}) {
      if (!pqkv_cases::looks_at(turn++)) continue;
      CAPTURE(static_cast<int>(eviction));
      policy_settings memory = in_memory(0.25, 4);
      memory.budget.min_tokens = 40;
      const policy_settings file = in_file(memory, files.path(), 48, 3, eviction);
      const std::size_t prompt = kind == session_kind::single ? 400 : 9;  // from nine tokens a codebook is trained while it decodes
      const auto tokens = std::span(text).first(prompt);
      const auto whole = computing->prefill(tokens, {}, memory.shown_queries());
      const auto wanted = whole->start(memory, 250, kind);
      const started_session alone = computing->start(tokens, file, 250, kind);
      CHECK(std::equal(alone.logits.begin(), alone.logits.end(), whole->logits().begin(), whole->logits().end()));
      for (std::size_t round = 0; round < (kind == session_kind::forked ? 2u : 1u); ++round) {
        const auto a = wanted->feed(std::span(text).subspan(prompt, 150)), b = alone.at->feed(std::span(text).subspan(prompt, 150));
        REQUIRE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
        check_same(*wanted, *alone.at, 7, 60);
        if (kind == session_kind::forked) wanted->fork(), alone.at->fork();
      }
      CHECK(alone.at->statistics().tiers->counts.evictions > 0);
    }
}

namespace {
/// Shortens every file of this process in a folder, as somebody does who knows where to look.
std::size_t shorten_files(const std::filesystem::path& folder) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry.path(), gone).string().rfind(folder.string(), 0) != 0) continue;
    const int file = ::open(entry.path().c_str(), O_RDWR | O_CLOEXEC);
    count += file >= 0 && ::ftruncate(file, 0) == 0 ? 1 : 0;
    ::close(file);
  }
  return count;
}
}  // namespace

TEST_CASE("indexes built on other threads beside the prefill are those built in between, and what goes wrong there is passed on") {
  const tiny_shape shape{.layers = 4, .max_positions = 1024};
  const temporary_directory folder, files;
  write_model(folder.path(), shape, random_weights(shape, 5));
  const model llama(folder.path());
  pool_runner runner(2);
  const auto prompt = random_tokens(300, 15);
  const std::unique_ptr<engine> computing = make_engine(device_name::host, llama, runner);
  using enum policy_name;
  for (const policy_name name : {pq, full, streaming, h2o})
    for (const std::size_t threads : {1u, 3u}) {
      policy_settings settings = in_memory(0.25, 4);
      settings.name = name;
      const started_session wanted = computing->start(prompt, settings, 60, session_kind::forked);
      CHECK(wanted.waited_seconds == wanted.index_seconds);
      settings.index_threads = threads;
      if (name == pq && threads == 3) settings = in_file(settings, files.path(), 48, 3, eviction_name::lfu);
      const started_session got = computing->start(prompt, settings, 60, session_kind::forked);
      CHECK(got.index_seconds > 0);
      check_same(*wanted.at, *got.at, 7, 50);
    }

  const policy_settings settings = in_file(in_memory(0.25, 4), files.path(), 48, 3, eviction_name::lfu);
  prefilled_prompt rows = prefill(llama, prompt, runner, {}, settings.shown_queries());
  host_session at(llama, runner, settings, prompt.size(), 60, session_kind::single);
  CHECK(shorten_files(files.path()) >= shape.layers);
  const auto use = [&] {
    index_worker worker(at, 1);
    for (std::size_t layer = 0; layer < shape.layers; ++layer) worker.take(layer, std::move(rows.layers[layer]));
    worker.finish();
  };
  CHECK_THROWS_WITH_AS(use(), doctest::Contains("somebody has shortened it"), pqkv::storage_error);
}

#if !defined(PQKV_TEST_SANITIZED)  // sanitizers map more than any limit
namespace {
/// Bytes of memory that this process may write and shares with nobody, which RLIMIT_DATA limits.
std::size_t private_bytes() {
  std::ifstream status("/proc/self/status");
  std::size_t kib = 0;
  for (std::string word; status >> word;)
    if (word == "VmData:") status >> kib;
  return kib * 1024;
}

/// Logits of a prompt and of four tokens behind it.
std::vector<float> logits_behind(engine& computing, std::span<const token_id> prompt, const policy_settings& settings) {
  const started_session started = computing.start(prompt, settings, 8, session_kind::single);
  std::vector<float> all = started.logits;
  for (const token_id token : {1u, 2u, 3u, 4u}) {
    const auto next = started.at->step(token);
    all.insert(all.end(), next.begin(), next.end());
  }
  return all;
}
}  // namespace

TEST_CASE("a prompt whose keys and values are three times the memory that the process may take from its start on") {
  const tiny_shape shape{
      .hidden = 16, .intermediate = 16, .layers = 48, .query_heads = 4, .kv_heads = 4, .head_dim = 128, .max_positions = 1024};
  const temporary_directory folder, files;
  write_model(folder.path(), shape, random_weights(shape, 6));
  const model llama(folder.path());
  pool_runner runner(1);
  const auto prompt = random_tokens(600, 16);
  const std::unique_ptr<engine> computing = make_engine(device_name::host, llama, runner);
  const policy_settings memory = in_memory(0.1, 4);
  const auto result = folder.path() / "logits";
  const std::size_t held = prompt.size() * shape.layers * shape.kv_heads * shape.head_dim * 2 * sizeof(float);
  return_free_memory();
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit bound{private_bytes() + held / 3, private_bytes() + held / 3};
    if (::setrlimit(RLIMIT_DATA, &bound) != 0) ::_exit(2);
    try {
      logits_behind(*computing, prompt, memory);
      ::_exit(3);  // no limit: this test would say nothing
    } catch (const std::bad_alloc&) {
    }
    try {
      return_free_memory();
      const auto got = logits_behind(*computing, prompt, in_file(memory, files.path(), 16, 16, eviction_name::lfu));
      std::ofstream(result, std::ios::binary)
          .write(reinterpret_cast<const char*>(got.data()), static_cast<std::streamsize>(got.size() * sizeof(float)));
    } catch (const std::exception&) {
      ::_exit(4);
    }
    ::_exit(0);
  }
  int how = 0;
  ::waitpid(child, &how, 0);
  CHECK(WIFEXITED(how));
  CHECK(WEXITSTATUS(how) == 0);
  const auto wanted = logits_behind(*computing, prompt, memory);
  CHECK(contents(result) == std::string(reinterpret_cast<const char*>(wanted.data()), wanted.size() * sizeof(float)));
}
#endif

TEST_CASE("a tier's counts of two sessions add up, and one without counts leaves none") {
  session_statistics one, other;
  one.steps = other.steps = 3;
  one.tiers = tier_record{{.hits = 3, .misses = 1, .slow_bytes = 10, .admissions = 2, .evictions = 1, .kept_out = 4}, 0.5, 1};
  other.tiers = tier_record{{.hits = 1, .misses = 3, .slow_bytes = 20, .admissions = 1, .evictions = 0, .kept_out = 6}, 1.0, 1};
  session_statistics sum = one;
  sum += other;
  CHECK(sum.tiers->counts.hit_rate() == 0.5);
  CHECK(sum.tiers->counts.slow_bytes == 30);
  CHECK(sum.tiers->counts.admissions == 3);
  CHECK(sum.tiers->counts.evictions == 1);
  CHECK(sum.tiers->counts.kept_out == 10);
  CHECK(sum.tiers->sampled_recall() == 0.75);
  other.tiers.reset();
  sum += other;
  CHECK(!sum.tiers);
  CHECK(tier_record{}.counts.hit_rate() == 0);
  CHECK(tier_record{}.sampled_recall() == 0);
}
