// SPDX-License-Identifier: Apache-2.0
// The host's pqcache with the device cache's settings, in place of device_pqcache.
#include <cuda_runtime_api.h>

#include <pqkv/pqkv.hpp>
#include <type_traits>
#include <vector>

#include "cuda/caches_of_layers.hpp"
#include "cuda/layer_caches.hpp"
#include "emulation.hpp"

namespace minillama::cuda {

using minillama_test::emulated::enqueue;
using ranked_cache = pqkv::pqcache<pqkv::dense_rows<float>>;
using streaming_cache = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::streaming>;

struct layer_caches::state : caches_of_layers<ranked_cache, streaming_cache> {
  pqkv::exec::host<> cpu{};
  pqkv::cache_shape shape{};
  std::vector<std::uint32_t> slots{};  // [1] the last one

  pqkv::cache_step step() const {
    pqkv::cache_step one{};
    one.slots = pqkv::make_view(slots.data(), slots.size());
    return one;
  }
  template <class Cache>
  void make(std::size_t count, const cache_settings& settings) {
    typename Cache::params params;
    static_cast<pqkv::cache_shape&>(params) = settings.shape;
    params.budget = settings.budget;
    if constexpr (std::is_same_v<Cache, ranked_cache>) params.selector = settings.selector;
    auto& made = layers.emplace<std::vector<Cache>>();
    for (std::size_t layer = 0; layer < count; ++layer) made.emplace_back(params);
  }
};

layer_caches::layer_caches(void*, std::size_t layers, const cache_settings& settings) : state_(std::make_unique<state>()) {
  state_->shape = settings.shape;
  if (settings.middle == pqkv::selector::coverage::nothing)
    state_->make<streaming_cache>(layers, settings);
  else
    state_->make<ranked_cache>(layers, settings);
  state_->slots.assign(1, static_cast<std::uint32_t>(settings.shape.batch - 1));
}

layer_caches::~layer_caches() = default;

void layer_caches::prefill(std::size_t layer, const float* keys, const float* values, std::size_t n) {
  enqueue([=, at = state_.get()] {
    at->with(layer, [&](auto& cache) {
      cache.prefill(at->cpu, 0, pqkv::make_view(keys, at->shape.kv_heads, n, at->shape.head_dim),
                    pqkv::make_view(values, at->shape.kv_heads, n, at->shape.head_dim));
    });
  });
}

void layer_caches::append(std::size_t layer, const float* keys, const float* values) {
  enqueue([=, at = state_.get()] {
    const pqkv::cache_shape& shape = at->shape;
    at->with(layer, [&](auto& cache) {
      cache.append(at->cpu, pqkv::make_view(keys, 1, shape.kv_heads, shape.head_dim),
                   pqkv::make_view(values, 1, shape.kv_heads, shape.head_dim), at->step());
    });
  });
}

void layer_caches::attend(std::size_t layer, const float* queries, float* out) {
  enqueue([=, at = state_.get()] {
    const pqkv::cache_shape& shape = at->shape;
    at->with(layer, [&](auto& cache) {
      cache.attend(at->cpu, pqkv::make_view(queries, 1, shape.query_heads, shape.head_dim),
                   pqkv::make_view(out, 1, shape.query_heads, shape.head_dim), {}, at->step());
    });
  });
}

void layer_caches::fork() {
  enqueue([at = state_.get()] { at->each([&](auto& cache) { cache.fork(at->cpu, 0, at->shape.batch - 1); }); });
}

void layer_caches::maintain() {
  enqueue([at = state_.get()] { at->each([&](auto& cache) { cache.maintain(at->cpu); }); });
}

bool layer_caches::trained(std::size_t layer) const {
  cudaStreamSynchronize(nullptr);
  return state_->with(layer, [&](auto& cache) { return cache.at(state_->shape.batch - 1).learned != 0; });
}

pqkv::memory_plan layer_caches::memory() const {
  pqkv::memory_plan all;
  state_->each([&](auto& cache) { all.kv_bytes += cache.plan(cache.parameters()).kv_bytes; });
  return all;
}

}  // namespace minillama::cuda
