// SPDX-License-Identifier: Apache-2.0
// What decodes: tokens after a prefilled prompt, whether on the host (decoder.hpp) or on a GPU (cuda/decoder.hpp).
// A forked session keeps the prompt as it was, and any number of continuations start from a fork of it.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <pqkv/cache/tiered_rows.hpp>
#include <span>

#include "config.hpp"
#include "part_seconds.hpp"

namespace minillama {

class layer_cache;

enum class session_kind {
  single,  // decodes after the prompt itself
  forked   // decodes after a fork of it; twice the memory
};

/// Bytes that selection read; where a step is one launch nobody counts them.
struct selection_bytes {
  std::uint64_t index = 0;     // codes, counts and id lists
  std::uint64_t selector = 0;  // codebooks; keys for the oracle
};

/// What it took to keep the index fit for a sequence that grows.
struct maintenance_cost {
  double seconds = 0;           // in maintain(), over all layers: training, encoding anew, merging id lists
  std::uint64_t trainings = 0;  // that succeeded, over all layers; the prompt's own is not one of them
  std::uint64_t codes = 0;      // that these wrote, over all layers
};

/// What a session with a tier read from its file, and how well its selection did in samples.
struct tier_record {
  pqkv::tier_statistics counts{};  // over all layers
  double recall = 0;               // summed over samples: an estimate of the share of the exact top-k that was selected (recall_sample.hpp)
  std::uint64_t samples = 0;

  double sampled_recall() const { return samples != 0 ? recall / static_cast<double>(samples) : 0; }
  tier_record& operator+=(const tier_record& other);
};

/// What a session did since its start, over all forks; counts are the library's, summed over layers.
struct session_statistics {
  std::uint64_t steps = 0;                        // tokens
  std::uint64_t layers = 0;                       // of the model
  double seconds = 0;                             // in step() and feed(), observers left out
  std::uint64_t fed = 0;                          // of the steps, those of tokens that went through the layers with others
  double fed_seconds = 0;                         // of these
  std::optional<part_seconds> parts{};            // of these; none where a step is one launch
  std::uint64_t tokens_attended = 0;              // sinks, window and retrieved, per KV head
  std::uint64_t attended_bytes = 0;               // rows of K and V that attention read
  std::optional<selection_bytes> selection{};     // none where nobody counts
  std::optional<maintenance_cost> maintenance{};  // of the time above; none where nobody counts
  std::optional<tier_record> tiers{};             // none without a tier

  /// Of tokens one by one, which is what decoding is; 0 without one.
  double tokens_per_second() const { return steps > fed ? static_cast<double>(steps - fed) / (seconds - fed_seconds) : 0; }
  double fed_per_second() const { return fed > 0 ? static_cast<double>(fed) / fed_seconds : 0; }
  double per_step(std::uint64_t total) const { return steps ? static_cast<double>(total) / static_cast<double>(steps) : 0; }

  /// Adds another session of the same model on the same device.
  session_statistics& operator+=(const session_statistics& other);
};

/// What an observer sees of a layer in one step, after attention: the step's last token.
struct layer_step {
  std::size_t layer;
  layer_cache& cache;
  std::size_t slot;
  pqkv::view<const float, 3> query;  // [1, hq, d]
  pqkv::view<const float, 3> out;    // [1, hq, d] of attention
  pqkv::view<const float, 2> lse;    // [1, hq]
  pqkv::cache_step token;            // names the slot alone: retrieve() gives its last token's lists
};
using step_observer = std::function<void(const layer_step&)>;

class session {
 public:
  virtual ~session() = default;

  /// Goes back to the end of the prompt: what follows starts from a fresh fork. Forked sessions only.
  virtual void fork() = 0;

  /// Appends a token and computes what follows it.
  ///
  /// @param observe  is called for each layer; its time is not counted. Host sessions only
  /// @returns logits[vocabulary] in host memory, valid until the next step
  /// @throws pqkv::capacity_error when the room is used up; std::logic_error where there is nothing to observe
  virtual std::span<const float> step(token_id token, const step_observer& observe = {}) = 0;

  /// Appends tokens that are known beforehand, a turn for example: as step() of one after the other, but it may take several at once.
  ///
  /// @param tokens   at least one
  /// @param observe  is called for each layer of the last token
  /// @returns logits[vocabulary] after the last token, as step()
  /// @throws as step(); the tokens that had room are appended then
  virtual std::span<const float> feed(std::span<const token_id> tokens, const step_observer& observe = {});

  virtual const session_statistics& statistics() const = 0;
  /// Bytes of keys and values that the session holds, and of its indexes, all layers and slots.
  virtual pqkv::memory_plan memory() const = 0;
};

/// The largest of a model's logits. Weights that are finite can still give sums that are not: then no token is the model's answer.
///
/// @param logits  [vocabulary], not empty
/// @throws std::domain_error when a logit is NaN or +infinity, and names its token, or when all are -infinity
float largest_logit(std::span<const float> logits);

/// The token of the largest logit, the lowest of equals. @throws as largest_logit()
token_id greedy(std::span<const float> logits);

}  // namespace minillama
