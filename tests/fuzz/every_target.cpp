// SPDX-License-Identifier: Apache-2.0
// All fuzz targets in one program, for compilers without libFuzzer: the corpus, then seeded mutations of it. It knows nothing of coverage;
// fuzz.sh builds the same targets with clang's libFuzzer.
//
//   pqkv_fuzz TARGET CORPUS SECONDS [SEED]   CORPUS: a folder, or a file that is run once, as a found input is
//   pqkv_fuzz write-slot FILE                the seed of the target "slot"
//
// Ends with 0, or with what the input did: crash-TARGET holds it then. A run longer than 20 seconds counts as a crash. It goes on until it
// has done 50 runs for each of the seconds: on a busy machine it takes longer, but tries no fewer inputs than that.
#define PQKV_FUZZ_ENTRY fuzz_config
#include "config_fuzz.cpp"
#undef PQKV_FUZZ_ENTRY
#define PQKV_FUZZ_ENTRY fuzz_index
#include "index_fuzz.cpp"
#undef PQKV_FUZZ_ENTRY
#define PQKV_FUZZ_ENTRY fuzz_jsonl
#include "jsonl_fuzz.cpp"
#undef PQKV_FUZZ_ENTRY
#define PQKV_FUZZ_ENTRY fuzz_llama2c
#include "llama2c_fuzz.cpp"
#undef PQKV_FUZZ_ENTRY
#define PQKV_FUZZ_ENTRY fuzz_llama2c_tokenizer
#include "llama2c_tokenizer_fuzz.cpp"
#undef PQKV_FUZZ_ENTRY
#define PQKV_FUZZ_ENTRY fuzz_safetensors
#include "safetensors_fuzz.cpp"
#undef PQKV_FUZZ_ENTRY
#define PQKV_FUZZ_ENTRY fuzz_slot
#include "slot_fuzz.cpp"
#undef PQKV_FUZZ_ENTRY
#define PQKV_FUZZ_ENTRY fuzz_tokenizer_json
#include "tokenizer_json_fuzz.cpp"
#undef PQKV_FUZZ_ENTRY

#include <csignal>
#include <chrono>
#include <cstdio>
#include <exception>
#include <map>

#include "mutation.hpp"

extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

using target = int (*)(const std::uint8_t*, std::size_t);
const std::map<std::string, target> targets{{"config", fuzz_config},
                                            {"index", fuzz_index},
                                            {"jsonl", fuzz_jsonl},
                                            {"llama2c", fuzz_llama2c},
                                            {"llama2c_tokenizer", fuzz_llama2c_tokenizer},
                                            {"safetensors", fuzz_safetensors},
                                            {"slot", fuzz_slot},
                                            {"tokenizer_json", fuzz_tokenizer_json}};

constexpr unsigned longest_run = 20;  // seconds
constexpr double least_runs_per_second = 50;

std::string target_name;
std::string current;  // the input that is running

void keep_input() {
  const std::string name = "crash-" + target_name;
  if (std::FILE* file = std::fopen(name.c_str(), "wb")) {
    std::fwrite(current.data(), 1, current.size(), file);
    std::fclose(file);
    std::fprintf(stderr, "the input is in %s\n", name.c_str());
  }
}

void on_signal(int number) {
  keep_input();
  std::fprintf(stderr, "%s\n", number == SIGALRM ? "the input took too long" : "the target ended the program");
  std::_Exit(1);
}

void watch_for_ends() {
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(keep_input);
  for (const int number : {SIGABRT, SIGALRM}) std::signal(number, on_signal);
  std::set_terminate([] {
    try {
      std::rethrow_exception(std::current_exception());
    } catch (const std::exception& error) {
      std::fprintf(stderr, "an exception left the target: %s\n", error.what());
    } catch (...) {
    }
    std::abort();
  });
}

void run(target entry, std::string input) {
  current = std::move(input);
  ::alarm(longest_run);
  entry(reinterpret_cast<const std::uint8_t*>(current.data()), current.size());
}

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

int fuzz(const std::filesystem::path& corpus, double seconds, std::uint64_t seed) {
  const target entry = targets.at(target_name);
  std::vector<std::string> seeds;
  if (std::filesystem::is_directory(corpus)) {
    std::vector<std::filesystem::path> paths;
    for (const auto& one : std::filesystem::directory_iterator(corpus)) paths.push_back(one.path());
    std::sort(paths.begin(), paths.end());
    for (const auto& path : paths) seeds.push_back(contents(path));
  } else {
    run(entry, contents(corpus));
    return 0;
  }
  for (const std::string& one : seeds) run(entry, one);
  const std::size_t whole = pqkv_fuzz::accepted;
  if (whole == 0) {
    std::fprintf(stderr, "%s: no file of %s is taken\n", target_name.c_str(), corpus.c_str());
    return 1;
  }
  pqkv_fuzz::mutator mutate(seeds, seed);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  std::size_t runs = 0, largest = 0;
  const auto least = static_cast<std::size_t>(least_runs_per_second * seconds);
  for (; runs < least || elapsed() < seconds; ++runs) {
    run(entry, mutate());
    largest = std::max(largest, current.size());
  }
  std::printf("%s: %zu runs in %.1f seconds, %zu taken, inputs to %zu bytes, seed %llu; of the corpus %zu of %zu taken\n",
              target_name.c_str(), runs, elapsed(), pqkv_fuzz::accepted - whole, largest, static_cast<unsigned long long>(seed), whole,
              seeds.size());
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const std::vector<std::string> given(words + 1, words + count);
  if (given.size() == 2 && given[0] == "write-slot") {
    const auto bytes = pqkv_fuzz::saved_slot();
    std::ofstream(given[1], std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return 0;
  }
  if (given.size() < 3 || given.size() > 4 || !targets.contains(given[0])) {
    std::fputs("usage: pqkv_fuzz TARGET CORPUS SECONDS [SEED], or write-slot FILE; targets:", stderr);
    for (const auto& one : targets) std::fprintf(stderr, " %s", one.first.c_str());
    std::fputs("\n", stderr);
    return 2;
  }
  target_name = given[0];
  watch_for_ends();
  return fuzz(given[1], std::stod(given[2]), given.size() == 4 ? std::stoull(given[3]) : 1);
}
