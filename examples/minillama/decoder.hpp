// SPDX-License-Identifier: Apache-2.0
// Decoding: one token after the other through all layers, attention by one pqcache a layer. A session keeps a prefilled prompt in
// slot 0; with two slots, any number of continuations start from a fork of it in slot 1 and leave the prompt as it was.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "layer_cache.hpp"
#include "model.hpp"
#include "prefill.hpp"

namespace minillama {

enum class session_kind {
  single,  // decodes behind the prompt itself
  forked   // decodes behind a fork of it; twice the memory
};

/// What a session did since its start, over all forks; counts are the library's, summed over layers.
struct session_statistics {
  std::uint64_t steps = 0;
  std::uint64_t layers = 0;           // of the model
  double seconds = 0;                 // in step(), observers left out
  part_seconds parts;                 // of these
  std::uint64_t tokens_attended = 0;  // sinks, window and retrieved, per KV head
  std::uint64_t attended_bytes = 0;   // rows of K and V that attention read
  std::uint64_t index_bytes = 0;      // codes, counts and id lists
  std::uint64_t selector_bytes = 0;   // codebooks; keys for the oracle

  std::uint64_t bytes() const { return attended_bytes + index_bytes + selector_bytes; }
  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(steps) / seconds : 0; }
  double per_step(std::uint64_t total) const { return steps ? static_cast<double>(total) / static_cast<double>(steps) : 0; }

  /// Adds another session of the same model.
  session_statistics& operator+=(const session_statistics& other);
};

/// What an observer sees of a layer in one step, after attention.
struct layer_step {
  std::size_t layer;
  layer_cache& cache;
  std::size_t slot;
  pqkv::view<const float, 3> query;  // [batch, hq, d]
  pqkv::view<const float, 2> lse;    // [batch, hq]
  pqkv::active_slots active;         // [batch]
};
using step_observer = std::function<void(const layer_step&)>;

class session {
 public:
  /// Moves the prompt into the caches and builds the selectors' indexes.
  ///
  /// @param room  tokens that may follow the prompt
  /// @throws pqkv::shape_error, pqkv::value_error when model and settings do not fit
  session(const model& llama, pool_runner& runner, const policy_settings& settings, const prefilled_prompt& prompt, std::size_t room,
          session_kind kind);

  /// Goes back to the end of the prompt: what follows starts from a fresh fork. Forked sessions only.
  void fork();

  /// Appends a token and computes what follows it.
  ///
  /// @param observe  is called for each layer; its time is not counted
  /// @returns logits[vocabulary], valid until the next step
  /// @throws pqkv::capacity_error when the room is used up
  std::span<const float> step(token_id token, const step_observer& observe = {});

  const session_statistics& statistics() const { return statistics_; }
  const host_policy& policy() const { return cpu_; }
  /// Bytes of keys and values that the session holds, and of its indexes, all layers and slots.
  pqkv::memory_plan memory() const;

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

/// The token of the largest logit, the lowest of equals.
token_id greedy(std::span<const float> logits);

}  // namespace minillama
