// SPDX-License-Identifier: Apache-2.0
// The program with llama2.c's files, as a user runs it: a tokenizer beside a directory, a checkpoint, and what of them is refused.
#include <limits>

#include "program.hpp"

using namespace minillama_test;

namespace {

template <class Number>
void append(std::string& file, Number value) {
  char bytes[sizeof(Number)];
  std::memcpy(bytes, &value, sizeof(Number));
  file.append(bytes, sizeof(Number));
}

/// Unknown, begin, end, the raw bytes, then a space, "ab" and " ab".
std::string small_tokenizer() {
  std::string file;
  append(file, std::int32_t{8});
  const auto add = [&](const std::string& piece) {
    append(file, 0.0f);
    append(file, static_cast<std::int32_t>(piece.size()));
    file += piece;
  };
  for (const char* piece : {"<unk>", "<s>", "</s>"}) add(piece);
  for (unsigned byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    add(name);
  }
  for (const char* piece : {" ", "a", "b", "ab", " ab"}) add(piece);
  return file;
}

constexpr std::size_t vocabulary = 3 + 256 + 5;

}  // namespace

TEST_CASE("a tokenizer beside a directory: any bytes are a prompt, and its tokens are what is counted") {
  const bench tiny({.vocabulary = vocabulary});
  const auto file = tiny.path() / "tokenizer.bin", json = tiny.path() / "run.json";
  write_text(file, small_tokenizer());
  const std::string with = "--tokenizer \"" + file.string() + "\" --json \"" + json.string() + "\" -n 4 ";
  const auto document = [&](const std::string& arguments) {
    const outcome got = tiny.generate(with + arguments);
    CHECK_MESSAGE(got.code == 0, got.err);
    return nlohmann::json::parse(contents(json));
  };
  const auto spoken = document("-p 'ab ab' --turn ' ab'");
  CHECK(spoken.at("prompt").at("tokens") == 3);  // begin, " ab", " ab"
  CHECK(spoken.at("turns").at(0).at("tokens").size() == 1);
  for (const auto& token : spoken.at("turns").at(0).at("reply").at("tokens")) CHECK(token.get<std::size_t>() < vocabulary);

  write_text(tiny.path() / "prompt", "ab\xff\xfe\xc3");  // no UTF-8: three raw bytes
  CHECK(document("-f \"" + (tiny.path() / "prompt").string() + "\"").at("prompt").at("tokens") == 5);

  check_refused(tiny.generate("-p a"), "tokenizer: a file is needed: the model has 264 tokens");
  check_refused(tiny.generate("-p a --tokenizer /nowhere"), "/nowhere");
  write_text(file, small_tokenizer().substr(0, 100));
  check_refused(tiny.generate("-p a " + with), "/tokenizer.bin: ");
  check_refused(bench().generate("-p a " + with), "/tokenizer.bin: ");
}

TEST_CASE("a checkpoint of llama2.c runs, and a dry run of it reads no weight") {
  const temporary_directory folder;
  const auto file = folder.path() / "model.bin", words = folder.path() / "tokenizer.bin", json = folder.path() / "run.json";
  write_text(words, small_tokenizer());
  constexpr std::size_t hidden = 16, intermediate = 24, layers = 2, positions = 64, head_dim = 8;
  const std::size_t weights = vocabulary * hidden + layers * (2 * hidden + 4 * hidden * hidden + 3 * hidden * intermediate) + hidden;
  const auto write = [&](float weight) {
    std::string bytes;
    for (const std::size_t number : {hidden, intermediate, layers, hidden / head_dim, hidden / head_dim, vocabulary, positions})
      append(bytes, static_cast<std::int32_t>(number));
    for (std::size_t i = 0; i < weights + positions * head_dim; ++i) append(bytes, weight);
    write_text(file, bytes);
  };
  const bench shell;
  const auto run = [&](const std::string& arguments) {
    return shell.run("-m \"" + file.string() + "\" --tokenizer \"" + words.string() + "\" -t 1 --json \"" + json.string() + "\" " +
                     arguments);
  };
  write(0.5f);
  const outcome got = run("-p 'ab ab' -n 3");
  CHECK_MESSAGE(got.code == 0, got.err);
  CHECK(nlohmann::json::parse(contents(json)).at("model").at("max_positions") == positions);
  std::filesystem::remove(json);

  write(std::numeric_limits<float>::quiet_NaN());
  check_refused(run("-p a"), "/model.bin: model.embed_tokens.weight: NaN or infinity");
  CHECK_FALSE(std::filesystem::exists(json));
  const outcome dry = run("--dry-run");
  CHECK_MESSAGE(dry.code == 0, dry.err);
  CHECK(nlohmann::json::parse(contents(json)).at("memory").at("weight_bytes") == weights * sizeof(float));
}
