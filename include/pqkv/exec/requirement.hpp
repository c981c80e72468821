// SPDX-License-Identifier: Apache-2.0
// Guarantees as tags: a caller says what it needs, strongest by default, and a combination that a function does not offer is a
// compile error. Weaker tags allow faster code; they never forbid the stronger result.
#pragma once

namespace pqkv {
namespace tie_break {
struct lower_index_t {};  // equal scores go to the lower index: every path returns the same set
struct unspecified_t {};  // any of the equal ones
inline constexpr lower_index_t lower_index{};  // the default
inline constexpr unspecified_t unspecified{};  // weaker
}  // namespace tie_break

namespace ordering {
struct ascending_t {};  // by index
struct by_score_t {};   // best first
struct unsorted_t {};   // any order
inline constexpr ascending_t ascending{};  // the default
inline constexpr by_score_t by_score{};    // instead of it
inline constexpr unsorted_t unsorted{};    // weaker
}  // namespace ordering

template <class TieBreak, class Ordering>
struct requirement {};

/// require(tie_break::lower_index, ordering::unsorted)
template <class TieBreak, class Ordering>
constexpr requirement<TieBreak, Ordering> require(TieBreak, Ordering) {
  return {};
}

/// What functions promise unless asked for something else.
using strongest_requirement = requirement<tie_break::lower_index_t, ordering::ascending_t>;
}  // namespace pqkv
