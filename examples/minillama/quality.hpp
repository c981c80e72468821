// SPDX-License-Identifier: Apache-2.0
// How good a selection is, measured while decoding against exact attention on the same keys and queries. Averages over heads mislead,
// since diffuse heads dominate them and a few retrieval heads decide the answer: so the worst heads are reported beside the means.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "layer_cache.hpp"
#include "session.hpp"

namespace minillama {

/// Means over the observed steps; "worst" is the lowest of the heads' means, of errors the highest.
struct quality_summary {
  std::size_t steps = 0;
  double recall = 0;  // of the exact top-k of the middle, the share that was retrieved; mean over KV heads
  double worst_recall = 0;
  double mass = 0;  // share of the softmax weight that was attended to; mean over query heads
  double worst_mass = 0;
  double oracle_mass = 0;                        // the same for the exact top-k: the ceiling; 0 for a policy that retrieves nothing
  std::size_t retrieval_heads = 0;               // query heads whose oracle mass is at least 0.9
  std::optional<double> worst_retrieval_mass{};  // lowest mass of these
  double output_error = 0;        // |out - dense| / |dense| of a head's output, dense over the same rows; mean over query heads
  double worst_output_error = 0;  // the highest of the heads' means
  std::optional<double> worst_retrieval_output_error{};  // the same of the retrieval heads
};

class quality_meter {
 public:
  explicit quality_meter(const model_config& config);

  /// An observer for session::step(). Costs dense attention and scores of every key; the session does not count it.
  step_observer observer(const host_policy& cpu);

  quality_summary summary() const;

 private:
  void observe(const host_policy& cpu, const layer_step& step);

  struct head_sum {
    double recall = 0, mass = 0, oracle_mass = 0, output_error = 0;  // recall of the head's KV head
  };

  std::size_t kv_heads_, query_heads_;
  std::size_t window_;            // of the model; 0: none
  float softmax_scale_;           // 0: the library's own
  std::vector<head_sum> heads_;   // [layers, hq]
  std::size_t observations_ = 0;  // layers times steps
  std::size_t layers_;
};

}  // namespace minillama
