// SPDX-License-Identifier: Apache-2.0
// The one file of the program that instantiates the library's CUDA backend.
#include "layer_caches.hpp"

#include <cstdint>
#include <pqkv/device_pqcache.cuh>
#include <type_traits>
#include <vector>

#include "caches_of_layers.hpp"

namespace minillama::cuda {
namespace {

using device = pqkv::space::device;
using ranked_cache = pqkv::device_pqcache<float>;
using streaming_cache = pqkv::device_pqcache<float, pqkv::selector::streaming>;

template <class Cache>
typename Cache::params params_of(const cache_settings& settings) {
  typename Cache::params made{};
  static_cast<pqkv::cache_shape&>(made) = settings.shape;
  made.step_queries = 1;
  made.budget = settings.budget;
  if constexpr (std::is_same_v<Cache, ranked_cache>) made.selector = settings.selector;
  return made;
}

}  // namespace

struct layer_caches::state : caches_of_layers<ranked_cache, streaming_cache> {
  pqkv::exec::cuda gpu;
  pqkv::cache_shape shape;
  pqkv::device_buffer<std::uint32_t> slots;  // [1] the last one; empty where there is one slot

  std::size_t last() const { return shape.batch - 1; }
  pqkv::basic_step<device> step() const {
    pqkv::basic_step<device> one{};
    if (slots.size() != 0) one.slots = pqkv::make_view<device>(static_cast<const std::uint32_t*>(slots.data()), 1);
    return one;
  }
  template <class Cache>
  void make(std::size_t count, const cache_settings& settings) {
    const auto params = params_of<Cache>(settings);
    auto& made = layers.emplace<std::vector<Cache>>();
    made.reserve(count);
    for (std::size_t layer = 0; layer < count; ++layer) made.emplace_back(gpu, params);
  }
};

layer_caches::layer_caches(void* stream, std::size_t layers, const cache_settings& settings)
    : state_(std::make_unique<state>(state{{}, {stream, {}}, settings.shape, {}})) {
  if (settings.middle == pqkv::selector::coverage::nothing)
    state_->make<streaming_cache>(layers, settings);
  else
    state_->make<ranked_cache>(layers, settings);
  if (settings.shape.batch == 1) return;
  const auto last = static_cast<std::uint32_t>(state_->last());
  state_->slots = pqkv::device_buffer<std::uint32_t>(1, stream);
  state_->slots.upload(&last, stream);
  pqkv::sync(state_->gpu);  // the number is the host's
}

layer_caches::~layer_caches() = default;

void layer_caches::prefill(std::size_t layer, const float* keys, const float* values, std::size_t n) {
  const pqkv::cache_shape& shape = state_->shape;
  state_->with(layer, [&](auto& cache) {
    cache.prefill(state_->gpu, 0, pqkv::make_view<device>(keys, shape.kv_heads, n, shape.head_dim),
                  pqkv::make_view<device>(values, shape.kv_heads, n, shape.head_dim));
  });
}

void layer_caches::append(std::size_t layer, const float* keys, const float* values) {
  const pqkv::cache_shape& shape = state_->shape;
  state_->with(layer, [&](auto& cache) {
    cache.append(state_->gpu, pqkv::make_view<device>(keys, 1, shape.kv_heads, shape.head_dim),
                 pqkv::make_view<device>(values, 1, shape.kv_heads, shape.head_dim), state_->step());
  });
}

void layer_caches::attend(std::size_t layer, const float* queries, float* out) {
  const pqkv::cache_shape& shape = state_->shape;
  state_->with(layer, [&](auto& cache) {
    cache.attend(state_->gpu, pqkv::make_view<device>(queries, 1, shape.query_heads, shape.head_dim),
                 pqkv::make_view<device>(out, 1, shape.query_heads, shape.head_dim), {}, state_->step());
  });
}

void layer_caches::fork() {
  state_->each([&](auto& cache) { cache.fork(state_->gpu, 0, state_->last()); });
}

void layer_caches::maintain() {
  state_->each([&](auto& cache) { cache.maintain(state_->gpu); });
}

bool layer_caches::trained(std::size_t layer) const {
  return state_->with(layer, [&](auto& cache) { return cache.at(state_->gpu, state_->last()).learned != 0; });
}

pqkv::memory_plan layer_caches::memory() const {
  pqkv::memory_plan all;
  state_->each([&](auto& cache) {
    const pqkv::memory_plan one = cache.plan(state_->gpu, cache.parameters());
    all.kv_bytes += one.kv_bytes;
    all.index_bytes += one.index_bytes;
    all.scratch_bytes += one.scratch_bytes;
  });
  return all;
}

}  // namespace minillama::cuda
