// SPDX-License-Identifier: Apache-2.0
// The engine: slots of sequences of any lengths, prompts in, one token per active sequence and step. Every thread of the team runs
// the same program over the layers; pqkv is called from within it.
#pragma once

#include <span>
#include <vector>

#include "dense_check.hpp"
#include "model.hpp"
#include "pq_attention.hpp"

namespace engine {

struct engine_settings {
  model_shape model;
  std::size_t slots = 3;
  std::size_t capacity = 2560;  // tokens of a sequence
  std::size_t pages = 150;      // of keys and values, for all layers and sequences together
  std::size_t subspaces = 2;
  unsigned bits = 5;
  pqkv::budget_rule budget{.ratio = 0.1, .min_tokens = 64, .sinks = 16};

  pq_attention::settings attention() const {
    return {{model.kv_heads, model.head_dim, subspaces, bits}, model.query_heads, capacity, budget};
  }
};

class decoder {
 public:
  static pqkv::status can_run(const engine_settings& s);
  static std::size_t memory_bytes(const engine_settings& s);

  decoder(const engine_settings& s, slab& memory, team& threads);

  /// Takes a sequence in: its prompt's keys and values, its indexes. False, and nothing done, when there are too few free pages.
  bool admit(std::size_t slot, std::span<const unsigned> prompt);
  /// One token for each sequence that is there: next[slot]. False when the pages are used up.
  bool step(std::span<const unsigned> next);
  /// Ends a sequence; its pages go back to the pool.
  void release(std::size_t slot);

  std::size_t size(std::size_t slot) const { return slots_[slot].n; }
  std::size_t free_pages() const { return pool_.free_pages(); }
  const dense_check& checked() const { return check_; }

 private:
  struct sequence {
    std::size_t n = 0;
    std::vector<std::vector<bfloat16*>> pages;  // [layers], room for `capacity` tokens reserved
    std::vector<pq_index> index;                // [layers]
  };

  bool reserve(sequence& s, std::size_t n);
  paged_kv store(const sequence& s, std::size_t layer, std::size_t n) const;
  void store_rows(const worker& me, const paged_kv& kv, std::size_t first, std::size_t count) const;
  void run_layer(const worker& me, sequence& s, std::size_t layer, std::size_t first, std::size_t count);

  engine_settings s_;
  team& threads_;
  model model_;
  page_pool pool_;
  pq_attention attention_;
  std::vector<sequence> slots_;
  dense_check check_;
  float *hidden_, *normed_, *query_, *key_, *value_, *attended_, *projected_, *lse_;  // of up to `capacity` rows
};

}  // namespace engine
