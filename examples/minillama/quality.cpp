// SPDX-License-Identifier: Apache-2.0
// Attention mass = exp(lse of what was attended - lse of everything). Recall: against the exact top-k by the same reduction.
#include "quality.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace minillama {
namespace {

constexpr double retrieval_head_mass = 0.9;  // of the oracle

struct attended {
  std::vector<float> out;  // [hq, d]
  std::vector<float> lse;  // [hq]
};

/// Attention of the queries over the tokens given.
attended attend_to(const host_policy& cpu, pqkv::view<const float, 2> query, const pqkv::strided_store<float>& store,
                   const pqkv::token_set<>& tokens, float scale) {
  attended made{std::vector<float>(query.extent(0) * query.extent(1)), std::vector<float>(query.extent(0))};
  pqkv::attention(cpu, query, store, tokens, pqkv::make_view(made.out.data(), query.extent(0), query.extent(1)),
                  pqkv::make_view(made.lse.data(), made.lse.size()), scale);
  return made;
}

/// |a - b| / |b|; 0 where both are 0.
double relative_error(const float* a, const float* b, std::size_t d) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < d; ++i) {
    const double x = a[i], y = b[i];
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

}  // namespace

quality_meter::quality_meter(const model_config& config)
    : kv_heads_(config.kv_heads),
      query_heads_(config.query_heads),
      window_(config.sliding_window),
      softmax_scale_(config.softmax_scale()),
      heads_(config.layers * config.query_heads),
      layers_(config.layers) {}

step_observer quality_meter::observer(const host_policy& cpu) {
  return [this, cpu](const layer_step& step) { observe(cpu, step); };
}

void quality_meter::observe(const host_policy& cpu, const layer_step& step) {
  const auto query = step.query[0];
  const auto store = step.cache.store(step.slot);
  const pqkv::middle_range middle = step.cache.middle(step.slot);
  const auto n = static_cast<std::uint32_t>(store.tokens());

  // What the model would attend to. Behind its window there is nothing, and a layer that has one attends to all of it.
  const bool leaves_window = window_ != 0 && n > window_;
  const pqkv::token_span whole =
      leaves_window ? pqkv::token_span{0, n - static_cast<std::uint32_t>(window_), n} : pqkv::token_span{n, n, n};
  const std::vector<pqkv::token_span> everything(kv_heads_, whole);
  const attended dense = attend_to(cpu, query, store, {pqkv::make_view(everything.data(), kv_heads_), {}, {}}, softmax_scale_);

  // The exact top-k of the middle, and the attention mass that it would have reached.
  const std::size_t k = middle.selected();
  const std::vector<pqkv::middle_range> ranges(kv_heads_, middle);
  std::vector<float> scores(kv_heads_ * std::max<std::size_t>(middle.size(), 1));
  std::vector<std::int32_t> exact(kv_heads_ * std::max<std::size_t>(k, 1));
  const auto exact_view = pqkv::make_view(exact.data(), kv_heads_, k);
  if (k > 0) {
    const auto score_view = pqkv::make_view(scores.data(), kv_heads_, std::size_t{middle.size()});
    pqkv::exact_scores(cpu, query, store, pqkv::make_view(ranges.data(), kv_heads_), pqkv::group_reduction::probability_sum, score_view,
                       softmax_scale_);
    pqkv::top_k(cpu, score_view, exact_view);
    for (std::int32_t& token : exact) token += static_cast<std::int32_t>(middle.begin);
  }
  const std::vector<pqkv::token_span> kept(kv_heads_, {middle.begin, middle.end, n});
  const std::vector<std::uint32_t> exact_counts(kv_heads_, static_cast<std::uint32_t>(k));
  const attended oracle =
      attend_to(cpu, query, store, {pqkv::make_view(kept.data(), kv_heads_), exact_view, pqkv::make_view(exact_counts.data(), kv_heads_)},
                softmax_scale_);

  // What the policy retrieves for the same queries.
  const std::size_t most = step.cache.retrieve_capacity(step.slot);
  std::vector<std::int32_t> found(kv_heads_ * most);
  std::vector<std::uint32_t> counts(kv_heads_);
  const auto counts_view = pqkv::make_view(counts.data(), 1, kv_heads_);
  step.cache.retrieve(cpu, step.query, pqkv::make_view(found.data(), 1, kv_heads_, most), counts_view, step.token);

  const std::size_t group = query_heads_ / kv_heads_;
  for (std::size_t head = 0; head < kv_heads_; ++head) {
    const std::int32_t* wanted = exact.data() + head * k;
    const std::int32_t* got = found.data() + head * most;
    std::vector<std::int32_t> both;
    std::set_intersection(wanted, wanted + k, got, got + counts[head], std::back_inserter(both));
    const double recall = k > 0                                 ? static_cast<double>(both.size()) / static_cast<double>(k)
                          : middle.size() == 0 || leaves_window ? 1.0
                                                                : 0.0;
    for (std::size_t q = head * group; q < (head + 1) * group; ++q) {
      head_sum& sum = heads_[step.layer * query_heads_ + q];
      sum.recall += recall;
      sum.mass += std::exp(static_cast<double>(step.lse(0, q)) - static_cast<double>(dense.lse[q]));
      if (k > 0) sum.oracle_mass += std::exp(static_cast<double>(oracle.lse[q]) - static_cast<double>(dense.lse[q]));
      sum.output_error += relative_error(&step.out(0, q, 0), &dense.out[q * query.extent(1)], query.extent(1));
    }
  }
  ++observations_;
}

quality_summary quality_meter::summary() const {
  quality_summary all;
  all.steps = observations_ / layers_;
  if (all.steps == 0) return all;
  const auto steps = static_cast<double>(all.steps), heads = static_cast<double>(heads_.size());
  all.worst_recall = all.worst_mass = 1;
  for (const head_sum& head : heads_) {
    const double recall = head.recall / steps, mass = head.mass / steps, oracle_mass = head.oracle_mass / steps;
    const double output_error = head.output_error / steps;
    all.recall += recall / heads;
    all.mass += mass / heads;
    all.oracle_mass += oracle_mass / heads;
    all.worst_recall = std::min(all.worst_recall, recall);
    all.worst_mass = std::min(all.worst_mass, mass);
    all.output_error += output_error / heads;
    all.worst_output_error = std::max(all.worst_output_error, output_error);
    if (oracle_mass < retrieval_head_mass) continue;
    ++all.retrieval_heads;
    all.worst_retrieval_mass = std::min(all.worst_retrieval_mass.value_or(1.0), mass);
    all.worst_retrieval_output_error = std::max(all.worst_retrieval_output_error.value_or(0.0), output_error);
  }
  return all;
}

}  // namespace minillama
