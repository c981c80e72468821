// SPDX-License-Identifier: Apache-2.0
// What an engine does with sequences, each in two ways that must give the same logits.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <thread>

#include <ggml-cpu.h>

#include "measurements.hpp"

namespace llama_example {
namespace {
constexpr int differs = 4;
constexpr std::size_t more_tokens = 24;

using logits_type = std::vector<float>;

logits_type logits_of(const engine& e, std::size_t sequence = 0) {
  const auto found = e.logits(sequence);
  return {found.begin(), found.end()};
}

void read(engine& e, std::span<const llama_token> tokens, std::size_t sequence = 0) {
  if (!e.read(tokens, sequence)) throw stopped{};
}

/// One by one, as a model answers.
logits_type read_singly(engine& e, std::span<const llama_token> tokens) {
  for (const llama_token token : tokens)
    if (!e.read(token)) throw stopped{};
  return logits_of(e);
}

class report {
 public:
  void same(const char* what, const logits_type& a, const logits_type& b, double at_most = 0) {
    const double far = farthest(a, b);
    std::printf("%-7s %-52s %.4f of a logit, at most %.4f\n", far <= at_most ? "ok" : "DIFFERS", what, far, at_most);
    std::fflush(stdout);
    if (!(far <= at_most)) differing_ = true;
  }
  int outcome() const { return differing_ ? differs : 0; }

 private:
  bool differing_ = false;
};
}  // namespace

namespace {
/// The tokens of a check: a prompt, and two continuations.
struct parts {
  std::span<const llama_token> prompt, first, second;
};

/// Logits of the same sequences, read in different ways.
struct ways {
  logits_type first_singly, second_singly, first_in_four, again_in_four, second_in_four, second_at_once;
};

ways ways_of(const model& file, const engine_settings& settings, const parts& tokens) {
  ways found;
  engine alone(file, settings), e(file, settings);
  read(alone, tokens.prompt);
  const auto start = alone.mark();
  found.first_singly = read_singly(alone, tokens.first);
  alone.go_back(start);
  found.second_singly = read_singly(alone, tokens.second);
  read(e, tokens.prompt);
  for (const std::size_t to : {1u, 2u, 3u}) e.fork(0, to);
  for (std::size_t i = 0; i < more_tokens; ++i)
    if (!e.read_each(std::vector<llama_token>{tokens.first[i], tokens.second[i], tokens.first[i], tokens.second[i]})) throw stopped{};
  found.first_in_four = logits_of(e, 0), found.again_in_four = logits_of(e, 2), found.second_in_four = logits_of(e, 1);
  e.truncate(0, 1);
  read(e, tokens.prompt, 1);
  read(e, tokens.second, 1);
  found.second_at_once = logits_of(e, 1);
  return found;
}

/// Ctrl-C in the middle of a batch: it is taken back, in every layer of both caches. Another thread asks for it, as a signal would; where
/// that came too late, once more with half the wait.
void check_stop(engine& e, const engine::mark_type& start, std::span<const llama_token> tokens) {
  for (auto wait = std::chrono::milliseconds(60); wait.count() != 0; wait /= 2) {
    std::thread hand([&] {
      std::this_thread::sleep_for(wait);
      stop_asked = true;
    });
    const bool well = e.read(tokens);
    hand.join();
    stop_asked = false;
    if (!well) return;
    e.go_back(start);  // it came too late
  }
  throw std::runtime_error("24 tokens were read before they could be stopped");
}

/// Places to go back to, and files: the same kernels over the same numbers.
void check_returns(const model& file, const engine_settings& settings, const parts& tokens, report& found) {
  engine alone(file, settings), other(file, settings);
  read(alone, tokens.prompt);
  const auto start = alone.mark();
  const logits_type once = read_singly(alone, tokens.first);
  alone.go_back(start);
  found.same("back to a mark, the same tokens again", read_singly(alone, tokens.first), once);
  alone.go_back(start);
  check_stop(alone, start, tokens.first);
  found.same("stopped in the middle of a step, the same tokens", read_singly(alone, tokens.first), once);

  const std::string path =
      (std::filesystem::temp_directory_path() / ("llama_pqkv_check_" + std::to_string(std::random_device()()))).string();
  alone.go_back(start);
  alone.save(path, tokens.prompt);
  const std::vector<llama_token> known = other.load(path, 2);
  std::filesystem::remove(path);
  if (!std::equal(known.begin(), known.end(), tokens.prompt.begin(), tokens.prompt.end()))
    throw std::runtime_error("a session file has other tokens");
  read(alone, tokens.first), read(other, tokens.first, 2);
  found.same("a session file in another engine, another sequence", logits_of(other, 2), logits_of(alone));

  if (llama_model_n_swa(file.get()) == 0) {
    alone.truncate(tokens.prompt.size());
    read(alone, tokens.first);
    found.same("truncated, the same tokens again", logits_of(alone), logits_of(other, 2));
  }
}
}  // namespace

namespace {
/// A cache behind a custom operation of ggml, and its threads.
struct inner_operation {
  pqkv::pqcache<pqkv::dense_rows<pqkv::half>> cache;
  pqkv::ggml_team team{};
  std::exception_ptr failed{};

  static void run(ggml_tensor* out, int ith, int nth, void* data) {
    auto& self = *static_cast<inner_operation*>(data);
    self.team.lead(ith, nth, [&] {
      try {
        const pqkv::exec::host<pqkv::isa::best, pqkv::ggml_team&> cpu{self.team, {}};
        pqkv::visit_ggml_view<3>(out->src[1], [&](const auto& keys) {
          pqkv::visit_ggml_view<3>(out->src[2], [&](const auto& values) {
            if constexpr (std::is_same_v<decltype(keys), decltype(values)>) self.cache.prefill(cpu, 0, keys, values);
          });
        });
        self.cache.attend(cpu, pqkv::swap_axes<0, 1>(pqkv::ggml_view<const float, 3>(out->src[0])), pqkv::ggml_view<float, 3>(out));
      } catch (...) {
        self.failed = std::current_exception();
      }
    });
  }
};

/// What a cache in an operation of ggml answers: a prompt of random rows in tensors [d, h, n] that are permuted, and one query.
logits_type answer_in_ggml(ggml_type type, int threads) {
  constexpr int d = 64, h = 3, hq = 9, n = 600;
  const std::unique_ptr<ggml_context, decltype(&ggml_free)> memory(
      ggml_init({.mem_size = 8u << 20, .mem_buffer = nullptr, .no_alloc = false}), ggml_free);
  ggml_context* const ctx = memory.get();
  std::mt19937 random(1);
  std::normal_distribution<float> gaussian;
  const auto filled = [&](ggml_type of, int heads, int tokens) {
    ggml_tensor* const tensor = ggml_new_tensor_3d(ctx, of, d, heads, tokens);
    std::vector<float> row(d);
    const std::size_t bytes = ggml_row_size(of, d);
    for (int i = 0; i < heads * tokens; ++i) {
      for (float& x : row) x = gaussian(random);
      std::byte* const to = static_cast<std::byte*>(tensor->data) + static_cast<std::size_t>(i) * bytes;
      if (of == GGML_TYPE_F32)
        std::copy(row.begin(), row.end(), reinterpret_cast<float*>(to));
      else if (of == GGML_TYPE_F16)
        ggml_fp32_to_fp16_row(row.data(), reinterpret_cast<ggml_fp16_t*>(to), d);
      else
        ggml_fp32_to_bf16_row(row.data(), reinterpret_cast<ggml_bf16_t*>(to), d);
    }
    return ggml_permute(ctx, tensor, 0, 2, 1, 3);
  };
  ggml_tensor* args[] = {filled(GGML_TYPE_F32, hq, 1), filled(type, h, n), filled(type, h, n)};
  pqkv::pqcache<pqkv::dense_rows<pqkv::half>>::params params;
  params.kv_heads = h, params.query_heads = hq, params.head_dim = d, params.capacity = n + 1;
  inner_operation layer{.cache = pqkv::pqcache<pqkv::dense_rows<pqkv::half>>(params)};
  ggml_tensor* const out = ggml_custom_4d(ctx, GGML_TYPE_F32, d, hq, 1, 1, args, 3, inner_operation::run, GGML_N_TASKS_MAX, &layer);
  ggml_cgraph* const graph = ggml_new_graph(ctx);
  ggml_build_forward_expand(graph, out);
  if (ggml_graph_compute_with_ctx(ctx, graph, threads) != GGML_STATUS_SUCCESS) throw std::runtime_error("ggml could not compute the graph");
  if (layer.failed) std::rethrow_exception(layer.failed);
  const auto* const first = static_cast<const float*>(out->data);
  return {first, first + d * hq};
}
}  // namespace

int check(const model& file, const options& o, std::span<const llama_token> text) {
  const std::size_t length = std::min<std::size_t>(1500, file.trained_tokens() / 2);
  if (text.size() < length + 2 * more_tokens)
    throw usage_error("--check needs a text of at least " + std::to_string(length + 2 * more_tokens) + " tokens");
  const parts tokens{text.first(length), text.subspan(length, more_tokens), text.subspan(length + more_tokens, more_tokens)};
  engine_settings settings = o.engine_of(length + 4 * more_tokens);
  settings.sequences = 4;
  report found;
  try {
    // llama.cpp multiplies a batch in another order than a token, so its own logits change too: by so much is right.
    const ways usual = ways_of(file, without_pqkv(settings, o.cache_type, true), tokens), ours = ways_of(file, settings, tokens);
    const auto allowed = [](const logits_type& a, const logits_type& b) { return 1e-3 + 2 * farthest(a, b); };
    // Copies have the same numbers, but for layers with a window: llama.cpp adds those in the order of its cells, in 16 bits.
    const bool in_order = llama_model_n_swa(file.get()) == 0;
    found.same(
        "two copies in a step of four, the same tokens", ours.first_in_four, ours.again_in_four,
        in_order ? 1e-3 : std::max(allowed(usual.first_in_four, usual.first_singly), allowed(usual.second_in_four, usual.second_singly)));
    found.same("a copy in a step of four, and alone", ours.first_in_four, ours.first_singly,
               allowed(usual.first_in_four, usual.first_singly));
    found.same("another copy, with other tokens, and alone", ours.second_in_four, ours.second_singly,
               allowed(usual.second_in_four, usual.second_singly));
    found.same("an emptied sequence, read anew at once, and singly", ours.second_at_once, ours.second_singly,
               allowed(usual.second_at_once, usual.second_singly));
    check_returns(file, settings, tokens, found);
    const logits_type halves = answer_in_ggml(GGML_TYPE_F16, 1);
    found.same("a cache in an operation of ggml, three threads", answer_in_ggml(GGML_TYPE_F16, 3), halves);
    found.same("the same, keys and values in f32", answer_in_ggml(GGML_TYPE_F32, 3), halves);
    found.same("three threads and one, keys and values in bf16", answer_in_ggml(GGML_TYPE_BF16, 3), answer_in_ggml(GGML_TYPE_BF16, 1));
  } catch (stopped) {
    return interrupted;
  }
  return found.outcome();
}

}  // namespace llama_example
