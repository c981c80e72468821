// SPDX-License-Identifier: Apache-2.0
// Names, defaults and their order of precedence as in transformers 5.23, modeling_rope_utils.py; where that one reads two numbers that
// contradict each other and takes either, this refuses.
#include "rotary_config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>

namespace minillama {
namespace {

using nlohmann::json;

constexpr std::size_t most_positions = std::size_t{1} << 24;

double factor_of(const json_reader& inner) {
  const double factor = inner.positive("factor");
  if (factor < 1) inner.fail("factor", "expected 1 or more, got " + inner.at("factor").dump());
  return factor;
}

/// Positions that the model knew before it was stretched; some files have them beside the block, not in it.
double original_positions(const json_reader& object, const json_reader& inner, std::size_t otherwise) {
  const std::string key = "original_max_position_embeddings";
  if (!inner.find(key) && object.find(key)) return static_cast<double>(object.whole(key, 1, most_positions));
  if (!inner.find(key) && otherwise != 0) return static_cast<double>(otherwise);
  const std::size_t positions = inner.whole(key, 1, most_positions);
  if (object.find(key) && object.whole(key, 1, most_positions) != positions)
    object.fail(key, "is " + object.at(key).dump() + ", but " + inner.at(key).dump() + " in " + inner.path_of(key));
  return static_cast<double>(positions);
}

llama3_scaling read_llama3(const json_reader& object, const json_reader& inner) {
  llama3_scaling scaling;
  scaling.factor = factor_of(inner);
  scaling.low_freq_factor = inner.positive("low_freq_factor");
  scaling.high_freq_factor = inner.positive("high_freq_factor");
  scaling.original_positions = original_positions(object, inner, 0);
  if (scaling.low_freq_factor >= scaling.high_freq_factor)
    inner.fail("high_freq_factor", "expected more than the " + inner.at("low_freq_factor").dump() + " of low_freq_factor, got " +
                                       inner.at("high_freq_factor").dump());
  return scaling;
}

/// By how much YaRN lets logits grow with the context.
double yarn_growth(double factor, double weight) { return 0.1 * weight * std::log(factor) + 1; }

yarn_scaling read_yarn(const json_reader& object, const json_reader& inner, std::size_t positions) {
  yarn_scaling scaling;
  scaling.original_positions = original_positions(object, inner, positions);
  scaling.factor = inner.find("factor") ? factor_of(inner) : std::max(1.0, static_cast<double>(positions) / scaling.original_positions);
  scaling.beta_fast = inner.positive_or("beta_fast", 32);
  scaling.beta_slow = inner.positive_or("beta_slow", 1);
  if (scaling.beta_fast <= scaling.beta_slow)
    inner.fail("beta_fast",
               "expected more than the " + std::to_string(scaling.beta_slow) + " of beta_slow, got " + std::to_string(scaling.beta_fast));
  scaling.whole_pairs = inner.flag_or("truncate", true);
  scaling.attention_factor = yarn_growth(scaling.factor, 1);
  if (inner.find("mscale") && inner.find("mscale_all_dim"))
    scaling.attention_factor =
        yarn_growth(scaling.factor, inner.positive("mscale")) / yarn_growth(scaling.factor, inner.positive("mscale_all_dim"));
  scaling.attention_factor = inner.positive_or("attention_factor", scaling.attention_factor);
  return scaling;
}

rotary_scaling scaling_of(const json_reader& object, const json_reader& inner, std::size_t positions) {
  const std::string key = inner.find("type") && !inner.find("rope_type") ? "type" : "rope_type";
  const json type = inner.find(key) ? *inner.find(key) : json("default");
  if (type == "default") return {};
  if (type == "linear") return linear_scaling{factor_of(inner)};
  if (type == "llama3") return read_llama3(object, inner);
  if (type == "yarn") return read_yarn(object, inner, positions);
  if (type == "dynamic") {  // begins to change beyond max_position_embeddings, which no sequence here gets to
    factor_of(inner);
    return {};
  }
  inner.fail(key, "unsupported: " + type.dump() + R"( (only "default", "linear", "dynamic", "llama3" and "yarn"))");
}

void refuse_unknown_keys(const json_reader& inner) {
  constexpr std::array known{"rope_type",
                             "type",
                             "rope_theta",
                             "factor",
                             "low_freq_factor",
                             "high_freq_factor",
                             "beta_fast",
                             "beta_slow",
                             "mscale",
                             "truncate",
                             "attention_factor",
                             "original_max_position_embeddings",
                             "mscale_all_dim",
                             "finetuned",
                             "partial_rotary_factor"};
  for (const std::string& key : inner.keys())
    if (std::find(known.begin(), known.end(), key) == known.end()) inner.fail(key, "unsupported: not a key of rotary embedding");
}

}  // namespace

void read_rotary(const json_reader& object, std::size_t positions, model_config& config) {
  const json *newer = object.find("rope_parameters"), *older = object.find("rope_scaling");
  if (older && older->empty()) older = nullptr;  // as null
  if (newer && older && *newer != *older)
    object.fail("rope_scaling", "is given beside rope_parameters, and differs: transformers reads it alone, other programs the other");
  std::optional<json_reader> inner;
  if (newer || older) inner = object.inside(newer ? "rope_parameters" : "rope_scaling");
  const json_reader& base = inner && inner->find("rope_theta") ? *inner : object;
  config.rope_theta = base.positive_or("rope_theta", 10000.0);
  if (config.rope_theta <= 1) base.fail("rope_theta", "expected a base above 1, got " + base.at("rope_theta").dump());
  if (!inner) return;
  if (inner->positive_or("partial_rotary_factor", 1.0) != 1.0)
    inner->fail("partial_rotary_factor", "unsupported: " + inner->at("partial_rotary_factor").dump() + " (only 1)");
  config.rope_scaling = scaling_of(object, *inner, positions);
  refuse_unknown_keys(*inner);
}

}  // namespace minillama
