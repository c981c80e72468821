// SPDX-License-Identifier: Apache-2.0
// One codebook for all ranks: every rank gets the rows that one rank with all tokens would train on, in the same order, so training gives
// the same bits everywhere and with any number of ranks.
#pragma once

#include <algorithm>

#include "../core/random.hpp"
#include "../core/row.hpp"
#include "agreement.hpp"
#include "token_layout.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// Keys [h, n, d] as a store of rows, of which training reads keys alone. Head `first_head` of the store is head 0 here.
template <class T>
struct sampled_keys {
  using value_type = T;

  view<T, 3> keys;
  std::size_t first_head = 0;

  constexpr std::size_t head_dim() const { return keys.extent(2); }
  constexpr kv_row<T> key(std::size_t head, std::size_t token) const { return row_of(keys, head - first_head, token); }
  constexpr view<const T, 3> strided_keys(std::size_t head, std::size_t h, std::size_t first, std::size_t count) const {
    return as_const(keys.slice(0, head - first_head, h).slice(1, first, count));
  }
};

/// Gathers the sampled keys of all ranks.
///
/// @param rows    this rank's, by their place in its share; heads [first_head, first_head + h)
/// @param sample  of the sequence's tokens from `first` on
/// @param out     [h, sample.count, d], written on every rank
/// @param piece   rows of a rank that are sent at once, at least 1
/// @throws communication_error; std::bad_alloc
/// @cost   sends the sample once to every rank; every rank's piece must be filled, so tokens that are dealt in turn take fewest messages
template <class P, class Communicator, class Rows, class T>
void gather_sample(const P& policy, Communicator& ranks, const Rows& rows, std::size_t first_head, const stratified_sample& sample,
                   std::size_t first, const token_layout& layout, view<T, 3> out, std::size_t piece) {
  const std::size_t h = out.extent(0), d = out.extent(2), row = h * d;
  const buffer<T> own(piece * row), all(layout.ranks * piece * row);
  const buffer<std::size_t> filled(layout.ranks);
  for (std::size_t next = 0; next < sample.count;) {
    // As many rows of the sample as fit: until a rank's piece is full.
    std::fill(filled.begin(), filled.end(), std::size_t{0});
    std::size_t end = next;
    for (; end < sample.count; ++end) {
      const std::size_t token = first + sample(end), owner = layout.owner(token);
      if (filled[owner] == piece) break;
      if (owner == ranks.rank()) {
        const std::size_t place = layout.held(owner, token);
        for (std::size_t head = 0; head < h; ++head) {
          const auto key = rows.key(first_head + head, place);
          for (std::size_t i = 0; i < d; ++i) own[filled[owner] * row + head * d + i] = static_cast<T>(key[i]);
        }
      }
      ++filled[owner];
    }
    const std::size_t most = *std::max_element(filled.begin(), filled.end());
    ranks.all_gather(policy, reinterpret_cast<const std::byte*>(own.data()), reinterpret_cast<std::byte*>(all.data()),
                     most * row * sizeof(T));
    std::fill(filled.begin(), filled.end(), std::size_t{0});
    for (; next < end; ++next) {
      const std::size_t owner = layout.owner(first + sample(next));
      const T* const from = &all[(owner * most + filled[owner]++) * row];
      for (std::size_t head = 0; head < h; ++head) std::copy_n(from + head * d, d, &out(head, next, 0));
    }
  }
}

}  // namespace pqkv::scale
