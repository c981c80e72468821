// SPDX-License-Identifier: Apache-2.0
// The measurement: many questions over many contexts, needles and lists in turn, every policy on the same ones; a table and JSON.
#pragma once
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "interview.hpp"

namespace minillama {

enum class path_check {
  none,
  both  // every pq policy under the joint path and under the scan, whose answers must agree
};

enum class measured_by {
  answers,  // right or wrong, and the bytes read
  heads     // recall and attention mass of every head too, which takes longer than the answers. On the host
};

struct evaluation_settings {
  std::size_t length = 8192;  // tokens of a context
  std::size_t contexts = 10;
  std::size_t questions = 100;  // over all contexts
  std::uint64_t seed = 0;       // of contexts, questions and codebooks
  pqkv::search_path path = pqkv::search_path::automatic;
  path_check check = path_check::none;
  measured_by measure = measured_by::heads;
  std::set<policy_name> policies;                     // which of the contestants take part beside full; empty: the usual
  std::set<std::size_t> ratios;                       // pq, oracle and streaming at 1/this; empty: the usual contestants
  std::vector<code_sizes> codes;                      // of pq, each a contestant; empty: 4x8. Under ratios
  std::optional<pqkv::axis_order> axes;               // not given: the library's default
  std::optional<pqkv::selector::normalisation> over;  // the same
  row_format rows = row_format::float32;              // of every policy's cache
  std::optional<std::size_t> sinks;                   // first tokens, always attended to; default: the budget rule's
  std::optional<std::size_t> window;                  // most recent tokens, likewise; default: the budget rule's share
  device_name device = device_name::host;             // of the engine. Recall and mass are measured only on the host
};

/// full, then the policies that are asked for.
std::vector<contestant> contestants_of(const evaluation_settings& settings);

struct evaluation {
  std::vector<interview> interviews;  // full; pq 4x8 at 1/5, 1/10, 1/40, 2x6 at 1/10; oracle and streaming at 1/10 and 1/40; or by ratios
  nlohmann::json json;                // settings, prefill's speed, policies with what full got right and they lost, all answers
  std::size_t path_differences = 0;   // answers that the joint path and the scan give differently, under path_check::both
};

/// @param runner  measures on the host
/// @throws std::invalid_argument when a context does not hold its questions, or the model the context
evaluation evaluate(engine& computing, const model_config& config, const examiner& examining, pool_runner& runner, const std::string& text,
                    const evaluation_settings& settings);

}  // namespace minillama
