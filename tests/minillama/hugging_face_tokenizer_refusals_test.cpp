// SPDX-License-Identifier: Apache-2.0
// Every way in which a tokenizer.json can be wrong, or ask for what is not read: the file and the key are named, in these words.
#include <limits>

#include "tokenizer.hpp"
#include "tokenizer_file.hpp"

using namespace minillama_test;
using nlohmann::json;

namespace {

json good() { return file_of(model_of({"a", "b", "ab", "<s>"}, {"a b"})); }

/// Of the good file with one value changed; a place is as in "/model/vocab".
std::string problem_at(const std::string& place, const json& value) {
  json whole = good();
  whole[json::json_pointer(place)] = value;
  return problem_of(whole.dump());
}

std::string problem_without(const std::string& key) {
  json whole = good();
  whole["model"].erase(key);
  return problem_of(whole.dump());
}

}  // namespace

TEST_CASE("a good file is accepted, with keys that change nothing") {
  CHECK(problem_of(good().dump()) == "");
  json whole = good();
  whole["model"].erase("type");  // older files have none
  whole["model"].update({{"dropout", nullptr}, {"continuing_subword_prefix", ""}, {"end_of_word_suffix", nullptr}});
  whole.update({{"truncation", nullptr},
                {"padding", nullptr},
                {"normalizer", nullptr},
                {"pre_tokenizer", nullptr},
                {"decoder", nullptr},
                {"post_processor", nullptr},
                {"added_tokens", json::array()}});
  CHECK(problem_of(whole.dump()) == "");
  CHECK(problem_at("/model/dropout", 0.0) == "");
}

TEST_CASE("models of another kind, and settings that change tokens, are refused") {
  CHECK(problem_at("/model/type", "WordPiece") == "model.type: unsupported: \"WordPiece\" (only \"BPE\")");
  CHECK(problem_at("/model/type", "Unigram") == "model.type: unsupported: \"Unigram\" (only \"BPE\")");
  CHECK(problem_at("/model/dropout", 0.1) == "model.dropout: unsupported: 0.1 (only null)");
  CHECK(problem_at("/model/continuing_subword_prefix", "##") == "model.continuing_subword_prefix: unsupported: \"##\" (only none)");
  CHECK(problem_at("/model/end_of_word_suffix", "</w>") == "model.end_of_word_suffix: unsupported: \"</w>\" (only none)");
  CHECK(problem_at("/model/byte_fallback", 1) == "model.byte_fallback: expected true or false, got number");
  CHECK(problem_at("/model/unk_token", "<unk>") == "model.unk_token: \"<unk>\" is not in vocab");
  json gap = good();
  gap["model"]["vocab"]["c"] = 9;
  gap["model"]["unk_token"] = "";  // numbers without a token have no text, not an empty one
  CHECK(problem_of(gap.dump()) == "model.unk_token: \"\" is not in vocab");
  CHECK(problem_at("/model/unk_token", 0) == "model.unk_token: expected a text, got number");
  CHECK(problem_at("/model", "BPE") == "model: expected an object, got string");
  CHECK(problem_of("{}") == "model: missing key");
}

TEST_CASE("a vocabulary has each number once, and few gaps") {
  CHECK(problem_without("vocab") == "model.vocab: missing key");
  CHECK(problem_at("/model/vocab", json::array({"a"})) == "model.vocab: expected an object, got array");
  CHECK(problem_at("/model/vocab", json::object()) == "model.vocab: is empty");
  CHECK(problem_at("/model/vocab/b", 0) == "model.vocab: has the id 0 twice");
  CHECK(problem_at("/model/vocab/b", -1) == "model.vocab.b: expected 0 to 16777216, got -1");
  CHECK(problem_at("/model/vocab/b", 16777217) == "model.vocab.b: expected 0 to 16777216, got 16777217");
  CHECK(problem_at("/model/vocab/b", std::numeric_limits<std::uint64_t>::max()) ==
        "model.vocab.b: expected 0 to 16777216, got 18446744073709551615");
  CHECK(problem_at("/model/vocab/b", 1.5) == "model.vocab.b: expected a whole number, got 1.5");
  CHECK(problem_at("/model/vocab/b", "1") == "model.vocab.b: expected a whole number, got string");
  CHECK(problem_at("/model/vocab/b", 2 * 4 + 1024) == "model.vocab: has 4 tokens and ids up to 1032");
  CHECK(problem_at("/model/vocab/b", 2 * 4 + 1023) == "");
}

TEST_CASE("merges are pairs of tokens that make a token") {
  const auto with = [](const json& merge) { return problem_at("/model/merges", json::array({"a b", merge})); };
  const std::string expected = "model.merges[1]: expected two texts, as \"a b\" or [\"a\", \"b\"], got ";
  CHECK(problem_without("merges") == "model.merges: missing key");
  CHECK(problem_at("/model/merges", "a b") == "model.merges: expected an array, got string");
  CHECK(with("a c") == "model.merges[1]: \"c\" is not in vocab");
  CHECK(with("c a") == "model.merges[1]: \"c\" is not in vocab");
  CHECK(with("b a") == "model.merges[1]: \"ba\" is not in vocab");
  CHECK(with(json::array({"b", "a"})) == "model.merges[1]: \"ba\" is not in vocab");
  CHECK(with("a b c") == expected + "\"a b c\"");
  CHECK(with("ab") == expected + "\"ab\"");
  CHECK(with("") == expected + "\"\"");
  CHECK(with(json::array({"a"})) == expected + "[\"a\"]");
  CHECK(with(json::array({"a", "b", "c"})) == expected + "[\"a\",\"b\",\"c\"]");
  CHECK(with(json::array({"a", 1})) == expected + "[\"a\",1]");
  CHECK(with(7) == expected + "7");
}

TEST_CASE("added tokens have the numbers that follow, or those of the vocabulary") {
  const auto with = [](const json& token) { return problem_at("/added_tokens", json::array({added("<|x|>", 4), token})); };
  CHECK(with(added("<|y|>", 5)) == "");
  CHECK(with(added("<s>", 3)) == "");
  const std::string next = "added_tokens[1].id: expected 5, the next number after the tokens before it, got ";
  CHECK(with(added("<|y|>", 7)) == next + "7");
  CHECK(with(added("<|y|>", 0)) == next + "0");
  CHECK(with(added("<s>", 5)) == "added_tokens[1].id: expected 3, which vocab says, got 5");
  CHECK(with(added("", 5)) == "added_tokens[1].content: is empty");
  json single = added("<|y|>", 5);
  single["single_word"] = true;
  CHECK(with(single) == "added_tokens[1].single_word: unsupported: true (only false)");
  CHECK(with({{"id", 5}}) == "added_tokens[1].content: missing key");
  CHECK(with({{"content", "y"}}) == "added_tokens[1].id: missing key");
  CHECK(with("y") == "added_tokens[1]: expected an object, got string");
  CHECK(problem_at("/added_tokens", json::object()) == "added_tokens: expected an array, got object");
}

TEST_CASE("normalizers that are not read are refused by name") {
  const auto with = [](const json& normalizer) { return problem_at("/normalizer", normalizer); };
  const std::string only = " (only Prepend, Replace and Sequence)";
  CHECK(with({{"type", "NFC"}}) == "normalizer.type: unsupported: NFC" + only);
  CHECK(with({{"type", "Sequence"}, {"normalizers", {{{"type", "Prepend"}, {"prepend", "_"}}, {{"type", "Lowercase"}}}}}) ==
        "normalizer.normalizers[1].type: unsupported: Lowercase" + only);
  CHECK(with(json::object()) == "normalizer.type: missing key");
  CHECK(with("NFC") == "normalizer: expected an object, got string");
  CHECK(with({{"type", "Prepend"}}) == "normalizer.prepend: missing key");
  CHECK(with({{"type", "Replace"}, {"pattern", {{"Regex", " "}}}, {"content", "_"}}) == "normalizer.pattern.String: missing key");
  CHECK(with({{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "_"}}) == "normalizer.pattern.String: is empty");
}

TEST_CASE("pre-tokenizers that are not read are refused by name") {
  const auto with = [](const json& one) { return problem_at("/pre_tokenizer", one); };
  const std::string only = " (only Split, Digits, ByteLevel, Metaspace and Sequence)";
  CHECK(with({{"type", "Whitespace"}}) == "pre_tokenizer.type: unsupported: Whitespace" + only);
  CHECK(with({{"type", "Sequence"}, {"pretokenizers", {{{"type", "Digits"}}, {{"type", "Punctuation"}}}}}) ==
        "pre_tokenizer.pretokenizers[1].type: unsupported: Punctuation" + only);
  CHECK(with({{"type", "Sequence"}}) == "pre_tokenizer.pretokenizers: missing key");

  json split{{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Isolated"}, {"invert", false}};
  CHECK(with(split) == "");
  split["invert"] = true;
  CHECK(with(split) == "pre_tokenizer.invert: unsupported: true (only false)");
  split["behavior"] = "Removed";
  CHECK(with(split) == "pre_tokenizer.behavior: unsupported: \"Removed\" (only \"Isolated\")");
  split.update({{"behavior", "Isolated"}, {"invert", false}});
  split["pattern"] = {{"Regex", "(a"}};
  CHECK(with(split) == "pre_tokenizer.pattern: not a regular expression: missing closing parenthesis");
  split["pattern"] = {{"Regex", "[\\S]"}};
  CHECK(with(split) == "pre_tokenizer.pattern: \\S inside brackets is not supported");
  split["pattern"] = {{"Regex", "[a&&b]"}};
  CHECK(with(split) == "pre_tokenizer.pattern: && inside brackets is not supported");
  split["pattern"] = json::object();
  CHECK(with(split) == "pre_tokenizer.pattern.String: missing key");
  split["pattern"] = "a";
  CHECK(with(split) == "pre_tokenizer.pattern: expected an object, got string");

  json metaspace{{"type", "Metaspace"}, {"replacement", space_mark}, {"prepend_scheme", "sometimes"}};
  CHECK(with(metaspace) == "pre_tokenizer.prepend_scheme: unsupported: sometimes (only always, first and never)");
  metaspace["replacement"] = "";
  CHECK(with(metaspace) == "pre_tokenizer.replacement: is empty");
}

TEST_CASE("post-processors may put one known token before a text") {
  const auto with = [](const json& one) { return problem_at("/post_processor", one); };
  CHECK(with({{"type", "RobertaProcessing"}}) ==
        "post_processor.type: unsupported: RobertaProcessing (only ByteLevel, TemplateProcessing and Sequence)");
  CHECK(with(begin_template("<s>")) == "");
  CHECK(with(begin_template("<t>")) == "post_processor.single[0].SpecialToken.id: \"<t>\" is no token");
  json two = begin_template("<s>");
  two["single"].insert(two["single"].begin(), two["single"][0]);
  CHECK(with(two) == "post_processor.single[1].SpecialToken.id: unsupported: \"<s>\" (only one token, before the text)");
  json behind = begin_template("<s>");
  std::swap(behind["single"][0], behind["single"][1]);
  CHECK(with(behind) == "post_processor.single[1].SpecialToken.id: unsupported: \"<s>\" (only one token, before the text)");
  CHECK(with({{"type", "TemplateProcessing"}}) == "post_processor.single: missing key");
  CHECK(with({{"type", "Sequence"}, {"processors", {begin_template("<s>"), begin_template("<s>")}}}) ==
        "post_processor.processors[1].single[0].SpecialToken.id: unsupported: \"<s>\" (only one token, before the text)");
}

TEST_CASE("decoders that say other bytes are refused") {
  const auto with = [](const json& one) { return problem_at("/decoder", one); };
  CHECK(with({{"type", "WordPiece"}}) ==
        "decoder.type: unsupported: WordPiece (only ByteLevel, Replace, ByteFallback, Fuse, Strip, "
        "Metaspace and Sequence)");
  CHECK(with({{"type", "Strip"}, {"content", " "}, {"start", 2}, {"stop", 0}}) == "decoder.start: expected 0 to 1, got 2");
  CHECK(with({{"type", "Metaspace"}, {"replacement", "#"}}) == "decoder.replacement: unsupported: \"#\" (only \"" + space_mark + "\")");
  json replace{{"type", "Replace"}, {"pattern", {{"String", space_mark}}}, {"content", " "}};
  CHECK(with(replace) == "");
  replace["content"] = "_";
  CHECK(with(replace) == "decoder.content: unsupported: \"_\" (only \" \")");
  replace["pattern"] = {{"String", "#"}};
  CHECK(with({{"type", "Sequence"}, {"decoders", {{{"type", "Fuse"}}, replace}}}) ==
        "decoder.decoders[1].pattern.String: unsupported: \"#\" (only \"" + space_mark + "\")");
}

TEST_CASE("what is no JSON object, is nested too deeply, or is not there, is refused") {
  for (const char* text : {"", "{", "[]", "null", "\xff\xfe", "{\"model\": \"\xff\"}"}) CHECK(problem_of(text) == "is not a JSON object");
  CHECK(problem_of(R"({"model": {"vocab": {"a": 0, "a": 1}}})") == "a: is given twice");
  for (const auto& brackets : {std::pair{"{\"a\":", "}"}, {"[", "]"}}) {
    const auto nested = [&](int levels, const std::string& innermost) {  // the outermost object is the first level
      std::string text = "{\"extra\": ", end;
      for (int level = 1; level < levels; ++level) text += brackets.first, end += brackets.second;
      end += "}";
      return text + innermost + end;
    };
    CHECK(problem_of(nested(32, "0")) == "model: missing key");
    CHECK(problem_of(nested(33, "0")) == "is nested deeper than 32 levels");
    CHECK(problem_of(nested(32, "[]")) == "is nested deeper than 32 levels");  // it need not hold anything
    CHECK(problem_of(nested(32, "{}")) == "is nested deeper than 32 levels");
    CHECK(problem_of(nested(1 << 16, "0")) == "is nested deeper than 32 levels");
  }
  const temporary_directory folder;
  const auto absent = folder.path() / "tokenizer.json";
  CHECK_THROWS_WITH_AS(minillama::hugging_face_tokenizer{absent}, (absent.string() + ": cannot be opened").c_str(), minillama::load_error);
  CHECK_THROWS_WITH_AS(minillama::hugging_face_tokenizer{folder.path()}, (folder.path().string() + ": cannot be opened").c_str(),
                       minillama::load_error);
}

TEST_CASE("a model takes the tokenizer of its directory, or the one that is named, and has no fewer tokens than it") {
  const loaded_file loaded(good());
  minillama::model_config config;
  for (const std::size_t vocabulary : {4u, 5u, 256u}) {
    config.vocabulary = vocabulary;
    CHECK(minillama::make_tokenizer(config, loaded.folder.path())->vocabulary() == 4);
    CHECK(minillama::make_tokenizer(config, "/nowhere", loaded.path())->vocabulary() == 4);
  }
  config.vocabulary = 3;
  const std::string refusal = loaded.path().string() + ": vocabulary: has 4 tokens, the model 3";
  CHECK_THROWS_WITH_AS(minillama::make_tokenizer(config, loaded.folder.path()), refusal.c_str(), minillama::load_error);
  CHECK_THROWS_WITH_AS(minillama::make_tokenizer(config, "/nowhere", loaded.path()), refusal.c_str(), minillama::load_error);

  config.vocabulary = 256;  // what is named counts, not what lies beside the weights
  CHECK_THROWS_AS(minillama::make_tokenizer(config, loaded.folder.path(), "/nowhere/tokenizer.json"), minillama::load_error);
  CHECK(minillama::make_tokenizer(config, loaded.path())->vocabulary() == 256);  // a file of weights has no directory of its own
}
