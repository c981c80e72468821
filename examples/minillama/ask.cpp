// SPDX-License-Identifier: Apache-2.0
// minillama-ask: asks questions about long contexts under several attention policies, each question on a fork of the prefilled state.
//
//   minillama-ask -m MODEL --demo                          one context, ten questions, answers streamed
//   minillama-ask -m MODEL --questions 100 --json FILE     many contexts, everything measured
//   minillama-ask -m MODEL --benchmark FILE.jsonl          a question set of LongBench or RULER, scored as there
#include <cstdio>
#include <thread>

#include "benchmark_run.hpp"
#include "command_line.hpp"
#include "demonstration.hpp"
#include "evaluation.hpp"
#include "options.hpp"
#include "output_file.hpp"
#include "report.hpp"

namespace {

using namespace minillama;

struct ask_options {
  std::string model_directory, chat;
  std::optional<std::string> tokenizer_file, json_file;
  std::optional<std::filesystem::path> benchmark_file;
  benchmark_request request;
  std::vector<std::filesystem::path> text_files;
  std::size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::size_t length = 0;
  std::vector<policy_name> policies;
  std::vector<std::size_t> ratios;
  std::vector<std::string> codes;
  std::size_t sinks = 0, window = 0;
  pqkv::axis_order axes = pqkv::axis_order::rotary_halves;  // unless given, of a GPU alone, which is shown no queries
  pqkv::selector::normalisation over{};
  bool demo = false, check_paths = false, answers_only = false;
  evaluation_settings evaluation;
};

int run_evaluation(const ask_options& o, engine& computing, const model_config& config, const examiner& examining, pool_runner& runner,
                   const std::string& text) {
  evaluation_settings settings = o.evaluation;
  if (o.length) settings.length = o.length;
  if (settings.questions < settings.contexts)
    throw usage_error("--questions",
                      std::to_string(settings.questions) + " are fewer than the " + std::to_string(settings.contexts) + " contexts");
  settings.check = o.check_paths ? path_check::both : path_check::none;
  if (o.answers_only) settings.measure = measured_by::answers;
  std::optional<output_file> json;
  if (o.json_file) json.emplace(*o.json_file);
  const evaluation result = evaluate(computing, config, examining, runner, text, settings);
  if (json) json->write(text_of(result.json));  // wrong answers may be no UTF-8
  print_table(result.interviews);
  for (const auto& policy : result.json.at("policies"))
    std::printf("%-22s lost %zu of those that full got right\n", policy.at("label").get<std::string>().c_str(),
                policy.at("lost_of_full").get<std::size_t>());
  if (settings.check == path_check::none) return 0;
  std::printf("answers that differ between --path joint and --path scan: %zu\n", result.path_differences);
  return result.path_differences == 0 ? 0 : 1;
}

int ask_benchmark(const ask_options& o, engine& computing, const model_config& config, const tokenizer& words, const benchmark& set) {
  const chat_template* chat = o.chat.empty() ? chat_template_of(words) : &chat_template_named("--chat", o.chat);
  const auto prompts = prompts_of(set, *o.benchmark_file, config, words, chat, o.length);
  std::optional<output_file> json;
  if (o.json_file) json.emplace(*o.json_file);
  const auto results = run_benchmark(computing, config, words, set, prompts, contestants_of(o.evaluation));
  if (json) json->write(text_of(json_of(set, *o.benchmark_file, prompts, results)));
  print_table(results);
  return 0;
}

/// A question set and what belongs to it.
void declare_benchmark(CLI::App& app, ask_options& o) {
  const char* group = "Question sets";
  auto* file =
      app.add_option("--benchmark", o.benchmark_file, "file of JSON lines: a data set of LongBench, or a task of RULER")->group(group);
  for (const char* other : {"--demo", "--questions", "--contexts", "--text", "--check-paths", "--answers-only"})
    file->excludes(app.get_option(other));
  app.add_option("--benchmark-prompts", o.request.prompts, "LongBench's dataset2prompt.json; default: context, input and \"Answer:\"")
      ->needs(file)
      ->group(group);
  app.add_option("--benchmark-lengths", o.request.lengths, "LongBench's dataset2maxlen.json: tokens of an answer")
      ->needs(file)
      ->group(group);
  app.add_option("--answer-tokens", o.request.tokens, "most tokens of an answer; default: as in --benchmark-lengths, else 128")
      ->check(count_range(1, 1u << 20))
      ->needs(file)
      ->group(group);
  app.add_option("--score-by", o.request.by,
                 "qa-f1, rouge-l, classification, retrieval, count, code, all or any; default: the data set's, all for RULER")
      ->transform(one_of(score_names(), "qa-f1|rouge-l|classification|retrieval|count|code|all|any"))
      ->needs(file)
      ->group(group);
  app.add_option("--records", o.request.records, "read only the first N records")->check(count_range(1))->needs(file)->group(group);
}

/// None for a model of bytes, which is asked in the forms that the shipped one was trained on.
const chat_template* chat_for(const ask_options& o, const tokenizer& words) {
  if (!o.chat.empty()) return &chat_template_named("--chat", o.chat);
  if (words.vocabulary() == byte_tokenizer().vocabulary()) return nullptr;
  if (const chat_template* found = chat_template_of(words)) return found;
  throw usage_error("--chat", "is needed: the tokenizer has no marks of a chat that is known");
}

/// The usual contestants and the demonstration have the oracle among them, so a GPU is asked for policies by name.
void refuse_beside_cuda(const ask_options& o) {
  if (o.demo) throw usage_error("--demo", "shows the oracle, which only the host has: not with --device cuda");
  if (o.policies.empty()) throw usage_error("--device", "cuda: name its policies with --policy: pq, streaming");
  for (const policy_name name : o.policies) {
    policy_settings settings;
    settings.name = name;
    settings.quantizer.axes = o.axes;
    require_on_device(device_name::cuda, settings);
  }
  for (const std::string& asked : o.codes)
    if (const auto sizes = code_sizes::parse(asked); sizes && sizes->fine_subspaces != 0)
      throw usage_error("--codes", asked + ": the second stage runs only on the host: not with --device cuda");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Asks a small Llama about long contexts, under several attention policies.", "minillama-ask");
  ask_options o;
  app.add_option("-m,--model", o.model_directory,
                 "Hugging Face directory: config.json, model.safetensors, tokenizer.json unless tokens are bytes")
      ->required();
  app.add_option("--tokenizer", o.tokenizer_file, "tokenizer.json, or tokenizer.bin of llama2.c; default: the one beside the weights");
  app.add_option("--chat", o.chat,
                 "chatml, llama2, llama3 or mistral: chat template of a model that does not read bytes; default: by the tokenizer's marks");
  app.add_option("-t,--threads", o.threads, "threads of the host")->check(count_range(1, 1024))->capture_default_str();
  declare_device(app, o.evaluation.device);
  auto* demo = app.add_flag("--demo", o.demo, "one context, ten questions, answers as they come");
  app.add_option("--length", o.length, "tokens of a context; default 16384 for --demo, else 8192; with --benchmark, what the model holds")
      ->check(count_range(1));
  app.add_option("--seed", o.evaluation.seed, "seed of contexts, questions and codebooks")->check(seed_number())->capture_default_str();
  app.add_option("--text", o.text_files, "files or folders of running text; default: prose of its own, the same everywhere");
  app.add_option("--path", o.evaluation.path, "auto, joint or scan: how scores are computed; the answers are the same")
      ->transform(one_of(path_names(), "auto|joint|scan"))
      ->default_str("auto");
  app.add_option("--questions", o.evaluation.questions, "questions over all contexts")
      ->check(count_range(1))
      ->capture_default_str()
      ->excludes(demo);
  app.add_option("--contexts", o.evaluation.contexts, "contexts; in turn they have needles and lists")
      ->check(count_range(1))
      ->capture_default_str()
      ->excludes(demo);
  app.add_option("--policy", o.policies,
                 "compare only these with full: pq, oracle, streaming, snapkv, h2o, sparq, quest, infllm; default: the first three")
      ->transform(one_of(policy_names(), "full|pq|oracle|streaming|snapkv|h2o|sparq|quest|infllm"))
      ->excludes(demo);
  app.add_option("--ratios", o.ratios, "10: a tenth of the tokens is attended to; 10 40: also a fortieth; default: the usual contestants")
      ->check(count_range(1))
      ->excludes(demo);
  app.add_option("--codes", o.codes, "subspaces x bits of pq's codes, each compared: 2x6 4x8; 2x6+4x8 has a second stage")
      ->needs(app.get_option("--ratios"));
  auto* axes = app.add_option("--axes", o.axes, "contiguous, rotary or weighted: which coordinates of a key are coded together")
                   ->transform(one_of(axes_names(), "contiguous|rotary|weighted"))
                   ->default_str("weighted; as rotary with --device cuda")
                   ->excludes(demo);
  auto* over = app.add_option("--over", o.over, "middle or attended: the tokens over which a query head's weights add up to 1")
                   ->transform(one_of(normalisation_names(), "middle|attended"))
                   ->default_str("attended; middle with a second stage")
                   ->excludes(demo);
  app.add_option("--rows", o.evaluation.rows,
                 "float or int8: the type of stored keys and values; int8 attends to more tokens of as many bytes")
      ->transform(one_of(row_format_names(), "float|int8"))
      ->default_str("float")
      ->excludes(demo);
  auto* sinks =
      app.add_option("--sink", o.sinks, "first tokens, always attended to; default: the library's")->check(count_range())->excludes(demo);
  auto* window =
      app.add_option("--window", o.window, "most recent tokens, always attended to; default: a tenth of what the sinks leave, at least 16")
          ->check(count_range())
          ->excludes(demo);
  app.add_option("--json", o.json_file, "file for everything that was measured")->excludes(demo);
  app.add_flag("--check-paths", o.check_paths, "ask under --path joint and --path scan; exit code 1 when an answer differs")
      ->excludes(demo);
  app.add_flag("--answers-only", o.answers_only, "does not measure recall and attention mass, which takes longer than the answers")
      ->excludes(demo);
  declare_benchmark(app, o);
  return run_program(app, argc, argv, [&] {
    if (o.evaluation.device == device_name::cuda) refuse_beside_cuda(o);
    require_device(o.evaluation.device);
    const auto set = o.benchmark_file ? std::optional<benchmark>(read_benchmark(*o.benchmark_file, o.request)) : std::nullopt;
    const model llama(o.model_directory);
    const std::unique_ptr<tokenizer> words = make_tokenizer(llama.config(), o.model_directory, o.tokenizer_file);
    pool_runner runner(o.threads);
    o.evaluation.policies = {o.policies.begin(), o.policies.end()};
    o.evaluation.ratios = {o.ratios.begin(), o.ratios.end()};
    for (const std::string& asked : o.codes) {
      const auto sizes = code_sizes::parse(asked);
      if (!sizes) throw usage_error("--codes", "expected subspaces x bits, as in 2x6 or 2x6+4x8, got " + asked);
      o.evaluation.codes.push_back(*sizes);
    }
    if (axes->count()) o.evaluation.axes = o.axes;
    if (over->count()) o.evaluation.over = o.over;
    if (sinks->count()) o.evaluation.sinks = o.sinks;
    if (window->count()) o.evaluation.window = o.window;
    const std::unique_ptr<engine> computing = make_engine(o.evaluation.device, llama, runner);
    if (set) return ask_benchmark(o, *computing, llama.config(), *words, *set);
    const examiner examining(*words, chat_for(o, *words));
    const std::string text = load_text(o.text_files);
    if (!o.demo) return run_evaluation(o, *computing, llama.config(), examining, runner, text);
    demonstration_settings settings{.seed = o.evaluation.seed, .path = o.evaluation.path};
    if (o.length) settings.length = o.length;
    demonstrate(*computing, llama.config(), examining, runner, text, settings);
    return 0;
  });
}
