// SPDX-License-Identifier: Apache-2.0
// --device without a GPU: what is refused, in which words, and what the settings become. What a GPU computes is tested in cuda/.
#include <doctest/doctest.h>

#include "cuda/settings.hpp"
#include "engine.hpp"
#include "plain_llama.hpp"
#include "program.hpp"

using namespace minillama_test;

TEST_CASE("--device cuda refuses by name what runs only on the host, whether or not the program has CUDA") {
  const bench tiny;
  const auto refused = [&](const std::string& arguments, const std::string& what) {
    check_refused(tiny.generate("-p a --device cuda " + arguments), what);
  };
  refused("--policy oracle", "--policy: oracle scores every key");
  for (const std::string name : {"snapkv", "h2o", "sparq", "quest", "infllm"})
    refused("--policy " + name, "--policy: methods of other papers run only on the host: not with --device cuda");
  refused("--axes weighted", "--axes: weighted looks at the prompt's queries");
  refused("--residual 4x8", "--residual: the second stage runs only on the host: not with --device cuda");
  refused("--preset paper", "--preset: paper");
  refused("--kv-tier /tmp", "--kv-tier: is under the host's memory");
  refused("--index-threads 1", "--index-threads: are the host's");
  refused("--quality", "--quality: measures the host's caches: not with --device cuda");
  refused("--dry-run", "--dry-run: plans the host's memory: not with --device cuda");
  check_refused(tiny.generate("-p a --device gpu"), "--device");
  CHECK(tiny.generate("-p a -n 2 --device host").out == tiny.generate("-p a -n 2").out);

  const auto ask = [&](const std::string& arguments) {
    return tiny.run("-m \"" + tiny.path().string() + "\" --device cuda " + arguments, MINILLAMA_ASK_PROGRAM);
  };
  check_refused(ask(""), "--device: cuda: name its policies with --policy", "minillama-ask");
  check_refused(ask("--demo"), "--demo: shows the oracle", "minillama-ask");
  check_refused(ask("--policy pq oracle"), "--policy: oracle scores every key", "minillama-ask");
  check_refused(ask("--policy pq --ratios 10 --codes 2x6+4x8"), "--codes: 2x6+4x8: the second stage", "minillama-ask");
}

TEST_CASE("--device cuda is refused before a weight is read where there is no CUDA, or no GPU") {
  const bench tiny;
  std::filesystem::remove(tiny.path() / "model.safetensors");
  const outcome got = tiny.generate("-p a --device cuda");
#if MINILLAMA_HAS_CUDA
  if (got.err.find("no GPU") == std::string::npos)  // there is one
    check_refused(got, "model.safetensors: cannot be opened");
  else
    check_refused(got, "--device: cuda: no GPU");
#else
  check_refused(got, "--device: cuda: this program was built without CUDA; configure with -DMINILLAMA_CUDA=ON");
#endif
}

TEST_CASE("full attention as the device's cache is set up for it: everything attends, nothing is trained") {
  minillama::model_config config;
  config.kv_heads = 2, config.query_heads = 4, config.set_head_dim(16);
  minillama::policy_settings settings;
  settings.name = minillama::policy_name::full;
  const auto made = minillama::cuda::settings_for(settings, 100, config, 1, 160);
  pqkv::pqcache<>::params params;
  static_cast<pqkv::cache_shape&>(params) = made.shape;
  params.budget = made.budget;
  params.selector = made.selector;
  pqkv::pqcache<> ranked(params);
  using dense_cache = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::full>;
  dense_cache::params dense;
  static_cast<pqkv::cache_shape&>(dense) = made.shape;
  dense_cache all(dense);

  std::mt19937 bits(3);
  std::normal_distribution<float> normal;
  std::vector<float> keys(2 * 100 * 16), values(keys.size()), query(4 * 16), one(2 * 16), out(query.size()), wanted(query.size());
  const auto draw = [&](std::vector<float>& row) {
    for (float& x : row) x = normal(bits);
  };
  draw(keys), draw(values);
  const pqkv::exec::host<> cpu;
  const auto step = [&](auto& cache, std::vector<float>& to) {
    cache.append(cpu, pqkv::make_view(one.data(), 1, 2, 16), pqkv::make_view(one.data(), 1, 2, 16));
    cache.attend(cpu, pqkv::make_view(query.data(), 1, 4, 16), pqkv::make_view(to.data(), 1, 4, 16));
    cache.maintain(cpu);
  };
  ranked.prefill(cpu, 0, pqkv::make_view(keys.data(), 2, 100, 16), pqkv::make_view(values.data(), 2, 100, 16));
  all.prefill(cpu, 0, pqkv::make_view(keys.data(), 2, 100, 16), pqkv::make_view(values.data(), 2, 100, 16));
  for (int i = 0; i < 60; ++i) {
    draw(one), draw(query);
    step(ranked, out), step(all, wanted);
    for (std::size_t j = 0; j < out.size(); ++j) CHECK(out[j] == doctest::Approx(wanted[j]).epsilon(1e-5));
    CHECK(ranked.middle(0).size() == 0);
  }
  CHECK(ranked.statistics(0).tokens_attended == all.statistics(0).tokens_attended);
}

TEST_CASE("pq and streaming keep their budgets, and streaming lists nothing, however narrow its window") {
  minillama::model_config config;
  config.kv_heads = 2, config.query_heads = 8, config.set_head_dim(64);
  minillama::policy_settings settings;
  settings.quantizer.subspaces = 4;
  settings.quantizer.bits = 8;
  settings.quantizer.train.seed = 7;
  const auto pq = minillama::cuda::settings_for(settings, 1000, config, 2, 1200);
  CHECK(pq.shape.batch == 2);
  CHECK(pq.shape.capacity == 1200);
  CHECK(pq.selector.subspaces == 4);
  CHECK(pq.selector.bits == 8);
  CHECK(pq.selector.train.seed == 7);
  CHECK(pq.budget.ratio == settings.budget.ratio);
  CHECK(pq.middle == pqkv::selector::coverage::listed);
  settings.name = minillama::policy_name::streaming;
  const auto streaming = minillama::cuda::settings_for(settings, 1000, config, 1, 1200);
  CHECK(streaming.budget.retrieve == 0);
  CHECK(streaming.budget.at(1000).window == 100 - settings.budget.sinks);
  CHECK(streaming.budget.at(2000).window == 200 - settings.budget.sinks);  // it grows with the sequence, as the others' budgets do
  settings.budget.window = 3, settings.budget.retrieve = 12;
  const auto narrow = minillama::cuda::settings_for(settings, 1000, config, 1, 1200);
  CHECK(narrow.budget.at(1000).window == 15);
  CHECK(narrow.middle == pqkv::selector::coverage::nothing);
}

TEST_CASE("prefill's blocks and scratch are bounded, whatever the prompt") {
  minillama::model_config config;
  config.hidden = 4096, config.intermediate = 14336, config.vocabulary = 128256;
  config.kv_heads = 8, config.query_heads = 32, config.set_head_dim(128);
  CHECK(minillama::cuda::prefill_block_tokens(config, 1) == 1);
  CHECK(minillama::cuda::prefill_block_tokens(config, 100) == 100);
  CHECK(minillama::cuda::prefill_block_tokens(config, 8192) == 2048);
  CHECK(minillama::cuda::prefill_block_tokens(config, 131072) == 512);
  CHECK(minillama::cuda::prefill_block_tokens(config, std::size_t{1} << 30) == 1);
  const std::size_t n = 131072, hidden_rows = n * config.hidden * sizeof(float);
  CHECK(minillama::cuda::prefill_scratch_bytes(config, n) > hidden_rows + (std::size_t{1} << 30));
  CHECK(minillama::cuda::prefill_scratch_bytes(config, n) < hidden_rows + (std::size_t{3} << 29));
}
