// SPDX-License-Identifier: Apache-2.0
// llama2.c's tokenizer: vocabularies written here, joins against a plain oracle that looks at every pair in every round, text that comes
// back byte for byte, and every way the file can be wrong.
#include "llama2c_tokenizer.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <limits>

#include "load_error.hpp"
#include "tiny_model.hpp"

using namespace minillama_test;
using minillama::text_place;
using minillama::token_id;
using token_list = std::vector<token_id>;

namespace {

struct entry {
  std::string text;
  float score = 0;
};

template <class Number>
void append(std::string& file, Number value) {
  char bytes[sizeof(Number)];
  std::memcpy(bytes, &value, sizeof(Number));
  file.append(bytes, sizeof(Number));
}

/// Unknown, begin, end and the raw bytes, then the pieces given: the first of them is token 259.
std::vector<entry> vocabulary_of(const std::vector<entry>& pieces) {
  std::vector<entry> all{{"<unk>"}, {"\n<s>\n"}, {"\n</s>\n"}};
  for (unsigned byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    all.push_back({name});
  }
  all.insert(all.end(), pieces.begin(), pieces.end());
  return all;
}

std::string file_of(const std::vector<entry>& all, std::int32_t longest = 16) {
  std::string file;
  append(file, longest);
  for (const entry& one : all) {
    append(file, one.score);
    append(file, static_cast<std::int32_t>(one.text.size()));
    file += one.text;
  }
  return file;
}

struct loaded_tokenizer {
  explicit loaded_tokenizer(const std::string& file) {
    write_text(folder.path() / "tokenizer.bin", file);
    words = std::make_unique<minillama::llama2c_tokenizer>(folder.path() / "tokenizer.bin");
  }
  temporary_directory folder;
  std::unique_ptr<minillama::llama2c_tokenizer> words;
};

/// The oracle, for text of one-byte characters: strings and nothing else.
token_list plain_encode(const std::vector<entry>& all, const std::string& text) {
  const auto token_of = [&](const std::string& piece) {
    for (std::size_t i = 259; i < all.size(); ++i)
      if (all[i].text == piece) return static_cast<int>(i);
    return -1;
  };
  token_list tokens;
  for (const char c : text) {
    const int found = token_of(std::string(1, c));
    tokens.push_back(found >= 0 ? static_cast<token_id>(found) : 3 + static_cast<unsigned char>(c));
  }
  while (true) {
    int best = -1;
    std::size_t place = 0;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      if (tokens[i] < 259 || tokens[i + 1] < 259) continue;
      const int joined = token_of(all[tokens[i]].text + all[tokens[i + 1]].text);
      if (joined >= 0 && (best < 0 || all[static_cast<std::size_t>(joined)].score > all[static_cast<std::size_t>(best)].score))
        best = joined, place = i;
    }
    if (best < 0) return tokens;
    tokens[place] = static_cast<token_id>(best);
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

std::string decoded(const minillama::tokenizer& words, const token_list& tokens) {
  std::string text;
  for (std::size_t i = 0; i < tokens.size(); ++i) text += words.decode(i ? tokens[i - 1] : 1, tokens[i]);
  return text;
}

std::string problem(const std::string& file) {
  try {
    const loaded_tokenizer tokenizer(file);
  } catch (const minillama::load_error& error) {
    const std::string what = error.what();
    CHECK_MESSAGE(what.find('\n') == std::string::npos, what);
    const auto name = what.find("tokenizer.bin: ");
    REQUIRE(name != std::string::npos);
    return what.substr(name + 15);
  }
  return "";
}

const std::vector<entry> few{{" ", -1}, {"a", -2}, {"b", -3}, {"c", -4}, {"ab", -5}, {"bc", -6}, {" a", -7}, {"abc", -8}, {"\xc3\xa9", -9}};
enum : token_id { space = 259, a, b, c, ab, bc, space_a, abc, e_acute };

}  // namespace

TEST_CASE("the best score joins first, the first of equals, and begin and space stand before a text at the start") {
  const loaded_tokenizer loaded(file_of(vocabulary_of(few)));
  const auto& words = *loaded.words;
  CHECK(words.vocabulary() == 268);
  CHECK(words.begin_token() == 1u);
  CHECK(words.encode("abc", text_place::behind) == token_list{abc});
  CHECK(words.encode("abc", text_place::start) == token_list{1, space, abc});  // "ab" beats " a", then "abc"
  CHECK(words.encode("ac", text_place::start) == token_list{1, space_a, c});
  CHECK(words.encode("bcab", text_place::behind) == token_list{bc, ab});
  CHECK(words.encode("", text_place::behind).empty());
  CHECK(words.encode("", text_place::start) == token_list{1});
  CHECK(words.encode("a  a", text_place::behind) == token_list{a, space, space_a});

  const loaded_tokenizer ties(file_of(vocabulary_of({{"x"}, {"xx", -1}})));
  CHECK(ties.words->encode("xxxxx", text_place::behind) == token_list{260, 260, 259});
  const loaded_tokenizer twins(file_of(vocabulary_of({{"x"}, {"x"}})));
  CHECK(twins.words->encode("x", text_place::behind) == token_list{259});
}

TEST_CASE("characters without a token become raw bytes, names of special tokens are text like any other") {
  const loaded_tokenizer loaded(file_of(vocabulary_of(few)));
  const auto& words = *loaded.words;
  CHECK(words.encode("\xc3\xa9", text_place::behind) == token_list{e_acute});
  CHECK(words.encode("\xc3\xa8", text_place::behind) == token_list{3 + 0xc3, 3 + 0xa8});
  CHECK(words.encode("\xc3", text_place::behind) == token_list{3 + 0xc3});
  CHECK(words.encode(std::string_view("\0\n", 2), text_place::behind) == token_list{3, 13});
  for (const std::string special : {"<unk>", "<0x41>", "\n<s>\n"})
    for (const token_id token : words.encode(special, text_place::behind)) CHECK(token >= 3);
  CHECK(words.encode("<0x41>", text_place::behind).size() == 6);
  CHECK(words.decode(a, 3 + 0x41) == "A");
  CHECK(words.decode(a, 1) == "");
  CHECK(words.decode(a, 2) == "");
  CHECK(words.decode(1, space_a) == "a");
  CHECK(words.decode(a, space_a) == " a");

  std::vector<entry> marked = few;  // a vocabulary as SentencePiece writes it
  marked[0].text = "\xe2\x96\x81", marked[6].text =
                                       "\xe2\x96\x81"
                                       "a";
  const loaded_tokenizer same(file_of(vocabulary_of(marked)));
  CHECK(same.words->encode("ac a", text_place::start) == words.encode("ac a", text_place::start));
  CHECK(same.words->decode(a, space_a) == " a");
}

TEST_CASE("random vocabularies and texts: as the oracle joins, and back to the same text") {
  std::mt19937_64 bits(5);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>((bits() >> 32) % n); };
  for (int round = 0; round < 40; ++round) {
    std::vector<entry> pieces;
    for (const char letter : std::string(" abcd")) pieces.push_back({std::string(1, letter), -100.0f});
    if (round % 3 == 0) pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(below(5)));  // one that only bytes can say
    for (int i = 0; i < 60; ++i) {
      std::string joined = pieces[below(pieces.size())].text + pieces[below(pieces.size())].text;
      const bool known = std::any_of(pieces.begin(), pieces.end(), [&](const entry& one) { return one.text == joined; });
      if (!known && joined.size() <= 16) pieces.push_back({std::move(joined), -static_cast<float>(below(20))});  // scores collide
    }
    const auto all = vocabulary_of(pieces);
    const loaded_tokenizer loaded(file_of(all));
    for (int trial = 0; trial < 20; ++trial) {
      std::string text(below(60), ' ');
      for (char& letter : text) letter = " abcde\n"[below(7)];
      CAPTURE(text);
      CHECK(loaded.words->encode(text, text_place::behind) == plain_encode(all, text));
      auto wanted = plain_encode(all, text.empty() ? "" : " " + text);
      wanted.insert(wanted.begin(), 1);
      CHECK(loaded.words->encode(text, text_place::start) == wanted);
      wanted.erase(wanted.begin());
      CHECK(decoded(*loaded.words, wanted) == text);
    }
  }
}

TEST_CASE("every string of bytes comes back, valid UTF-8 or not") {
  const loaded_tokenizer loaded(file_of(vocabulary_of(few)));
  std::mt19937_64 bits(6);
  for (int trial = 0; trial < 200; ++trial) {
    std::string text(static_cast<std::size_t>(bits() % 40), ' ');
    for (char& c : text) c = static_cast<char>(bits() >> 56);
    auto tokens = loaded.words->encode(text, text_place::start);
    REQUIRE(tokens.front() == 1);
    CHECK(decoded(*loaded.words, {tokens.begin() + 1, tokens.end()}) == text);
  }
}

TEST_CASE("a long text takes no long time") {
  const loaded_tokenizer loaded(file_of(vocabulary_of({{"a"}, {"aa", -1}, {"aaaa", -2}, {"aaaaaaaa", -3}})));
  const auto tokens = loaded.words->encode(std::string(1 << 18, 'a'), text_place::behind);  // minutes, were it n^2
  CHECK(tokens == token_list(1 << 15, 262));
}

TEST_CASE("a file that is cut, or says what cannot be, is refused") {
  const auto all = vocabulary_of(few);
  const std::string good = file_of(all);
  CHECK(problem(good) == "");
  CHECK(problem("ab").rfind("longest piece: file is truncated: expected 4 more bytes, got 2", 0) == 0);
  for (std::size_t cut = 5; cut < file_of(vocabulary_of({})).size(); cut += 7) CHECK(problem(good.substr(0, cut)) != "");
  CHECK(problem(good.substr(0, good.size() - 1)) == "token 267: file is truncated: expected 2 more bytes, got 1");
  CHECK(problem(file_of({{"<unk>"}})) == "vocabulary: expected at least 259 tokens, got 1");
  for (const std::int32_t longest : {0, -1, 1 << 20})
    CHECK(problem(file_of(all, longest)).rfind("longest piece: expected 1 to 65536 bytes", 0) == 0);
  CHECK(problem(R"({"version": "1.0", "model": {}})").rfind("longest piece: ", 0) == 0);

  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto spoiled = all;
    spoiled[260].score = poison;
    CHECK(problem(file_of(spoiled)) == "token 260: score: expected a finite number");
  }
  for (const std::int32_t length : {0, -1, 17, std::numeric_limits<std::int32_t>::max()}) {
    std::string spoiled = good;
    std::memcpy(spoiled.data() + 8, &length, 4);
    CHECK(problem(spoiled) == "token 0: length: expected 1 to the 16 of the longest piece, got " + std::to_string(length));
  }
  auto spoiled = all;
  std::swap(spoiled[3 + 0x41].text, spoiled[3 + 0x42].text);
  CHECK(problem(file_of(spoiled)) == "token 68: expected <0x41>, got <0x42>");
  spoiled[68].text = "a\n\x1b[2J";  // no line and no command of the file's own making
  CHECK(problem(file_of(spoiled)) == "token 68: expected <0x41>, got a\\x0a\\x1b[2J");
}

TEST_CASE("a tokenizer serves only a model of its vocabulary, which may be 256 no more than any other") {
  const loaded_tokenizer loaded(file_of(vocabulary_of(few)));
  const auto path = loaded.folder.path() / "tokenizer.bin";
  minillama::model_config config;
  config.vocabulary = 268;
  CHECK(minillama::make_tokenizer(config, "/nowhere", path)->encode("abc", text_place::behind) == token_list{abc});
  for (const std::size_t vocabulary : {256u, 267u, 269u, 32000u}) {
    config.vocabulary = vocabulary;
    CHECK_THROWS_WITH_AS(minillama::make_tokenizer(config, "/nowhere", path),
                         (path.string() + ": vocabulary: has 268 tokens, the model " + std::to_string(vocabulary)).c_str(),
                         minillama::load_error);
  }
  CHECK_THROWS_AS(minillama::make_tokenizer(config, "/nowhere", loaded.folder.path() / "absent"), minillama::load_error);
}
