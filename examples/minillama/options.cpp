// SPDX-License-Identifier: Apache-2.0
// The options of minillama in their groups. CLI11's own range check lets NaN pass, so shares and temperatures are checked here.
#include "options.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <thread>

#include "chat.hpp"
#include "command_line.hpp"
#include "load_error.hpp"

namespace minillama {
namespace {

/// Check of a real number that refuses NaN too.
CLI::Validator real_number(const std::string& what, const std::function<bool(double)>& holds) {
  return CLI::Validator(
      [what, holds](const std::string& text) {
        double value = std::numeric_limits<double>::quiet_NaN();
        if (!CLI::detail::lexical_cast(text, value) || !std::isfinite(value) || !holds(value)) return "expected " + what + ", got " + text;
        return std::string();
      },
      what);
}

void declare_prompt(CLI::App& app, options& o) {
  const char* group = "Prompt and turns";
  app.add_option("-f,--file", o.prompt_file, "file whose bytes are the prompt; - or no prompt option: standard input")->group(group);
  app.add_option("-p,--prompt", o.prompt, "prompt; after -f it is the first turn")->group(group);
  app.add_option("--token-ids", o.ids_file, "file of token numbers, separated by blanks, in place of the prompt's text")
      ->excludes(app.get_option("-f"))
      ->group(group);
  app.add_option("--chat", o.chat, "chatml, llama2, llama3 or mistral: prompt and turns are what a user says to an instructed model")
      ->excludes(app.get_option("--token-ids"))
      ->group(group);
  auto* turns = app.add_option("--turn", o.turns, "text that follows prompt and replies, through the decode path; may be repeated")
                    ->allow_extra_args(false)
                    ->group(group);
  app.add_option("--turns", o.turns_file, "file of turns, one a line; \\n in it is a line feed, \\\\ a backslash")
      ->excludes(turns)
      ->group(group);
  app.add_flag_callback(
         "--fresh-turns", [&o] { o.start = turn_start::fresh; }, "start each turn from the prompt again, not after the reply before it")
      ->group(group);
  app.add_option("-c,--context", o.context, "longest context, prompt, turns and replies; default: what the model was made for")
      ->check(count_range(1))
      ->group(group);
}

void declare_sampling(CLI::App& app, options& o) {
  const char* group = "Text that is generated";
  app.add_option("-n,--tokens", o.tokens, "most tokens of a reply; the model's end token ends it earlier")
      ->check(CLI::Validator(
          [](const std::string& text) {
            const bool is_file = text.find_first_not_of("0123456789") != std::string::npos && std::filesystem::is_regular_file(text);
            return is_file ? "expected a number, got the file " + text + "; --token-ids takes a file" : std::string();
          },
          ""))
      ->check(count_range())
      ->capture_default_str()
      ->group(group);
  app.add_flag_callback(
         "--ignore-end", [&o] { o.ends = end_rule::ignored; }, "go on after the model's end token, to measure replies of -n tokens")
      ->group(group);
  app.add_option("--temp", o.sampling.temperature, "temperature of sampling; 0 takes the likeliest token")
      ->check(real_number("0 or more", [](double value) { return value >= 0; }))
      ->capture_default_str()
      ->group(group);
  app.add_option("--top-p", o.sampling.top_p, "sample from the likeliest tokens that have this share of the probability")
      ->check(real_number("more than 0, at most 1", [](double value) { return value > 0 && value <= 1; }))
      ->capture_default_str()
      ->group(group);
  app.add_option("--seed", o.sampling.seed, "seed of sampling and of the codebooks")
      ->check(seed_number())
      ->capture_default_str()
      ->group(group);
}

void declare_policy(CLI::App& app, options& o) {
  const char* group = "Attention while decoding";
  app.add_option("--policy", o.policy.name, "full, pq, oracle, streaming, snapkv, h2o, sparq, quest or infllm; default pq")
      ->transform(one_of(policy_names(), "full|pq|oracle|streaming|snapkv|h2o|sparq|quest|infllm"))
      ->default_str("pq")
      ->group(group);
  // Before the options that it sets, so that these have the last word.
  auto* preset = app.add_option_function<std::string>(
         "--preset", [&o](const std::string&) { o.policy.use_paper_preset(); },
         "paper: PQCache as published; 2 x 6 bits, 32 sinks, half of a frozen budget to the window, training on all rows, for as many "
         "iterations as this machine does while a layer of the model runs");
  preset->check(CLI::IsMember({"paper"}))->group(group);
  app.add_option("--calibration", o.calibration,
                 "file that keeps what the preset finds out about this machine: read if it is there, else written")
      ->needs(preset)
      ->group(group);
  auto* ratio = app.add_option("--ratio", o.policy.budget.ratio, "share of the tokens that is attended to, 0 to 1")->capture_default_str();
  ratio->group(group);
  app.add_option("--retrieve", o.policy.budget.retrieve, "tokens retrieved per KV head, in place of --ratio; 0 is streaming")
      ->check(count_range())
      ->excludes(ratio)
      ->group(group);
  auto* window = app.add_option("--window", o.policy.budget.window, "most recent tokens, always attended to, in place of --window-share");
  window->check(count_range())->group(group);
  app.add_option("--window-share", o.policy.budget.window_share,
                 "share of the attended tokens, sinks not counted, that are the most recent ones, 0 to 1; at least 16 tokens")
      ->capture_default_str()
      ->excludes(window)
      ->group(group);
  app.add_option("--sink", o.policy.budget.sinks, "first tokens, always attended to")
      ->check(count_range())
      ->capture_default_str()
      ->group(group);
  app.add_option("--rows", o.policy.rows,
                 "float or int8: the type of stored keys and values; by --ratio, int8 attends to more tokens of as many bytes")
      ->transform(one_of(row_format_names(), "float|int8"))
      ->default_str("float")
      ->group(group);
  app.add_option("--min-tokens", o.policy.budget.min_tokens,
                 "least tokens attended to, however small the share; default: 64, and 32 more than the sinks")
      ->check(count_range(1))
      ->group(group);
  app.add_option("--subspaces", o.policy.quantizer.subspaces, "m: parts that a key is cut into")
      ->check(count_range())
      ->capture_default_str()
      ->group(group);
  app.add_option("--bits", o.policy.quantizer.bits, "b: bits of each part's code")
      ->check(count_range())
      ->capture_default_str()
      ->group(group);
  app.add_option_function<std::string>(
         "--residual",
         [&o](const std::string& text) {
           const auto fine = code_sizes::parse(text);
           if (!fine || fine->fine_subspaces != 0 || fine->subspaces == 0)
             throw usage_error("--residual", "expected subspaces x bits, as in 4x8, got " + text);
           o.policy.quantizer.residual.subspaces = fine->subspaces;
           o.policy.quantizer.residual.bits = fine->bits;
         },
         "a second stage: subspaces x bits of a finer code of the residuals, as in 4x8; default: one stage")
      ->group(group);
  app.add_option("--shortlist", o.policy.quantizer.residual.shortlist,
                 "tokens that the second stage ranks, in multiples of those retrieved")
      ->check(count_range(1, 1024))
      ->needs(app.get_option("--residual"))
      ->capture_default_str()
      ->group(group);
  app.add_option("--axes", o.policy.quantizer.axes, "contiguous, rotary or weighted: which coordinates of a key are coded together")
      ->transform(one_of(axes_names(), "contiguous|rotary|weighted"))
      ->default_str("weighted; as rotary with --device cuda")
      ->group(group);
  app.add_option("--over", o.policy.quantizer.over, "middle or attended: the tokens over which a query head's weights add up to 1")
      ->transform(one_of(normalisation_names(), "middle|attended"))
      ->default_str("attended; middle with a second stage")
      ->group(group);
  app.add_option("--refresh", o.policy.quantizer.refresh,
                 "renew the codebooks when the sequence is so many times as long as at their last training; 0: never")
      ->check(real_number("0, or more than 1", [](double value) { return value == 0 || value > 1; }))
      ->default_str("1.05; 1.1 with --refresh-keys all, 1.5 where they are trained anew")
      ->group(group);
  app.add_option("--refresh-iterations", o.policy.quantizer.refresh_iterations,
                 "iterations of k-means in such a renewal, from the present codebooks; 0: they are trained anew")
      ->check(count_range(0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--refresh-keys", o.policy.quantizer.renewal, "new or all: the keys that such a renewal trains on and encodes anew")
      ->transform(one_of(renewal_names(), "new|all"))
      ->default_str("new")
      ->group(group);
  app.add_option("--metric", o.policy.quantizer.metric, "l2 or ip: keys are clustered by their distance, or for inner products")
      ->transform(one_of(metric_names(), "l2|ip"))
      ->default_str("l2")
      ->group(group);
  app.add_option("--path", o.policy.quantizer.path, "auto, joint or scan: how scores are computed; the answer is the same")
      ->transform(one_of(path_names(), "auto|joint|scan"))
      ->default_str("auto")
      ->group(group);
}

void declare_tier(CLI::App& app, options& o) {
  const char* group = "Keys and values in a file";
  auto* tier =
      app.add_option("--kv-tier", o.policy.tier.folder,
                     "folder on the disk that is to hold keys and values; memory has copies of sinks, window and some blocks between "
                     "them; for --policy pq")
          ->group(group);
  app.add_option("--cache-tokens", o.policy.tier.cache_tokens, "tokens between sinks and window that memory has room for; 0: none")
      ->check(count_range())
      ->needs(tier)
      ->capture_default_str()
      ->group(group);
  app.add_option("--cache-block", o.policy.tier.block_tokens, "tokens of a block, which enter and leave together")
      ->check(count_range(1, 256))
      ->needs(tier)
      ->capture_default_str()
      ->group(group);
  app.add_option("--cache-scope", o.policy.tier.scope, "layer or head: whose rows a block has; with head each KV head has its own blocks")
      ->transform(one_of(block_scope_names(), "layer|head"))
      ->needs(tier)
      ->default_str("layer")
      ->group(group);
  app.add_option("--eviction", o.policy.tier.eviction, "lfu, lru or tiny_lfu: which block leaves for another")
      ->transform(one_of(eviction_names(), "lfu|lru|tiny_lfu"))
      ->needs(tier)
      ->default_str("lfu")
      ->group(group);
}

void declare_measurements(CLI::App& app, options& o) {
  const char* group = "Measurements";
  app.add_flag("--quality", o.quality, "measure what the policy finds: recall of the exact top-k, and attention mass")->group(group);
  app.add_option_function<std::string>(
         "--compare", [&o](const std::string&) { o.compare_full = true; },
         "full: decode the same with dense attention too, and print where text and logits differ")
      ->check(CLI::IsMember({"full"}))
      ->group(group);
  auto* perplexity =
      app.add_option("--perplexity", o.perplexity_file, "file: score its last tokens under the policy instead of generating text")
          ->group(group);
  app.add_option("--perplexity-tokens", o.perplexity_tokens, "tokens that are scored; those before them are prefilled")
      ->check(count_range(1))
      ->capture_default_str()
      ->needs(perplexity)
      ->group(group);
  auto* prompt = app.add_option("--perplexity-prompt", o.perplexity_prompt,
                                "tokens that are prefilled; the tokens from there to the scored ones are fed in turns; default: no turns")
                     ->check(count_range(1))
                     ->needs(perplexity)
                     ->group(group);
  app.add_option("--perplexity-turn", o.perplexity_turn, "tokens of such a turn; with 1 the session grows as by generated tokens")
      ->check(count_range(1))
      ->capture_default_str()
      ->needs(prompt)
      ->group(group);
  app.add_option("--json", o.json_file, "file for settings, text, times and everything else that was measured")->group(group);
  app.add_flag("--dry-run", o.dry_run, "print the memory that the context takes, without loading weights")->group(group);
  app.get_option("--dry-run")->excludes(app.get_option("--compare"))->excludes(app.get_option("--quality"))->excludes(perplexity);
}

/// @pre a folder was named
void check_tier(const policy_settings& policy) {
  const tier_settings& tier = policy.tier;
  if (policy.name != policy_name::pq) throw usage_error("--kv-tier", "keeps keys and values in a file only for --policy pq");
  if (tier.cache_tokens != 0 && tier.cache_tokens < tier.block_tokens)
    throw usage_error("--cache-tokens", std::to_string(tier.cache_tokens) + " is less than a block of " +
                                            std::to_string(tier.block_tokens) +
                                            " tokens; 0 is no cache, and --cache-block makes blocks smaller");
  try {
    const pqkv::mapped_file probe("minillama", {.folder = tier.folder.c_str()}, 0);
  } catch (const pqkv::storage_error& error) {
    throw usage_error("--kv-tier", "no file can be made in " + on_one_line(tier.folder) + ": " + std::strerror(error.error));
  }
}

/// What looks into the host's caches, or plans the host's memory.
void refuse_beside_cuda(const options& o) {
  if (o.dry_run) throw usage_error("--dry-run", "plans the host's memory: not with --device cuda");
  if (o.quality) throw usage_error("--quality", "measures the host's caches: not with --device cuda");
}

}  // namespace

CLI::Option* declare_device(CLI::App& app, device_name& device) {
  return app
      .add_option("--device", device,
                  "host or cuda: where the model computes; cuda has no oracle, methods of other papers, second stage and quality")
      ->transform(one_of(device_names(), "host|cuda"))
      ->default_str("host");
}

void declare(CLI::App& app, options& o) {
  o.threads = std::max(1u, std::thread::hardware_concurrency());
  app.add_option("-m,--model", o.model, "Hugging Face directory, or checkpoint in llama2.c's format")->required()->group("Model");
  app.add_option(
         "--tokenizer", o.tokenizer,
         "tokenizer.json, or tokenizer.bin of llama2.c; default: the tokenizer.json beside the weights, bytes for a model of 256 tokens")
      ->group("Model");
  app.add_option("-t,--threads", o.threads, "threads of the host")->check(count_range(1, 1024))->capture_default_str()->group("Model");
  app.add_option("--index-threads", o.policy.index_threads,
                 "additional threads, for spare cores: they build a layer's index while the next layers are computed; 0: no overlap")
      ->check(count_range(0, 1024))
      ->capture_default_str()
      ->group("Model");
  declare_device(app, o.device)->group("Model");
  declare_prompt(app, o);
  declare_sampling(app, o);
  declare_policy(app, o);
  declare_tier(app, o);
  declare_measurements(app, o);
}

void complete(const CLI::App& app, options& o) {
  if (o.perplexity_file)
    for (const char* other : {"--file", "--prompt", "--token-ids", "--chat", "--turn", "--turns", "--fresh-turns", "--tokens",
                              "--ignore-end", "--temp", "--top-p"})
      if (app.count(other)) throw usage_error("--perplexity", std::string("generates no text: not with ") + other);
  o.policy.quantizer.train.seed = o.sampling.seed;
  if (app.count("--min-tokens") == 0) o.policy.raise_floor();
  if (std::find(o.turns.begin(), o.turns.end(), "") != o.turns.end()) throw usage_error("--turn", "is empty");
  if (o.turns_file) o.turns = read_turns(*o.turns_file);
  if (o.chat) chat_template_named("--chat", *o.chat);
  if ((o.prompt_file || o.ids_file) && o.prompt) {
    if (o.prompt->empty()) throw usage_error("-p", "is empty");
    o.turns.insert(o.turns.begin(), *o.prompt);
  }
  if (o.start == turn_start::fresh && o.turns.empty()) throw usage_error("--fresh-turns", "needs --turn or --turns");
  if (o.device == device_name::cuda) {
    refuse_beside_cuda(o);
    if (app.count("--axes") == 0) o.policy.show_no_queries();
  }
  require_on_device(o.device, o.policy);
  if (o.policy.index_threads != 0 && o.compare_full)
    throw usage_error("--index-threads", "a prompt that two sessions start from is computed first: not with --compare full");
  if (app.count("--kv-tier") != 0) check_tier(o.policy);
  require_device(o.device);
}

std::size_t options::context_for(const model_config& config) const {
  if (context.value_or(0) > config.max_positions)
    throw usage_error("-c", std::to_string(*context) + " is more than the model's " + std::to_string(config.max_positions) + " positions");
  return context.value_or(config.max_positions);
}

}  // namespace minillama
