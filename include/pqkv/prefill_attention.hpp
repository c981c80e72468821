// SPDX-License-Identifier: Apache-2.0
// Exact causal attention of many queries at once: those of a prompt, of a chunk, or of several proposed tokens. Each query attends to all
// keys up to its own position. For decoding, where a query has few chosen tokens, use attention.hpp, which reads rows without copying them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cache/kv_store.hpp"
#include "core/arena.hpp"
#include "exec/kernel.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct prefill_attention {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t kv_heads = 0, query_heads = 0, queries = 0, head_dim = 0;
  };
};
}  // namespace op

namespace detail {
/// Rows of queries, one for each (query, head) of a KV head, in a tile; and keys in a tile. Both are whole blocks of the SIMD kernels'
/// products.
inline constexpr std::size_t prefill_tile_rows = 192, prefill_tile_keys = 96;
/// Pieces of scratch, which are the most tiles of rows that are worked on at once.
inline constexpr std::size_t prefill_slots = 64;

/// How many tiles of rows a call has.
constexpr std::size_t prefill_tiles(std::size_t kv_heads, std::size_t query_heads, std::size_t queries) {
  return kv_heads * ((query_heads / kv_heads * queries + prefill_tile_rows - 1) / prefill_tile_rows);
}
/// Floats from one row of keys, values or sums to the next: an odd number of cache lines, so that rows fall into different sets of a cache.
constexpr std::size_t prefill_row_floats(std::size_t head_dim) { return ((head_dim + 15) / 16 | 1) * 16; }

/// The memory for one tile of rows.
struct prefill_slot {
  float* queries;  // [d, prefill_tile_rows]
  float* keys;     // [prefill_tile_keys, prefill_row_floats]
  float* values;   // the same
  float* weights;  // [prefill_tile_keys, prefill_tile_rows]
  float* sums;     // [prefill_tile_rows, prefill_row_floats]
  float* tops;     // this and the following have one number for each row
  float* before;   // the tops before the present tile of keys
  float* tile_totals;
  double* totals;
  std::uint32_t* broken;  // whether a logit was not finite

  prefill_slot(arena& from, std::size_t d)
      : queries(from.take<float>(d * prefill_tile_rows)),
        keys(from.take<float>(prefill_tile_keys * prefill_row_floats(d))),
        values(from.take<float>(prefill_tile_keys * prefill_row_floats(d))),
        weights(from.take<float>(prefill_tile_keys * prefill_tile_rows)),
        sums(from.take<float>(prefill_tile_rows * prefill_row_floats(d))),
        tops(from.take<float>(prefill_tile_rows)),
        before(from.take<float>(prefill_tile_rows)),
        tile_totals(from.take<float>(prefill_tile_rows)),
        totals(from.take<double>(prefill_tile_rows)),
        broken(from.take<std::uint32_t>(prefill_tile_rows)) {}

  static std::size_t bytes(std::size_t d) {
    arena count;
    prefill_slot(count, d);
    return count.used_bytes();
  }
};
}  // namespace detail

/// The checks of prefill_attention().
template <class Query, class Store, class Out, class Lse>
constexpr status can_attend_prefill(const Query& query, const Store& store, std::size_t first, const Out& out, const Lse& lse) noexcept {
  const std::size_t hq = query.extent(0), n = query.extent(1), h = store.heads(), d = store.head_dim();
  return detail::checks("prefill_attention")
      .that(h > 0 && hq % h == 0, status::code::shape, "query.extent(0)", relation::multiple_of, "h", h, hq)
      .extent("query.extent(2)", query.extent(2), d, "d, from store")
      .extent("query.stride(2)", query.stride(2), 1, "last axis contiguous")
      .at_least("store.head_dim", d, 1, "d")
      .at_most("store.head_dim", d, 256, "d")
      .that(first <= store.tokens() && n <= store.tokens() - std::min(first, store.tokens()), status::code::value, "first",
            relation::at_most, "tokens of the store less the queries", static_cast<double>(store.tokens()) - static_cast<double>(n), first)
      .extent("out.extent(0)", out.extent(0), hq, "hq, from query")
      .extent("out.extent(1)", out.extent(1), n, "n_q, from query")
      .extent("out.extent(2)", out.extent(2), d, "d, from store")
      .extent("out.stride(2)", out.stride(2), 1, "last axis contiguous")
      .that(lse.data == nullptr || lse.extent(0) == hq, status::code::shape, "lse.extent(0)", relation::equal, "hq, from query", hq,
            lse.extent(0))
      .that(lse.data == nullptr || lse.extent(1) == n, status::code::shape, "lse.extent(1)", relation::equal, "n_q, from query", n,
            lse.extent(1));
}

/// Causal attention of a block of queries: query t stands at position first + t and attends to keys 0, ..., first + t.
///
/// out[q, t] = sum over i <= first + t of softmax(scale * <query[q, t], key[i]>) * value[i]
///
/// @param query  [hq, n_q, d] float; heads and queries any strides apart
/// @param store  keys and values of h heads, at least first + n_q tokens; hq % h == 0
/// @param first  position of the first query; 0 for a whole prompt
/// @param out    [hq, n_q, d] float, written; heads and queries any strides apart
/// @param lse    [hq, n_q] float, written if given: log of the sum of exp
/// @param scale  of the logits; 0: 1 / sqrt(d)
/// A non-finite key, value or query gives a non-finite output where it takes part, and nowhere else. Threads change no bit.
/// @throws shape_error, value_error; capacity_error when the policy brings scratch that is too small
///
/// @cost   4 * d operations for each query, query head and key before it. Each row of K and V is read and widened to float once per 192
///         rows of queries of its group. No allocation with scratch of scratch_bytes<op::prefill_attention>() (390 KiB at d = 128 for each
///         of at most 64 tiles); each thread of exec::slice needs its own
/// @source online softmax over tiles: Dao et al., "FlashAttention", arXiv 2205.14135; Milakov and Gimelshein 2018
template <exec::policy P, kv_store Store>
requires reachable_from<typename Store::space_type, P>
void prefill_attention(const P& policy, view<const float, 3, typename P::space_type> query, const Store& store, std::size_t first,
                       view<float, 3, typename P::space_type> out, view<float, 2, typename P::space_type> lse = {}, float scale = 0) {
  require_ok(can_attend_prefill(query, store, first, out, lse));
  detail::run_operation<op::prefill_attention>(policy, query, store, first, out, lse, scale);
}

}  // namespace pqkv
