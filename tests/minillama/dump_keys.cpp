// SPDX-License-Identifier: Apache-2.0
// minillama_dump_keys: keys and queries of every layer, from a context with facts in it that the model prefills, and the decode steps of
// questions about them under dense attention. cases/key_dump.hpp has the file's format, tests/cuda/real_keys.sh the use.
//
//   minillama_dump_keys -m MODEL -o FILE [--length BYTES] [--steps STEPS]
#include <algorithm>
#include <cstdio>
#include <thread>

#include "cases/key_dump.hpp"
#include "command_line.hpp"
#include "decoder.hpp"
#include "questions.hpp"
#include "tokenizer.hpp"

namespace {
using namespace minillama;

struct settings {
  std::string model, file;
  std::size_t length = 8192, steps = 64, threads = std::max(1u, std::thread::hardware_concurrency());
  std::uint64_t seed = 53;
  std::vector<std::filesystem::path> text_files;
};

/// What is decoded: questions one after the other, each answered by the model.
class question_feed {
 public:
  explicit question_feed(const std::vector<question>& all) : questions_(all), text_(all[0].text()) {}

  token_id next(token_id predicted) {
    if (at_ < text_.size()) return static_cast<std::uint8_t>(text_[at_++]);
    if (predicted != '\n') return predicted;
    text_ = questions_[++asked_ % questions_.size()].text();
    at_ = 0;
    return next(predicted);
  }

 private:
  const std::vector<question>& questions_;
  std::string text_;
  std::size_t asked_ = 0, at_ = 0;
};

pqkv_cases::key_dump dump(const model& llama, const settings& s, pool_runner& runner) {
  const model_config& config = llama.config();
  random_source random(s.seed);
  const question_context context = make_context(context_kind::needles, load_text(s.text_files), s.length, 1 + s.length / 1024, random);
  const prefilled_prompt prompt = [&] {
    progress_bar bar("prefill");
    return prefill(llama, byte_tokens(context.text), runner, bar.report());
  }();
  pqkv_cases::key_dump made(config.layers, config.kv_heads, config.query_heads, prompt.tokens, config.head_dim, s.steps);
  const std::size_t layer_keys = made.keys.size() / config.layers, width = config.query_width();
  for (std::size_t layer = 0; layer < config.layers; ++layer)
    std::transform(prompt.layers[layer].keys.begin(), prompt.layers[layer].keys.end(),
                   made.keys.begin() + static_cast<std::ptrdiff_t>(layer * layer_keys), [](float x) { return pqkv::bfloat16(x); });

  policy_settings dense;
  dense.name = policy_name::full;
  host_session session(llama, runner, dense, prompt, s.steps, session_kind::single);
  question_feed feed(context.questions);
  token_id predicted = '\n';
  for (std::size_t step = 0; step < s.steps; ++step)
    predicted = greedy(session.step(feed.next(predicted), [&](const layer_step& seen) {
      std::copy_n(&seen.query(0, 0, 0), width, made.queries.data() + (seen.layer * s.steps + step) * width);
    }));
  return made;
}
}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes the keys and queries of a prefilled context to a file, for tests/cuda/real_keys.cu.", "minillama_dump_keys");
  settings s;
  app.add_option("-m,--model", s.model, "Hugging Face directory of a model that reads bytes")->required();
  app.add_option("-o,--output", s.file, "the file to write")->required();
  app.add_option("--length", s.length, "tokens of the context")->check(count_range(1024, 1 << 20))->capture_default_str();
  app.add_option("--steps", s.steps, "decode steps whose queries are written")->check(count_range(1, 1 << 16))->capture_default_str();
  app.add_option("--seed", s.seed, "seed of the context")->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_option("--text", s.text_files, "files or folders of running text; default: prose of its own, the same everywhere");
  app.add_option("-t,--threads", s.threads, "threads")->check(count_range(1, 1024))->capture_default_str();
  return run_program(app, argc, argv, [&] {
    const model llama(s.model);
    if (llama.config().vocabulary != 256) throw load_error(s.model, "vocab_size", "only 256 is supported: questions are asked in bytes");
    pool_runner runner(s.threads);
    const pqkv_cases::key_dump made = dump(llama, s, runner);
    made.write(s.file);
    const pqkv_cases::key_dump read = pqkv_cases::key_dump::read(s.file);
    const auto bits = [](const auto& a, const auto& b) { return std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0; };
    if (read.bytes() != made.bytes() || !bits(read.keys, made.keys) || !bits(read.queries, made.queries))
      throw std::runtime_error(s.file + ": does not hold what was written");
    std::printf("%s: %zu layers, h %zu, hq %zu, n %zu, d %zu, %zu steps, %.1f MB\n", s.file.c_str(), read.layers, read.h, read.hq, read.n,
                read.d, read.steps, static_cast<double>(read.bytes()) / 1e6);
    return 0;
  });
}
