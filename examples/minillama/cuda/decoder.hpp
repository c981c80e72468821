// SPDX-License-Identifier: Apache-2.0
// Decoding on the device: attention by one pqkv::device_pqcache a layer, and a whole step, from the token to its logits, in one CUDA
// graph that is captured when the session begins and replayed for every token. Nothing is allocated in a step, and the host waits for
// nothing but the logits.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "../policy.hpp"
#include "../session.hpp"
#include "graph.hpp"
#include "layer_caches.hpp"
#include "model.hpp"
#include "prefill.hpp"

namespace minillama::cuda {

/// How a step gets to the device.
enum class step_launch {
  graph,  // replayed
  eager   // call by call: the same bits, for comparison
};

class device_session final : public session {
 public:
  /// Copies the prompt into the caches, builds their indexes and captures the step. Waits for the device.
  ///
  /// @param llama   outlives it
  /// @param prompt  of the same model; not needed afterwards
  /// @param room    tokens that may follow the prompt
  /// @throws usage_error, pqkv::shape_error, pqkv::value_error when model and settings do not fit; pqkv::cuda_error
  device_session(const device_model& llama, const policy_settings& settings, const device_prompt& prompt, std::size_t room,
                 session_kind kind, step_launch launch = step_launch::graph);

  void fork() override;
  std::span<const float> step(token_id token, const step_observer& observe = {}) override;
  const session_statistics& statistics() const override { return statistics_; }
  pqkv::memory_plan memory() const override { return caches_.memory(); }

 private:
  void enqueue_step();
  void warm_up();
  void go_to_prompt();
  void count_step();
  void maintain_when_due();
  void ask_what_is_trained();

  const device_model& llama_;
  cache_settings settings_;
  pqkv::flat_budget_rule rule_;
  std::size_t prompt_tokens_, last_;  // the slot that decodes
  bool has_middle_;                   // whether there are tokens to rank or to leave out, or ever will be
  layer_caches caches_;
  activations room_;
  pinned_array<token_id> token_;
  pinned_array<float> logits_;
  array<token_id> token_there_;
  array<std::uint32_t> position_;                                        // of the next token
  array<float> x_, queries_, keys_, values_, attention_, logits_there_;  // [hidden], [hq*d], [h*d] twice, [hq*d], [vocabulary]
  graph step_;
  step_launch launch_;

  // Where the device stands, reckoned on the host by the same rule, for reports and maintenance.
  pqkv::sequence at_;
  std::vector<std::uint8_t> trained_;  // of each layer
  std::size_t maintained_at_ = 0;      // length
  session_statistics statistics_;
};

}  // namespace minillama::cuda
