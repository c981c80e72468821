// SPDX-License-Identifier: Apache-2.0
// One attention layer's cache, whatever selects: the policy is chosen on the command line, so the selector's type is behind an interface.
#pragma once

#include <cstddef>
#include <memory>

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

/// A cache of one sequence. Keys and values are [h, n, d], queries and outputs [n, hq, d].
class layer_cache {
 public:
  virtual ~layer_cache() = default;
  virtual void prefill(row_view keys, row_view values, pqkv::chunk which) = 0;
  virtual void append(row_view keys, row_view values) = 0;
  virtual void attend(pqkv::view<const float, 3> query, pqkv::view<float, 3> out) = 0;
  virtual void maintain() = 0;
  virtual void truncate(std::size_t n) = 0;
  virtual void reset() = 0;
  virtual std::size_t size() const = 0;
  virtual pqkv::slot_statistics statistics() const = 0;
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

  void prefill(row_view keys, row_view values, pqkv::chunk which) override { cache_.prefill(cpu_, 0, keys, values, which); }
  void append(row_view keys, row_view values) override {
    const std::uint32_t slot = 0, count = static_cast<std::uint32_t>(keys.extent(1));
    cache_.append(cpu_, by_token(keys), by_token(values), step_of(slot, count));
  }
  void attend(pqkv::view<const float, 3> query, pqkv::view<float, 3> out) override {
    const std::uint32_t slot = 0, count = static_cast<std::uint32_t>(query.extent(0));
    cache_.attend(cpu_, query, out, {}, step_of(slot, count));
  }
  void maintain() override { cache_.maintain(cpu_); }
  void truncate(std::size_t n) override { cache_.truncate(cpu_, 0, n); }
  void reset() override { cache_.reset(cpu_, 0); }
  std::size_t size() const override { return cache_.size(0); }
  pqkv::slot_statistics statistics() const override { return cache_.statistics(0); }
  std::size_t bytes() const override {
    const pqkv::memory_plan plan = cache_type::plan(cache_.parameters());
    return plan.kv_bytes + plan.index_bytes + plan.scratch_bytes;
  }

 private:
  static row_view by_token(const row_view& rows) {
    return {rows.data, {rows.extent(1), rows.extent(0), rows.extent(2)}, {rows.stride(1), rows.stride(0), rows.stride(2)}};
  }
  static pqkv::cache_step step_of(const std::uint32_t& slot, const std::uint32_t& count) {
    return {.slots = pqkv::make_view(&slot, 1), .counts = pqkv::make_view(&count, 1)};
  }

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
