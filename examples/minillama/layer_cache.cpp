// SPDX-License-Identifier: Apache-2.0
// Every member forwards to pqkv::pqcache; the four selectors are instantiated here and nowhere else.
#include "layer_cache.hpp"

namespace minillama {
namespace {

template <class Selector>
class selector_cache final : public layer_cache {
 public:
  using cache = pqkv::pqcache<float, Selector>;
  explicit selector_cache(const typename cache::params& params)
      : kv_heads_(params.kv_heads), memory_(cache::plan(params)), cache_(params) {}

  void prefill(const host_policy& cpu, std::size_t slot, pqkv::view<const float, 3> keys, pqkv::view<const float, 3> values) override {
    cache_.prefill(cpu, slot, keys, values);
  }
  void append(const host_policy& cpu, pqkv::view<const float, 3> keys, pqkv::view<const float, 3> values,
              pqkv::active_slots active) override {
    cache_.append(cpu, keys, values, active);
  }
  void attend(const host_policy& cpu, pqkv::view<const float, 3> query, pqkv::view<float, 3> out, pqkv::view<float, 2> lse,
              pqkv::active_slots active) override {
    cache_.attend(cpu, query, out, lse, active);
  }
  void retrieve(const host_policy& cpu, pqkv::view<const float, 3> query, pqkv::view<std::int32_t, 3> indices,
                pqkv::view<std::uint32_t, 2> counts, pqkv::active_slots active) override {
    cache_.retrieve(cpu, query, indices, counts, active);
  }
  void fork(const host_policy& cpu, std::size_t from, std::size_t to) override { cache_.fork(cpu, from, to); }
  void maintain(const host_policy& cpu) override { cache_.maintain(cpu); }

  std::size_t retrieve_capacity(std::size_t slot) const override { return cache_.retrieve_capacity(slot); }
  pqkv::middle_range middle(std::size_t slot) const override { return cache_.middle(slot); }
  pqkv::strided_store<float> store(std::size_t slot) const override {
    const auto all = cache_.store();
    const auto of_slot = [&](pqkv::view<const float, 3> rows) {
      return rows.slice(0, slot * kv_heads_, kv_heads_).slice(1, 0, cache_.size(slot));
    };
    return {of_slot(all.keys), of_slot(all.values)};
  }
  const pqkv::slot_statistics& statistics(std::size_t slot) const override { return cache_.statistics(slot); }
  const pqkv::memory_plan& memory() const override { return memory_; }

 private:
  std::size_t kv_heads_;
  pqkv::memory_plan memory_;
  cache cache_;
};

/// Calls f with the parameters of the pqcache that the settings ask for.
template <class F>
auto with_params(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config, std::size_t slots,
                 std::size_t capacity, F&& f) {
  const auto params = [&]<class Selector>(const typename Selector::params& selector) {
    typename pqkv::pqcache<float, Selector>::params made;
    static_cast<pqkv::cache_shape&>(made) = {slots, config.kv_heads, config.query_heads, config.head_dim, capacity};
    made.budget = rule;
    made.selector = selector;
    return f.template operator()<Selector>(made);
  };
  switch (settings.name) {
    case policy_name::full:
      return params.template operator()<pqkv::selector::full>({});
    case policy_name::oracle:
      return params.template operator()<pqkv::selector::oracle>({settings.quantizer.reduction});
    case policy_name::streaming:
      return params.template operator()<pqkv::selector::streaming>({});
    case policy_name::pq:
      break;
  }
  return params.template operator()<pqkv::selector::pq>(settings.quantizer);
}

}  // namespace

std::unique_ptr<layer_cache> make_layer_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                              std::size_t slots, std::size_t capacity) {
  return with_params(settings, rule, config, slots, capacity, []<class Selector>(const auto& params) -> std::unique_ptr<layer_cache> {
    return std::make_unique<selector_cache<Selector>>(params);
  });
}

pqkv::memory_plan plan_layer_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                   std::size_t slots, std::size_t capacity) {
  return with_params(settings, rule, config, slots, capacity,
                     []<class Selector>(const auto& params) { return pqkv::pqcache<float, Selector>::plan(params); });
}

}  // namespace minillama
