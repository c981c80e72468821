// SPDX-License-Identifier: Apache-2.0
// minillama-trace: which tokens a model selects while it writes, and how many of them a block cache would have had. Records the lists of
// every layer, KV head and token of a reply, then plays them to caches of every policy, scope, block and size. What is selected does not
// depend on the cache, so one reply serves all of them.
//
//   minillama-trace -m MODEL -f TEXT -n 256 --trace FILE    records the trace if FILE is not there, then prints a table
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <thread>
#include <vector>

#include "command_line.hpp"
#include "engine.hpp"
#include "layer_cache.hpp"
#include "model.hpp"
#include "tier_settings.hpp"
#include "tokenizer.hpp"

namespace {

using namespace minillama;

struct trace_options {
  std::string model_directory, text_file, trace_file;
  std::size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::size_t prompt_tokens = 4096, tokens = 256;
  double ratio = 0.1;
  std::vector<std::size_t> caches{256, 512, 1024}, blocks{1, 16, 64};
};

/// The lists of a reply: for each token, layer and KV head a count and so many positions, ascending.
struct selected_lists {
  std::uint32_t layers = 0, kv_heads = 0, prompt_tokens = 0, steps = 0;
  std::vector<std::uint32_t> numbers;
};

selected_lists record(const trace_options& o) {
  const model llama(o.model_directory);
  const model_config& config = llama.config();
  const auto words = make_tokenizer(config, o.model_directory);
  std::vector<token_id> prompt = words->encode(read_file(o.text_file), text_place::start);
  if (prompt.size() < o.prompt_tokens)
    throw usage_error("--file", "has " + std::to_string(prompt.size()) + " tokens, " + std::to_string(o.prompt_tokens) + " are wanted");
  prompt.resize(o.prompt_tokens);
  pool_runner runner(o.threads);
  policy_settings settings;
  settings.budget.ratio = o.ratio;
  settings.raise_floor();
  const auto computing = make_engine(device_name::host, llama, runner);
  started_session started = [&] {
    progress_bar bar("prefill of " + std::to_string(prompt.size()) + " tokens");
    return computing->start(prompt, settings, o.tokens + 1, session_kind::single, bar.report());
  }();
  selected_lists all{static_cast<std::uint32_t>(config.layers), static_cast<std::uint32_t>(config.kv_heads),
                     static_cast<std::uint32_t>(prompt.size()), static_cast<std::uint32_t>(o.tokens), {}};
  const host_policy cpu{runner, {}};
  std::vector<std::int32_t> found;
  std::vector<std::uint32_t> counts(config.kv_heads);
  const step_observer keep = [&](const layer_step& step) {
    const std::size_t room = step.cache.retrieve_capacity(step.slot);
    found.resize(config.kv_heads * room);
    step.cache.retrieve(cpu, step.query, pqkv::make_view(found.data(), 1, config.kv_heads, room),
                        pqkv::make_view(counts.data(), 1, config.kv_heads), step.token);
    for (std::size_t head = 0; head < config.kv_heads; ++head) {
      all.numbers.push_back(counts[head]);
      all.numbers.insert(all.numbers.end(), found.data() + head * room, found.data() + head * room + counts[head]);
    }
  };
  progress_bar bar("decoding");
  const progress_report done = bar.report();  // none where nobody watches
  std::span<const float> logits = started.logits;
  for (std::size_t i = 0; i < o.tokens; ++i) {
    logits = started.at->step(greedy(logits), keep);
    if (done) done(static_cast<double>(i + 1) / static_cast<double>(o.tokens));
  }
  return all;
}

selected_lists read_trace(const std::string& name) {
  std::ifstream file(name, std::ios::binary);
  selected_lists all;
  std::uint64_t size = 0;
  const auto read = [&](void* to, std::size_t bytes) { file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes)); };
  read(&all.layers, 4 * sizeof(std::uint32_t)), read(&size, sizeof size);
  if (file && size < std::uint64_t{1} << 34) {
    all.numbers.resize(size);
    read(all.numbers.data(), size * sizeof(std::uint32_t));
  }
  if (!file || all.numbers.size() != size) throw load_error("--trace", name + " is not a trace, or is cut off");
  return all;
}
void write_trace(const std::string& name, const selected_lists& all) {
  std::ofstream file(name, std::ios::binary);
  const std::uint64_t size = all.numbers.size();
  const auto write = [&](const void* from, std::size_t bytes) {
    file.write(static_cast<const char*>(from), static_cast<std::streamsize>(bytes));
  };
  write(&all.layers, 4 * sizeof(std::uint32_t)), write(&size, sizeof size);
  write(all.numbers.data(), size * sizeof(std::uint32_t));
  if (!file.flush()) throw load_error("--trace", name + " cannot be written");
}

/// Plays a trace to one cache a layer, or one a KV head, empty at first. Sinks and window are not in the lists.
template <class Eviction>
pqkv::block_statistics play(const selected_lists& all, std::size_t cache_tokens, std::size_t block, pqkv::block_scope scope) {
  const std::size_t each = scope == pqkv::block_scope::head ? all.kv_heads : 1, length = all.prompt_tokens + all.steps;
  const pqkv::exec::host<> cpu;
  tier_settings settings;
  settings.block_tokens = block;
  std::vector<pqkv::block_cache<Eviction>> layers;
  for (std::uint32_t layer = 0; layer < all.layers; ++layer)
    layers.emplace_back(cpu, pqkv::block_cache_shape{each, length, block, cache_tokens / block,
                                                     std::min(settings.admit_blocks(), (length + block - 1) / block)});
  const std::uint32_t* at = all.numbers.data();
  std::vector<std::int32_t> lists(all.kv_heads * length);
  std::vector<std::uint32_t> counts(all.kv_heads);
  for (std::uint32_t step = 0; step < all.steps; ++step) {
    const std::vector<std::uint32_t> lengths(each, all.prompt_tokens + step + 1);
    for (auto& layer : layers) {
      for (std::size_t head = 0; head < all.kv_heads; ++head) {
        counts[head] = *at++;
        std::copy_n(at, counts[head], lists.begin() + static_cast<std::ptrdiff_t>(head * length));
        at += counts[head];
      }
      const auto view = layer.view();
      pqkv::lookup_blocks(cpu, view,
                          pqkv::block_lookup<pqkv::space::host>{
                              pqkv::as_const(pqkv::make_view(lists.data(), std::size_t{all.kv_heads}, length)),
                              pqkv::as_const(pqkv::make_view(counts.data(), std::size_t{all.kv_heads})), {}, each});
      pqkv::admit_blocks(cpu, view, pqkv::make_view(lengths.data(), each));
      pqkv::fill_blocks(cpu, view);
    }
  }
  pqkv::block_statistics sum;
  for (auto& layer : layers)
    for (std::size_t c = 0; c < each; ++c) sum += *layer.view().one(c).statistics;
  return sum;
}

pqkv::block_statistics play(const selected_lists& all, eviction_name eviction, std::size_t cache, std::size_t block,
                            pqkv::block_scope scope) {
  switch (eviction) {
    case eviction_name::lru:
      return play<pqkv::eviction::lru>(all, cache, block, scope);
    case eviction_name::tiny_lfu:
      return play<pqkv::eviction::tiny_lfu>(all, cache, block, scope);
    case eviction_name::lfu:
      break;
  }
  return play<pqkv::eviction::lfu>(all, cache, block, scope);
}

void print_hit_rates(const trace_options& o, const selected_lists& all) {
  std::uint64_t listed = 0;
  for (std::size_t at = 0; at < all.numbers.size(); at += all.numbers[at] + 1) listed += all.numbers[at];
  std::printf("%u tokens after %u; %u layers of %u KV heads; %.0f tokens selected per list\n\n", all.steps, all.prompt_tokens, all.layers,
              all.kv_heads, static_cast<double>(listed) / (static_cast<double>(all.steps) * all.layers * all.kv_heads));
  std::printf("| hit rate |");
  for (const std::size_t cache : o.caches)
    for (const std::size_t block : o.blocks) std::printf(" %zu tokens, blocks of %zu |", cache, block);
  std::printf("\n|---");
  for (std::size_t i = 0; i < o.caches.size() * o.blocks.size(); ++i) std::printf("|---");
  std::printf("|\n");
  for (const auto& [of, scope] : block_scope_names())
    for (const auto& [name, eviction] : eviction_names()) {
      std::printf("| %s, blocks of a %s |", name.c_str(), of.c_str());
      for (const std::size_t cache : o.caches)
        for (const std::size_t block : o.blocks) {
          const pqkv::block_statistics counted = play(all, eviction, cache, block, scope);
          const std::uint64_t all_looked_up = std::max<std::uint64_t>(counted.hits + counted.misses, 1);
          std::printf(" %.2f |", static_cast<double>(counted.hits) / static_cast<double>(all_looked_up));
        }
      std::printf("\n");
    }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Records which tokens a small Llama selects, and counts how many of them block caches would have had.", "minillama-trace");
  trace_options o;
  app.add_option("-m,--model", o.model_directory, "Hugging Face directory; needed unless the trace is there");
  app.add_option("-f,--file", o.text_file, "text whose first tokens are the prompt; needed unless the trace is there");
  app.add_option("--trace", o.trace_file, "file of the trace; read if it is there, else written")->required();
  app.add_option("-t,--threads", o.threads, "threads of the host")->check(count_range(1, 1024))->capture_default_str();
  app.add_option("--prompt-tokens", o.prompt_tokens, "tokens of the prompt")->check(count_range(1, 1u << 22))->capture_default_str();
  app.add_option("-n,--tokens", o.tokens, "tokens of the reply")->check(count_range(1, 1u << 20))->capture_default_str();
  app.add_option("--ratio", o.ratio, "share of the tokens that is attended to")->check(CLI::Range(0.0, 1.0))->capture_default_str();
  app.add_option("--caches", o.caches, "tokens of a layer that have rows in memory")->check(count_range(1))->capture_default_str();
  app.add_option("--blocks", o.blocks, "tokens of a block")->check(count_range(1, 256))->capture_default_str();
  return run_program(app, argc, argv, [&] {
    if (!std::ifstream(o.trace_file)) {
      if (o.model_directory.empty()) throw usage_error("--model", "is needed: " + o.trace_file + " is not there");
      if (o.text_file.empty()) throw usage_error("--file", "is needed: " + o.trace_file + " is not there");
      write_trace(o.trace_file, record(o));
    }
    print_hit_rates(o, read_trace(o.trace_file));
    return 0;
  });
}
