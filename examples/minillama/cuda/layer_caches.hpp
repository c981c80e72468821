// SPDX-License-Identifier: Apache-2.0
// All layers' pqkv::device_pqcache behind an interface that plain C++ files see, so that only one file is for nvcc. An engine whose decoder
// is such a file uses device_pqcache directly and needs nothing of this.
#pragma once
#include <cstddef>
#include <memory>
#include <pqkv/cache/sequence.hpp>
#include <pqkv/selector/pq.hpp>

namespace minillama::cuda {

/// What a layer's cache is made from.
struct cache_settings {
  pqkv::cache_shape shape{};
  pqkv::budget_rule budget{};
  pqkv::selector::coverage middle = pqkv::selector::coverage::listed;  // by product quantization; or nothing: streaming attention
  pqkv::selector::pq::params selector{};                               // where it is listed
};

/// Slot 0 takes the prompt; the last slot decodes. Pointers are to device memory. All but trained() and maintain() only enqueue.
class layer_caches {
 public:
  /// @param stream  a cudaStream_t, of all calls
  /// @throws pqkv::shape_error, pqkv::value_error, pqkv::cuda_error
  layer_caches(void* stream, std::size_t layers, const cache_settings& settings);
  ~layer_caches();

  /// Stores a prompt's keys and values [h, n, d] in slot 0 and builds the index; never inside a capture.
  void prefill(std::size_t layer, const float* keys, const float* values, std::size_t n);
  /// One token's keys and values [h, d], of the last slot.
  void append(std::size_t layer, const float* keys, const float* values);
  /// Attention of a token's queries [hq, d] into out [hq, d], of the last slot.
  void attend(std::size_t layer, const float* queries, float* out);
  /// Makes the last slot a copy of slot 0.
  void fork();
  /// Trains what is due and folds tails of all layers. Waits for the stream: between steps, where it is worth it.
  void maintain();

  /// Whether the last slot has a codebook in this layer, without which it attends to everything. Of streaming attention, which needs none:
  /// whether it has a prompt. Waits for the stream.
  bool trained(std::size_t layer) const;
  /// Of all layers.
  pqkv::memory_plan memory() const;

 private:
  struct state;
  std::unique_ptr<state> state_;
};

}  // namespace minillama::cuda
