// SPDX-License-Identifier: Apache-2.0
// The engine: slots of sequences of any lengths; prompts in, then steps of one or several tokens for some of the slots, forks and cuts.
// Every thread of the team runs the same program over the layers; within it the first thread calls pqkv's cache of the layer.
#pragma once

#include <span>
#include <vector>

#include "dense_check.hpp"
#include "model.hpp"
#include "team.hpp"

namespace engine {

/// A layer's cache: the policy, over rows in the engine's pages. All layers read the same block table.
using layer_cache = pqkv::pqcache<pqkv::paged_rows<bfloat16>, pqkv::selector::pq>;

struct engine_settings {
  model_shape model;
  std::size_t slots = 3;
  std::size_t capacity = 2560;  // tokens of a slot
  std::size_t pages = 50;       // of keys and values, for all slots together
  std::size_t subspaces = 2;
  unsigned bits = 5;
  pqkv::budget_rule budget{.ratio = 0.1, .min_tokens = 64, .sinks = 16};

  std::size_t pages_of_slot() const { return (capacity + page_tokens - 1) / page_tokens; }
  /// What a layer's cache is made with, but for the rows.
  layer_cache::params cache() const;
};

/// Tokens that a step adds to a slot.
struct fed_tokens {
  std::uint32_t slot;
  std::span<const unsigned> tokens;
};

class decoder {
 public:
  /// What pqkv would refuse, before any memory is taken.
  static pqkv::status can_run(const engine_settings& s);
  /// Of the slab. The caches take their indexes and scratch themselves, as layer_cache::plan() says.
  static std::size_t memory_bytes(const engine_settings& s);

  decoder(const engine_settings& s, slab& memory, team& threads);

  /// Takes a prompt into an empty slot. False, and nothing done, when there are too few free pages.
  bool admit(std::size_t slot, std::span<const unsigned> prompt);
  /// Adds tokens to some slots, none twice, one or several each: all go through the layers together. False when the pages are used up.
  bool step(std::span<const fed_tokens> rows);
  /// The empty slot `to` becomes a copy of `from` that shares its pages.
  void fork(std::size_t from, std::size_t to);
  /// Forgets all but the first n tokens of a slot.
  void truncate(std::size_t slot, std::size_t n);
  /// Ends a sequence; the pages that it alone has go back to the pool.
  void release(std::size_t slot) { truncate(slot, 0); }

  std::size_t size(std::size_t slot) const { return caches_[0].size(slot); }
  std::size_t free_pages() const { return pool_.free_pages(); }
  const dense_check& checked() const { return check_; }

 private:
  template <class Attend>
  void run_layers(const worker& me, std::size_t count, Attend attend);
  void attend_prompt(const policy& cpu, std::size_t layer, std::size_t slot, std::size_t n);
  void attend_step(const policy& cpu, std::size_t layer, std::span<const fed_tokens> rows, std::size_t tokens);

  engine_settings s_;
  team& threads_;
  model model_;
  page_pool pool_;
  block_table table_;
  std::vector<layer_cache> caches_;            // [layers]
  std::vector<std::uint32_t> slots_, counts_;  // of a step's rows
  std::vector<std::uint64_t> attended_;        // tokens that the rows' slots attended to before a step
  dense_check check_;
  float *hidden_, *normed_, *query_, *key_, *value_, *gathered_, *projected_, *lse_;  // of up to `capacity` rows
  pqkv::arena scratch_;                                                               // of a prompt's attention
};

}  // namespace engine
