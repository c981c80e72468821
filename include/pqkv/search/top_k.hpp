// SPDX-License-Identifier: Apache-2.0
// The indices of the k largest of n scores, for many rows. Exact: equal scores go to the lower index, so every backend returns
// the same set. -0 equals +0 and a NaN is below everything. Scores are floats, or 16-bit unsigned integers on the host.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/view.hpp"
#include "../core/error.hpp"
#include "../exec/kernel.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct top_k {};
}  // namespace op

/// The checks of top_k().
template <class Scores, class Indices>
constexpr status can_top_k(const Scores& scores, const Indices& indices) noexcept {
  return detail::checks("top_k")
      .extent("indices.extent(0)", indices.extent(0), scores.extent(0), "rows, from scores")
      .at_most("scores.extent(1)", scores.extent(1), 2147483647.0, "n")
      .extent("scores.stride(1)", scores.stride(1), 1, "last axis contiguous")
      .extent("indices.stride(1)", indices.stride(1), 1, "last axis contiguous");
}

/// Selects the k = min(indices.extent(1), n) largest scores of each row.
///
/// @param scores   [rows, n] float
/// @param indices  [rows, k_max] int32, written: the indices, ascending, then -1 where n < k_max
/// @throws shape_error
/// @cost   on the host two passes over a row if a sample shows how its scores are distributed, at most 36 if the sample misleads; no
///         allocation, 58 KB of stack. On CUDA one pass over a row of 4097 to 262144 scores if its sample is right. Any other row takes
///         five passes, three for a histogram and two to write the list; CUDA takes at most 65535 rows of other lengths
/// @source sampled bracket as in Floyd and Rivest, "Expected time bounds for selection", 1975; if it misleads on CUDA, radix selection as
///         in Alabi et al., "Fast k-selection algorithms for graphics processing units", 2012
template <exec::policy P>
void top_k(const P& policy, view<const float, 2, typename P::space_type> scores, view<std::int32_t, 2, typename P::space_type> indices) {
  require_ok(can_top_k(scores, indices));
  detail::run_operation<op::top_k>(policy, scores, indices);
}

/// The same for 16-bit unsigned scores, on host policies.
///
/// @param scores   [rows, n] uint16
/// @param indices  [rows, k_max] int32, written: the indices, ascending, then -1 where n < k_max
/// @throws shape_error
/// @cost   as for floats; reads half the bytes
template <exec::policy P>
void top_k(const P& policy, view<const std::uint16_t, 2, typename P::space_type> scores,
           view<std::int32_t, 2, typename P::space_type> indices) {
  static_assert(std::is_same_v<typename P::backend_type, backend::host>, "pqkv: top_k of 16-bit scores runs on host policies");
  require_ok(can_top_k(scores, indices));
  detail::run_operation<op::top_k>(policy, scores, indices);
}

}  // namespace pqkv
