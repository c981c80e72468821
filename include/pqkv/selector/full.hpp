// SPDX-License-Identifier: Apache-2.0
// Attends to every token: dense attention, what the others are measured against.
#pragma once

#include "concept.hpp"

namespace pqkv::selector {

/// A selector that needs no list: it takes everything or nothing of the middle.
template <coverage Coverage>
class unranked {
 public:
  struct params {};  // nothing can be set

  static constexpr status can_construct(const cache_shape&, const params&) noexcept { return {}; }
  static constexpr std::size_t index_bytes(const cache_shape&, const params&) { return 0; }
  static constexpr std::size_t scratch_bytes(const cache_shape&, const params&) { return 0; }
  unranked(const cache_shape& shape, const params&) : lists_(shape.kv_heads) {}

  std::size_t lists() const { return lists_; }
  coverage covers(std::size_t) const { return Coverage; }
  traffic step_traffic(middle_range, std::size_t) const { return {}; }

  void observe_prefill(const auto&, std::size_t, const auto&, middle_range) {}
  void append(const auto&, std::size_t, const auto&, std::size_t, std::size_t) {}
  void select(const auto&, const auto&, const auto&, const auto&, const auto&, const auto&) {}
  void fork(const auto&, std::size_t, std::size_t, std::size_t) {}
  void reset(std::size_t) {}
  void maintain(const auto&, std::size_t, const auto&, middle_range) {}

 private:
  std::size_t lists_;
};

/// Dense attention.
using full = unranked<coverage::everything>;

}  // namespace pqkv::selector
