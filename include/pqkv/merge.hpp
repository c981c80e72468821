// SPDX-License-Identifier: Apache-2.0
// Merges partial attention {out, lse} over some tokens into that over others: tokens on a device with tokens on the host, two machines that
// hold half a sequence each, chunks of one long list. attention() writes both numbers when it is asked for the log-sum-exp.
// Source: FlashInfer attention/state.cuh.
#pragma once

#include <cmath>
#include <cstddef>

#include "core/error.hpp"
#include "core/scalar.hpp"
#include "core/view.hpp"
#include "exec/kernel.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct merge {};
}  // namespace op

/// The weights of the outputs over tokens A and over tokens B in the output over both.
struct merge_weights {
  float own, other;  // between 0 and 1
  float total;       // their sum; 0 when both are empty
  float lse;         // of both

  PQKV_HD static merge_weights of(float lse, float other_lse) {
    const float top = lse > other_lse ? lse : other_lse;
    if (top == float_from_bits(0xff800000u)) return {0.0f, 0.0f, 0.0f, lse};  // -infinity: B is empty, and A is empty or a NaN
    const float a = std::exp(lse - top), b = std::exp(other_lse - top), total = a + b;
    return {a, b, total, top + std::log(total)};
  }
  PQKV_HD float operator()(float out, float other_out) const { return total == 0 ? out : (own * out + other * other_out) / total; }
};

/// Merges attention over tokens B into attention over disjoint tokens A, in place, for one query head.
///
/// @param out        [d] of A, becomes that of A and B
/// @param lse        of A, becomes that of A and B
/// @param other_out  [d] of B
/// Both empty (-infinity) leaves zeros; commutative up to rounding.
PQKV_HD inline void merge(float* out, float& lse, const float* other_out, float other_lse, std::size_t d) {
  const merge_weights weights = merge_weights::of(lse, other_lse);
  for (std::size_t i = 0; i < d; ++i) out[i] = weights(out[i], other_out[i]);
  lse = weights.lse;
}

/// The checks of merge().
template <class Out, class Lse, class OtherOut, class OtherLse>
constexpr status can_merge(const Out& out, const Lse& lse, const OtherOut& other_out, const OtherLse& other_lse) noexcept {
  return detail::checks("merge")
      .extent("out.stride(1)", out.stride(1), 1, "last axis contiguous")
      .extent("lse.extent(0)", lse.extent(0), out.extent(0), "hq, from out")
      .extent("other_out.extent(0)", other_out.extent(0), out.extent(0), "hq, from out")
      .extent("other_out.extent(1)", other_out.extent(1), out.extent(1), "d, from out")
      .extent("other_out.stride(1)", other_out.stride(1), 1, "last axis contiguous")
      .extent("other_lse.extent(0)", other_lse.extent(0), out.extent(0), "hq, from out");
}

/// The same for all query heads of a call of attention().
///
/// out[q] = (exp(lse[q]) * out[q] + exp(other_lse[q]) * other_out[q]) / (exp(lse[q]) + exp(other_lse[q]))
///
/// @param out        [hq, d] float, of A, becomes that of A and B
/// @param lse        [hq] float, of A, becomes that of A and B
/// @param other_out  [hq, d] of B, in any space that the policy reaches: pinned host memory is read by a device as it is
/// @param other_lse  [hq]
/// A NaN on either side gives a NaN; an empty side (-infinity) leaves the other as it is.
/// @throws shape_error
/// @cost   reads and writes each number once; no allocation; asynchronous on device policies. Backends agree within rounding
template <exec::policy P>
void merge(const P& policy, view<float, 2, typename P::space_type> out, view<float, 1, typename P::space_type> lse,
           view<const float, 2, typename P::space_type> other_out, view<const float, 1, typename P::space_type> other_lse) {
  require_ok(can_merge(out, lse, other_out, other_lse));
  detail::run_operation<op::merge>(policy, out, lse, other_out, other_lse);
}

}  // namespace pqkv
