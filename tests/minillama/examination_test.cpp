// SPDX-License-Identifier: Apache-2.0
// How a model is asked: contexts of the right length in its own tokens, every fact once, and what counts as an answer.
#include "examination.hpp"

#include <set>

#include "tokenizer_file.hpp"

using namespace minillama_test;
using namespace minillama;
using nlohmann::json;

namespace {

std::string running_text(std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += "The quick brown fox jumps over the lazy dog. It runs on\nand on. ";
  return text;
}

/// Byte letters, some words of the text, and the marks of chatml.
json chat_file() {
  std::vector<std::string> texts;
  for (unsigned byte = 0; byte < 256; ++byte) texts.push_back(byte_letter(static_cast<unsigned char>(byte)));
  json merges = json::array();
  for (const std::string word : {" the", " is", " quick", " brown", " magic", " number", " dog", " over"}) {
    std::string known = byte_letter(' ');
    for (const char letter : word.substr(1)) {
      merges.push_back({known, std::string(1, letter)});
      known += letter;
      if (std::find(texts.begin(), texts.end(), known) == texts.end()) texts.push_back(known);
    }
  }
  const std::size_t next = texts.size();
  json file = file_of(model_of(texts, merges));
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  file["decoder"] = {{"type", "ByteLevel"}};
  file["added_tokens"] = {added("<|begin|>", next), added("<|im_start|>", next + 1), added("<|im_end|>", next + 2)};
  file["post_processor"] = begin_template("<|begin|>");
  return file;
}

std::string text_of(const tokenizer& words, const std::vector<token_id>& tokens) {
  std::string text;
  for (const token_id token : tokens) text += words.decode(token, token);
  return text;
}

}  // namespace

TEST_CASE("an answer on a line is complete with its line feed or when it is too long, and right when it is the value alone") {
  const auto form = answer_form::line;
  CHECK_FALSE(is_complete(form, ""));
  CHECK_FALSE(is_complete(form, "1234567."));
  CHECK(is_complete(form, "12\n"));
  CHECK(is_complete(form, "\n"));
  CHECK_FALSE(is_complete(form, std::string(23, 'x')));
  CHECK(is_complete(form, std::string(24, 'x')));
  CHECK(is_right(form, "amber\n", "amber"));
  for (const char* wrong : {"amber", " amber\n", "amber \n", "ambe\n", "ambers\n", "\namber\n", ""})
    CHECK_FALSE(is_right(form, wrong, "amber"));
}

TEST_CASE("a number is complete when something stands behind its digits, and right when they are the value") {
  const auto form = answer_form::number;
  for (const char* open : {"", " ", " \n ", "1", " 1234567", "\n12"}) CHECK_FALSE(is_complete(form, open));
  for (const char* ended : {"1234567.", " 1234567 ", "1\n", "x", " a1", " *", "-1"}) CHECK(is_complete(form, ended));
  CHECK_FALSE(is_complete(form, std::string(15, '1')));
  CHECK(is_complete(form, std::string(16, '1')));
  CHECK(is_complete(form, std::string(16, ' ')));
  for (const char* right : {"1234567", " 1234567", "\n 1234567.", "1234567, and"}) CHECK(is_right(form, right, "1234567"));
  for (const char* wrong : {"", "123456", "12345678", "x1234567", "1234 567", "**1234567", "01234567"})
    CHECK_FALSE(is_right(form, wrong, "1234567"));
}

TEST_CASE("a model of bytes is asked in the forms that it was trained on: needles and lists in turn") {
  const byte_tokenizer words;
  const examiner examining(words, nullptr);
  CHECK_FALSE(examining.is_chat());
  CHECK(&examining.words() == &words);
  const std::string text = running_text(6000);
  random_source drawn(3), same(3);
  for (std::size_t i = 0; i < 4; ++i) {
    const auto kind = i % 2 == 0 ? context_kind::needles : context_kind::list;
    const examination exam = examining.prepare(i, text, 4096, 5, drawn);
    const question_context wanted = make_context(kind, text, 4096, 5, same);
    CHECK(exam.kind == kind);
    CHECK(exam.form == answer_form::line);
    CHECK(exam.context == byte_tokens(wanted.text));
    REQUIRE(exam.questions.size() == 5);
    for (std::size_t q = 0; q < 5; ++q) {
      CHECK(exam.questions[q].fact.value == wanted.questions[q].value);
      CHECK(exam.questions[q].tokens == byte_tokens(wanted.questions[q].text()));
    }
  }
  CHECK(drawn.next() == same.next());
}

TEST_CASE("a chat: a context of its tokens' length that holds every number once, and questions that begin the answer") {
  const loaded_file loaded(chat_file());
  const tokenizer& words = *loaded.words;
  const examiner examining(words, chat_template_of(words));
  REQUIRE(examining.is_chat());
  const std::string text = running_text(20000);
  for (const std::size_t length : {600u, 1000u, 3000u}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      CAPTURE(length);
      CAPTURE(seed);
      random_source random(seed);
      const examination exam = examining.prepare(seed, text, length, 4, random);
      CHECK(exam.kind == context_kind::numbers);
      CHECK(exam.form == answer_form::number);
      CHECK(exam.context.size() <= length);
      CHECK(exam.context.size() * 100 >= length * 97);
      CHECK(exam.context.front() == words.begin_token());
      CHECK(exam.context.at(1) == words.special_token("<|im_start|>"));
      const std::string said = text_of(words, exam.context);
      CHECK(said.rfind("user\nSome magic numbers are hidden in the text below. Remember them.\n\n", 0) == 0);
      REQUIRE(exam.questions.size() == 4);
      std::set<std::string> keys;
      for (const auto& [fact, tokens] : exam.questions) {
        CHECK(keys.insert(fact.key).second);
        CHECK(occurrences(said, " of the " + fact.key + " is ") == 1);
        CHECK(occurrences(said, "The magic number of the " + fact.key + " is " + fact.value + ".\n") == 1);
        CHECK(text_of(words, tokens) ==
              "\n\nWhat is the magic number of the " + fact.key + "?\nassistant\nThe magic number of the " + fact.key + " is");
        CHECK(words.decode(0, tokens.back()) == " is");
        CHECK(tokens.front() != words.begin_token());
        CHECK(std::count(tokens.begin(), tokens.end(), words.special_token("<|im_end|>")) == 1);
      }
    }
  }
}

TEST_CASE("a chat's context is as long in tokens where a token is many bytes") {
  const loaded_file loaded(chat_file());
  const examiner examining(*loaded.words, chat_template_of(*loaded.words));
  std::string text;
  while (text.size() < 20000) text += " number number brown quick number magic.\n";
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    random_source random(seed);
    const examination exam = examining.prepare(0, text, 2000, 2, random);
    CHECK(exam.context.size() <= 2000);
    CHECK(exam.context.size() >= 1940);
  }
  random_source random(1);  // 4 bytes for each token are there, but no more
  CHECK_THROWS_AS(examining.prepare(0, text.substr(0, 8000), 2000, 2, random), std::invalid_argument);
}

TEST_CASE("contexts of a chat go on drawing, and the seed alone decides") {
  const loaded_file loaded(chat_file());
  const examiner examining(*loaded.words, chat_template_of(*loaded.words));
  const std::string text = running_text(20000);
  random_source one(5), same(5), other(6);
  const examination first = examining.prepare(0, text, 1000, 3, one), second = examining.prepare(1, text, 1000, 3, one);
  CHECK(first.context == examining.prepare(0, text, 1000, 3, same).context);
  CHECK(first.context != second.context);
  CHECK(first.questions[0].fact.key != second.questions[0].fact.key);
  CHECK(first.context != examining.prepare(0, text, 1000, 3, other).context);
}

TEST_CASE("a chat's context that does not hold its facts, or a text that does not fill it, is refused") {
  const loaded_file loaded(chat_file());
  const examiner examining(*loaded.words, chat_template_of(*loaded.words));
  random_source random(1);
  CHECK_THROWS_AS(examining.prepare(0, running_text(20000), 100, 20, random), std::invalid_argument);
  CHECK_THROWS_AS(examining.prepare(0, "too short", 1000, 1, random), std::invalid_argument);
}
