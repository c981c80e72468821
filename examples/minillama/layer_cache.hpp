// SPDX-License-Identifier: Apache-2.0
// One layer's pqcache behind a virtual interface, so that the selector is chosen at run time. The library's own face is a template; an
// engine with one policy would use pqkv::pqcache directly and needs nothing of this file.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>

#include "config.hpp"
#include "policy.hpp"

namespace minillama {

/// Tokens of one slot that a session puts through a layer at once: the products with weights have reached their speed by then.
inline constexpr std::size_t step_tokens = 64;

class layer_cache {
 public:
  virtual ~layer_cache() = default;

  /// Stores a prompt's keys and values [h, n, d] in a slot and builds the selector's index.
  virtual void prefill(const host_policy& cpu, std::size_t slot, pqkv::view<const float, 3> keys, pqkv::view<const float, 3> values) = 0;
  /// Shows the selector queries [n, hq, d] of the prompt's last n tokens, before prefill(). Most selectors make no use of them.
  virtual void observe(const host_policy& cpu, std::size_t slot, pqkv::view<const float, 3> queries) = 0;
  /// One step's keys and values [tokens, h, d].
  virtual void append(const host_policy& cpu, pqkv::view<const float, 3> keys, pqkv::view<const float, 3> values,
                      const pqkv::cache_step& step) = 0;
  /// Attention of queries [tokens, hq, d] into out [tokens, hq, d], with its log-sum-exp [tokens, hq].
  virtual void attend(const host_policy& cpu, pqkv::view<const float, 3> query, pqkv::view<float, 3> out, pqkv::view<float, 2> lse,
                      const pqkv::cache_step& step) = 0;
  /// What attend() selects of the middle: positions [tokens, h, k_max], padded with -1, and counts [tokens, h].
  virtual void retrieve(const host_policy& cpu, pqkv::view<const float, 3> query, pqkv::view<std::int32_t, 3> indices,
                        pqkv::view<std::uint32_t, 2> counts, const pqkv::cache_step& step) = 0;
  virtual void fork(const host_policy& cpu, std::size_t from, std::size_t to) = 0;
  virtual void maintain(const host_policy& cpu) = 0;

  /// How many of the next `most` tokens a step may append, at least 1, so that maintain() trains after the same token as it would if it
  /// were called after each: the first training of a slot must not come late, nor one that renews its codebook.
  virtual std::size_t tokens_until_learning(std::size_t slot, std::size_t most) const = 0;
  virtual std::size_t retrieve_capacity(std::size_t slot) const = 0;
  virtual pqkv::middle_range middle(std::size_t slot) const = 0;
  /// Keys and values of one slot, [h, n, d]; of rows that are not floats a copy, until the next call.
  virtual pqkv::strided_store<float> store(std::size_t slot) const = 0;
  virtual const pqkv::slot_statistics& statistics(std::size_t slot) const = 0;
  /// What a slot read from its file and found in memory; none where all rows are in memory.
  virtual std::optional<pqkv::tier_statistics> tiers(std::size_t slot) const = 0;
  virtual const pqkv::memory_plan& memory() const = 0;
};

/// Makes the cache of one layer.
///
/// @param rule      how many tokens attend
/// @param slots     sequences it holds
/// @param capacity  tokens of one slot
/// @throws pqkv::shape_error, pqkv::value_error when the model's heads or the settings do not fit the library; load_error when the file
///         of a tier cannot be made
std::unique_ptr<layer_cache> make_layer_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                              std::size_t slots, std::size_t capacity);

/// Bytes that make_layer_cache() would take with the same arguments; takes none itself. @throws as make_layer_cache()
pqkv::memory_plan plan_layer_cache(const policy_settings& settings, const pqkv::budget_rule& rule, const model_config& config,
                                   std::size_t slots, std::size_t capacity);

}  // namespace minillama
