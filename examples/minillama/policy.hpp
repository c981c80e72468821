// SPDX-License-Identifier: Apache-2.0
// How a session attends: the selector's name, how many tokens, and what the quantizer needs. Chosen at run time, so that a comparison
// is one flag.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <map>
#include <optional>
#include <pqkv/pqkv.hpp>
#include <string>

#include "pool_runner.hpp"
#include "tier_settings.hpp"

namespace minillama {

/// The library's execution policy on this program's threads.
using host_policy = pqkv::exec::host<pqkv::isa::best, pool_runner&>;

enum class policy_name { full, pq, oracle, streaming, snapkv, h2o, sparq, quest, infllm };

inline const std::map<std::string, policy_name>& policy_names() {
  static const std::map<std::string, policy_name> names{
      {"full", policy_name::full},           {"pq", policy_name::pq},         {"oracle", policy_name::oracle},
      {"streaming", policy_name::streaming}, {"snapkv", policy_name::snapkv}, {"h2o", policy_name::h2o},
      {"sparq", policy_name::sparq},         {"quest", policy_name::quest},   {"infllm", policy_name::infllm}};
  return names;
}

/// Methods of other papers, for comparison: on the host alone, and only where they are asked for by name.
inline bool is_compared_method(policy_name name) {
  using enum policy_name;
  return name == snapkv || name == h2o || name == sparq || name == quest || name == infllm;
}

inline const std::map<std::string, pqkv::selector::renewal_scope>& renewal_names() {
  static const std::map<std::string, pqkv::selector::renewal_scope> names{{"new", pqkv::selector::renewal_scope::new_keys},
                                                                          {"all", pqkv::selector::renewal_scope::all_keys}};
  return names;
}
inline const std::map<std::string, pqkv::axis_order>& axes_names() {
  static const std::map<std::string, pqkv::axis_order> names{{"contiguous", pqkv::axis_order::contiguous},
                                                             {"rotary", pqkv::axis_order::rotary_halves},
                                                             {"weighted", pqkv::axis_order::weighted_pairs}};
  return names;
}

inline const std::map<std::string, pqkv::selector::normalisation>& normalisation_names() {
  static const std::map<std::string, pqkv::selector::normalisation> names{{"middle", pqkv::selector::normalisation::middle},
                                                                          {"attended", pqkv::selector::normalisation::attended}};
  return names;
}

/// What a cache keeps a key or value as.
enum class row_format {
  float32,
  int8  // 8-bit integers and a scale (pqkv::quantized_rows)
};

inline const std::map<std::string, row_format>& row_format_names() {
  static const std::map<std::string, row_format> names{{"float", row_format::float32}, {"int8", row_format::int8}};
  return names;
}

inline std::string name_of(row_format rows) {
  for (const auto& [name, format] : row_format_names())
    if (format == rows) return name;
  return {};
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

/// Codes as "2x6" (subspaces x bits), and after a plus sign those of a second stage: "2x6+4x8".
struct code_sizes {
  std::size_t subspaces = 4;
  unsigned bits = 8;
  std::size_t fine_subspaces = 0;  // 0: one stage
  unsigned fine_bits = 8;

  /// None where the text says something else; whether the library has such codes is its own to say.
  static std::optional<code_sizes> parse(const std::string& text) {
    code_sizes sizes;
    int end = 0;
    const auto whole = [&] { return static_cast<std::size_t>(end) == text.size(); };
    if (text.find_first_not_of("0123456789x+") != std::string::npos) return std::nullopt;
    if (std::sscanf(text.c_str(), "%3zux%3u%n", &sizes.subspaces, &sizes.bits, &end) == 2 && whole()) return sizes;
    if (std::sscanf(text.c_str(), "%3zux%3u+%3zux%3u%n", &sizes.subspaces, &sizes.bits, &sizes.fine_subspaces, &sizes.fine_bits, &end) ==
            4 &&
        whole() && sizes.fine_subspaces != 0)
      return sizes;
    return std::nullopt;
  }
  std::string text() const {
    const auto one = [](std::size_t m, unsigned b) { return std::to_string(m) + "x" + std::to_string(b); };
    return fine_subspaces == 0 ? one(subspaces, bits) : one(subspaces, bits) + "+" + one(fine_subspaces, fine_bits);
  }
  void apply(pqkv::selector::pq::params& to) const {
    to.subspaces = subspaces;
    to.bits = bits;
    to.residual.subspaces = fine_subspaces;
    to.residual.bits = fine_bits;
  }
};

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
  row_format rows = row_format::float32;
  tier_settings tier{};
  std::size_t index_threads = 0;  // beside the model's, that build indexes while it computes a prompt; 0: the model's own, in between

  /// Takes over what PQCache's paper does differently, but for the overlap model.
  void use_paper_preset() {
    const auto paper = pqkv::preset::paper({}, budget.ratio, {});
    preset = preset_name::paper;
    budget.sinks = paper.budget.sinks;
    budget.window_share = paper.budget.window_share;
    budget.growth = paper.budget.growth;
    quantizer.subspaces = paper.selector.subspaces;
    quantizer.bits = paper.selector.bits;
    quantizer.axes = paper.selector.axes;
    quantizer.over = paper.selector.over;
    quantizer.train.rows_per_centroid = paper.selector.train.rows_per_centroid;
    quantizer.overlap_most = paper.selector.overlap_most;
    quantizer.refresh = paper.selector.refresh;
  }

  /// For caches that are shown no queries: axes as they are without, by name.
  void show_no_queries() {
    if (quantizer.axes == pqkv::axis_order::weighted_pairs) quantizer.axes = pqkv::axis_order::rotary_halves;
  }

  /// Keeps the floor of a budget by ratio above the sinks: 32 tokens beyond them, where the library's own floor leaves fewer.
  void raise_floor() { budget.min_tokens = std::max(pqkv::budget_rule{}.min_tokens, budget.sinks + 32); }

  /// How many of a prompt's last tokens have queries that the selector must be shown.
  std::size_t shown_queries() const {
    if (name == policy_name::snapkv) return pqkv::selector::snapkv::params{}.observation_tokens;
    const bool weighs_axes = name == policy_name::pq && quantizer.axes == pqkv::axis_order::weighted_pairs;
    const bool wants_all = weighs_axes || name == policy_name::h2o || name == policy_name::infllm;
    return wants_all ? static_cast<std::size_t>(-1) : 0;
  }

  /// The rule for a prompt of n tokens. A share of the tokens is one of rows of 16 bits: rows of 8 bits are so many more as have the same
  /// bytes. Streaming has nothing to retrieve, so its window takes what the others share between window and retrieved tokens: policies are
  /// compared at equal tokens.
  pqkv::budget_rule budget_for(std::size_t n, std::size_t head_dim) const {
    pqkv::budget_rule rule = budget;
    if (rows == row_format::int8) rule.ratio = pqkv::quantized_rows<>::equal_bytes_ratio(rule.ratio, head_dim);
    if (name != policy_name::streaming) return rule;
    if (rule.window || rule.retrieve) {
      const pqkv::token_budget tokens = rule.at(n);
      rule.window = tokens.window + tokens.retrieve;
    } else {
      rule.window_share = 1;  // of the budget at every step, as the others'
    }
    rule.retrieve = 0;
    return rule;
  }
};

}  // namespace minillama
