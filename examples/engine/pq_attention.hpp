// SPDX-License-Identifier: Apache-2.0
// PQCache's attention put together from pqkv's parts: codebook, codes, table, retrieve, attention, over the engine's own store and in
// the engine's own memory. One object serves all layers and sequences; what belongs to one of them is its pq_index.
#pragma once

#include "kv_pages.hpp"
#include "team.hpp"

namespace engine {

/// Codebook and codes of one layer of one sequence: views of the slab.
struct pq_index {
  pqkv::mutable_codebook_view<> book;   // [h, m, ds, c] and [h, d]
  pqkv::mutable_codes_view<> codes;     // [h, m, capacity]
  pqkv::view<std::uint8_t, 2> outcome;  // [h, m], of training

  bool usable() const;  // false: too few distinct keys, attend to everything
};

class pq_attention {
 public:
  struct settings {
    pqkv::pq_shape shape;         // h, d, m, b
    std::size_t query_heads = 0;  // hq
    std::size_t capacity = 0;     // tokens of a sequence
    pqkv::budget_rule budget{};
  };

  /// What pqkv would refuse, before any memory is taken.
  static pqkv::status can_run(const settings& s);
  static std::size_t index_bytes(const settings& s);
  static std::size_t working_bytes(const settings& s);

  pq_attention(const settings& s, slab& memory);
  pq_index make_index(slab& memory) const;

  // All threads of the team make these calls together.

  /// @param keys  [h, n, d] float, the prompt's
  void observe_prompt(const worker& me, const pq_index& index, pqkv::view<const float, 3> keys) const;
  /// @param key  [h, 1, d] float, of token `position`
  void observe_token(const worker& me, const pq_index& index, pqkv::view<const float, 3> key, std::size_t position) const;
  /// @param query  [hq, d] float
  /// @param out    [hq, d] float, written
  /// @param lse    [hq] float, written: log of the sum of exp over the tokens attended to
  void attend(const worker& me, const pq_index& index, const paged_kv& store, pqkv::view<const float, 2> query, pqkv::view<float, 2> out,
              pqkv::view<float, 1> lse) const;

  /// Tokens that a query attends to at length n, at most.
  std::size_t attended(std::size_t n) const;

 private:
  settings s_;
  std::size_t k_max_;
  pqkv::mutable_distance_table_view<> table_;  // [hq, m, c]
  pqkv::view<std::int32_t, 2> indices_;        // [h, k_max]
  pqkv::view<std::uint32_t, 1> counts_;        // [h]
  pqkv::arena scratch_;
};

}  // namespace engine
