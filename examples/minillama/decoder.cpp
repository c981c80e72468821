// SPDX-License-Identifier: Apache-2.0
// The decode step: project, append, attend, finish, layer by layer. Its rows are the tokens of one slot, one or several.
#include "decoder.hpp"

#include <algorithm>
#include <stdexcept>

#include "process_memory.hpp"
#include "recall_sample.hpp"
#include "window.hpp"

namespace minillama {

host_session::host_session(without_caches, const model& llama, pool_runner& runner, const policy_settings& settings, std::size_t tokens,
                           std::size_t room, session_kind kind)
    : llama_(llama),
      cpu_{runner, {}},
      prompt_tokens_(tokens),
      capacity_(tokens + room),
      settings_(settings_of_layers(settings, llama.config(), capacity_)),
      shown_queries_(settings_.shown_queries()),
      position_(tokens),
      slot_(kind == session_kind::forked ? 1 : 0),
      qkv_(index_of(step_tokens), index_of(llama.config().qkv_width())),
      attention_(index_of(step_tokens), index_of(llama.config().query_width())),
      lse_(step_tokens * llama.config().query_heads),
      logits_(llama.config().vocabulary),
      drawn_(settings.quantizer.train.seed) {
  statistics_.layers = llama.config().layers;
  statistics_.parts.emplace();
  statistics_.selection.emplace();
  statistics_.maintenance.emplace();
  if (settings.tier.place() == row_place::file) statistics_.tiers.emplace();
}

host_session::host_session(const model& llama, pool_runner& runner, const policy_settings& settings, std::size_t prompt_tokens,
                           std::size_t room, session_kind kind)
    : host_session(without_caches{}, llama, runner, settings, prompt_tokens, room, kind) {
  for (std::size_t layer = 0; layer < llama.config().layers; ++layer) make_cache();
}

host_session::host_session(const model& llama, pool_runner& runner, const policy_settings& settings, const prefilled_prompt& prompt,
                           std::size_t room, session_kind kind)
    : host_session(without_caches{}, llama, runner, settings, prompt.tokens, room, kind) {
  check_rows(prompt);
  for (const auto& layer : prompt.layers) {
    make_cache();
    take_layer(cpu_, caches_.size() - 1, layer);
  }
  begin();
}

host_session::host_session(const model& llama, pool_runner& runner, const policy_settings& settings, prefilled_prompt&& prompt,
                           std::size_t room, session_kind kind)
    : host_session(without_caches{}, llama, runner, settings, prompt.tokens, room, kind) {
  check_rows(prompt);
  for (auto& layer : prompt.layers) {
    make_cache();
    take_layer(cpu_, caches_.size() - 1, layer);
    layer = {};
    return_free_memory();  // otherwise the next layer's cache comes on top of it
  }
  prompt.layers.clear();
  begin();
}

void host_session::check_rows(const prefilled_prompt& prompt) const {
  if (prompt.layers.size() != llama_.config().layers) throw std::logic_error("session: another one has taken the prompt's rows");
}

void host_session::make_cache() {
  const pqkv::budget_rule rule = settings_.budget_for(prompt_tokens_, llama_.config().head_dim);
  caches_.push_back(make_layer_cache(settings_, rule, llama_.config(), slot_ + 1, capacity_));
}

void host_session::take_layer(const host_policy& cpu, std::size_t layer, const prefilled_prompt::layer& rows) {
  const model_config& config = llama_.config();
  const std::size_t width = config.query_width(), shown = std::min(shown_queries_, rows.queries.size() / width);
  layer_cache& cache = *caches_[layer];
  if (shown != 0)
    cache.observe(cpu, 0,
                  pqkv::make_view(rows.queries.data() + rows.queries.size() - shown * width, shown, config.query_heads, config.head_dim));
  cache.prefill(cpu, 0, pqkv::make_view(rows.keys.data(), config.kv_heads, prompt_tokens_, config.head_dim),
                pqkv::make_view(rows.values.data(), config.kv_heads, prompt_tokens_, config.head_dim));
}

void host_session::begin() {
  if (slot_ != 0) fork();
}

void host_session::fork() {
  for (auto& cache : caches_) cache->fork(cpu_, 0, 1);
  position_ = prompt_tokens_;
}

std::span<const float> host_session::feed(std::span<const token_id> tokens, const step_observer& observe) {
  while (true) {
    std::size_t count = std::min(tokens.size(), step_tokens);
    for (const auto& cache : caches_) count = cache->tokens_until_learning(slot_, count);
    const bool last = count == tokens.size();
    step(tokens.first(count), last ? wanted::logits : wanted::nothing, last ? observe : step_observer{});
    if (last) return logits_;
    tokens = tokens.subspan(count);
  }
}

/// Counts the time since the last call, as that of a part of the work where one is given.
void host_session::lap(double* part) {
  const double seconds = clock_.lap();
  statistics_.seconds += seconds;
  if (part) *part += seconds;
}

void host_session::step(std::span<const token_id> tokens, wanted result, const step_observer& observe) {
  const double before = statistics_.seconds;
  clock_.lap();
  matrix x(index_of(tokens.size()), index_of(llama_.config().hidden));
  llama_.embed(tokens, x);
  for (std::size_t layer = 0; layer < caches_.size(); ++layer) run_layer(layer, x, observe);
  if (result == wanted::logits) llama_.logits(x.bottomRows(1), logits_);
  lap(&statistics_.parts->matrices);
  position_ += tokens.size();
  statistics_.steps += tokens.size();
  lap(nullptr);
  if (tokens.size() == 1) return;
  statistics_.fed += tokens.size();
  statistics_.fed_seconds += statistics_.seconds - before;
}

void host_session::run_layer(std::size_t layer, rows_view x, const step_observer& observe) {
  const model_config& config = llama_.config();
  const std::size_t hq = config.query_heads, h = config.kv_heads, d = config.head_dim, row = config.qkv_width();
  const auto count = static_cast<std::uint32_t>(x.rows());
  // A row of the stacked projection holds queries, keys and values one after the other: three views of it, no copies.
  const pqkv::view<const float, 3> queries{qkv_.data(), {count, hq, d}, {row, d, 1}};
  const pqkv::view<const float, 3> keys{qkv_.data() + hq * d, {count, h, d}, {row, d, 1}};
  const pqkv::view<const float, 3> values{qkv_.data() + (hq + h) * d, {count, h, d}, {row, d, 1}};
  const auto gathered = pqkv::make_view(attention_.data(), std::size_t{count}, hq, d);
  const auto lse = pqkv::make_view(lse_.data(), std::size_t{count}, hq);
  // A slot alone that takes one token is the step of every slot, which the library need not look up.
  const auto slot = pqkv::make_view(&slot_, 1);
  const pqkv::cache_step one = slot_ == 0 ? pqkv::cache_step{} : pqkv::cache_step{.slots = slot};
  const pqkv::cache_step all = count == 1 ? one : pqkv::cache_step{.slots = slot, .counts = pqkv::make_view(&count, 1)};
  double *const matrices = &statistics_.parts->matrices, *const in_cache = &statistics_.parts->cache;

  layer_cache& cache = *caches_[layer];
  lap(nullptr);
  llama_.project_qkv(layer, x, position_, qkv_.topRows(x.rows()));
  lap(matrices);
  cache.append(cpu_, keys, values, all);
  const pqkv::slot_statistics before = cache.statistics(slot_);
  const pqkv::tier_statistics tiers_before = cache.tiers(slot_).value_or(pqkv::tier_statistics{});
  cache.attend(cpu_, queries, gathered, lse, all);
  lap(in_cache);
  const pqkv::slot_statistics& after = cache.statistics(slot_);
  statistics_.tokens_attended += after.tokens_attended - before.tokens_attended;
  statistics_.attended_bytes += after.attended_bytes - before.attended_bytes;
  statistics_.selection->index += after.index_bytes - before.index_bytes;
  statistics_.selection->selector += after.selector_bytes - before.selector_bytes;
  const layer_step last{layer, cache, slot_, queries.slice(0, count - 1, 1), gathered.slice(0, count - 1, 1), lse.slice(0, count - 1, 1),
                        one};
  if (const auto tiers = cache.tiers(slot_)) {
    statistics_.tiers->counts += tiers->since(tiers_before);
    sample(last);
    lap(in_cache);
  }
  if (observe) {
    lap(nullptr);
    observe(last);
    clock_.lap();  // not counted
  }
  lap(nullptr);
  llama_.finish_layer(layer, attention_.topRows(x.rows()), x);
  lap(matrices);
  const double before_maintenance = *in_cache;
  cache.maintain(cpu_);
  lap(in_cache);
  statistics_.maintenance->seconds += *in_cache - before_maintenance;
  statistics_.maintenance->trainings += after.trainings - before.trainings;
  statistics_.maintenance->codes += after.codes_trained - before.codes_trained;
}

/// Estimates what the selection found, where it is the turn of this token and layer.
void host_session::sample(const layer_step& step) {
  if (statistics_.steps < next_sample_ || step.layer != samples_ % caches_.size()) return;
  next_sample_ = statistics_.steps + tokens_between_samples;
  ++samples_;
  if (const auto recall = sample_recall(cpu_, step, llama_.config(), drawn_)) {
    statistics_.tiers->recall += *recall;
    ++statistics_.tiers->samples;
  }
}

std::size_t host_session::step_scratch_bytes(const model_config& config, std::size_t tokens) {
  const std::size_t rows = config.hidden + config.qkv_width() + config.query_width() + config.hidden + 3 * config.intermediate;
  return (std::min(tokens, step_tokens) * rows + config.vocabulary) * sizeof(float);
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
