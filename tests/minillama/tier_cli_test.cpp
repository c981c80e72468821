// SPDX-License-Identifier: Apache-2.0
// --kv-tier as a user gives it: the same text as without, lines and JSON, and what is refused.
#include <filesystem>

#include "program.hpp"

using namespace minillama_test;

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
        nlohmann::json(
            {{"folder", folder.path().string()}, {"cache_tokens", 0}, {"block_tokens", 16}, {"scope", "layer"}, {"eviction", "lfu"}}));
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

TEST_CASE("--kv-tier: 8-bit rows, and blocks of one head") {
  const bench tiny(tiny_shape{.max_positions = 1024});
  const temporary_directory folder;
  const std::string prompt = "-p '" + std::string(400, 'e') + "' -n 40 --retrieve 30 --window 16 --bits 4";
  const std::string tier = " --kv-tier \"" + folder.path().string() + "\"", json = (tiny.path() / "run.json").string();
  std::size_t bytes[2] = {};
  for (const std::string rows : {"", " --rows int8"}) {
    const outcome wanted = tiny.generate(prompt + rows + " --json \"" + json + "\"");
    CHECK(wanted.code == 0);
    const auto plain = nlohmann::json::parse(contents(json)).at("statistics");
    for (const std::string more : {"", " --cache-scope head --cache-tokens 64", " --cache-tokens 1 --cache-block 1 --eviction lru",
                                   " --cache-tokens 900 --cache-block 256 --eviction tiny_lfu", " --cache-tokens 0"}) {
      CAPTURE(rows + more);
      const outcome got = tiny.generate(prompt + tier + rows + more + " --json \"" + json + "\"");
      CHECK_MESSAGE(got.code == 0, got.err);
      CHECK(got.out == wanted.out);
      const auto document = nlohmann::json::parse(contents(json));
      CHECK(document.at("statistics").at("bytes_per_token") == plain.at("bytes_per_token"));
      bytes[rows.empty() ? 0 : 1] = document.at("memory").at("tier_file_bytes");
      if (more.find("head") != std::string::npos) CHECK(document.at("settings").at("kv_tier").at("scope") == "head");
    }
  }
  CHECK(bytes[1] < bytes[0]);
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("--kv-tier: a model with a window") {
  const bench tiny(tiny_shape{.max_positions = 1024, .sliding_window = 40});
  const temporary_directory folder;
  const std::string tier = " --kv-tier \"" + folder.path().string() + "\"", json = (tiny.path() / "run.json").string();
  for (const std::string& prompt : {"-p '" + std::string(100, 'e') + "' -n 40", std::string("-p e -n 60 --turn fgh"),
                                    "-p '" + std::string(20, 'e') + "' -n 12 --bits 4"}) {
    CAPTURE(prompt);
    const outcome wanted = tiny.generate(prompt);
    CHECK(wanted.code == 0);
    for (const std::string more : {"", " --cache-tokens 0", " --cache-scope head --cache-tokens 1 --cache-block 1 --eviction lru",
                                   " --cache-block 256 --eviction tiny_lfu --index-threads 1", " --compare full --quality"}) {
      CAPTURE(more);
      const outcome got = tiny.generate(prompt + tier + more + " --json \"" + json + "\"");
      CHECK_MESSAGE(got.code == 0, got.err);
      CHECK(got.out == wanted.out);
      const auto tiers = nlohmann::json::parse(contents(json)).at("statistics").at("tiers");
      const bool outgrown = prompt.find("-n 12") == std::string::npos;
      CHECK((got.err.find("window                        40 tokens") != std::string::npos) == outgrown);
      if (outgrown) CHECK(tiers.at("hits").get<int>() + tiers.at("misses").get<int>() + tiers.at("admissions").get<int>() == 0);
    }
  }
  CHECK(tiny.generate("--dry-run -c 400" + tier).code == 0);
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
  check_refused(tiny.generate(tier + "--policy full"), "--kv-tier: keeps keys and values in a file only for --policy pq");
  check_refused(tiny.generate(tier + "--cache-scope 1"), "--cache-scope: expected layer|head, got 1");
  check_refused(tiny.generate("-p a --cache-scope head"), "--kv-tier");
  check_refused(tiny.generate(tier + "--cache-tokens 7 --cache-block 8"), "--cache-tokens: 7 is less than a block of 8 tokens");
  check_refused(tiny.generate(tier + "--cache-tokens -1"), "--cache-tokens: expected a whole number, 0 to 2147483648, got -1");
  check_refused(tiny.generate(tier + "--cache-block 0"), "--cache-block: expected a whole number, 1 to 256, got 0");
  check_refused(tiny.generate(tier + "--cache-block 257"), "--cache-block: expected a whole number, 1 to 256, got 257");
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
