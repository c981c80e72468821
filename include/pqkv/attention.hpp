// SPDX-License-Identifier: Apache-2.0
// Exact decode attention over chosen tokens: a leading range, an ascending list, and a trailing range, with one softmax. With ranges alone
// it is dense attention. Returns the output and, on request, the log-sum-exp, so that partial results over disjoint tokens can be merged
// (merge.hpp).
#pragma once

#include <cstdint>

#include "cache/kv_store.hpp"
#include "cache/token_set.hpp"
#include "exec/kernel.hpp"
#include "merge.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct attention {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t lists = 0, query_heads = 0, head_dim = 0;
    std::size_t tokens = 0;  // of the longest list, at most
  };
};
}  // namespace op

namespace detail {
/// CTAs of four query heads that a device of 132 multiprocessors runs at a time.
inline constexpr std::size_t attention_device_ctas = 264;

/// Into how many parts the CUDA policy cuts a short list. CTAs attend to all of them at a time, so that a few lists can fill a device too.
constexpr std::size_t attention_device_short_splits(std::size_t query_heads) {
  const std::size_t heads = 4 * attention_device_ctas;
  return query_heads >= heads ? 1 : query_heads <= 16 ? 64 : heads / query_heads;
}
/// Into how many parts it cuts a long list: as many as for a short one if these nearly fill the device. Otherwise up to 16, which take
/// several turns, so many that the last turn nearly fills the device too.
constexpr std::size_t attention_device_splits(std::size_t query_heads) {
  const std::size_t lists = (query_heads + 3) / 4, few = attention_device_short_splits(query_heads);
  std::size_t best = few;
  double best_fill = 0;
  for (std::size_t splits = few; lists != 0 && (splits == few || splits <= 16) && best_fill < 0.96; ++splits) {
    const std::size_t ctas = splits * lists, turns = (ctas + attention_device_ctas - 1) / attention_device_ctas;
    const double fill = static_cast<double>(ctas) / static_cast<double>(turns * attention_device_ctas);
    if (fill > best_fill) best = splits, best_fill = fill;
  }
  return best;
}
/// The length of a row of sums on a device, in floats: whole reads of 16 bytes.
constexpr std::size_t attention_device_row_floats(std::size_t head_dim) { return (head_dim + 3) / 4 * 4; }

/// The most tokens of a list that one host task takes: at d = 128 in 16 bits, 1 MiB of K and V. Merging the parts adds 0.3 % to the time of
/// reading them.
inline constexpr std::size_t attention_part_tokens = 2048;

/// How many parts a list of this many tokens has.
constexpr std::size_t attention_parts(std::size_t tokens) {
  return tokens <= attention_part_tokens ? 1 : (tokens + attention_part_tokens - 1) / attention_part_tokens;
}
/// The length of a row of queries or sums on the host, in floats, rounded up to whole registers.
constexpr std::size_t attention_row_floats(std::size_t head_dim) { return (head_dim + 31) / 32 * 32; }
}  // namespace detail

namespace detail {
constexpr std::size_t attention_host_scratch_bytes(const op::attention::sizes& s) {
  const std::size_t parts = attention_parts(s.tokens);
  if (parts == 1) return 0;
  const auto whole_lines = [](std::size_t bytes) { return (bytes + cache_line_bytes - 1) / cache_line_bytes * cache_line_bytes; };
  return whole_lines((s.lists + 1) * sizeof(std::uint32_t)) +
         whole_lines(parts * s.query_heads * (attention_row_floats(s.head_dim) + 2) * sizeof(float));
}
constexpr std::size_t attention_device_scratch_bytes(const op::attention::sizes& s) {
  const std::size_t row = attention_device_row_floats(s.head_dim) + 2;  // and the softmax's top and total
  return cache_line_bytes + attention_device_splits(s.query_heads) * s.query_heads * row * sizeof(float);
}
}  // namespace detail

/// The checks of attention().
template <class Query, class Store, class Tokens, class Out, class Lse>
constexpr status can_attend(const Query& query, const Store& store, const Tokens& tokens, const Out& out, const Lse& lse) noexcept {
  const std::size_t hq = query.extent(0), h = store.heads(), lists = tokens.spans.extent(0);
  return detail::checks("attention")
      .that(h > 0 && hq % h == 0, status::code::shape, "query.extent(0)", relation::multiple_of, "h", h, hq)
      .extent("query.extent(1)", query.extent(1), store.head_dim(), "d, from store")
      .extent("query.stride(1)", query.stride(1), 1, "last axis contiguous")
      .at_most("store.head_dim", store.head_dim(), 256, "d")
      .extent("out.extent(0)", out.extent(0), hq, "hq, from query")
      .extent("out.extent(1)", out.extent(1), store.head_dim(), "d, from store")
      .extent("out.stride(1)", out.stride(1), 1, "last axis contiguous")
      .that(lists == h || lists == hq, status::code::shape, "tokens.spans.extent(0)", relation::stated, "h or hq", h, lists)
      .that(tokens.indices.data == nullptr || tokens.indices.extent(0) == lists, status::code::shape, "tokens.indices.extent(0)",
            relation::equal, "lists, from tokens.spans", lists, tokens.indices.extent(0))
      .that(tokens.indices.data == nullptr || tokens.counts.extent(0) == lists, status::code::shape, "tokens.counts.extent(0)",
            relation::equal, "lists, from tokens.spans", lists, tokens.counts.extent(0))
      .that(tokens.indices.data == nullptr || tokens.indices.stride(1) == 1, status::code::shape, "tokens.indices.stride(1)",
            relation::equal, "last axis contiguous", 1, tokens.indices.stride(1))
      .that(lse.data == nullptr || lse.extent(0) == hq, status::code::shape, "lse.extent(0)", relation::equal, "hq, from query", hq,
            lse.extent(0));
}

/// out[q] = sum over tokens of softmax(scale * <query[q], key>) * value, over the tokens of q's list.
///
/// @param query   [hq, d] float
/// @param store   keys and values of h heads; hq % h == 0
/// @param tokens  [h] or [hq] lists; positions below store.tokens(), none twice (not checked: hot path)
/// @param out     [hq, d] float, written; zeros for an empty list
/// @param lse     [hq] float, written if given: log of the sum of exp; -infinity for an empty list
/// @param scale   of the logits; 0: 1 / sqrt(d)
/// A non-finite key, value or query gives a non-finite output, as in any attention.
/// @throws shape_error, value_error; capacity_error when the policy brings scratch that is too small
/// On a device a store must be trivially copyable, its key() and value() callable there (PQKV_HD).
///
/// @cost   reads each token's K and V once per list and 8 query heads of it, in tiles of 32 tokens; no allocation with scratch of
///         scratch_bytes<op::attention>()
/// @source online softmax: Milakov and Gimelshein 2018; partial results: FlashDecoding, FlashInfer attention/state.cuh
template <exec::policy P, kv_store Store>
requires reachable_from<typename Store::space_type, P>
void attention(const P& policy, view<const float, 2, typename P::space_type> query, const Store& store,
               const token_set<typename P::space_type>& tokens, view<float, 2, typename P::space_type> out,
               view<float, 1, typename P::space_type> lse = {}, float scale = 0) {
  require_ok(can_attend(query, store, tokens, out, lse));
  detail::run_operation<op::attention>(policy, query, store, tokens, out, lse, scale);
}

}  // namespace pqkv
