// SPDX-License-Identifier: Apache-2.0
// One attention layer's cache, with any of the four policies: the policy is chosen on the command line, so the selector's type is behind an
// interface.
#pragma once

#include <cstddef>
#include <cstdio>
#include <memory>
#include <stdexcept>

#include <pqkv/adapt/ggml.hpp>
#include <pqkv/pqkv.hpp>

#include "thread_pool.hpp"

namespace llama_example {

enum class policy { full, pq, oracle, streaming };

/// The same for every layer.
struct cache_settings {
  policy which = policy::pq;
  pqkv::cache_shape shape;
  pqkv::budget_rule budget;
  pqkv::selector::pq::params pq;
};

/// What llama.cpp writes into its own cache: half by default, so that both attend to the same bits.
using row_view = pqkv::view<const pqkv::half, 3>;

/// Which slots a step is for, and how many tokens of each, in the batch's order.
using step_rows = pqkv::cache_step;

/// A cache of some sequences, each in a slot of its own. Keys and values are [h, n, d], queries and outputs [n, hq, d].
class layer_cache {
 public:
  virtual ~layer_cache() = default;
  virtual void prefill(std::size_t slot, row_view keys, row_view values, pqkv::chunk which) = 0;
  virtual void append(row_view keys, row_view values, const step_rows& rows) = 0;
  virtual void attend(pqkv::view<const float, 3> query, pqkv::view<float, 3> out, const step_rows& rows) = 0;
  virtual void maintain() = 0;
  virtual void truncate(std::size_t slot, std::size_t n) = 0;
  virtual void fork(std::size_t from, std::size_t to) = 0;
  virtual void reset(std::size_t slot) = 0;
  /// Writes a slot to a file, or fills an empty one from it. @throws what the cache throws; std::runtime_error where the disk refuses
  virtual void save(std::size_t slot, std::FILE* file) const = 0;
  virtual void load(std::size_t slot, std::FILE* file) = 0;
  virtual std::size_t size(std::size_t slot) const = 0;
  virtual pqkv::slot_statistics statistics(std::size_t slot) const = 0;
  virtual std::size_t bytes() const = 0;
};

template <class Selector>
class selecting_cache final : public layer_cache {
  using cache_type = pqkv::pqcache<pqkv::dense_rows<pqkv::half>, Selector>;

 public:
  selecting_cache(const cache_settings& settings, thread_pool& threads) : cpu_{threads}, cache_(params_of(settings)) {}

  static typename cache_type::params params_of(const cache_settings& settings) {
    typename cache_type::params p;
    static_cast<pqkv::cache_shape&>(p) = settings.shape;
    p.budget = settings.budget;
    if constexpr (std::is_same_v<Selector, pqkv::selector::pq>) p.selector = settings.pq;
    return p;
  }

  void prefill(std::size_t slot, row_view keys, row_view values, pqkv::chunk which) override {
    cache_.prefill(cpu_, slot, keys, values, which);
  }
  void append(row_view keys, row_view values, const step_rows& rows) override {
    cache_.append(cpu_, pqkv::swap_axes<0, 1>(keys), pqkv::swap_axes<0, 1>(values), rows);
  }
  void attend(pqkv::view<const float, 3> query, pqkv::view<float, 3> out, const step_rows& rows) override {
    cache_.attend(cpu_, query, out, {}, rows);
  }
  void maintain() override { cache_.maintain(cpu_); }
  void truncate(std::size_t slot, std::size_t n) override { cache_.truncate(cpu_, slot, n); }
  void fork(std::size_t from, std::size_t to) override { cache_.fork(cpu_, from, to); }
  void reset(std::size_t slot) override { cache_.reset(cpu_, slot); }
  void save(std::size_t slot, std::FILE* file) const override {
    cache_.save(cpu_, slot, [file](const std::byte* bytes, std::size_t count) {
      if (std::fwrite(bytes, 1, count, file) != count) throw std::runtime_error("the session file cannot be written");
    });
  }
  void load(std::size_t slot, std::FILE* file) override {
    cache_.load(cpu_, slot, [file](std::byte* bytes, std::size_t count) { return std::fread(bytes, 1, count, file); });
  }
  std::size_t size(std::size_t slot) const override { return cache_.size(slot); }
  pqkv::slot_statistics statistics(std::size_t slot) const override { return cache_.statistics(slot); }
  std::size_t bytes() const override {
    const pqkv::memory_plan plan = cache_type::plan(cache_.parameters());
    return plan.kv_bytes + plan.index_bytes + plan.scratch_bytes;
  }

 private:
  pqkv::exec::host<pqkv::isa::best, thread_pool&> cpu_;
  cache_type cache_;
};

/// @throws shape_error, value_error where the settings do not fit the model
inline std::unique_ptr<layer_cache> make_layer_cache(const cache_settings& settings, thread_pool& threads) {
  switch (settings.which) {
    case policy::full:
      return std::make_unique<selecting_cache<pqkv::selector::full>>(settings, threads);
    case policy::oracle:
      return std::make_unique<selecting_cache<pqkv::selector::oracle>>(settings, threads);
    case policy::streaming:
      return std::make_unique<selecting_cache<pqkv::selector::streaming>>(settings, threads);
    default:
      return std::make_unique<selecting_cache<pqkv::selector::pq>>(settings, threads);
  }
}

}  // namespace llama_example
