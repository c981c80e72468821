// SPDX-License-Identifier: Apache-2.0
// How a session attends: the selector's name, how many tokens, and what the quantizer needs. Chosen at run time, so that a comparison
// is one flag.
#pragma once
#include <cstddef>
#include <map>
#include <pqkv/pqkv.hpp>
#include <string>

#include "pool_runner.hpp"

namespace minillama {

/// The library's execution policy on this program's threads.
using host_policy = pqkv::exec::host<pqkv::isa::best, pool_runner&>;

enum class policy_name { full, pq, oracle, streaming };

inline const std::map<std::string, policy_name>& policy_names() {
  static const std::map<std::string, policy_name> names{
      {"full", policy_name::full}, {"pq", policy_name::pq}, {"oracle", policy_name::oracle}, {"streaming", policy_name::streaming}};
  return names;
}

inline const std::map<std::string, pqkv::search_path>& path_names() {
  static const std::map<std::string, pqkv::search_path> names{
      {"auto", pqkv::search_path::automatic}, {"joint", pqkv::search_path::joint}, {"scan", pqkv::search_path::scan}};
  return names;
}

inline const std::map<std::string, pqkv::key_metric>& metric_names() {
  static const std::map<std::string, pqkv::key_metric> names{{"l2", pqkv::key_metric::squared_l2}, {"ip", pqkv::key_metric::inner_product}};
  return names;
}

/// Settings that belong together (pqkv/preset.hpp).
enum class preset_name {
  library,
  paper  // needs calibrate() before its first session
};

struct policy_settings {
  policy_name name = policy_name::pq;
  pqkv::budget_rule budget{};
  pqkv::selector::pq::params quantizer{};
  preset_name preset = preset_name::library;

  /// Takes over what PQCache's paper does differently, but for the overlap model.
  void use_paper_preset() {
    const auto paper = pqkv::preset::paper({}, budget.ratio, {});
    preset = preset_name::paper;
    budget.window_share = paper.budget.window_share;
    budget.growth = paper.budget.growth;
    quantizer.train.rows_per_centroid = paper.selector.train.rows_per_centroid;
    quantizer.overlap_most = paper.selector.overlap_most;
  }

  /// The rule for a prompt of n tokens. Streaming has nothing to retrieve, so its window takes what the others share between window
  /// and retrieved tokens: policies are compared at equal tokens.
  pqkv::budget_rule budget_for(std::size_t n) const {
    pqkv::budget_rule rule = budget;
    if (name != policy_name::streaming) return rule;
    const pqkv::token_budget tokens = rule.at(n);
    rule.window = tokens.window + tokens.retrieve;
    rule.retrieve = 0;
    return rule;
  }
};

}  // namespace minillama
