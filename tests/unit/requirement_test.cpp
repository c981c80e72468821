// SPDX-License-Identifier: Apache-2.0
// Guarantees as tags: each combination is its own type, and the default is the strongest. What functions refuse is a compile test.
#include <pqkv/exec/requirement.hpp>

#include <doctest/doctest.h>

#include <type_traits>

namespace ordering = pqkv::ordering;
namespace tie_break = pqkv::tie_break;

TEST_CASE("require names a combination by its type alone") {
  constexpr auto asked = pqkv::require(tie_break::lower_index, ordering::unsorted);
  static_assert(std::is_same_v<decltype(asked), const pqkv::requirement<tie_break::lower_index_t, ordering::unsorted_t>>);
  static_assert(std::is_empty_v<decltype(asked)>);
  static_assert(!std::is_same_v<decltype(pqkv::require(tie_break::unspecified, ordering::unsorted)), std::remove_const_t<decltype(asked)>>);
  static_assert(!std::is_same_v<decltype(pqkv::require(tie_break::lower_index, ordering::by_score)), std::remove_const_t<decltype(asked)>>);
  CHECK(std::is_empty_v<decltype(asked)>);
}

TEST_CASE("the strongest requirement is lower index and ascending") {
  static_assert(std::is_same_v<pqkv::strongest_requirement, decltype(pqkv::require(tie_break::lower_index, ordering::ascending))>);
  CHECK(std::is_same_v<pqkv::strongest_requirement, pqkv::requirement<tie_break::lower_index_t, ordering::ascending_t>>);
}
