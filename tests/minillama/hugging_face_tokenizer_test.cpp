// SPDX-License-Identifier: Apache-2.0
// Tokens of texts by small tokenizer.json files that are written here: each key that is read changes them; merges against a plain oracle
// that looks at every pair in every round. hugging_face_tokenizer_refusals_test.cpp has what is refused.
#include "hugging_face_tokenizer.hpp"

#include <algorithm>
#include <cstdio>
#include <random>

#include "tokenizer_file.hpp"

using namespace minillama_test;
using minillama::text_place;
using minillama::token_id;
using nlohmann::json;
using token_list = std::vector<token_id>;

namespace {

json byte_level(bool prefix = false) { return {{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"use_regex", true}}; }

/// All byte letters, then these.
std::vector<std::string> letters_and(const std::vector<std::string>& more) {
  std::vector<std::string> texts;
  for (unsigned byte = 0; byte < 256; ++byte) texts.push_back(minillama::byte_letter(static_cast<unsigned char>(byte)));
  texts.insert(texts.end(), more.begin(), more.end());
  return texts;
}

const std::string space = "\xc4\xa0";  // the letter of a space

/// As GPT-2's, with four merges.
json byte_level_file() {
  json file = file_of(model_of(letters_and({"he", "ll", "hell", space + "hell"}), {"h e", "l l", "he ll", space + " hell"}));
  file["pre_tokenizer"] = byte_level();
  file["decoder"] = {{"type", "ByteLevel"}};
  return file;
}

/// As Llama 2's: three special tokens, all bytes, then these.
json sentence_piece_file(const std::vector<std::string>& more, const json& merges) {
  std::vector<std::string> texts{"<unk>", "<s>", "</s>"};
  for (unsigned byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    texts.push_back(name);
  }
  for (const std::string& text : more) texts.push_back(marked(text));
  json pairs = json::array();
  for (const json& merge : merges) pairs.push_back(marked(merge.get<std::string>()));
  json file = file_of(model_of(texts, pairs));
  file["model"].update({{"unk_token", "<unk>"}, {"byte_fallback", true}, {"fuse_unk", true}});
  file["added_tokens"] = {added("<unk>", 0), added("<s>", 1), added("</s>", 2)};
  file["normalizer"] = {
      {"type", "Sequence"},
      {"normalizers",
       {{{"type", "Prepend"}, {"prepend", space_mark}}, {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", space_mark}}}}};
  file["post_processor"] = begin_template("<s>");
  file["decoder"] = {{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Replace"}, {"pattern", {{"String", space_mark}}}, {"content", " "}},
                       {{"type", "ByteFallback"}},
                       {{"type", "Fuse"}},
                       {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  return file;
}

/// The oracle: of all neighbours in every round, those of the lowest rank are joined, the first of equals.
std::vector<std::string> plain_merge(std::vector<std::string> parts, const std::vector<std::pair<std::string, std::string>>& merges) {
  while (true) {
    std::size_t best = merges.size(), place = 0;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i)
      for (std::size_t rank = 0; rank < best; ++rank)
        if (merges[rank] == std::pair(parts[i], parts[i + 1])) best = rank, place = i;
    if (best == merges.size()) return parts;
    parts[place] += parts[place + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
}

}  // namespace

TEST_CASE("a byte-level file: merges by rank inside of pieces, as texts or as pairs, and every byte comes back") {
  json file = byte_level_file();
  const loaded_file texts(file);
  file["model"]["merges"] = json::array({{"h", "e"}, {"l", "l"}, {"he", "ll"}, {space, "hell"}});
  const loaded_file pairs(file);
  for (const loaded_file* one : {&texts, &pairs}) {
    CHECK(one->words->vocabulary() == 260);
    CHECK_FALSE(one->words->begin_token());
    CHECK(one->spelt("hello hello") == "hell|o|_hell|o");
    CHECK(one->spelt("he lll") == "he|_|ll|l");
    CHECK(one->spelt("h ell") == "h|_|e|ll");  // "h e" is in two pieces
    CHECK(one->spelt("hello hello", text_place::behind) == one->spelt("hello hello"));
    CHECK(one->words->encode("", text_place::start).empty());
    CHECK(one->words->encode("\xff\xfe", text_place::start) == token_list{0xff, 0xfe});
    CHECK(one->back("hello  \xc3\xa9\n\xf0\x9f\x98\x80") == "hello  \xc3\xa9\n\xf0\x9f\x98\x80");
  }
  std::mt19937_64 bits(1);
  for (int trial = 0; trial < 200; ++trial) {  // valid UTF-8 or not
    std::string text(static_cast<std::size_t>(bits() % 40), ' ');
    for (char& c : text) c = trial % 2 ? static_cast<char>(bits() >> 56) : "hel \n\xc3\xa9'"[bits() % 8];
    CAPTURE(text);
    CHECK(texts.back(text) == text);
  }
}

TEST_CASE("a space goes before the first piece of a text only where the file says so and the text begins a sequence") {
  json file = byte_level_file();
  file["pre_tokenizer"] = byte_level(true);
  const loaded_file loaded(file);
  CHECK(loaded.spelt("hell") == "_hell");
  CHECK(loaded.spelt(" hell") == "_hell");
  CHECK(loaded.spelt("hell", text_place::behind) == "hell");
  CHECK(loaded.spelt("", text_place::start) == "");
}

TEST_CASE("ignore_merges takes a piece that is a token as a whole, though merges would go elsewhere") {
  json file = file_of(model_of({"a", "b", "c", "ab", "bc", "abc"}, {"b c", "a b"}));
  CHECK(loaded_file(file).spelt("abc") == "a|bc");
  file["model"]["ignore_merges"] = true;
  CHECK(loaded_file(file).spelt("abc") == "abc");
  CHECK(loaded_file(file).spelt("abca") == "a|bc|a");
}

TEST_CASE("the last of two equal merges counts, a merge may make a token that has a lower number") {
  const json file = file_of(model_of({"ab", "a", "b", "bb"}, {"a b", "b b", "a b"}));
  CHECK(loaded_file(file).spelt("abb") == "a|bb");
  CHECK(loaded_file(file).spelt("ab") == "ab");
  CHECK(loaded_file(file_of(model_of({"x", "xx"}, {"x x"}))).spelt("xxxxx") == "xx|xx|x");
}

TEST_CASE("random vocabularies and texts: as the oracle joins") {
  std::mt19937_64 bits(7);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>((bits() >> 32) % n); };
  const std::vector<std::string> letters{"a", "b", "c", "\xc3\xa9", space_mark};
  for (int round = 0; round < 60; ++round) {
    std::vector<std::string> texts = letters;
    std::vector<std::pair<std::string, std::string>> merges;
    for (int i = 0; i < 40; ++i) {
      const auto pair = std::pair(texts[below(texts.size())], texts[below(texts.size())]);
      if (pair.first.size() + pair.second.size() > 20 || std::find(merges.begin(), merges.end(), pair) != merges.end()) continue;
      merges.push_back(pair);
      const std::string whole = pair.first + pair.second;
      if (std::find(texts.begin(), texts.end(), whole) == texts.end()) texts.push_back(whole);
    }
    std::shuffle(merges.begin(), merges.end(), bits);
    json pairs = json::array();
    for (const auto& [left, right] : merges) pairs.push_back({left, right});
    const json model = model_of(texts, pairs);
    const minillama::byte_pair_model words("tokenizer.json", model);
    for (int trial = 0; trial < 30; ++trial) {
      std::vector<std::string> parts(below(50));
      std::string text;
      for (std::string& part : parts) text += part = letters[below(letters.size())];
      token_list tokens;
      words.encode(text, tokens);
      std::vector<std::string> made;
      for (const token_id token : tokens) made.push_back(words.text(token));
      CAPTURE(text);
      CHECK(made == plain_merge(parts, merges));
    }
  }
}

TEST_CASE("a long text takes no long time") {
  const loaded_file loaded(file_of(model_of({"a", "aa", "aaaa", "aaaaaaaa"}, {"a a", "aa aa", "aaaa aaaa"})));
  CHECK(loaded.words->encode(std::string(1 << 18, 'a'), text_place::behind) == token_list(1 << 15, 3));  // minutes, were it n^2
}

TEST_CASE("a character without a token is dropped, or becomes the unknown token, one for each or one for a row") {
  json file = file_of(model_of({"a", "?", "aa"}, {"a a"}));
  CHECK(loaded_file(file).spelt("axa") == "aa");  // as if it had never been there
  CHECK(loaded_file(file).spelt("\xc3\xa9") == "");
  file["model"]["unk_token"] = "?";
  CHECK(loaded_file(file).spelt("axya\xc3\xa9") == "a|?|?|a|?");
  file["model"]["fuse_unk"] = true;
  CHECK(loaded_file(file).spelt("axya\xc3\xa9") == "a|?|a|?");
  CHECK(loaded_file(file).spelt("?xy?") == "?|?|?");  // written out it is a token like any other
}

TEST_CASE("bytes stand for a character only where all of them have tokens") {
  json file = file_of(model_of({"a", "<unk>", "<0xC3>", "<0xA9>", "<0x78>"}));
  file["model"].update({{"unk_token", "<unk>"}, {"byte_fallback", true}, {"fuse_unk", true}});
  CHECK(loaded_file(file).spelt("a\xc3\xa9x") == "a|<0xC3>|<0xA9>|<0x78>");
  CHECK(loaded_file(file).spelt("\xc3\xa8\xc3\xa8y") == "<unk>");
  CHECK(loaded_file(file).back("\xc3\xa9x") == "\xc3\xa9x");
  file["model"]["byte_fallback"] = false;
  CHECK(loaded_file(file).spelt("a\xc3\xa9x") == "a|<unk>");
  CHECK(loaded_file(file).words->decode(0, 4) == "<0x78>");
}

TEST_CASE("a token is a byte only in the one spelling") {
  const std::vector<std::string> texts{"<0x41>", "<0x41a", "<0x 4>", "<0xe9>", "<0x041>", "<0x4>", "<0x+4>"};
  json file = file_of(model_of(texts));
  file["model"]["byte_fallback"] = true;
  const loaded_file loaded(file);
  CHECK(loaded.words->decode(0, 0) == "A");
  for (token_id token = 1; token < texts.size(); ++token) CHECK(loaded.words->decode(0, token) == texts[token]);
}

TEST_CASE("Llama 2's kind: a mark before the text, bytes where there is no token, and the space before a text does not come back") {
  const loaded_file loaded(sentence_piece_file({"_", "a", "b", "_a", "ab", "_ab"}, {"_ a", "a b", "_a b"}));
  const auto& words = *loaded.words;
  CHECK(words.begin_token() == 1u);
  CHECK(loaded.spelt("ab") == "<s>|_ab");
  CHECK(loaded.spelt("ab  ab", text_place::behind) == "ab|_|_ab");
  CHECK(loaded.spelt("ab", text_place::behind) == "ab");  // no mark: it goes on with a text
  CHECK(loaded.spelt("") == "<s>");
  CHECK(loaded.spelt("", text_place::behind) == "");
  CHECK(loaded.spelt("a\xc3\xa9\n") == "<s>|_a|<0xC3>|<0xA9>|<0x0A>");
  CHECK(loaded.spelt("a\xff") == "<s>|_a|<0xFF>");
  CHECK(loaded.spelt("a</s>b") == "<s>|_a|</s>|_|b");  // each text between special tokens has its mark
  CHECK(loaded.spelt("a</s>b", text_place::behind) == "a|</s>|_|b");
  CHECK(loaded.back("ab a\xc3\xa9") == "ab a\xc3\xa9");
  CHECK(loaded.back(" ab") == " ab");
  CHECK(loaded.back(" ab", text_place::behind) == " ab");
  CHECK(words.decode(1, words.encode("ab", text_place::start).back()) == "ab");
  CHECK(words.decode(2, words.encode("ab", text_place::start).back()) == " ab");
  for (const token_id special : {0u, 1u, 2u}) CHECK(words.decode(5, special) == "");
}

TEST_CASE("Metaspace with a begin token: only the first piece of a sequence gets a mark, and loses its space in decoding") {
  json file = sentence_piece_file({"_", "a", "_a"}, {"_ a"});
  file.erase("normalizer");
  file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", space_mark}, {"prepend_scheme", "first"}, {"split", false}};
  file["decoder"] = {{"type", "Metaspace"}, {"replacement", space_mark}, {"prepend_scheme", "first"}, {"split", false}};
  const loaded_file first(file);
  CHECK(first.spelt("a a") == "<s>|_a|_a");
  CHECK(first.spelt("a</s>a") == "<s>|_a|</s>|a");
  CHECK(first.spelt("</s>a") == "<s>|</s>|a");
  CHECK(first.spelt("a", text_place::behind) == "a");
  CHECK(first.back("a a") == "a a");
  file["pre_tokenizer"]["prepend_scheme"] = file["decoder"]["prepend_scheme"] = "always";
  CHECK(loaded_file(file).spelt("a</s>a") == "<s>|_a|</s>|_a");
  CHECK(loaded_file(file).back("a a") == "a a");
  file["pre_tokenizer"]["prepend_scheme"] = file["decoder"]["prepend_scheme"] = "never";
  CHECK(loaded_file(file).spelt("a a") == "<s>|a|_a");
  CHECK(loaded_file(file).back(" a a") == " a a");
}

TEST_CASE("added tokens are found as they are written: the longest first, special or not") {
  json file = byte_level_file();
  file["added_tokens"] = {added("<|a", 260), added("<|a|>", 261), added("hello", 262, false), added("he", 256, false)};
  const loaded_file loaded(file);
  const auto& words = *loaded.words;
  CHECK(words.vocabulary() == 263);
  CHECK(loaded.spelt("x<|a|>y<|a") == "x|<|a|>|y|<|a");
  CHECK(loaded.spelt("<<|a|>>") == "<|<|a|>|>");
  CHECK(loaded.spelt("shellohe") == "s|hello|he");
  CHECK(loaded.back("x<|a|>hello") == "xhello");  // special ones say nothing
  CHECK(words.special_token("<|a|>") == 261u);
  CHECK_FALSE(words.special_token("<|b|>"));
  CHECK_FALSE(words.special_token("h"));
  CHECK(words.encode("<|a|>", text_place::behind) == token_list{261});
}

TEST_CASE("lstrip and rstrip take the white space beside a token with them") {
  json file = byte_level_file();
  json left = added("[l]", 260), right = added("[r]", 261);
  left["lstrip"] = right["rstrip"] = true;
  file["added_tokens"] = {left, right};
  const loaded_file loaded(file);
  CHECK(loaded.spelt("a \n\xe3\x80\x80[l] a") == "a|[l]|_|a");
  CHECK(loaded.spelt("a [r] \n\xe3\x80\x80 a") == "a|_|[r]|a");
  CHECK(loaded.spelt("[r] [l]") == "[r]|[l]");
  CHECK(loaded.spelt("  [l]") == "[l]");
  CHECK(loaded.spelt("[r]  ") == "[r]");
  CHECK(loaded.words->encode("\xff[l]\xff", text_place::start) == token_list{0xff, 260, 0xff});
}

TEST_CASE("a token that is found in normalized text is normalized itself") {
  json file = sentence_piece_file({"_", "a", "b"}, json::array());
  file["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", space_mark}};
  const std::size_t next = file["model"]["vocab"].size();
  json token = added("a b", next, false);
  file["added_tokens"].push_back(token);
  CHECK(loaded_file(file).spelt("aa b") == "<s>|a|a b");
  CHECK(loaded_file(file).spelt(marked("aa_b")) == "<s>|a|a b");  // the same when it is normalized
  file["added_tokens"].back()["normalized"] = false;
  CHECK(loaded_file(file).spelt("aa b") == "<s>|a|a b");
  CHECK(loaded_file(file).spelt(marked("aa_b")) == "<s>|a|a|_|b");
}

TEST_CASE("a begin token comes from the post-processor alone, also inside of a sequence") {
  json file = byte_level_file();
  file["added_tokens"] = json::array({added("<|begin|>", 260)});
  CHECK_FALSE(loaded_file(file).words->begin_token());
  file["post_processor"] = {{"type", "ByteLevel"}};
  CHECK(loaded_file(file).spelt("a") == "a");
  file["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, begin_template("<|begin|>")}}};
  const loaded_file loaded(file);
  CHECK(loaded.words->begin_token() == 260u);
  CHECK(loaded.spelt("a") == "<|begin|>|a");
  CHECK(loaded.spelt("a", text_place::behind) == "a");
  CHECK(loaded.spelt("") == "<|begin|>");
  file["post_processor"] = begin_template("h");  // a token of the vocabulary serves too
  CHECK(loaded_file(file).spelt("a") == "h|a");
}

TEST_CASE("numbers without a text mean nothing, and say nothing") {
  json file = file_of(model_of({"a"}));
  file["model"]["vocab"]["z"] = 5;
  const loaded_file loaded(file);
  CHECK(loaded.words->vocabulary() == 6);
  CHECK(loaded.words->decode(0, 3) == "");
  CHECK(loaded.spelt("az") == "a|z");
}
