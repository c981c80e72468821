// SPDX-License-Identifier: Apache-2.0
// The programs with tokenizers, as a user runs them: llama2.c's beside a directory, its checkpoint, a directory's own tokenizer.json, with
// which models are spoken to as their chat templates say, and what of them is refused.
#include <cstdio>
#include <limits>

#include "pre_tokenizer.hpp"
#include "program.hpp"
#include "tokenizer_file.hpp"

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

/// Byte letters, a begin token and these marks: 257 tokens and more.
std::string chat_tokenizer(const std::vector<std::string>& marks) {
  std::vector<std::string> letters;
  for (unsigned byte = 0; byte < 256; ++byte) letters.push_back(minillama::byte_letter(static_cast<unsigned char>(byte)));
  nlohmann::json file = file_of(model_of(letters));
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  file["decoder"] = {{"type", "ByteLevel"}};
  file["added_tokens"] = nlohmann::json::array({added("<|begin|>", 256)});
  for (const std::string& mark : marks) file["added_tokens"].push_back(added(mark, 256 + file["added_tokens"].size()));
  file["post_processor"] = begin_template("<|begin|>");
  return file.dump();
}

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

  const auto reply = [](const nlohmann::json& run) { return run.at("turns").at(0).at("reply").at("tokens"); };
  const auto of_nothing = document("-p ''");
  CHECK(of_nothing.at("prompt").at("tokens") == 1);  // begin
  write_text(tiny.path() / "ids", "1\n");
  CHECK(reply(document("--token-ids \"" + (tiny.path() / "ids").string() + "\"")) == reply(of_nothing));

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

TEST_CASE("a tokenizer.json beside the weights is taken, and a chat puts its marks around what is said") {
  const bench tiny({.vocabulary = 260});
  const auto json = tiny.path() / "run.json", ids = tiny.path() / "ids";
  write_text(tiny.path() / "tokenizer.json", chat_tokenizer({"<|im_start|>", "<|im_end|>"}));
  const auto document = [&](const std::string& arguments) {
    const outcome got = tiny.generate("--json \"" + json.string() + "\" " + arguments);
    CHECK_MESSAGE(got.code == 0, got.err);
    return nlohmann::json::parse(contents(json));
  };
  CHECK(document("-p ab -n 1").at("prompt").at("tokens") == 3);
  CHECK(document("-p '<|im_end|>' -n 1").at("prompt").at("tokens") == 2);

  const auto alone = document("--chat chatml -p ab -n 1");
  CHECK(alone.at("prompt").at("tokens") == 1 + 6 + 2 + 13);  // begin, user_open, "ab", user_close
  CHECK(alone.at("model").at("chat") == "chatml");
  const auto turns = document("--chat chatml -p doc --turn q --turn r -n 2");
  CHECK(turns.at("prompt").at("tokens") == 1 + 6 + 3);
  CHECK(turns.at("turns").at(0).at("text") == "q");
  CHECK(turns.at("turns").at(0).at("tokens").size() == 1 + 13);
  CHECK(turns.at("turns").at(1).at("tokens").size() == 1 + 6 + 1 + 13);  // a line feed behind the end, and the user's side again
  CHECK(turns.at("statistics").at("steps") == 14 + 2 + 1 + 21 + 1);      // with the end that the first reply lacks
  const auto fresh = document("--chat chatml -p doc --turn q --turn r -n 2 --fresh-turns");
  CHECK(fresh.at("turns").at(1).at("tokens").size() == 1 + 13);

  write_text(ids, "256 97\n98 259\n");
  const std::string from_ids = "--token-ids \"" + ids.string() + "\" ";
  CHECK(document(from_ids + "-n 1").at("prompt").at("tokens") == 4);
  for (const std::string bad : {"260", "-1", "x", "1.5", "99999999999"}) {
    write_text(ids, "256 " + bad);
    check_refused(tiny.generate(from_ids), "/ids: token 1: expected a number below the 260 of the vocabulary, got " + bad);
  }
  write_text(ids, "\n");
  check_refused(tiny.generate(from_ids), "/ids: prompt: is empty");
  check_refused(tiny.generate(from_ids + "--chat chatml"), "--chat");
  check_refused(tiny.generate("-p a --chat vicuna"), "--chat: expected one of chatml, llama2, llama3, mistral, got vicuna");
  check_refused(tiny.generate("--perplexity x --chat chatml"), "--perplexity: generates no text: not with --chat");
  check_refused(bench({.vocabulary = 258}).generate("-p a --tokenizer \"" + (tiny.path() / "tokenizer.json").string() + "\""),
                "/tokenizer.json: vocabulary: has 259 tokens, the model 258");
}

TEST_CASE("minillama-ask hides numbers from a model that is spoken to") {
  const bench tiny({.vocabulary = 260, .max_positions = 2048});
  write_text(tiny.path() / "text", std::string(8000, '\n'));
  const auto json = tiny.path() / "result.json", words = tiny.path() / "tokenizer.json";
  const auto ask = [&](const std::string& arguments) {
    return tiny.run("-m \"" + tiny.path().string() + "\" -t 2 --text \"" + (tiny.path() / "text").string() +
                        "\" --questions 2 --contexts 1 " + "--length 1500 --ratios 10 --policy pq --json \"" + json.string() + "\" " +
                        arguments,
                    MINILLAMA_ASK_PROGRAM);
  };
  write_text(words, chat_tokenizer({"<|im_start|>", "<|im_end|>"}));
  const outcome got = ask("--sink 70");
  CHECK_MESSAGE(got.code == 0, got.err);
  const auto result = nlohmann::json::parse(contents(json));
  CHECK(result.at("settings").at("sinks") == 70);
  CHECK(result.at("questions").size() == 2);
  for (const auto& question : result.at("questions")) CHECK(question.at("kind") == "numbers");
  const auto tokens = result.at("prefill").at("tokens").get<std::size_t>();
  CHECK(tokens <= 1500);
  CHECK(tokens >= 1455);

  const std::string program = "minillama-ask";
  check_refused(ask("--chat vicuna"), "--chat: expected one of", program);
  write_text(words, chat_tokenizer({}));
  check_refused(ask(""), "--chat: is needed: the tokenizer has no marks of a chat that is known", program);
  CHECK(ask("--chat mistral").code == 0);
}
