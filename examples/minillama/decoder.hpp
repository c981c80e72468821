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
#include "session.hpp"

namespace minillama {

class host_session final : public session {
 public:
  /// Moves the prompt into the caches and builds the selectors' indexes.
  ///
  /// @param room  tokens that may follow the prompt
  /// @throws pqkv::shape_error, pqkv::value_error when model and settings do not fit
  host_session(const model& llama, pool_runner& runner, const policy_settings& settings, const prefilled_prompt& prompt, std::size_t room,
               session_kind kind);

  void fork() override;
  std::span<const float> step(token_id token, const step_observer& observe = {}) override;
  const session_statistics& statistics() const override { return statistics_; }
  pqkv::memory_plan memory() const override;

 private:
  const model& llama_;
  host_policy cpu_;
  std::size_t prompt_tokens_, position_;
  std::size_t slots_, slot_;
  std::vector<std::unique_ptr<layer_cache>> caches_;
  matrix qkv_, attention_;  // [batch, hq*d + 2*h*d], [batch, hq*d]; only the active slot's row is used
  std::vector<float> lse_, logits_;
  std::vector<std::uint8_t> active_;
  session_statistics statistics_;
};

}  // namespace minillama
