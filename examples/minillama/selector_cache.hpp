// SPDX-License-Identifier: Apache-2.0
// A layer_cache over one kind of rows, with the selector that the settings name. Included by one file for each kind: instantiating the
// selectors takes most of a file's compile time.
#pragma once
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "layer_cache.hpp"

namespace minillama {

/// Every member forwards to pqkv::pqcache.
template <class Rows, class Selector>
class selector_cache final : public layer_cache {
 public:
  using cache = pqkv::pqcache<Rows, Selector>;
  explicit selector_cache(const typename cache::params& params)
      : kv_heads_(params.kv_heads), memory_(cache::plan(params)), cache_(params) {}

  void prefill(const host_policy& cpu, std::size_t slot, pqkv::view<const float, 3> keys, pqkv::view<const float, 3> values) override {
    cache_.prefill(cpu, slot, keys, values);
  }
  void observe(const host_policy& cpu, std::size_t slot, pqkv::view<const float, 3> queries) override {
    if constexpr (requires { Selector::can_observe(cache_.parameters().selector); })
      if (Selector::can_observe(cache_.parameters().selector).ok()) cache_.observe(cpu, slot, queries);
  }
  void append(const host_policy& cpu, pqkv::view<const float, 3> keys, pqkv::view<const float, 3> values,
              const pqkv::cache_step& step) override {
    cache_.append(cpu, keys, values, step);
  }
  void attend(const host_policy& cpu, pqkv::view<const float, 3> query, pqkv::view<float, 3> out, pqkv::view<float, 2> lse,
              const pqkv::cache_step& step) override {
    cache_.attend(cpu, query, out, lse, step);
  }
  void retrieve(const host_policy& cpu, pqkv::view<const float, 3> query, pqkv::view<std::int32_t, 3> indices,
                pqkv::view<std::uint32_t, 2> counts, const pqkv::cache_step& step) override {
    cache_.retrieve(cpu, query, indices, counts, step);
  }
  void fork(const host_policy& cpu, std::size_t from, std::size_t to) override { cache_.fork(cpu, from, to); }
  void maintain(const host_policy& cpu) override { cache_.maintain(cpu); }

  std::size_t tokens_until_learning(std::size_t slot, std::size_t most) const override {
    const pqkv::selector::coverage_rule covers = cache_.selection().covers();
    pqkv::sequence then = cache_.at(slot);
    const bool done = then.learned != 0 && then.learn_again == 0;
    if (done || covers.before == covers.after) return most;  // training is done, or changes nothing
    for (std::size_t count = 1; count < most; ++count) {
      then = then.grown(1);
      if (pqkv::is_learning_due(then, cache_.parameters().budget.flat(), cache_.selection().least_rows())) return count;
    }
    return most;
  }
  std::size_t retrieve_capacity(std::size_t slot) const override { return cache_.retrieve_capacity(slot); }
  pqkv::middle_range middle(std::size_t slot) const override { return cache_.middle(slot); }
  pqkv::strided_store<float> store(std::size_t slot) const override {
    if constexpr (std::is_same_v<typename Rows::value_type, float>)
      return part_of(cache_.store(), slot);
    else
      return copied(slot);
  }
  const pqkv::slot_statistics& statistics(std::size_t slot) const override { return cache_.statistics(slot); }
  std::optional<pqkv::tier_statistics> tiers([[maybe_unused]] std::size_t slot) const override {
    if constexpr (pqkv::rows_of_tiers<Rows>)
      return cache_.rows().statistics(slot);
    else
      return std::nullopt;
  }
  const pqkv::memory_plan& memory() const override { return memory_; }

 private:
  pqkv::strided_store<float> part_of(const pqkv::strided_store<float>& all, std::size_t slot) const {
    const auto of_slot = [&](pqkv::view<const float, 3> rows) {
      return rows.slice(0, slot * kv_heads_, kv_heads_).slice(1, 0, cache_.size(slot));
    };
    return {of_slot(all.keys), of_slot(all.values)};
  }
  /// What the rows stand for, as floats.
  pqkv::strided_store<float> copied(std::size_t slot) const {
    const auto all = cache_.store();
    const std::size_t n = cache_.size(slot), d = all.head_dim();
    copy_.resize(kv_heads_ * n * 2 * d);
    for (std::size_t head = 0; head < kv_heads_; ++head)
      for (std::size_t t = 0; t < n; ++t) {
        const auto key = all.key(slot * kv_heads_ + head, t), value = all.value(slot * kv_heads_ + head, t);
        float* const row = &copy_[(head * n + t) * 2 * d];
        for (std::size_t i = 0; i < d; ++i) row[i] = key[i], row[d + i] = value[i];
      }
    return pqkv::interleaved_kv(static_cast<const float*>(copy_.data()), kv_heads_, n, d);
  }

  std::size_t kv_heads_;
  pqkv::memory_plan memory_;
  cache cache_;
  mutable std::vector<float> copy_;  // of the last store()
};

// Tokens that may be scored before attention, over all lists of a step: 16 MiB of scores a layer at most. Queries beyond it go in turns.
inline constexpr std::size_t scored_at_once = std::size_t{1} << 22;

/// Query tokens that a layer's attend() works on at once.
inline std::size_t step_queries(const model_config& config, std::size_t capacity) {
  return std::clamp<std::size_t>(scored_at_once / (config.query_heads * capacity), 1, step_tokens);
}

/// The parameters of one layer's pqcache, but for its rows'.
template <class Rows, class Selector>
auto cache_params(const typename Selector::params& selector, const pqkv::budget_rule& rule, const model_config& config, std::size_t slots,
                  std::size_t capacity) {
  typename pqkv::pqcache<Rows, Selector>::params made;
  static_cast<pqkv::cache_shape&>(made) = {.batch = slots,
                                           .kv_heads = config.kv_heads,
                                           .query_heads = config.query_heads,
                                           .head_dim = config.head_dim,
                                           .capacity = capacity,
                                           .step_queries = step_queries(config, capacity),
                                           .softmax_scale = config.softmax_scale()};
  made.budget = rule;
  made.selector = selector;
  return made;
}

/// Calls f with the parameters of the pqcache that the settings ask for, whose rows are Rows.
template <class Rows, class F>
auto with_selector(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config, std::size_t slots,
                   std::size_t capacity, F&& f) {
  const auto params = [&]<class Selector>(const typename Selector::params& selector) {
    return f.template operator()<Rows, Selector>(cache_params<Rows, Selector>(selector, rule, config, slots, capacity));
  };
  switch (settings.name) {
    case policy_name::full:
      return params.template operator()<pqkv::selector::full>({});
    case policy_name::oracle:
      return params.template operator()<pqkv::selector::oracle>({settings.quantizer.reduction});
    case policy_name::streaming:
      return params.template operator()<pqkv::selector::streaming>({});
    case policy_name::snapkv:
      return params.template operator()<pqkv::selector::snapkv>({});
    case policy_name::h2o:
      return params.template operator()<pqkv::selector::h2o>({});
    case policy_name::sparq:
      return params.template operator()<pqkv::selector::sparq>({.reduction = settings.quantizer.reduction});
    case policy_name::quest:
      return params.template operator()<pqkv::selector::quest>({});
    case policy_name::infllm:
      return params.template operator()<pqkv::selector::infllm>({});
    case policy_name::pq:
      break;
  }
  return params.template operator()<pqkv::selector::pq>(settings.quantizer);
}

/// make_layer_cache() and plan_layer_cache() for rows of one kind.
template <class Rows>
struct caches_over {
  static std::unique_ptr<layer_cache> make(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                           std::size_t slots, std::size_t capacity) {
    return with_selector<Rows>(settings, rule, config, slots, capacity,
                               []<class, class Selector>(const auto& params) -> std::unique_ptr<layer_cache> {
                                 return std::make_unique<selector_cache<Rows, Selector>>(params);
                               });
  }
  static pqkv::memory_plan plan(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                std::size_t slots, std::size_t capacity) {
    return with_selector<Rows>(settings, rule, config, slots, capacity,
                               []<class, class Selector>(const auto& params) { return pqkv::pqcache<Rows, Selector>::plan(params); });
  }
};

extern template struct caches_over<pqkv::dense_rows<float>>;
extern template struct caches_over<pqkv::quantized_rows<>>;

}  // namespace minillama
