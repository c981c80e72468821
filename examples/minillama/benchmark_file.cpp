// SPDX-License-Identifier: Apache-2.0
// Every record is read and checked before the first is asked.
#include "benchmark_file.hpp"

#include <algorithm>
#include <array>

#include "json_file.hpp"
#include "jsonl_reader.hpp"
#include "load_error.hpp"

namespace minillama {
namespace {

constexpr std::size_t most_reply_tokens = 1u << 20;
constexpr std::size_t most_answer_bytes = 256 << 10;  // metrics take memory of its product with the reply

/// What LongBench does with a data set.
struct dataset_rule {
  const char* name;
  std::optional<metric> by;  // none: needs a dictionary
  asked_as form = asked_as::chat;
  scored_part part = scored_part::everything;
};

constexpr std::array<dataset_rule, 21> rules{{
    {"narrativeqa", metric::qa_f1},
    {"qasper", metric::qa_f1},
    {"multifieldqa_en", metric::qa_f1},
    {"multifieldqa_zh", std::nullopt},
    {"hotpotqa", metric::qa_f1},
    {"2wikimqa", metric::qa_f1},
    {"musique", metric::qa_f1},
    {"dureader", std::nullopt},
    {"gov_report", metric::rouge_l},
    {"qmsum", metric::rouge_l},
    {"multi_news", metric::rouge_l},
    {"vcsum", std::nullopt},
    {"trec", metric::classification, asked_as::text, scored_part::first_line},
    {"triviaqa", metric::qa_f1, asked_as::text, scored_part::first_line},
    {"samsum", metric::rouge_l, asked_as::text, scored_part::first_line},
    {"lsht", metric::classification, asked_as::text, scored_part::first_line},
    {"passage_retrieval_en", metric::retrieval},
    {"passage_count", metric::count},
    {"passage_retrieval_zh", metric::retrieval},
    {"lcc", metric::code_similarity, asked_as::text},
    {"repobench-p", metric::code_similarity, asked_as::text},
}};

const dataset_rule* rule_of(const std::string& dataset) {
  const auto found = std::find_if(rules.begin(), rules.end(), [&](const dataset_rule& one) { return dataset == one.name; });
  return found == rules.end() ? nullptr : &*found;
}

constexpr const char* plain_template = "{context}\n\n{input}\n\nAnswer:";

/// The text of a key that must say something.
std::string said(const json_reader& record, const std::string& key) {
  const std::string text = record.text(key);
  if (text.find_first_not_of(" \t\r\n") == text.npos) record.fail(key, text.empty() ? "is empty" : "has only blanks");
  return text;
}

std::string id_of(const json_reader& record, const std::string& key, std::size_t line) {
  const nlohmann::json* id = record.find(key);
  if (!id) return std::to_string(line);
  if (!id->is_string() && !id->is_number_integer()) record.fail(key, std::string("expected a text or a number, got ") + id->type_name());
  return id->is_string() ? id->get<std::string>() : id->dump();
}

/// What the first record decides for all.
class set_reader {
 public:
  set_reader(const std::filesystem::path& path, const benchmark_request& request) : lines_(path), request_(request) {}

  benchmark read(const std::filesystem::path& path) {
    while ((!request_.records || made_.records.size() < *request_.records) && lines_.next()) {
      const json_reader record = lines_.record();
      if (made_.records.empty()) begin(record);
      made_.records.push_back(made_.suite == benchmark_suite::ruler ? ruler_record(record) : longbench_record(record));
      check(record);
    }
    if (made_.records.empty()) throw load_error(path.string(), "holds no record");
    return std::move(made_);
  }

 private:
  void begin(const json_reader& record) {
    made_.suite = record.states("outputs") ? benchmark_suite::ruler : benchmark_suite::longbench;
    made_.dataset = "ruler";
    made_.by = metric::all_found;
    if (made_.suite == benchmark_suite::longbench) begin_longbench(record);
    if (request_.by) made_.by = *request_.by;
    if (request_.tokens) made_.tokens = *request_.tokens;
  }

  void begin_longbench(const json_reader& record) {
    made_.dataset = record.text("dataset");
    const dataset_rule* rule = rule_of(made_.dataset);
    if (!rule && !request_.by)
      record.fail("dataset", "\"" + made_.dataset + "\" is no data set whose metric is known: name one with --score-by");
    if (rule && !rule->by && !request_.by)
      record.fail("dataset",
                  "\"" + made_.dataset + "\" is scored by words that a Chinese dictionary cuts, which this program does not have");
    if (rule) {
      made_.by = rule->by.value_or(metric::qa_f1);
      made_.form = rule->form;
      made_.part = rule->part;
    }
    if (request_.prompts) {
      const auto forms = read_object(*request_.prompts);
      template_ = json_reader(*request_.prompts, forms).text(made_.dataset);
      source_ = *request_.prompts;
    }
    if (request_.lengths) {
      const auto lengths = read_object(*request_.lengths);
      made_.tokens = json_reader(*request_.lengths, lengths).whole(made_.dataset, 1, most_reply_tokens);
    }
  }

  benchmark_record longbench_record(const json_reader& record) const {
    const std::string dataset = record.text("dataset");
    if (dataset != made_.dataset)
      record.fail("dataset", "expected \"" + made_.dataset + "\", as in the lines before, got \"" + dataset + "\"");
    benchmark_record made{lines_.line(), id_of(record, "_id", lines_.line())};
    made.prompt = filled_template(source_, made_.dataset, template_, said(record, "context"), record.text("input"));
    made.answers = record.texts("answers");
    if (record.find("all_classes")) made.classes = record.texts("all_classes");
    if (made_.by == metric::classification && made.classes.empty()) record.fail("all_classes", "missing key");
    return made;
  }

  benchmark_record ruler_record(const json_reader& record) const {
    benchmark_record made{lines_.line(), id_of(record, "index", lines_.line())};
    made.prompt = said(record, "input");
    made.answers = record.texts("outputs");
    if (record.find("answer_prefix")) {
      made.begun = record.text("answer_prefix");
      if (made.prompt.ends_with(made.begun)) made.begun.clear();  // older files have it in both
    }
    return made;
  }

  void check(const json_reader& record) const {
    const benchmark_record& last = made_.records.back();
    const std::string key = made_.suite == benchmark_suite::ruler ? "outputs" : "answers";
    for (const std::string& one : last.answers)
      if (one.size() > most_answer_bytes)
        record.fail(key, "has a text of " + std::to_string(one.size()) + " bytes; expected at most " + std::to_string(most_answer_bytes));
    const std::string problem = problem_of(made_.by, last.answers, last.classes);
    if (!problem.empty()) record.fail(key, problem);
    if (record.find("length")) record.whole("length", 0, std::size_t{1} << 40);
  }

  jsonl_reader lines_;
  const benchmark_request& request_;
  benchmark made_;
  std::string template_ = plain_template;
  std::filesystem::path source_ = "the program's template";
};

std::string text_of_tokens(const tokenizer& words, const std::vector<token_id>& all, std::size_t first, std::size_t last) {
  std::string text;
  for (std::size_t i = first; i < last; ++i) text += words.decode(all[i == 0 ? 0 : i - 1], all[i]);
  return text;
}

}  // namespace

const char* name_of(benchmark_suite suite) { return suite == benchmark_suite::ruler ? "RULER" : "LongBench"; }

double benchmark::score(const benchmark_record& record, const std::string& reply) const {
  return score_of(by, part == scored_part::first_line ? first_line(reply) : reply, record.answers, record.classes);
}

benchmark read_benchmark(const std::filesystem::path& path, const benchmark_request& request) {
  return set_reader(path, request).read(path);
}

std::string filled_template(const std::filesystem::path& source, const std::string& key, const std::string& form,
                            const std::string& context, const std::string& input) {
  std::string made;
  for (std::size_t at = 0; at < form.size(); ++at) {
    const char c = form[at];
    if (c != '{' && c != '}') {
      made += c;
    } else if (at + 1 < form.size() && form[at + 1] == c) {
      made += c;
      ++at;
    } else {
      const std::size_t end = c == '{' ? form.find('}', at) : form.npos;
      if (end == form.npos) throw load_error(source, key, std::string("expected {context}, {input}, {{ or }}, got a single ") + c);
      const std::string name = form.substr(at + 1, end - at - 1);
      if (name != "context" && name != "input") throw load_error(source, key, "expected {context} or {input}, got {" + name + "}");
      made += name == "context" ? context : input;
      at = end;
    }
  }
  return made;
}

std::string shortened(const tokenizer& words, const std::string& text, std::size_t most) {
  const auto tokens = words.encode(text, text_place::start);
  const std::size_t half = most / 2;
  if (tokens.size() <= most) return text;
  return text_of_tokens(words, tokens, 0, half) + text_of_tokens(words, tokens, tokens.size() - half, tokens.size());
}

}  // namespace minillama
