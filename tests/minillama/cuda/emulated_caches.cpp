// SPDX-License-Identifier: Apache-2.0
// The host's pqcache with the device cache's settings, in place of device_pqcache.
#include <cuda_runtime_api.h>

#include <pqkv/pqkv.hpp>
#include <vector>

#include "cuda/layer_caches.hpp"
#include "emulation.hpp"

namespace minillama::cuda {

using minillama_test::emulated::enqueue;
using cache = pqkv::pqcache<pqkv::dense_rows<float>>;

struct layer_caches::state {
  pqkv::exec::host<> cpu{};
  pqkv::cache_shape shape{};
  std::vector<cache> layers{};
  std::vector<std::uint32_t> slots{};  // [1] the last one

  pqkv::cache_step step() const {
    pqkv::cache_step one{};
    one.slots = pqkv::make_view(slots.data(), slots.size());
    return one;
  }
};

layer_caches::layer_caches(void*, std::size_t layers, const cache_settings& settings) : state_(std::make_unique<state>()) {
  cache::params params;
  static_cast<pqkv::cache_shape&>(params) = settings.shape;
  params.budget = settings.budget;
  params.selector = settings.selector;
  state_->shape = settings.shape;
  for (std::size_t layer = 0; layer < layers; ++layer) state_->layers.emplace_back(params);
  state_->slots.assign(1, static_cast<std::uint32_t>(settings.shape.batch - 1));
}

layer_caches::~layer_caches() = default;

void layer_caches::prefill(std::size_t layer, const float* keys, const float* values, std::size_t n) {
  enqueue([=, at = state_.get()] {
    at->layers[layer].prefill(at->cpu, 0, pqkv::make_view(keys, at->shape.kv_heads, n, at->shape.head_dim),
                              pqkv::make_view(values, at->shape.kv_heads, n, at->shape.head_dim));
  });
}

void layer_caches::append(std::size_t layer, const float* keys, const float* values) {
  enqueue([=, at = state_.get()] {
    const pqkv::cache_shape& shape = at->shape;
    at->layers[layer].append(at->cpu, pqkv::make_view(keys, 1, shape.kv_heads, shape.head_dim),
                             pqkv::make_view(values, 1, shape.kv_heads, shape.head_dim), at->step());
  });
}

void layer_caches::attend(std::size_t layer, const float* queries, float* out) {
  enqueue([=, at = state_.get()] {
    const pqkv::cache_shape& shape = at->shape;
    at->layers[layer].attend(at->cpu, pqkv::make_view(queries, 1, shape.query_heads, shape.head_dim),
                             pqkv::make_view(out, 1, shape.query_heads, shape.head_dim), {}, at->step());
  });
}

void layer_caches::fork() {
  enqueue([at = state_.get()] {
    for (cache& layer : at->layers) layer.fork(at->cpu, 0, at->shape.batch - 1);
  });
}

void layer_caches::maintain() {
  enqueue([at = state_.get()] {
    for (cache& layer : at->layers) layer.maintain(at->cpu);
  });
}

bool layer_caches::trained(std::size_t layer) const {
  cudaStreamSynchronize(nullptr);
  return state_->layers[layer].at(state_->shape.batch - 1).learned != 0;
}

pqkv::memory_plan layer_caches::memory() const {
  pqkv::memory_plan all;
  for (const cache& layer : state_->layers) all.kv_bytes += cache::plan(layer.parameters()).kv_bytes;
  return all;
}

}  // namespace minillama::cuda
