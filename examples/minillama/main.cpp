// SPDX-License-Identifier: Apache-2.0
// minillama: continues a prompt with a small Llama, attention by pqkv. Text goes to stdout, everything else to stderr. The prompt is
// prefilled with dense attention; what follows is decoded under the policy that was asked for.
#include <chrono>
#include <cstdio>
#include <optional>
#include <thread>

#include "command_line.hpp"
#include "decoder.hpp"
#include "tokenizer.hpp"

namespace {

using namespace minillama;

struct options {
  std::string model_directory, prompt, prompt_file;
  std::size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::size_t tokens = 64, context = 0;
  std::size_t retrieve = 0, window = 0;
  policy_settings policy;
};

void declare(CLI::App& app, options& o) {
  app.add_option("-m,--model", o.model_directory, "Hugging Face directory: config.json and model.safetensors")->required();
  app.add_option("-t,--threads", o.threads, "threads")->check(count_range(1, 1024))->capture_default_str();
  app.add_option("-f,--file", o.prompt_file, "file whose bytes are the prompt");
  app.add_option("-p,--prompt", o.prompt, "prompt; behind -f it follows the file's prompt, through the decode path");
  app.add_option("-n,--tokens", o.tokens, "tokens to generate at most; the model's end token ends earlier")
      ->check(count_range())
      ->capture_default_str();
  app.add_option("-c,--context", o.context, "longest context, prompt and answer; default: what the model was made for")
      ->check(count_range());
  app.add_option("--policy", o.policy.name, "full, pq, oracle or streaming; default pq")
      ->transform(CLI::CheckedTransformer(policy_names()).description("full|pq|oracle|streaming"))
      ->default_str("pq");
  auto* ratio = app.add_option("--ratio", o.policy.budget.ratio, "share of the tokens that attend, 0 to 1")->capture_default_str();
  app.add_option("--retrieve", o.retrieve, "tokens retrieved per KV head, instead of by ratio; 0 is streaming")
      ->check(count_range())
      ->excludes(ratio);
  app.add_option("--window", o.window, "most recent tokens that always attend; default: a tenth of what the sinks leave, at least 16")
      ->check(count_range());
  app.add_option("--sink", o.policy.budget.sinks, "first tokens that always attend")->check(count_range())->capture_default_str();
  app.add_option("--subspaces", o.policy.quantizer.subspaces, "m: parts that a key is cut into")
      ->check(count_range())
      ->capture_default_str();
  app.add_option("--bits", o.policy.quantizer.bits, "b: bits of each part's code")->check(count_range())->capture_default_str();
  app.add_option("--path", o.policy.quantizer.path, "auto, joint or scan: how scores are computed; the answer is the same")
      ->transform(CLI::CheckedTransformer(path_names()).description("auto|joint|scan"))
      ->default_str("auto");
  app.add_option("--seed", o.policy.quantizer.train.seed, "seed of the codebooks")->check(CLI::NonNegativeNumber)->capture_default_str();
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// The context that prompt and answer have to fit in.
std::size_t checked_context(const options& o, const model_config& config, std::size_t prompt_tokens) {
  if (o.context > config.max_positions)
    throw usage_error("-c", std::to_string(o.context) + " is more than the model's " + std::to_string(config.max_positions) + " positions");
  const std::size_t context = o.context ? o.context : config.max_positions;
  const std::string source = o.prompt_file.empty() ? "-p" : o.prompt_file;
  if (prompt_tokens > context)
    throw load_error(source,
                     "prompt: " + std::to_string(prompt_tokens) + " tokens are longer than the context of " + std::to_string(context));
  return context;
}

void print_statistics(const session& session, std::size_t prefilled, double prefill_seconds, double first_token_seconds) {
  const session_statistics& s = session.statistics();
  const pqkv::memory_plan memory = session.memory();
  std::fprintf(stderr, "time to first token   %10.3f s\n", first_token_seconds);
  std::fprintf(stderr, "prefill               %10.1f tokens/s (%zu tokens)\n", static_cast<double>(prefilled) / prefill_seconds, prefilled);
  std::fprintf(stderr, "decode                %10.1f tokens/s (%llu tokens)\n", s.tokens_per_second(),
               static_cast<unsigned long long>(s.steps));
  std::fprintf(stderr, "KV bytes held         %10zu (index %zu)\n", memory.kv_bytes, memory.index_bytes);
  std::fprintf(stderr, "KV bytes read/token   %10.0f attended rows %10.0f index %10.0f selector\n", s.per_step(s.attended_bytes),
               s.per_step(s.index_bytes), s.per_step(s.selector_bytes));
}

int generate(options o) {
  const bool file = !o.prompt_file.empty();
  std::string prompt = file ? read_file(o.prompt_file) : o.prompt;
  const std::string follow_up = file ? o.prompt : "";
  if (prompt.empty()) throw load_error(file ? o.prompt_file : "-p", "prompt: is empty");

  const model llama(o.model_directory);
  const std::unique_ptr<tokenizer> words = make_tokenizer(llama.config(), std::nullopt);
  const std::vector<token_id> prompt_tokens = words->encode(prompt, text_place::start);
  const std::vector<token_id> more_tokens = words->encode(follow_up, text_place::behind);
  const std::size_t context = checked_context(o, llama.config(), prompt_tokens.size() + more_tokens.size());
  const std::size_t room = std::min(more_tokens.size() + o.tokens, context - prompt_tokens.size());
  pool_runner runner(o.threads);

  const auto start = std::chrono::steady_clock::now();
  const prefilled_prompt prefilled = [&] {
    progress_bar bar("prefill");
    return prefill(llama, prompt_tokens, runner, bar.report());
  }();
  const double prefill_seconds = seconds_since(start);

  session session(llama, runner, o.policy, prefilled, room, session_kind::single);
  std::span<const float> logits = prefilled.logits;
  for (const token_id token : more_tokens) logits = session.step(token);
  token_id previous = more_tokens.empty() ? prompt_tokens.back() : more_tokens.back();
  double first_token_seconds = 0;
  for (std::size_t i = 0; i < o.tokens; ++i) {
    const token_id token = greedy(logits);
    if (i == 0) first_token_seconds = seconds_since(start);
    if (llama.config().ends(token)) break;
    const std::string text = words->decode(previous, token);
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    if (i + 1 == o.tokens || more_tokens.size() + i == room) break;
    logits = session.step(token);
    previous = token;
  }
  std::fputc('\n', stdout);
  print_statistics(session, prefilled.tokens, prefill_seconds, first_token_seconds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Continues a prompt with a small Llama; attention by PQCache.", "minillama");
  options o;
  declare(app, o);
  return run_program(app, argc, argv, [&] {
    if (app.count("--retrieve")) o.policy.budget.retrieve = o.retrieve;
    if (app.count("--window")) o.policy.budget.window = o.window;
    if (!app.count("-p") && !app.count("-f")) throw usage_error("-p", "a prompt is required, by -p or -f");
    return generate(std::move(o));
  });
}
