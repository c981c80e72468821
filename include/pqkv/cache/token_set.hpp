// SPDX-License-Identifier: Apache-2.0
// Which tokens attention reads: for every list a leading range, an ascending list of positions, and a trailing range.
#pragma once

#include <cstdint>

#include "../core/view.hpp"
#include "../search/retrieve.hpp"

namespace pqkv::inline PQKV_MODE {

/// The contiguous parts of what a list attends to; the list in between comes from a selector.
struct token_span {
  std::uint32_t leading = 0;       // tokens [0, leading): the sinks, or everything
  std::uint32_t window_begin = 0;  // tokens [window_begin, window_end)
  std::uint32_t window_end = 0;
};

/// Tokens that a span takes whole.
PQKV_HD constexpr std::uint32_t attended_tokens_of(const token_span& span) {
  return span.leading + (span.window_end > span.window_begin ? span.window_end - span.window_begin : 0);
}

/// Which tokens each list of query heads attends to. Lists are KV heads, or query heads where each has its own (extent hq).
template <class Space = space::host>
struct token_set {
  view<const token_span, 1, Space> spans;      // [lists]
  view<const std::int32_t, 2, Space> indices;  // [lists, k_max] ascending, inside no span; may be empty
  view<const std::uint32_t, 1, Space> counts;  // [lists] how many of them; may be empty

  /// A span and, of what retrieve() wrote, a list for each.
  PQKV_HD static constexpr token_set of(view<const token_span, 1, Space> spans, const token_lists<Space>& lists) {
    return {spans, as_const(lists.indices), as_const(lists.counts)};
  }
};

}  // namespace pqkv
