// SPDX-License-Identifier: Apache-2.0
// Block caches on a GPU against plain models of the rules: places, admissions, victims, states, frequencies and statistics after every step
// of random lives, launched one by one and as a captured step that is replayed. Ends with 77 where there is no GPU.
#include "on_device.cuh"

#include <memory>

#include "cases/block_cache_life.hpp"

namespace {
using namespace pqkv_cases;

/// Captures a step the first time, and replays it.
class replayed {
 public:
  explicit replayed(cudaStream_t stream)
      : stream_(stream), graph_(new cudaGraphExec_t{}, [](cudaGraphExec_t* graph) {
          if (*graph != nullptr) cudaGraphExecDestroy(*graph);
          delete graph;
        }) {}

  template <class F>
  void operator()(F&& enqueue) const {
    if (*graph_ == nullptr) {
      cudaGraph_t recorded{};
      pqkv::detail::check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "test", "cudaStreamBeginCapture");
      enqueue();
      pqkv::detail::check_cuda(cudaStreamEndCapture(stream_, &recorded), "test", "cudaStreamEndCapture");
      pqkv::detail::check_cuda(cudaGraphInstantiate(graph_.get(), recorded, 0), "test", "cudaGraphInstantiate");
      cudaGraphDestroy(recorded);
    }
    pqkv::detail::check_cuda(cudaGraphLaunch(*graph_, stream_), "test", "cudaGraphLaunch");
  }

 private:
  cudaStream_t stream_;
  std::shared_ptr<cudaGraphExec_t> graph_;
};

/// Lists of thousands of tokens and a full step's offers, as a decode step of a long context has them.
block_life large_block_life(random_source& random) {
  block_life life;
  life.caches_of_sequence = 1 + random.below(2) * 3;
  life.lists_of_cache = life.caches_of_sequence == 1 ? 4 : 1;
  life.shape.caches = 2 * life.caches_of_sequence;
  life.shape.block_tokens = random.below(2) == 0 ? 1 : 16;
  life.shape.tokens = 20000;
  life.shape.capacity_blocks = life.shape.block_tokens == 1 ? 3000 : 200;
  life.shape.admit_blocks = random.below(4) == 0 ? 1024 : 32;
  life.list_tokens = 2000;
  return life;
}

template <class E>
bool live(const char* name, std::size_t rounds, std::uint64_t seed) {
  random_source random(seed);
  verdict all(name);
  cudaStream_t stream{};
  pqkv::detail::check_cuda(cudaStreamCreate(&stream), "test", "cudaStreamCreate");
  const pqkv::exec::cuda gpu{stream, {}};
  std::uint64_t hits = 0;
  const auto judge = [&](auto&& life, const block_life& settings, std::size_t steps) {
    const std::string wrong = life.run(steps);
    hits += life.hits();
    all.check(wrong.empty(), "B %zu, capacity %zu, tokens %zu, admit %zu: %s", settings.shape.block_tokens, settings.shape.capacity_blocks,
              settings.shape.tokens, settings.shape.admit_blocks, wrong.c_str());
  };
  for (std::size_t i = 0; i < rounds; ++i) {
    const block_life settings = random_block_life(random), large = large_block_life(random);
    judge(block_cache_life<E, pqkv::exec::cuda>(gpu, settings, random.bits()), settings, 60);
    judge(block_cache_life<E, pqkv::exec::cuda, replayed>(gpu, settings, random.bits(), replayed(stream)), settings, 60);
    if (i % 8 == 0) judge(block_cache_life<E, pqkv::exec::cuda, replayed>(gpu, large, random.bits(), replayed(stream)), large, 12);
  }
  all.check(hits > 100 * rounds, "only %zu hits", static_cast<std::size_t>(hits));
  cudaStreamDestroy(stream);
  return all.passed(2 * rounds);
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  const std::size_t rounds = argc > 1 ? static_cast<std::size_t>(std::atoi(argv[1])) : 40;
  bool passed = live<pqkv::eviction::lfu>("block cache, LFU", rounds, 0xb10c8);
  passed &= live<pqkv::eviction::lru>("block cache, LRU", rounds, 0xb10c9);
  passed &= live<pqkv::eviction::tiny_lfu>("block cache, TinyLFU", rounds, 0xb10ca);
  return passed ? 0 : 1;
}
