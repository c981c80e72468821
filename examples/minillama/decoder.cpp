// SPDX-License-Identifier: Apache-2.0
// The decode step: project, append, attend, finish, layer by layer.
#include "decoder.hpp"

namespace minillama {

host_session::host_session(const model& llama, pool_runner& runner, const policy_settings& settings, const prefilled_prompt& prompt,
                           std::size_t room, session_kind kind)
    : llama_(llama),
      cpu_{runner, {}},
      prompt_tokens_(prompt.tokens),
      position_(prompt.tokens),
      slots_(kind == session_kind::forked ? 2 : 1),
      slot_(slots_ - 1),
      qkv_(index_of(slots_), index_of(llama.config().qkv_width())),
      attention_(index_of(slots_), index_of(llama.config().query_width())),
      lse_(slots_ * llama.config().query_heads),
      logits_(llama.config().vocabulary),
      active_(slots_) {
  const model_config& config = llama.config();
  active_[slot_] = 1;
  statistics_.layers = config.layers;
  statistics_.parts.emplace();
  statistics_.selection.emplace();
  const pqkv::budget_rule rule = settings.budget_for(prompt.tokens);
  for (const auto& layer : prompt.layers) {
    caches_.push_back(make_layer_cache(settings, rule, config, slots_, prompt.tokens + room));
    caches_.back()->prefill(cpu_, 0, pqkv::make_view(layer.keys.data(), config.kv_heads, prompt.tokens, config.head_dim),
                            pqkv::make_view(layer.values.data(), config.kv_heads, prompt.tokens, config.head_dim));
  }
  if (kind == session_kind::forked) fork();
}

void host_session::fork() {
  for (auto& cache : caches_) cache->fork(cpu_, 0, 1);
  position_ = prompt_tokens_;
}

std::span<const float> host_session::step(token_id token, const step_observer& observe) {
  const model_config& config = llama_.config();
  const std::size_t hq = config.query_heads, h = config.kv_heads, d = config.head_dim, row = config.qkv_width();
  // A row of the stacked projection holds queries, keys and values one after the other: three views of it, no copies.
  const pqkv::view<const float, 3> queries{qkv_.data(), {slots_, hq, d}, {row, d, 1}};
  const pqkv::view<const float, 3> keys{qkv_.data() + hq * d, {slots_, h, d}, {row, d, 1}};
  const pqkv::view<const float, 3> values{qkv_.data() + (hq + h) * d, {slots_, h, d}, {row, d, 1}};
  const auto gathered = pqkv::make_view(attention_.data(), slots_, hq, d);
  const auto lse = pqkv::make_view(lse_.data(), slots_, hq);
  const pqkv::active_slots active = pqkv::make_view(std::as_const(active_).data(), slots_);
  const Eigen::Index mine = index_of(slot_);

  lap_clock clock;
  const auto lap_of = [&](double* part) {
    const double seconds = clock.lap();
    statistics_.seconds += seconds;
    if (part) *part += seconds;
  };
  double *const matrices = &statistics_.parts->matrices, *const in_cache = &statistics_.parts->cache;
  matrix x(1, index_of(config.hidden));
  llama_.embed({&token, 1}, x);
  for (std::size_t layer = 0; layer < caches_.size(); ++layer) {
    layer_cache& cache = *caches_[layer];
    lap_of(nullptr);
    llama_.project_qkv(layer, x, position_, qkv_.row(mine));
    lap_of(matrices);
    cache.append(cpu_, keys, values, active);
    const pqkv::slot_statistics before = cache.statistics(slot_);
    cache.attend(cpu_, queries, gathered, lse, active);
    lap_of(in_cache);
    const pqkv::slot_statistics& after = cache.statistics(slot_);
    statistics_.tokens_attended += after.tokens_attended - before.tokens_attended;
    statistics_.attended_bytes += after.attended_bytes - before.attended_bytes;
    statistics_.selection->index += after.index_bytes - before.index_bytes;
    statistics_.selection->selector += after.selector_bytes - before.selector_bytes;
    if (observe) {
      lap_of(nullptr);
      observe({layer, cache, slot_, queries, lse, active});
      clock.lap();  // not counted
    }
    lap_of(nullptr);
    llama_.finish_layer(layer, attention_.row(mine), x);
    lap_of(matrices);
    cache.maintain(cpu_);
    lap_of(in_cache);
  }
  llama_.logits(x, logits_);
  lap_of(matrices);
  ++position_;
  ++statistics_.steps;
  lap_of(nullptr);
  return logits_;
}

pqkv::memory_plan host_session::memory() const {
  pqkv::memory_plan all;
  for (const auto& cache : caches_) {
    all.kv_bytes += cache->memory().kv_bytes;
    all.index_bytes += cache->memory().index_bytes;
    all.scratch_bytes += cache->memory().scratch_bytes;
  }
  return all;
}

}  // namespace minillama
