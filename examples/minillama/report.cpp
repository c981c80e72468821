// SPDX-License-Identifier: Apache-2.0
// Figures as they were measured; JSON has null for what was not.
#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <pqkv/version.hpp>
#include <string>

namespace minillama {
namespace {

using nlohmann::json;

template <class T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json(nullptr);
}

template <class Value>
std::string name_in(const std::map<std::string, Value>& names, Value wanted) {
  for (const auto& [name, value] : names)
    if (value == wanted) return name;
  return {};
}

json quality_of(const quality_summary& q) {
  if (q.steps == 0) return {{"measured_steps", 0}};
  return {
      {"measured_steps", q.steps},
      {"recall", {{"mean", q.recall}, {"worst_head", q.worst_recall}}},
      {"attention_mass",
       {{"mean", q.mass},
        {"worst_head", q.worst_mass},
        {"oracle_mean", q.oracle_mass},
        {"worst_retrieval_head", or_null(q.worst_retrieval_mass)}}},
      {"output_error",
       {{"mean", q.output_error}, {"worst_head", q.worst_output_error}, {"worst_retrieval_head", or_null(q.worst_retrieval_output_error)}}},
      {"retrieval_heads", q.retrieval_heads}};
}

json maintenance_of(const session_statistics& s) {
  if (!s.maintenance) return nullptr;
  return {{"seconds", s.maintenance->seconds}, {"trainings", s.maintenance->trainings}, {"codes", s.maintenance->codes}};
}

json tier_of(const tier_settings& tier) {
  if (tier.place() == row_place::memory) return nullptr;
  return {{"folder", tier.folder},
          {"cache_tokens", tier.cache_tokens},
          {"block_tokens", tier.block_tokens},
          {"scope", name_in(block_scope_names(), tier.scope)},
          {"eviction", name_in(eviction_names(), tier.eviction)}};
}

json tiers_of(const session_statistics& s) {
  if (!s.tiers) return nullptr;
  const pqkv::tier_statistics& counts = s.tiers->counts;
  return {{"hits", counts.hits},
          {"misses", counts.misses},
          {"hit_rate", counts.hit_rate()},
          {"slow_bytes_per_token", s.per_step(counts.slow_bytes)},
          {"admissions", counts.admissions},
          {"evictions", counts.evictions},
          {"overflow", counts.kept_out},
          {"sampled_recall", s.tiers->samples ? json(s.tiers->sampled_recall()) : json(nullptr)},
          {"recall_samples", s.tiers->samples}};
}

void print_tiers(const session_statistics& s) {
  const pqkv::tier_statistics& counts = s.tiers->counts;
  std::fprintf(stderr, "tier                  %10.3f hit rate %10.0f bytes from the file/token\n", counts.hit_rate(),
               s.per_step(counts.slow_bytes));
  std::fprintf(stderr, "blocks/token          %10.2f in %10.2f out %10.2f without a place\n", s.per_step(counts.admissions),
               s.per_step(counts.evictions), s.per_step(counts.kept_out));
  if (s.tiers->samples)
    std::fprintf(stderr, "sampled recall        %10.3f of %llu samples\n", s.tiers->sampled_recall(),
                 static_cast<unsigned long long>(s.tiers->samples));
}

void print_shares(const char* line, const std::optional<part_seconds>& parts, double seconds) {
  if (parts)
    std::fprintf(stderr, "%-21s %10.3f matrices %10.3f cache %10.3f rest\n", line, parts->matrices / seconds, parts->cache / seconds,
                 (seconds - parts->matrices - parts->cache) / seconds);
  else
    std::fprintf(stderr, "%-21s not measured on the device\n", line);
}

}  // namespace

std::optional<double> run_times::output_token() const {
  if (tokens.size() < 3) return std::nullopt;
  std::vector<double> each(tokens.size() - 2);
  for (std::size_t i = 0; i < each.size(); ++i) each[i] = tokens[i + 2] - tokens[i + 1];
  const auto middle = each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2);
  std::nth_element(each.begin(), middle, each.end());
  return *middle;
}

session_record record_of(const session& of, double index_seconds, const quality_meter* meter) {
  session_record record{of.statistics(), of.memory(), index_seconds, {}};
  if (meter) record.quality = meter->summary();
  return record;
}

void print_device(device_name device, const std::string& description) {
  if (device != device_name::host) std::fprintf(stderr, "device                %s\n", description.c_str());
}

void print_statistics(const session_record& record, const run_times& times, std::size_t prefilled) {
  const session_statistics& s = record.statistics;
  if (times.first_token()) std::fprintf(stderr, "time to first token   %10.3f s\n", *times.first_token());
  if (times.second_token()) std::fprintf(stderr, "time to second token  %10.3f s\n", *times.second_token());
  std::fprintf(stderr, "index                 %10.3f s of work %10.3f s waited for\n", record.index_seconds, times.index_wait);
  std::fprintf(stderr, "prefill               %10.1f tokens/s (%zu tokens)\n", static_cast<double>(prefilled) / times.prefill, prefilled);
  print_shares("prefill, shares", times.prefill_parts, times.prefill);
  std::fprintf(stderr, "decode                %10.1f tokens/s (%llu tokens)\n", s.tokens_per_second(),
               static_cast<unsigned long long>(s.steps - s.fed));
  if (s.fed)
    std::fprintf(stderr, "turns                 %10.1f tokens/s (%llu tokens)\n", s.fed_per_second(),
                 static_cast<unsigned long long>(s.fed));
  if (s.steps) print_shares("decode, shares", s.parts, s.seconds);
  if (s.maintenance && s.maintenance->trainings)
    std::fprintf(stderr, "maintenance           %10.3f s, %llu trainings of an index over %llu layers\n", s.maintenance->seconds,
                 static_cast<unsigned long long>(s.maintenance->trainings), static_cast<unsigned long long>(s.layers));
  std::fprintf(stderr, "KV bytes held         %10zu (index %zu)\n", record.memory.kv_bytes, record.memory.index_bytes);
  std::fprintf(stderr, "KV bytes read/token   %10.0f attended rows", s.per_step(s.attended_bytes));
  if (s.selection)
    std::fprintf(stderr, " %10.0f index %10.0f selector\n", s.per_step(s.selection->index), s.per_step(s.selection->selector));
  else
    std::fprintf(stderr, "; index and selector not measured on the device\n");
  if (s.tiers) print_tiers(s);
}

void print_window(const model_config& config, std::size_t capacity) {
  if (config.outgrows_window(capacity))
    std::fprintf(stderr, "window                %10zu tokens: all of them attend, under every policy\n", config.sliding_window);
}

void print_overlap(const pqkv::overlap_model& machine, std::size_t iterations) {
  std::fprintf(stderr, "k-means iterations    %10zu by the overlap rule (%.3g s per 1000 rows and iteration)\n", iterations,
               1000 * machine.b1);
}

void print_quality(const quality_summary& quality) {
  if (quality.steps == 0) {
    std::fprintf(stderr, "quality               not measured: no token was picked after a decoded one\n");
    return;
  }
  std::fprintf(stderr, "recall                %10.3f mean %10.3f worst head (%zu steps)\n", quality.recall, quality.worst_recall,
               quality.steps);
  std::fprintf(stderr, "attention mass        %10.3f mean %10.3f worst head", quality.mass, quality.worst_mass);
  if (quality.worst_retrieval_mass)
    std::fprintf(stderr, " %10.3f worst of %zu retrieval heads\n", *quality.worst_retrieval_mass, quality.retrieval_heads);
  else
    std::fprintf(stderr, "          - no retrieval head\n");
  std::fprintf(stderr, "output error          %10.3f mean %10.3f worst head", quality.output_error, quality.worst_output_error);
  if (quality.worst_retrieval_output_error) std::fprintf(stderr, " %10.3f worst retrieval head", *quality.worst_retrieval_output_error);
  std::fprintf(stderr, "\n");
}

void print_comparison(std::span<const reply_comparison> compared, const session_record& full) {
  std::fprintf(stderr, "full, for comparison  %10.1f tokens/s decoded, %.0f bytes of rows read/token\n",
               full.statistics.tokens_per_second(), full.statistics.per_step(full.statistics.attended_bytes));
  std::fprintf(stderr, "logits of the policy against full's, token by token, up to where the texts part:\n");
  for (std::size_t turn = 0; turn < compared.size(); ++turn) {
    const reply_comparison& one = compared[turn];
    if (!one.same_before) {
      std::fprintf(stderr, "turn %zu: not compared, an earlier text departs\n", turn + 1);
      continue;
    }
    for (std::size_t step = 0; step < one.steps.size(); ++step)
      std::fprintf(stderr, "turn %zu token %-6zu largest difference %9.4f   mean %9.4f\n", turn + 1, step + 1, one.steps[step].largest,
                   one.steps[step].mean);
    if (one.departs)
      std::fprintf(stderr, "turn %zu: departs from full's text at token %zu\n", turn + 1, *one.departs + 1);
    else
      std::fprintf(stderr, "turn %zu: the same text as full, %zu tokens\n", turn + 1, one.steps.size());
  }
}

json settings_of(const options& o) {
  const pqkv::budget_rule& budget = o.policy.budget;
  const auto& quantizer = o.policy.quantizer;
  return {{"device", name_in(device_names(), o.device)},
          {"threads", o.threads},
          {"tokens", o.tokens},
          {"context", or_null(o.context)},
          {"fresh_turns", o.start == turn_start::fresh},
          {"temperature", o.sampling.temperature},
          {"top_p", o.sampling.top_p},
          {"seed", o.sampling.seed},
          {"policy", name_in(policy_names(), o.policy.name)},
          {"ratio", budget.retrieve ? json(nullptr) : json(budget.ratio)},
          {"retrieve", or_null(budget.retrieve)},
          {"window", or_null(budget.window)},
          {"window_share", budget.window ? json(nullptr) : json(budget.window_share)},
          {"sinks", budget.sinks},
          {"min_tokens", budget.min_tokens},
          {"rows", name_of(o.policy.rows)},
          {"subspaces", quantizer.subspaces},
          {"bits", quantizer.bits},
          {"residual",
           quantizer.residual.used() ? json(code_sizes{quantizer.residual.subspaces, quantizer.residual.bits}.text()) : json(nullptr)},
          {"shortlist", quantizer.residual.used() ? json(quantizer.residual.shortlist) : json(nullptr)},
          {"axes", name_in(axes_names(), quantizer.axes)},
          {"over", name_in(normalisation_names(), quantizer.normalised_over())},
          {"refresh", quantizer.growth()},
          {"refresh_iterations", quantizer.refresh_iterations},
          {"refresh_keys", name_in(renewal_names(), quantizer.renewal)},
          {"metric", name_in(metric_names(), quantizer.metric)},
          {"kv_tier", tier_of(o.policy.tier)},
          {"index_threads", o.policy.index_threads},
          {"preset", o.policy.preset == preset_name::paper ? json("paper") : json(nullptr)},
          {"path", name_in(path_names(), quantizer.path)}};
}

json overlap_of(const pqkv::overlap_model& machine, std::size_t iterations) {
  return {{"clustering_seconds", {{"constant", machine.a1}, {"per_row_and_iteration", machine.b1}}},
          {"layer_seconds", {{"constant", machine.a2}, {"per_token", machine.b2}, {"per_token_squared", machine.c2}}},
          {"iterations", iterations}};
}

json model_of(const options& o, const model_config& config) {
  return {{"path", o.model},
          {"tokenizer", or_null(o.tokenizer)},
          {"chat", or_null(o.chat)},
          {"hidden", config.hidden},
          {"intermediate", config.intermediate},
          {"layers", config.layers},
          {"query_heads", config.query_heads},
          {"kv_heads", config.kv_heads},
          {"head_dim", config.head_dim},
          {"vocabulary", config.vocabulary},
          {"max_positions", config.max_positions},
          {"sliding_window", config.sliding_window != 0 ? json(config.sliding_window) : json(nullptr)}};
}

json memory_of(const footprint& planned, const run_shape& shape) {
  return {{"prompt_tokens", shape.prompt},
          {"capacity_tokens", shape.capacity},
          {"slots", shape.slots},
          {"program_bytes", planned.program},
          {"weight_bytes", planned.weights},
          {"kv_bytes", planned.caches.kv_bytes},
          {"index_bytes", planned.caches.index_bytes},
          {"scratch_bytes", planned.caches.scratch_bytes},
          {"tier_file_bytes", planned.tier_file},
          {"prompt_row_bytes", planned.prompt_rows},
          {"prefill_scratch_bytes", planned.prefill_scratch},
          {"training_scratch_bytes", planned.training_scratch},
          {"step_scratch_bytes", planned.step_scratch},
          {"most_bytes", planned.most()}};
}

json record_of(const session_record& record) {
  const session_statistics& s = record.statistics;
  json out{{"steps", s.steps},
           {"tokens_attended", s.layers ? s.per_step(s.tokens_attended) / static_cast<double>(s.layers) : 0.0},
           {"bytes_per_token", bytes_per_token_of(s)},
           {"decode_tokens_per_second", s.tokens_per_second()},
           {"turn_tokens_per_second", s.fed ? json(s.fed_per_second()) : json(nullptr)},
           {"decode_shares", shares_of(s.parts, s.seconds)},
           {"maintenance", maintenance_of(s)},
           {"tiers", tiers_of(s)},
           {"index_seconds", record.index_seconds}};
  if (record.quality) out["quality"] = quality_of(*record.quality);
  return out;
}

json times_of(const session_record& record, const run_times& times, std::size_t prefilled) {
  return {{"prefill_seconds", times.prefill},
          {"prefill_tokens_per_second", static_cast<double>(prefilled) / times.prefill},
          {"prefill_shares", shares_of(times.prefill_parts, times.prefill)},
          {"index_seconds", record.index_seconds},
          {"index_wait_seconds", times.index_wait},
          {"first_token_seconds", or_null(times.first_token())},
          {"second_token_seconds", or_null(times.second_token())},
          {"output_token_seconds", or_null(times.output_token())},
          {"decode_seconds", record.statistics.seconds},
          {"decode_tokens_per_second", record.statistics.tokens_per_second()}};
}

json reply_of(const reply& given) { return {{"text", given.text}, {"tokens", given.tokens}, {"ended", name_of(given.ended)}}; }

json comparison_of(const reply_comparison& compared, const reply& full) {
  json out{{"full", reply_of(full)}, {"compared", compared.same_before}};
  if (!compared.same_before) return out;
  out["departs_at"] = or_null(compared.departs);
  out["logit_differences"] = json::array();
  for (const logit_difference& step : compared.steps) out["logit_differences"].push_back({{"largest", step.largest}, {"mean", step.mean}});
  return out;
}

json shares_of(const std::optional<part_seconds>& parts, double seconds) {
  if (!parts || seconds <= 0) return nullptr;
  return {{"matrices", parts->matrices / seconds},
          {"cache", parts->cache / seconds},
          {"rest", (seconds - parts->matrices - parts->cache) / seconds}};
}

json bytes_per_token_of(const session_statistics& s) {
  json out{{"rows", s.per_step(s.attended_bytes)}, {"index", nullptr}, {"selector", nullptr}};
  if (!s.selection) return out;
  out["index"] = s.per_step(s.selection->index);
  out["selector"] = s.per_step(s.selection->selector);
  return out;
}

json score_of(const text_score& score) {
  json out{{"tokens", score.tokens}, {"negative_log_likelihood", score.negative_log_likelihood}, {"perplexity", score.perplexity()}};
  if (score.divergence) out["divergence_from_full"] = *score.divergence;
  return out;
}

std::string text_of(const json& document) { return document.dump(1, ' ', false, json::error_handler_t::replace) + "\n"; }

}  // namespace minillama
