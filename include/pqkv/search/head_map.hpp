// SPDX-License-Identifier: Apache-2.0
// Which heads of a codebook, of codes and of a store the rows of a call use. A batch of sequences shares one index of [batch * h] heads. A
// step uses some of them, in any order, and uses a row's heads several times if the row has several tokens. Without a map head i is head i.
#pragma once

#include <cstdint>

#include "../core/view.hpp"

namespace pqkv::inline PQKV_MODE {

/// Row r of the queries belongs to sequence slots(r): its h heads are slots(r) * h + [0, h).
template <class Space = space::host>
struct head_map {
  view<const std::uint32_t, 1, Space> slots{};  // [rows]; empty: heads in order
  std::uint32_t kv_heads = 1;                   // h of one sequence

  PQKV_HD constexpr bool empty() const { return slots.data == nullptr; }
  /// The head of the index for row head i = row * h + head.
  PQKV_HD constexpr std::size_t head(std::size_t i) const {
    if (slots.data == nullptr) return i;
    const std::uint32_t at = static_cast<std::uint32_t>(i), row = at / kv_heads;
    return std::size_t{slots(row)} * kv_heads + (at - row * kv_heads);
  }
  /// How many row heads a call has on an index of `heads`.
  PQKV_HD constexpr std::size_t heads(std::size_t heads) const { return empty() ? heads : slots.extent(0) * kv_heads; }
};

/// Tokens [first, last) of one sequence that leave a window, or a middle.
struct leaving_tokens {
  std::uint32_t slot = 0, first = 0, last = 0;

  PQKV_HD constexpr std::uint32_t size() const { return last - first; }
};

}  // namespace pqkv
