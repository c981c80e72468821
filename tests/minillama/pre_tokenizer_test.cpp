// SPDX-License-Identifier: Apache-2.0
// Normalizers and pre-tokenizers as tokenizer.json describes them: the pieces of known texts, as the library `tokenizers` makes them.
#include "pre_tokenizer.hpp"

#include "tokenizer_file.hpp"

using namespace minillama_test;
using minillama::piece_place;
using nlohmann::json;

namespace {

std::string pieces(const json& described, const std::string& text, piece_place place = piece_place::start) {
  return joined(minillama::pre_tokenizer("tokenizer.json", described)(text, place));
}

std::string normal(const json& described, const std::string& text, piece_place place = piece_place::start) {
  return readable(minillama::normalizer("tokenizer.json", described)(text, place));
}

json split(const char* kind, const std::string& pattern) {
  return {{"type", "Split"}, {"pattern", {{kind, pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

json byte_level(bool prefix, bool expression) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"use_regex", expression}, {"trim_offsets", true}};
}

json sequence(const std::vector<json>& steps) { return {{"type", "Sequence"}, {"pretokenizers", steps}}; }

json metaspace(const char* scheme, bool splits) {
  return {{"type", "Metaspace"}, {"replacement", space_mark}, {"prepend_scheme", scheme}, {"split", splits}};
}

const std::string sample = "Hello  world, it's 1234 O'CLOCK!\n\n x";

}  // namespace

TEST_CASE("GPT-2, Llama 3 and SmolLM2 split one text in three ways") {
  const json gpt2 = byte_level(false, true);
  const json llama3 = sequence({split("Regex", llama3_pattern), byte_level(false, false)});
  const json smollm2 = sequence({{{"type", "Digits"}, {"individual_digits", true}}, byte_level(false, true)});
  CHECK(pieces(gpt2, sample) == "Hello|_|_world|,|_it|'s|_1234|_O|'|CLOCK|!|~~|_x");
  CHECK(pieces(llama3, sample) == "Hello|_|_world|,|_it|'s|_|123|4|_O|'CLOCK|!~~|_x");
  CHECK(pieces(smollm2, sample) == "Hello|_|_world|,|_it|'s|_|1|2|3|4|_O|'|CLOCK|!|~~|_x");
  CHECK(pieces(gpt2, "IT'S it's") == "IT|'|S|_it|'s");  // Llama 3 alone takes them in either case
  CHECK(pieces(llama3, "IT'S it's") == "IT|'S|_it|'s");
  for (const json& one : {gpt2, llama3, smollm2}) {
    CHECK(pieces(one, "") == "");
    CHECK(pieces(one, "a  ") == "a|__");
    CHECK(pieces(one, "a", piece_place::continued) == "a");
  }
}

TEST_CASE("Digits are every number sign, alone or together") {
  const auto digits = [](bool alone) { return json{{"type", "Digits"}, {"individual_digits", alone}}; };
  CHECK(pieces(digits(true), "ab12c3") == "ab|1|2|c|3");
  CHECK(pieces(digits(false), "ab12c3") == "ab|12|c|3");
  CHECK(pieces(json{{"type", "Digits"}}, "12") == "12");
  CHECK(pieces(digits(true), "x\xc2\xbd\xe2\x85\xa3y") == "x|\xc2\xbd|\xe2\x85\xa3|y");  // one half, Roman four
}

TEST_CASE("Split keeps matches and what is between them; a text is taken as it is written") {
  CHECK(pieces(split("Regex", "b+"), "abbcb") == "a|bb|c|b");
  CHECK(pieces(split("Regex", "x"), "abc") == "abc");
  CHECK(pieces(split("Regex", "b*"), "abc") == "a|b|c");
  CHECK(pieces(split("String", "b+"), "abb+c") == "ab|b+|c");
  CHECK(pieces(split("String", "."), "a.b") == "a|.|b");
  CHECK(pieces(split("String", " "), "a b") == "a| |b");
  CHECK(pieces(split("String", "\\s"), "a \\sb") == "a |\\s|b");
  CHECK(pieces(split("String", "\xc3\xa9"),
               "a\xc3\xa9"
               "b") == "a|\xc3\xa9|b");
  CHECK(pieces(sequence({split("String", "b"), split("String", "c")}), "abcd") == "a|b|c|d");
  CHECK(pieces(nullptr, "a b") == "a b");
}

TEST_CASE("ByteLevel's letters are 256 different ones, and lead back to the bytes") {
  std::string all, bytes;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::string& letter = minillama::byte_letter(static_cast<unsigned char>(byte));
    CHECK(minillama::bytes_of_letters(letter) == std::string(1, static_cast<char>(byte)));
    all += letter;
    bytes += static_cast<char>(byte);
  }
  CHECK(minillama::bytes_of_letters(all) == bytes);
  CHECK(minillama::byte_letter('a') == "a");
  CHECK(minillama::byte_letter('~') == "~");
  CHECK(minillama::byte_letter(0) == "\xc4\x80");     // U+0100
  CHECK(minillama::byte_letter(' ') == "\xc4\xa0");   // U+0120
  CHECK(minillama::byte_letter(0x7f) == "\xc4\xa1");  // U+0121
  CHECK(minillama::byte_letter(0xa1) == "\xc2\xa1");
  CHECK(minillama::byte_letter(0xad) == "\xc5\x83");  // U+0143, the last
  CHECK(minillama::byte_letter(0xff) == "\xc3\xbf");
  CHECK(minillama::bytes_of_letters("a b") == "a b");  // a space is no letter of a byte: the text as it is
  CHECK(minillama::bytes_of_letters("\xe2\x96\x81") == "\xe2\x96\x81");
  CHECK(minillama::bytes_of_letters("") == "");
}

TEST_CASE("ByteLevel's own space stands before each piece that has none, but not behind text that was there before") {
  const json with = byte_level(true, false);
  CHECK(pieces(with, "a") == "_a");
  CHECK(pieces(with, " a") == "_a");
  CHECK(pieces(with, "a", piece_place::later) == "_a");
  CHECK(pieces(with, "a", piece_place::continued) == "a");
  CHECK(pieces(json{{"type", "ByteLevel"}}, "a b") == "_a|_b");  // both are on where the file does not say
  CHECK(pieces(byte_level(false, false), "a b") == "a_b");
  CHECK(pieces(sequence({split("String", "b"), with}), "ab", piece_place::continued) == "a|_b");
}

TEST_CASE("Metaspace puts a mark before every piece, before the first, or nowhere") {
  CHECK(pieces(metaspace("always", true), "a  b") == "_a|_|_b");
  CHECK(pieces(metaspace("always", false), "a  b") == "_a__b");
  CHECK(pieces(metaspace("never", true), "a b") == "a|_b");
  CHECK(pieces(metaspace("first", true), "a b") == "_a|_b");
  CHECK(pieces(metaspace("always", true), " a") == "_a");
  struct expectation {
    const char *scheme, *start, *later, *continued;
  };
  for (const auto& [scheme, start, later, continued] :
       {expectation{"always", "_a", "_a", "a"}, {"first", "_a", "a", "a"}, {"never", "a", "a", "a"}}) {
    CHECK(pieces(metaspace(scheme, false), "a") == start);
    CHECK(pieces(metaspace(scheme, false), "a", piece_place::later) == later);
    CHECK(pieces(metaspace(scheme, false), "a", piece_place::continued) == continued);
  }
  json older{{"type", "Metaspace"}, {"replacement", "#"}, {"add_prefix_space", true}};
  CHECK(pieces(older, "a b") == "#a|#b");
  older["add_prefix_space"] = false;
  CHECK(pieces(older, "a b") == "a|#b");
  CHECK(pieces(metaspace("always", true), "") == "");
}

TEST_CASE("Prepend and Replace are done in their order; a continued text gets nothing before it") {
  const json prepend{{"type", "Prepend"}, {"prepend", space_mark}};
  const json replace{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", space_mark}};
  const json llama2{{"type", "Sequence"}, {"normalizers", {prepend, replace}}};
  CHECK(normal(llama2, "a  b") == "_a__b");
  CHECK(normal(llama2, " a") == "__a");
  CHECK(normal(llama2, "a b", piece_place::later) == "_a_b");
  CHECK(normal(llama2, "a b", piece_place::continued) == "a_b");
  CHECK(normal(llama2, "") == "");
  CHECK(normal(replace, "a b") == "a_b");
  CHECK(normal(nullptr, "a b") == "a b");
  const auto swapped = [](const char* from, const char* to) {
    return json{{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  };
  CHECK(normal(swapped("aa", "a"), "aaaaa") == "aaa");  // what was put in is not searched again
  CHECK(normal(swapped("a", "aa"), "aba") == "aabaa");
  CHECK(normal({{"type", "Sequence"}, {"normalizers", {swapped("a", "b"), swapped("b", "c")}}}, "ab") == "cc");
}

TEST_CASE("a long text takes no long time, and no steps make it many times as long") {
  const json marks{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", space_mark}};
  const std::string spaces(1 << 20, ' ');  // minutes, were each replacement to move the rest of the text
  CHECK(minillama::normalizer("f", marks)(spaces, piece_place::start).size() == 3 * spaces.size());
  CHECK(minillama::pre_tokenizer("f", metaspace("first", false))(spaces, piece_place::start).front().size() == 3 * spaces.size());

  const json twice{{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  const minillama::normalizer doubling("f", {{"type", "Sequence"}, {"normalizers", std::vector<json>(60, twice)}});
  CHECK(doubling("bcd", piece_place::start) == "bcd");
  CHECK_THROWS_WITH_AS(doubling("a", piece_place::start), "f: normalizer: makes of a text of 1 bytes more than 4108",
                       minillama::load_error);
  const minillama::pre_tokenizer letters("f", sequence(std::vector<json>(60, byte_level(false, false))));
  CHECK(letters("abc", piece_place::start).front() == "abc");
  CHECK_THROWS_WITH_AS(letters("\x01", piece_place::start), "f: pre_tokenizer: makes of a text of 1 bytes more than 4108",
                       minillama::load_error);
  json wide = metaspace("always", false);
  wide["replacement"] = std::string(1 << 20, '-');
  CHECK_THROWS_AS(minillama::pre_tokenizer("f", wide)(std::string(1 << 16, ' '), piece_place::start), minillama::load_error);
}
