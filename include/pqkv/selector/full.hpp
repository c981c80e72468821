// SPDX-License-Identifier: Apache-2.0
// Attends to every token: dense attention, which the other selectors are compared with.
#pragma once

#include "concept.hpp"

namespace pqkv::inline PQKV_MODE::selector {

/// A selector without lists: it takes all of the middle or none of it. In any space.
template <coverage Coverage>
class unranked : public defaults {
 public:
  struct params {};  // nothing can be set

  static constexpr status can_construct(const cache_shape&, const params&) noexcept { return {}; }
  unranked(const auto&, const cache_shape& shape, const params&) : lists_(shape.kv_heads) {}

  std::size_t lists() const { return lists_; }
  static constexpr coverage_rule covers() { return {Coverage, Coverage}; }
  void select(const auto&, const auto&, const auto&, const auto&, const auto&, const auto&, const auto&) {}

 private:
  std::size_t lists_;
};

/// Dense attention.
using full = unranked<coverage::everything>;

}  // namespace pqkv::selector
