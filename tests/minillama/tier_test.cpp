// SPDX-License-Identifier: Apache-2.0
// Keys and values in a file: the same logits as with all of them in memory, to the bit, whatever memory has room for and whichever block
// leaves; indexes built beside the prefill; what is counted; and what the program refuses and says.
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
  settings.use_host_defaults();
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
  for (const eviction_name eviction : every_eviction)
    for (const session_kind kind : {session_kind::single, session_kind::forked}) {
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
/// Bytes of memory that this process may write and shares with nobody, which RLIMIT_DATA limits.
std::size_t private_bytes() {
  std::ifstream status("/proc/self/status");
  std::size_t kib = 0;
  for (std::string word; status >> word;)
    if (word == "VmData:") status >> kib;
  return kib * 1024;
}

/// Logits of a prompt and of four tokens behind it.
std::vector<float> logits_of(engine& computing, std::span<const token_id> prompt, const policy_settings& settings) {
  const started_session started = computing.start(prompt, settings, 8, session_kind::single);
  std::vector<float> all = started.logits;
  for (const token_id token : {1u, 2u, 3u, 4u}) {
    const auto next = started.at->step(token);
    all.insert(all.end(), next.begin(), next.end());
  }
  return all;
}

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
      logits_of(*computing, prompt, memory);
      ::_exit(3);  // no limit: this test would say nothing
    } catch (const std::bad_alloc&) {
    }
    try {
      return_free_memory();
      const auto got = logits_of(*computing, prompt, in_file(memory, files.path(), 16, 16, eviction_name::lfu));
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
  const auto wanted = logits_of(*computing, prompt, memory);
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

TEST_CASE("--kv-tier: the program's text, its lines and its JSON") {
  const bench tiny(tiny_shape{.max_positions = 1024});
  const temporary_directory folder;
  const std::string prompt = "-p '" + std::string(400, 'e') + "' -n 40 --retrieve 30 --window 16 --bits 4";
  const std::string tier = " --kv-tier \"" + folder.path().string() + "\"", json = (tiny.path() / "run.json").string();
  const outcome wanted = tiny.generate(prompt);
  CHECK(wanted.code == 0);
  CHECK(wanted.err.find("hit rate") == std::string::npos);
  for (const std::string more : {"", " --cache-tokens 16", " --cache-tokens 1 --cache-block 1 --eviction lru",
                                 " --cache-tokens 900 --cache-block 256 --eviction tiny_lfu", " --cache-tokens 0"}) {
    const outcome got = tiny.generate(prompt + tier + more + " --json \"" + json + "\"");
    CHECK_MESSAGE(got.code == 0, got.err);
    CHECK(got.out == wanted.out);
    CHECK(got.err.find("hit rate") != std::string::npos);
    CHECK(got.err.find("bytes from the file/token") != std::string::npos);
  }
  const auto document = nlohmann::json::parse(contents(json));
  CHECK(document.at("settings").at("kv_tier") ==
        nlohmann::json({{"folder", folder.path().string()}, {"cache_tokens", 0}, {"block_tokens", 16}, {"eviction", "lfu"}}));
  const auto& tiers = document.at("statistics").at("tiers");
  CHECK(tiers.at("hits") == 0);
  CHECK(tiers.at("hit_rate") == 0);
  CHECK(tiers.at("misses") == 39 * 2 * 2 * 30);  // steps, layers, KV heads, retrieved tokens
  CHECK(tiers.at("admissions") == 0);
  CHECK(tiers.at("overflow") > 0);
  CHECK(tiers.at("recall_samples") == 3);
  CHECK(document.at("memory").at("tier_file_bytes") >= 2 * 2 * 440 * 2 * 8 * 4);
  const outcome beside = tiny.generate(prompt + " --index-threads 1 --json \"" + json + "\"");
  CHECK(beside.out == wanted.out);
  const auto times = nlohmann::json::parse(contents(json)).at("times");
  CHECK(times.at("index_seconds") > 0);
  CHECK(times.at("index_wait_seconds") > 0);
  CHECK(times.at("first_token_seconds") < times.at("second_token_seconds"));
  CHECK(times.at("output_token_seconds") > 0);
  CHECK(tiny.generate(prompt + tier + " --fresh-turns --turn a --turn b").out ==
        tiny.generate(prompt + " --fresh-turns --turn a --turn b").out);
  const outcome plan = tiny.generate("--dry-run -c 400" + tier);
  CHECK(plan.code == 0);
  CHECK(plan.err.find("files of the tier ") != std::string::npos);
  const outcome both = tiny.generate(prompt + tier + " --compare full --quality");
  CHECK(both.code == 0);
  CHECK(both.err.find("recall  ") != std::string::npos);
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("--kv-tier: what is refused before anything is computed") {
  const bench tiny;
  const temporary_directory folder;
  const std::string tier = "-p a --kv-tier \"" + folder.path().string() + "\" ";
  check_refused(tiny.generate("-p a --kv-tier /nowhere/at/all"),
                "--kv-tier: no file can be made in /nowhere/at/all: No such file or directory");
  check_refused(tiny.generate("-p a --kv-tier \"" + (tiny.path() / "config.json").string() + "\""), "--kv-tier: no file can be made in ");
  check_refused(tiny.generate("-p a --kv-tier ''"), "--kv-tier");
  check_refused(tiny.generate(tier + "--policy full"), "--kv-tier: keeps keys and values in a file for --policy pq alone");
  check_refused(tiny.generate(tier + "--rows int8"), "--kv-tier: keeps keys and values as floats: not with --rows int8");
  check_refused(tiny.generate(tier + "--cache-tokens 7 --cache-block 8"), "--cache-tokens: 7 is less than a block of 8 tokens");
  check_refused(tiny.generate(tier + "--cache-tokens -1"), "--cache-tokens: Value -1 not in range 0 to");
  check_refused(tiny.generate(tier + "--cache-block 0"), "--cache-block: Value 0 not in range 1 to 256");
  check_refused(tiny.generate(tier + "--cache-block 257"), "--cache-block: Value 257 not in range 1 to 256");
  check_refused(tiny.generate(tier + "--eviction fifo"), "--eviction: expected lfu|lru|tiny_lfu, got fifo");
  check_refused(tiny.generate("-p a --eviction lru"), "--kv-tier");
  check_refused(tiny.generate("-p a --cache-tokens 100"), "--kv-tier");
  check_refused(tiny.generate("-p a --index-threads 1 --compare full"), "--index-threads: a prompt that two sessions start from");
  // A limit on files is a disk that has no room for them.
  const outcome full =
      tiny.shell("trap '' XFSZ; ulimit -f 4; exec \"" MINILLAMA_PROGRAM "\" -m \"" + tiny.path().string() + "\" -t 1 " + tier + "-n 300");
  check_refused(full, "--kv-tier: " + folder.path().string() + ": no room for keys and values: File too large");
  CHECK(std::filesystem::is_empty(folder.path()));
}
