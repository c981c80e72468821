// SPDX-License-Identifier: Apache-2.0
// Scores encoded tokens by asymmetric distance and reduces the scores over the query heads of a group. If you need only the k best tokens,
// use retrieve(), which gives the same set; scan() is for callers who want the scores.
#pragma once

#include "../core/canonical.hpp"
#include "../quantize/codes.hpp"
#include "distance_table.hpp"

namespace pqkv::inline PQKV_MODE {
/// The sum over some tokens of exp(scale * (logit - top)), where a logit is <query, key> without the softmax's scale.
struct attended_sum {
  float top = 0;             // the largest logit
  std::uint64_t weight = 0;  // the sum, times 2^40; 0: no token, or none with a finite logit

  /// The sum of both sets of tokens.
  PQKV_HD attended_sum merged(const attended_sum& other, canonical::softmax_scale scale) const {
    if (weight == 0) return other;
    if (other.weight == 0) return *this;
    if (other.top > top) return {other.top, other.weight + relative_to(other.top, scale)};
    return {top, weight + other.relative_to(top, scale)};
  }
  /// `weight` if the exponents were relative to this logit. At most 2^62, which is far beyond what changes a score.
  PQKV_HD std::uint64_t relative_to(float logit, canonical::softmax_scale scale) const { return times(weight, factor(top, logit, scale)); }
  /// The two steps of relative_to(): the factor of weights whose exponents are relative to `top`, and a weight times a factor.
  /// @{
  PQKV_HD static float factor(float top, float logit, canonical::softmax_scale scale) {
    const float u = canonical::sub(top, logit), most = canonical::div(60.0f, scale.scale);
    return canonical::exponential(u < most ? u : most, scale);
  }
  PQKV_HD static std::uint64_t times(std::uint64_t weight, float factor) {
    const double value = static_cast<double>(weight) * static_cast<double>(factor);
    return value < 0x1p62 ? static_cast<std::uint64_t>(value) : std::uint64_t{1} << 62;
  }
  /// @}
};

/// What makes probabilities of one query head's products, where the ranked tokens lie in several places and each ranks its own
/// (partial_ranking.hpp). Sums of all places are added as integers, so that they do not depend on which place has which tokens.
struct normaliser {
  std::uint64_t sum = 0;  // Z around `centre`: the sum of F over the products
  float centre = 0;       // A; 0 unless Z needed recentring
  float largest = 0;      // of the sums over j of u_j; -infinity without a token
};

namespace op {
struct scan {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t query_heads = 0, subspaces = 0, centroids = 0;  // hq, m, c
  };
};
}  // namespace op

/// How the scores of the g query heads of a KV head become one (method: docs/dataflow.md).
enum class group_reduction : std::uint8_t {
  probability_sum,  // sum over the group of softmax over the tokens: PQCache's rule
  probability_max,  // maximum of these softmaxes
  logit_sum,        // sum of the inner products
  logit_max,        // maximum of the inner products, <q, mean> added back
  none              // one list of scores per query head: its inner products
};

/// How many lists of scores a reduction gives: h, or hq for `none`.
PQKV_HD constexpr std::size_t score_lists(group_reduction reduction, std::size_t kv_heads, std::size_t query_heads) {
  return reduction == group_reduction::none ? query_heads : kv_heads;
}

/// Whether scores are nothing but sums of table entries: no normaliser, no bias.
PQKV_HD constexpr bool adds_logits(group_reduction reduction) {
  return reduction == group_reduction::logit_sum || reduction == group_reduction::none;
}

namespace detail {
constexpr std::size_t scan_scratch_bytes(const op::scan::sizes& s) {
  return s.query_heads * (4 * cache_line_bytes + 4 * s.subspaces * s.centroids * sizeof(float));
}

inline constexpr std::size_t scan_device_runs = 64;  // most parts of a list that CTAs of the CUDA policy share; not measured
constexpr std::size_t scan_device_scratch_bytes(std::size_t query_heads) {
  return 2 * cache_line_bytes + query_heads * (scan_device_runs * sizeof(std::uint64_t) + 12);
}
}  // namespace detail

/// Whether the codes fit the table. scan() and retrieve() check this first.
template <class Table, class Codes, class Map = head_map<>>
constexpr status can_look_up(const Table& table, const Codes& codes, const char* function, const Map& map = {}) noexcept {
  const std::size_t h = map.heads(codes.extent(0)), hq = table.entries.extent(0), c = table.entries.extent(2);
  return detail::checks(function)
      .that(h > 0 && hq % h == 0, status::code::shape, "table.entries.extent(0)", relation::multiple_of, "h", h, hq)
      .that(map.empty() || (map.kv_heads != 0 && codes.extent(0) % map.kv_heads == 0), status::code::shape, "map.kv_heads",
            relation::divisor, "codes' heads", codes.extent(0), map.kv_heads)
      .at_least("table.entries.extent(1)", table.entries.extent(1), 1, "m")
      .that(c >= 16 && c <= max_centroids && (c & (c - 1)) == 0, status::code::value, "table.entries.extent(2)", relation::stated,
            "16, 32, 64, 128 or 256", 64, c)
      .extent("table.entries.stride(2)", table.entries.stride(2), 1, "last axis contiguous")
      .extent("table.bias.extent(0)", table.bias.extent(0), hq, "hq, from table.entries")
      .extent("codes.extent(1)", codes.extent(1), table.entries.extent(1), "m, from table")
      .extent("codes.stride(2)", codes.stride(2), 1, "last axis contiguous")
      .at_most("codes.extent(2)", codes.extent(2), (1u << 23) - 1, "n, below 2^23");
}

/// The checks of scan().
template <class Table, class Codes, class Scores>
constexpr status can_scan(const Table& table, const Codes& codes, const Scores& scores, group_reduction reduction) noexcept {
  const std::size_t h = codes.extent(0), hq = table.entries.extent(0);
  if (const status s = can_look_up(table, codes, "scan"); !s.ok()) return s;
  return detail::checks("scan")
      .extent("scores.extent(0)", scores.extent(0), score_lists(reduction, h, hq), "h, or hq under reduction none")
      .extent("scores.extent(1)", scores.extent(1), codes.extent(2), "n, from codes")
      .extent("scores.stride(1)", scores.stride(1), 1, "last axis contiguous");
}

/// Scores every encoded token.
///
/// z[q, t] = sum over j, ascending, of table[q, j, codes[h(q), j, t]];  p[q, .] = softmax over t of z[q, .] / sqrt(d)
/// scores[h, t] = the reduction of p or z over the group's query heads; bits as in docs/numerics.md
///
/// @param table     [hq, m, c] float, from inner_product_table()
/// @param codes     [h, m, n] uint8, planar, from encode()
/// @param scores    [h, n] float ([hq, n] under `none`), written
/// @param head_dim  d, for the softmax's scale
/// @param scale     of the logits; 0: 1 / sqrt(d)
/// A query head whose table has a non-finite entry contributes nothing.
/// @throws shape_error, value_error; capacity_error when the policy's scratch is too small
/// @cost   reads codes g times per pass, or once for every four query heads where that is faster; two passes for the probabilities;
///         scratch_bytes<op::scan>(); asynchronous on device policies
/// @source PQCache section 3.3; exponentials of table entries instead of scores: docs/numerics.md
template <exec::policy P>
void scan(const P& policy, distance_table_view<typename P::space_type> table, codes_view<typename P::space_type> codes,
          view<float, 2, typename P::space_type> scores, group_reduction reduction, std::size_t head_dim, float scale = 0) {
  require_ok(can_scan(table, codes, scores, reduction));
  require_ok(detail::checks("scan").at_least("head_dim", head_dim, 1, "d"));
  detail::run_operation<op::scan>(policy, table, codes, scores, reduction, head_dim, scale);
}

}  // namespace pqkv
