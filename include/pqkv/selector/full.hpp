// SPDX-License-Identifier: Apache-2.0
// Attends to every token: dense attention, what the others are measured against.
#pragma once

#include "concept.hpp"

namespace pqkv::selector {

/// A selector that needs no list: it takes everything or nothing of the middle. In any space.
template <coverage Coverage>
class unranked {
 public:
  struct params {};  // nothing can be set

  static constexpr status can_construct(const cache_shape&, const params&) noexcept { return {}; }
  static constexpr std::size_t index_bytes(const cache_shape&, const params&) { return 0; }
  static constexpr std::size_t scratch_bytes(const auto&, const cache_shape&, const params&) { return 0; }
  unranked(const auto&, const cache_shape& shape, const params&) : lists_(shape.kv_heads) {}

  std::size_t lists() const { return lists_; }
  static constexpr coverage_rule covers() { return {Coverage, Coverage}; }
  static constexpr std::size_t least_rows() { return 0; }
  template <exec::policy P>
  learning<typename P::space_type> learn(const P&, std::size_t, const auto&, const sequence&, middle_range) {
    return {};
  }
  static no_index index() { return {}; }
  static constexpr selector_signature signature() { return {}; }
  void select(const auto&, const auto&, const auto&, const auto&, const auto&, const auto&, const auto&) {}
  static constexpr no_traffic traffic_of(std::size_t) { return {}; }
  void maintain(const auto&, std::size_t, const sequence&, middle_range) {}
  void clear(const auto&, std::size_t) {}

 private:
  std::size_t lists_;
};

/// Dense attention.
using full = unranked<coverage::everything>;

}  // namespace pqkv::selector
