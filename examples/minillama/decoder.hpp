// SPDX-License-Identifier: Apache-2.0
// Decoding on the host: attention by one pqcache a layer. A session keeps a prefilled prompt in slot 0; with two slots, any number of
// continuations start from a fork of it in slot 1 and leave the prompt as it was.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "layer_cache.hpp"
#include "model.hpp"
#include "prefill.hpp"
#include "random_source.hpp"
#include "session.hpp"

namespace minillama {

class host_session final : public session {
 public:
  /// Moves the prompt into the caches and builds the selectors' indexes.
  ///
  /// @param room  tokens that may follow the prompt
  /// @throws pqkv::shape_error, pqkv::value_error when model and settings do not fit; std::logic_error when the prompt's rows are gone
  host_session(const model& llama, pool_runner& runner, const policy_settings& settings, const prefilled_prompt& prompt, std::size_t room,
               session_kind kind);
  /// The same for a prompt that nobody needs afterwards: each layer's rows are given back as soon as its cache has them.
  host_session(const model& llama, pool_runner& runner, const policy_settings& settings, prefilled_prompt&& prompt, std::size_t room,
               session_kind kind);

  /// With empty caches, all of whose memory and files are there, for a prompt whose rows are still to come: take_layer() of each layer in
  /// turn, and then begin().
  host_session(const model& llama, pool_runner& runner, const policy_settings& settings, std::size_t prompt_tokens, std::size_t room,
               session_kind kind);
  /// @param cpu  may be of other threads than the session's
  void take_layer(const host_policy& cpu, std::size_t layer, const prefilled_prompt::layer& rows);
  void begin();

  void fork() override;
  std::span<const float> step(token_id token, const step_observer& observe = {}) override { return feed({&token, 1}, observe); }
  /// Puts up to step_tokens tokens at once through the layers, each query with the tokens up to its own.
  std::span<const float> feed(std::span<const token_id> tokens, const step_observer& observe = {}) override;
  const session_statistics& statistics() const override { return statistics_; }
  pqkv::memory_plan memory() const override;

  /// Bytes that a session takes beside its caches, with so many tokens in a step.
  static std::size_t step_scratch_bytes(const model_config& config, std::size_t tokens);

 private:
  struct without_caches {};
  host_session(without_caches, const model& llama, pool_runner& runner, const policy_settings& settings, std::size_t tokens,
               std::size_t room, session_kind kind);
  void check_rows(const prefilled_prompt& prompt) const;
  void make_cache();
  enum class wanted { nothing, logits };  // of a step's last token
  void step(std::span<const token_id> tokens, wanted result, const step_observer& observe);
  void run_layer(std::size_t layer, rows_view x, const step_observer& observe);
  void sample(const layer_step& step);
  void lap(double* part);

  const model& llama_;
  host_policy cpu_;
  std::size_t prompt_tokens_, capacity_;
  policy_settings settings_;  // of the layers
  std::size_t shown_queries_, position_;
  std::uint32_t slot_;
  std::vector<std::unique_ptr<layer_cache>> caches_;
  matrix qkv_, attention_;  // [step_tokens, hq*d + 2*h*d], [step_tokens, hq*d]
  std::vector<float> lse_, logits_;
  lap_clock clock_;  // of a step
  session_statistics statistics_;
  random_source drawn_;  // for sample(), with what follows
  std::uint64_t next_sample_ = 0, samples_ = 0;
};

}  // namespace minillama
