// SPDX-License-Identifier: Apache-2.0
// Question sets as LongBench and RULER distribute them, written here: what is read, asked and scored, every refusal by file, line and key,
// and the program on them.
#include "benchmark_file.hpp"

#include <functional>

#include "benchmark_run.hpp"
#include "load_error.hpp"
#include "program.hpp"

using namespace minillama_test;
using minillama::benchmark;
using minillama::benchmark_request;
using minillama::metric;
using nlohmann::json;

namespace {

json longbench_record(const std::string& dataset = "hotpotqa") {
  return {{"_id", "x1"},        {"input", "Where?"}, {"context", "In the box."}, {"answers", {"the box", "box"}},
          {"dataset", dataset}, {"length", 3},       {"language", "en"},         {"all_classes", nullptr}};
}
json ruler_record() { return {{"index", 4}, {"input", "One is 17. One is"}, {"outputs", {"17", "18"}}, {"length", 5}}; }

template <class... Record>
std::string lines_of(const Record&... records) {
  return ((records.dump() + "\n") + ... + "");
}

/// A folder with a set, and perhaps the suite's files beside it.
struct set_folder {
  temporary_directory folder;
  std::filesystem::path file = folder.path() / "set.jsonl";
  benchmark_request request;

  template <class... Record>
  explicit set_folder(const Record&... records) {
    write_text(file, lines_of(records...));
  }
  std::filesystem::path beside(const std::string& name, const json& content) {
    write_text(folder.path() / name, content.dump());
    return folder.path() / name;
  }
  benchmark read() const { return minillama::read_benchmark(file, request); }
  /// What is refused, without the folder's name.
  std::string problem() const {
    try {
      read();
    } catch (const minillama::load_error& error) {
      const std::string what = error.what(), begin = folder.path().string() + "/";
      CHECK(what.rfind(begin, 0) == 0);
      return what.substr(begin.size());
    }
    return "";
  }
};

/// What is refused of two records, the second changed.
std::string problem_of(json record, const std::function<void(json&)>& change) {
  const json first = record;
  change(record);
  return set_folder(first, record).problem();
}

}  // namespace

TEST_CASE("LongBench: records, metrics and forms of the data sets") {
  const benchmark set = set_folder(longbench_record(), longbench_record()).read();
  CHECK(set.suite == minillama::benchmark_suite::longbench);
  CHECK(set.dataset == "hotpotqa");
  CHECK(set.tokens == 128);
  REQUIRE(set.records.size() == 2);
  CHECK(set.records[1].line == 2);
  CHECK(set.records[1].id == "x1");
  CHECK(set.records[1].prompt == "In the box.\n\nWhere?\n\nAnswer:");
  CHECK(set.score(set.records[0], "Box\nmore") == doctest::Approx(2.0 / 3));  // the whole reply counts
  const auto by = [](const std::string& dataset, json answers, json classes = nullptr) {
    json record = longbench_record(dataset);
    record["answers"] = std::move(answers);
    record["all_classes"] = std::move(classes);
    return set_folder(record).read();
  };
  CHECK(by("gov_report", {"a"}).by == metric::rouge_l);
  CHECK(by("passage_count", {"7"}).by == metric::count);
  CHECK(by("passage_retrieval_en", {"Paragraph 7"}).by == metric::retrieval);
  CHECK(by("lcc", {"return x;"}).by == metric::code_similarity);
  CHECK(by("lcc", {"return x;"}).form == minillama::asked_as::text);
  const benchmark sorted_out = by("trec", {"Date"}, {"Date", "Place"});
  CHECK(sorted_out.by == metric::classification);
  CHECK(sorted_out.form == minillama::asked_as::text);
  CHECK(sorted_out.score(sorted_out.records[0], "\nDate\nPlace") == 1);  // the first line, behind line feeds
  const benchmark trivia = by("triviaqa", {"Oslo"});
  CHECK(trivia.score(trivia.records[0], "\n\nOslo\nQuestion: who") == 1);
}

TEST_CASE("LongBench: the suite's own files give prompts and lengths, options have the last word") {
  set_folder set(longbench_record(), longbench_record());
  set.request.prompts = set.beside("dataset2prompt.json", {{"hotpotqa", "Read {context} then {{say}} {input}"}, {"trec", "{bad}"}});
  set.request.lengths = set.beside("dataset2maxlen.json", {{"hotpotqa", 32}});
  CHECK(set.read().records[0].prompt == "Read In the box. then {say} Where?");
  CHECK(set.read().tokens == 32);
  set.request.tokens = 5;
  set.request.by = metric::any_found;
  set.request.records = 1;
  CHECK(set.read().tokens == 5);
  CHECK(set.read().records.size() == 1);
  CHECK(set.read().score(set.read().records[0], "a BOX, I think") == 1);
  set.request.prompts = set.beside("dataset2prompt.json", {{"trec", "{context}"}});
  CHECK(set.problem() == "dataset2prompt.json: hotpotqa: missing key");
  set.request.prompts = set.beside("dataset2prompt.json", {{"hotpotqa", "{question}"}});
  CHECK(set.problem() == "dataset2prompt.json: hotpotqa: expected {context} or {input}, got {question}");
  for (const char* form : {"{context", "a } b"}) {
    set.request.prompts = set.beside("dataset2prompt.json", {{"hotpotqa", form}});
    CHECK(set.problem().rfind("dataset2prompt.json: hotpotqa: expected {context}, {input}, {{ or }}, got a ", 0) == 0);
  }
  set.request.prompts.reset();
  set.request.lengths = set.beside("dataset2maxlen.json", {{"hotpotqa", 0}});
  CHECK(set.problem() == "dataset2maxlen.json: hotpotqa: expected 1 to 1048576, got 0");
  CHECK(minillama::filled_template("f", "k", "{context}|{input}", "{input}", "{context}") == "{input}|{context}");  // filled in once
}

TEST_CASE("LongBench: what is wrong is said with file, line and key") {
  const json good = longbench_record();
  for (const char* key : {"context", "input", "answers", "dataset"})
    CHECK(problem_of(good, [&](json& r) { r.erase(key); }) == "set.jsonl: line 2: " + std::string(key) + ": missing key");
  CHECK(problem_of(good, [](json& r) { r["context"] = ""; }) == "set.jsonl: line 2: context: is empty");
  CHECK(problem_of(good, [](json& r) { r["context"] = " \n\t"; }) == "set.jsonl: line 2: context: has only blanks");
  CHECK(problem_of(good, [](json& r) { r["input"] = ""; }) == "");  // summaries have none
  CHECK(problem_of(good, [](json& r) { r["context"] = 3; }) == "set.jsonl: line 2: context: expected a text, got number");
  CHECK(problem_of(good, [](json& r) { r["answers"] = json::array(); }) ==
        "set.jsonl: line 2: answers: expected at least one text, got none");
  CHECK(problem_of(good, [](json& r) { r["dataset"] = "trec"; }) ==
        "set.jsonl: line 2: dataset: expected \"hotpotqa\", as in the lines before, got \"trec\"");
  CHECK(problem_of(good, [](json& r) { r["length"] = "long"; }) == "set.jsonl: line 2: length: expected a whole number, got string");
  CHECK(problem_of(good, [](json& r) { r["_id"] = json::array(); }) == "set.jsonl: line 2: _id: expected a text or a number, got array");
  CHECK(set_folder(longbench_record("other")).problem() ==
        "set.jsonl: line 1: dataset: \"other\" is no data set whose metric is known: name one with --score-by");
  CHECK(set_folder(longbench_record("dureader")).problem() ==
        "set.jsonl: line 1: dataset: \"dureader\" is scored by words that a Chinese dictionary cuts, which this program does not have");
  CHECK(set_folder(longbench_record("trec")).problem() == "set.jsonl: line 1: all_classes: missing key");
  json classes = longbench_record("trec");
  classes["all_classes"] = {"Date"};
  CHECK(set_folder(classes).problem() == "set.jsonl: line 1: answers: \"the box\" is not among the classes");
  CHECK(set_folder(longbench_record("passage_count")).problem() == "set.jsonl: line 1: answers: expected a number, got \"the box\"");
  CHECK(problem_of(good, [](json& r) { r["answers"] = {std::string((256 << 10) + 1, 'x')}; }) ==
        "set.jsonl: line 2: answers: has a text of 262145 bytes; expected at most 262144");
  set_folder blank;
  write_text(blank.file, "\n\n");
  CHECK(blank.problem() == "set.jsonl: holds no record");
}

TEST_CASE("RULER: records, the part of the reply that is given, and what is wrong") {
  json begun = ruler_record();
  begun["answer_prefix"] = " It is";
  json both = ruler_record();
  both["answer_prefix"] = " One is";  // in the input too
  const benchmark set = set_folder(ruler_record(), begun, both).read();
  CHECK(set.suite == minillama::benchmark_suite::ruler);
  CHECK(set.by == metric::all_found);
  CHECK(set.records[0].id == "4");
  CHECK(set.records[0].prompt == "One is 17. One is");
  CHECK(set.records[0].begun == "");
  CHECK(set.records[1].begun == " It is");
  CHECK(set.records[2].begun == "");
  CHECK(set.score(set.records[0], "it is 17") == 0.5);
  const json good = ruler_record();
  CHECK(problem_of(good, [](json& r) { r.erase("outputs"); }) == "set.jsonl: line 2: outputs: missing key");
  CHECK(problem_of(good, [](json& r) { r["input"] = ""; }) == "set.jsonl: line 2: input: is empty");
  CHECK(problem_of(good, [](json& r) { r["input"] = "\n"; }) == "set.jsonl: line 2: input: has only blanks");
  CHECK(problem_of(good, [](json& r) { r["outputs"] = {"17", ""}; }) == "set.jsonl: line 2: outputs: an empty text occurs in every reply");
}

TEST_CASE("a prompt that is too long keeps its first and its last half") {
  const minillama::byte_tokenizer bytes;
  CHECK(minillama::shortened(bytes, "0123456789", 10) == "0123456789");
  CHECK(minillama::shortened(bytes, "0123456789", 6) == "012789");
  CHECK(minillama::shortened(bytes, "0123456789", 7) == "012789");  // as the suite halves
  minillama::model_config config;
  config.max_positions = 40;
  const auto prompts = [&](const json& record, std::size_t tokens, std::size_t most, const minillama::chat_template* chat = nullptr) {
    set_folder set(record);
    set.request.tokens = tokens;
    return minillama::prompts_of(set.read(), "set.jsonl", config, bytes, chat, most);
  };
  const auto text_of = [](const minillama::benchmark_prompt& prompt) { return std::string(prompt.tokens.begin(), prompt.tokens.end()); };
  const std::string whole = "In the box.\n\nWhere?\n\nAnswer:";
  CHECK(text_of(prompts(longbench_record(), 5, 0)[0]) == whole);
  CHECK_FALSE(prompts(longbench_record(), 5, 0)[0].is_shortened);
  CHECK(text_of(prompts(longbench_record(), 20, 0)[0]) == "In the bo\n\nAnswer:");  // 40 - 20 less one, halved
  CHECK(prompts(longbench_record(), 20, 0)[0].is_shortened);
  CHECK(text_of(prompts(longbench_record(), 5, 4)[0]) == "Inr:");
  const minillama::chat_template chat{"test", "<u>", "<a>", "<e>", "<e>"};
  CHECK(text_of(prompts(longbench_record(), 5, 4, &chat)[0]) == "<u>Inr:<a>");
  CHECK(text_of(prompts(longbench_record("triviaqa"), 5, 4, &chat)[0]) == "Inr:");  // goes on with its examples
  json begun = ruler_record();
  begun["answer_prefix"] = " It is";
  CHECK(text_of(prompts(begun, 5, 4, &chat)[0]) == "<u>One is 17. One is<a> It is");  // never shortened
  try {
    prompts(ruler_record(), 24, 0);
    FAIL("accepted");
  } catch (const minillama::load_error& error) {
    CHECK(std::string(error.what()) == "set.jsonl: line 1: input: 17 tokens and an answer of 24 are longer than the model's 40 positions");
  }
  CHECK_THROWS_WITH(prompts(longbench_record(), 39, 0), "--answer-tokens: 39 leave no prompt in the model's 40 positions");
}

TEST_CASE("minillama-ask --benchmark: replies are those of minillama, scores those of the metric, JSON has everything") {
  const bench tiny({.max_positions = 600});
  const auto file = tiny.path() / "set.jsonl", result = tiny.path() / "result.json";
  const auto ask = [&](const std::string& arguments) {
    return tiny.run("-m \"" + tiny.path().string() + "\" -t 2 --benchmark \"" + file.string() + "\" " + arguments, MINILLAMA_ASK_PROGRAM);
  };
  json first = longbench_record(), second = longbench_record();
  first["context"] = std::string(300, 'e');
  second["_id"] = 7;
  write_text(file, lines_of(first, second));
  const outcome got = ask("--answer-tokens 12 --policy pq snapkv sparq --ratios 4 --json \"" + result.string() + "\"");
  CHECK_MESSAGE(got.code == 0, got.err);
  for (const char* label : {"full", "pq 4x8 1/4", "snapkv 1/4", "sparq 1/4"})
    CHECK_MESSAGE(got.out.find(label) != std::string::npos, got.out);
  const json all = json::parse(contents(result));
  CHECK(all.at("set").at("metric") == "qa-f1");
  CHECK(all.at("set").at("answer_tokens") == 12);
  CHECK(all.at("policies").size() == 4);
  CHECK(all.at("policies")[1].at("rows") == "float");
  CHECK(all.at("policies")[3].at("bytes_per_token").at("selector").get<double>() > 0);  // sparq reads keys
  REQUIRE(all.at("records").size() == 2);
  CHECK(all.at("records")[0].at("id") == "x1");
  CHECK(all.at("records")[1].at("id") == "7");
  CHECK(all.at("records")[0].at("prompt_tokens") == 300 + 8 + 9);
  write_text(tiny.path() / "prompt", std::string(300, 'e') + "\n\nWhere?\n\nAnswer:");
  const outcome said = tiny.generate("-f \"" + (tiny.path() / "prompt").string() + "\" -n 12 --policy full");
  const json printed = said.out.substr(0, said.out.size() - 1);  // without the line feed behind the text
  const json as_in_file = json::parse(printed.dump(-1, ' ', false, json::error_handler_t::replace));
  CHECK(all.at("records")[0].at("replies").at("full").at("text") == as_in_file);

  // A reply that is the expected one: what the model says is made the answer.
  json known = ruler_record();
  known["input"] = std::string(300, 'e') + "\n\nWhere?\n\nAnswer:";
  const std::string text = as_in_file;
  known["outputs"] = {text, "not said"};
  write_text(file, lines_of(known));
  const outcome right = ask("--answer-tokens 12 --policy streaming --ratios 2 --json \"" + result.string() + "\"");
  CHECK_MESSAGE(right.code == 0, right.err);
  CHECK(json::parse(contents(result)).at("policies")[0].at("score") == 50);
  CHECK(json::parse(contents(result)).at("policies")[1].at("tokens_attended").get<double>() < 200);
  CHECK(ask("--answer-tokens 12 --score-by any --policy streaming --ratios 2 --json \"" + result.string() + "\"").code == 0);
  CHECK(json::parse(contents(result)).at("policies")[0].at("score") == 100);
}

TEST_CASE("minillama-ask --benchmark: one line of refusal, before anything is written") {
  const bench tiny;
  const auto file = tiny.path() / "set.jsonl", result = tiny.path() / "result.json";
  const auto refused = [&](const std::string& arguments, const std::string& what) {
    check_refused(tiny.run("-m \"" + tiny.path().string() + "\" " + arguments, MINILLAMA_ASK_PROGRAM), what, "minillama-ask");
    CHECK_FALSE(std::filesystem::exists(result));
  };
  const std::string set = "--benchmark \"" + file.string() + "\" --json \"" + result.string() + "\" ";
  refused(set, "set.jsonl: cannot be opened");
  write_text(file, lines_of(ruler_record()) + "{\"index\": 1");
  refused(set, "set.jsonl: line 2: is not a JSON object");
  json longest = ruler_record();
  longest["input"] = std::string(500, 'e');
  write_text(file, lines_of(ruler_record(), longest));
  refused(set, "set.jsonl: line 2: input: 500 tokens and an answer of 128 are longer than the model's 512 positions");
  refused(set + "--score-by best", "--score-by: expected qa-f1|rouge-l|classification|retrieval|count|code|all|any, got best");
  refused(set + "--questions 3", "--questions");
  refused("--score-by all", "--benchmark");
  refused(set + "--answer-tokens 512", "--answer-tokens: 512 leave no prompt in the model's 512 positions");
}
