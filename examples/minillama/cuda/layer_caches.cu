// SPDX-License-Identifier: Apache-2.0
// The one file of the program that instantiates the library's CUDA backend.
#include "layer_caches.hpp"

#include <cstdint>
#include <pqkv/device_pqcache.cuh>
#include <vector>

namespace minillama::cuda {
namespace {

using device = pqkv::space::device;
using cache = pqkv::device_pqcache<float>;

cache::params params_of(const cache_settings& settings) {
  cache::params made{};
  static_cast<pqkv::cache_shape&>(made) = settings.shape;
  made.budget = settings.budget;
  made.selector = settings.selector;
  return made;
}

}  // namespace

struct layer_caches::state {
  pqkv::exec::cuda gpu;
  pqkv::cache_shape shape;
  std::vector<cache> layers;
  pqkv::device_buffer<std::uint8_t> active;  // [batch]; empty where there is one slot

  std::size_t last() const { return shape.batch - 1; }
  pqkv::view<const std::uint8_t, 1, device> mask() const {
    if (active.size() == 0) return {};
    return pqkv::make_view<device>(static_cast<const std::uint8_t*>(active.data()), active.size());
  }
};

layer_caches::layer_caches(void* stream, std::size_t layers, const cache_settings& settings)
    : state_(std::make_unique<state>(state{{stream, {}}, settings.shape, {}, {}})) {
  const cache::params params = params_of(settings);
  state_->layers.reserve(layers);
  for (std::size_t layer = 0; layer < layers; ++layer) state_->layers.emplace_back(state_->gpu, params);
  if (settings.shape.batch == 1) return;
  std::vector<std::uint8_t> active(settings.shape.batch);
  active.back() = 1;
  state_->active = pqkv::device_buffer<std::uint8_t>(active.size(), stream);
  state_->active.upload(active.data(), stream);
  pqkv::sync(state_->gpu);  // the mask is the host's
}

layer_caches::~layer_caches() = default;

void layer_caches::prefill(std::size_t layer, const float* keys, const float* values, std::size_t n) {
  const pqkv::cache_shape& shape = state_->shape;
  state_->layers[layer].prefill(state_->gpu, 0, pqkv::make_view<device>(keys, shape.kv_heads, n, shape.head_dim),
                                pqkv::make_view<device>(values, shape.kv_heads, n, shape.head_dim));
}

void layer_caches::append(std::size_t layer, const float* keys, const float* values) {
  const pqkv::cache_shape& shape = state_->shape;
  state_->layers[layer].append(state_->gpu, pqkv::make_view<device>(keys, shape.batch, shape.kv_heads, shape.head_dim),
                               pqkv::make_view<device>(values, shape.batch, shape.kv_heads, shape.head_dim), state_->mask());
}

void layer_caches::attend(std::size_t layer, const float* queries, float* out) {
  const pqkv::cache_shape& shape = state_->shape;
  state_->layers[layer].attend(state_->gpu, pqkv::make_view<device>(queries, shape.batch, shape.query_heads, shape.head_dim),
                               pqkv::make_view<device>(out, shape.batch, shape.query_heads, shape.head_dim), {}, state_->mask());
}

void layer_caches::fork() {
  for (cache& layer : state_->layers) layer.fork(state_->gpu, 0, state_->last());
}

void layer_caches::maintain() {
  for (cache& layer : state_->layers) layer.maintain(state_->gpu);
}

bool layer_caches::trained(std::size_t layer) const {
  return state_->layers[layer].inspect(state_->gpu)[state_->last() * state_->shape.kv_heads].trained != 0;
}

pqkv::memory_plan layer_caches::memory() const {
  const pqkv::cache_shape& shape = state_->shape;
  const std::size_t row_bytes = pqkv::interleaved_store<float>::row_elements(shape.head_dim) * sizeof(float);
  pqkv::memory_plan all;
  for (const cache& layer : state_->layers) {
    const std::size_t rows = shape.batch * shape.kv_heads * shape.capacity * row_bytes;
    all.kv_bytes += rows;
    all.index_bytes += layer.size_bytes() - rows;
  }
  return all;
}

}  // namespace minillama::cuda
