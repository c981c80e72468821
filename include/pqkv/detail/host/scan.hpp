// SPDX-License-Identifier: Apache-2.0
// Scores of a group of query heads on the host. scan() and retrieve() are both made of `group_scorer`: it prepares the tables of one list's
// query heads once, then scores items (scan_items.hpp): tokens or the cells of a joint-code index. A product has the same factors in the
// same order for tokens and for cells, and whether heads are scored together or one by one. So all paths give the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../search/scan.hpp"
#include "quantized_scan.hpp"
#include "scan_items.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Scratch for g query heads: 4 g m c + g floats.
struct scorer_scratch {
  float* shifted;  // u = table - maximum, or the table itself for logits
  float* entries;  // the numbers that an item's codes look up
  float* grouped;  // the same for four query heads at a time: [g / 4 rounded up, m, c, 4]; from two heads on, this is at most 2 g * m * c
  float* factor;   // R, or the bias

  template <class Carver>
  static scorer_scratch carve(Carver& memory, std::size_t g, std::size_t m, std::size_t c) {
    return {memory.template take<float>(g * m * c), memory.template take<float>(g * m * c), memory.template take<float>(2 * g * m * c),
            memory.template take<float>(g)};
  }
  /// The scratch of the query heads from `first` on.
  scorer_scratch from(std::size_t first, std::size_t m, std::size_t c) const {
    return {shifted + first * m * c, entries + first * m * c, grouped + 2 * first * m * c, factor + first};
  }
};

template <class Kernels>
class group_scorer {
 public:
  group_scorer(const scorer_scratch& scratch, group_reduction reduction, std::size_t g, std::size_t m, std::size_t c,
               canonical::softmax_scale scale)
      : scratch_(scratch), reduction_(reduction), g_(g), m_(m), c_(c), scale_(scale) {}

  /// Prepares query heads [first, first + g) of the table. Writes to `skipped` (null or [g]) which of them have a non-finite entry.
  /// @param tokens    the number of tokens that all items together stand for
  /// @param attended  null, or [g] sums over other attended tokens, which are added to the normalisers
  /// @param given     null, or [g] normalisers of the probabilities; the items' own sums are then not computed
  template <class Items>
  void prepare(distance_table_view<> table, std::size_t first, const Items& items, std::uint64_t tokens, std::uint8_t* skipped,
               const attended_sum* attended = nullptr, const normaliser* given = nullptr) {
    grouped_ = scores_groups(items);
    if constexpr (std::is_same_v<Items, token_items>)
      if (grouped_ && given == nullptr) {
        for (std::size_t q = 0; q < g_; q += grouped_heads) take_group(table, first, q, items, tokens, skipped, attended);
        return;
      }
    for (std::size_t q = 0; q < g_; ++q) {
      const float* entries = table.entries.data + (first + q) * table.entries.stride(0);
      const bool finite = is_finite(table, first + q);
      if (skipped != nullptr) skipped[q] = finite ? 0 : 1;
      if (!finite)
        leave_out(q);
      else if (uses_logits())
        take_logits(q, entries, table.entries.stride(1), table.bias(first + q));
      else if (given != nullptr)
        take_given(q, entries, table.entries.stride(1), given[q]);
      else
        take_probabilities(q, entries, table.entries.stride(1), items, tokens, table.bias(first + q),
                           attended == nullptr ? attended_sum{} : attended[q]);
    }
    for (std::size_t q = 0; grouped_ && q < g_; q += grouped_heads) interleave(scratch_.entries, q);
  }

  /// The items' part of the normaliser of query head first + q, with exponents relative to `centre`; 0 if its table has a non-finite entry.
  template <class Items>
  std::uint64_t part_of_sum(distance_table_view<> table, std::size_t first, std::size_t q, const Items& items, float centre) {
    if (!is_finite(table, first + q)) return 0;
    subtract_maxima(q, table.entries.data + (first + q) * table.entries.stride(0), table.entries.stride(1), 0);
    move_centre(q, centre);
    return exponentiate(q, items);
  }
  /// The largest sum over j of u_j among the items; -infinity if there are no items or the table has a non-finite entry.
  template <class Items>
  float part_of_largest(distance_table_view<> table, std::size_t first, std::size_t q, const Items& items) {
    if (!is_finite(table, first + q)) return float_from_bits(0xff800000u);
    subtract_maxima(q, table.entries.data + (first + q) * table.entries.stride(0), table.entries.stride(1), 0);
    return largest_sum(q, items);
  }

  /// @param scores  [items.n], written
  template <class Items>
  void score(const Items& items, float* scores) const {
    const bool lowest = reduction_ == group_reduction::logit_max;
    std::fill_n(scores, items.n, lowest ? float_from_bits(0xff800000u) : 0.0f);
    if constexpr (std::is_same_v<Items, token_items>)
      if (grouped_ && scores_groups(items) && reduction_ == group_reduction::probability_sum) return score_groups(items, scores);
    if (reduction_ == group_reduction::probability_sum)
      return items.template add_scaled<Kernels>(scratch_.entries, scratch_.factor, g_, m_, c_, scores);
    for (std::size_t q = 0; q < g_; ++q) {
      const float* entries = scratch_.entries + q * m_ * c_;
      const float factor = scratch_.factor[q];
      switch (reduction_) {
        case group_reduction::probability_sum:
          break;
        case group_reduction::probability_max:
          items.template products<Kernels>(entries, m_, c_, [&](std::size_t at, const float* p, const std::uint32_t*, std::size_t count) {
            Kernels::max_scaled(p, factor, count, scores + at);
          });
          break;
        case group_reduction::logit_max:
          items.template sums<Kernels>(entries, m_, c_, [&](std::size_t at, const float* z, const std::uint32_t*, std::size_t count) {
            Kernels::max_shifted(z, factor, count, scores + at);
          });
          break;
        case group_reduction::logit_sum:
        case group_reduction::none:
          items.template sums<Kernels>(entries, m_, c_, [&](std::size_t at, const float* z, const std::uint32_t*, std::size_t count) {
            Kernels::add(z, count, scores + at);
          });
          break;
      }
    }
  }

  bool adds_logits() const { return pqkv::adds_logits(reduction_); }

  /// Rounds the sum of the group's tables to integers; only for reductions that adds_logits(). The bound limits the difference from the
  /// canonical scores. Let A be the sum, over query heads and subspaces, of the largest magnitude of an entry. The canonical score rounds m
  /// + g - 2 times, and the summed table once for each subspace.
  /// @param entries  [m, c], written
  table_quantization quantize_group(std::uint16_t* entries) const {
    double magnitude = 0;
    for (std::size_t row = 0; row < g_ * m_; ++row) {
      float largest = 0;
      for (std::size_t x = 0; x < c_; ++x) largest = std::max(largest, std::fabs(scratch_.entries[row * c_ + x]));
      magnitude += static_cast<double>(largest);
    }
    for (std::size_t i = 0; i < m_ * c_; ++i) {
      double sum = 0;
      for (std::size_t q = 0; q < g_; ++q) sum += static_cast<double>(scratch_.entries[q * m_ * c_ + i]);
      scratch_.shifted[i] = static_cast<float>(sum);
    }
    table_quantization scaling = quantize_entries(scratch_.shifted, c_, m_, c_, entries);
    scaling.bound += magnitude * static_cast<double>(m_ + g_) * 0x1.01p-24 + static_cast<double>(m_) * 0x1p-149;
    if (magnitude * 1.001 > static_cast<double>(std::numeric_limits<float>::max())) scaling.bound = std::numeric_limits<double>::infinity();
    return scaling;
  }

 private:
  bool uses_logits() const { return reduction_ != group_reduction::probability_sum && reduction_ != group_reduction::probability_max; }
  bool uses_bias() const { return reduction_ == group_reduction::logit_max; }
  /// Whether all entries of a query head's table are finite, and its bias too if the reduction uses it.
  bool is_finite(distance_table_view<> table, std::size_t q) const {
    bool finite = pqkv::is_finite(table.bias(q)) || !uses_bias();
    for (std::size_t j = 0; j < m_; ++j)
      finite &= Kernels::all_finite(table.entries.data + q * table.entries.stride(0) + j * table.entries.stride(1), c_);
    return finite;
  }

  /// Makes a query head contribute nothing: 0 to a sum or to a maximum of probabilities, -infinity to a maximum of logits.
  void leave_out(std::size_t q) {
    const float nothing = uses_bias() ? float_from_bits(0xff800000u) : 0.0f;
    std::fill_n(scratch_.entries + q * m_ * c_, m_ * c_, nothing);
    scratch_.factor[q] = 0;
  }

  void take_logits(std::size_t q, const float* entries, std::size_t stride, float bias) {
    for (std::size_t j = 0; j < m_; ++j) std::copy_n(entries + j * stride, c_, scratch_.entries + (q * m_ + j) * c_);
    scratch_.factor[q] = bias;
  }

  template <class Items>
  void take_probabilities(std::size_t q, const float* entries, std::size_t stride, const Items& items, std::uint64_t tokens, float bias,
                          const attended_sum& attended) {
    float zero = subtract_maxima(q, entries, stride, bias);  // the logit whose product is 1
    std::uint64_t z = exponentiate(q, items);
    if (canonical::needs_recentring(z, tokens)) {
      const float centre = canonical::recentring(largest_sum(q, items), scale_);
      zero = canonical::add(zero, centre);
      move_centre(q, centre);
      z = exponentiate(q, items);
    }
    set_factor(q, z, zero, attended);
  }

  /// @param z     the items' sum of exponentials relative to the logit `zero`
  void set_factor(std::size_t q, std::uint64_t z, float zero, const attended_sum& attended) {
    const bool beside = attended.weight != 0 && pqkv::is_finite(zero);  // without a finite bias nothing can be compared
    scratch_.factor[q] = canonical::inverse_normaliser(beside ? z + attended.relative_to(zero, scale_) : z);
    if (z == 0) leave_out(q);
  }

  /// Whether tokens are scored for several query heads at once.
  template <class Items>
  bool scores_groups(const Items& items) const {
    if constexpr (std::is_same_v<Items, token_items>) return !uses_logits() && items.template grouped<Kernels>(g_, c_);
    return false;
  }
  float* grouped(std::size_t q) const { return scratch_.grouped + q * m_ * c_; }

  /// Writes grouped(q) from the rows [m, c] of query heads q to q + 3, with zeros for heads that do not exist or that `taken` leaves out
  /// (null: all are taken).
  void interleave(const float* from, std::size_t q, const bool* taken = nullptr) const {
    for (std::size_t i = 0; i < grouped_heads; ++i) {
      float* const out = grouped(q) + i;
      if (q + i < g_ && (taken == nullptr || taken[i])) {
        const float* const row = from + (q + i) * m_ * c_;
        for (std::size_t x = 0; x < m_ * c_; ++x) out[x * grouped_heads] = row[x];
      } else {
        for (std::size_t x = 0; x < m_ * c_; ++x) out[x * grouped_heads] = 0;
      }
    }
  }

  /// prepare() for query heads q to q + 3.
  void take_group(distance_table_view<> table, std::size_t first, std::size_t q, const token_items& items, std::uint64_t tokens,
                  std::uint8_t* skipped, const attended_sum* attended) {
    const std::size_t count = std::min(grouped_heads, g_ - q);
    bool finite[grouped_heads]{}, recentred[grouped_heads]{}, any = false;
    float zero[grouped_heads]{};
    std::uint64_t z[grouped_heads]{};
    for (std::size_t i = 0; i < count; ++i) {
      finite[i] = is_finite(table, first + q + i);
      if (skipped != nullptr) skipped[q + i] = finite[i] ? 0 : 1;
      if (!finite[i]) {
        leave_out(q + i);
        continue;
      }
      const float* entries = table.entries.data + (first + q + i) * table.entries.stride(0);
      zero[i] = subtract_maxima(q + i, entries, table.entries.stride(1), table.bias(first + q + i));
      exponentials(q + i);
    }
    interleave(scratch_.entries, q);
    items.template add_group_totals<Kernels>(grouped(q), m_, c_, z);
    for (std::size_t i = 0; i < count; ++i) any |= recentred[i] = finite[i] && canonical::needs_recentring(z[i], tokens);
    if (any) recentre_group(q, items, recentred, zero, z, finite);
    for (std::size_t i = 0; i < count; ++i) {
      if (!finite[i]) continue;
      set_factor(q + i, z[i], zero[i], attended == nullptr ? attended_sum{} : attended[q + i]);
      any |= z[i] == 0;
    }
    if (any) interleave(scratch_.entries, q);
  }
  /// Recentres those of query heads q to q + 3 that `which` marks, and computes their sums again.
  void recentre_group(std::size_t q, const token_items& items, const bool* which, float* zero, std::uint64_t* z, const bool* finite) const {
    float largest[grouped_heads];
    std::fill_n(largest, grouped_heads, float_from_bits(0xff800000u));
    interleave(scratch_.shifted, q, finite);
    items.template raise_group_largest<Kernels>(grouped(q), m_, c_, largest);
    for (std::size_t i = 0; i < grouped_heads; ++i) {
      if (!which[i]) continue;
      const float centre = canonical::recentring(largest[i], scale_);
      zero[i] = canonical::add(zero[i], centre);
      move_centre(q + i, centre);
      exponentials(q + i);
    }
    std::uint64_t again[grouped_heads]{};
    interleave(scratch_.entries, q);
    items.template add_group_totals<Kernels>(grouped(q), m_, c_, again);
    for (std::size_t i = 0; i < grouped_heads; ++i)
      if (which[i]) z[i] = again[i];
  }

  /// scores[t] += the scaled products of every query head, ascending.
  void score_groups(const token_items& items, float* scores) const {
    for (std::size_t q = 0; q < g_; q += grouped_heads) {
      float factor[grouped_heads]{};
      std::copy_n(scratch_.factor + q, std::min(grouped_heads, g_ - q), factor);
      items.template add_group_scaled<Kernels>(grouped(q), factor, m_, c_, scores);
    }
  }

  void take_given(std::size_t q, const float* entries, std::size_t stride, const normaliser& given) {
    if (given.sum == 0) return leave_out(q);
    subtract_maxima(q, entries, stride, 0);
    move_centre(q, given.centre);
    exponentials(q);
    scratch_.factor[q] = canonical::inverse_normaliser(given.sum);
  }

  /// u = entries minus the largest entry of their subspace. Returns the bias plus these largest entries.
  float subtract_maxima(std::size_t q, const float* entries, std::size_t stride, float bias) const {
    float* u = scratch_.shifted + q * m_ * c_;
    for (std::size_t j = 0; j < m_; ++j) {
      const float* row = entries + j * stride;
      float top = row[0];
      Kernels::tile_top(row, c_, top);
      std::copy_n(row, c_, u + j * c_);
      Kernels::tile_lower(u + j * c_, c_, top);
      bias = canonical::add(bias, top);
    }
    return bias;
  }
  /// Lowers every sum over j of u_j by `centre`: each u_j by its m-th part.
  void move_centre(std::size_t q, float centre) const {
    Kernels::tile_lower(scratch_.shifted + q * m_ * c_, m_ * c_, canonical::div(centre, static_cast<float>(m_)));
  }
  template <class Items>
  float largest_sum(std::size_t q, const Items& items) const {
    float best = float_from_bits(0xff800000u);
    items.template sums<Kernels>(scratch_.shifted + q * m_ * c_, m_, c_,
                                 [&](std::size_t, const float* logits, const std::uint32_t* weights, std::size_t count) {
                                   best = canonical::max(Kernels::largest(logits, weights, count), best);
                                 });
    return best;
  }

  void exponentials(std::size_t q) const {
    Kernels::exponentials(scratch_.shifted + q * m_ * c_, m_ * c_, scale_, scratch_.entries + q * m_ * c_);
  }
  template <class Items>
  std::uint64_t exponentiate(std::size_t q, const Items& items) const {
    exponentials(q);
    return items.template total<Kernels>(scratch_.entries + q * m_ * c_, m_, c_);
  }

  scorer_scratch scratch_;
  group_reduction reduction_;
  std::size_t g_, m_, c_;
  canonical::softmax_scale scale_;
  bool grouped_ = false;  // whether items look up scratch_.grouped in place of scratch_.entries
};

}  // namespace detail

template <>
struct kernel<op::scan, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::scan::sizes& sizes) { return detail::scan_scratch_bytes(sizes); }

  template <class P>
  static void run(const P& policy, distance_table_view<> table, codes_view<> codes, view<float, 2> scores, group_reduction reduction,
                  std::size_t head_dim, float scale);
};

template <class P>
void kernel<op::scan, backend::host>::run(const P& policy, distance_table_view<> table, codes_view<> codes, view<float, 2> scores,
                                          group_reduction reduction, std::size_t head_dim, float scale) {
  const std::size_t m = codes.extent(1), n = codes.extent(2), c = table.entries.extent(2);
  const std::size_t hq = table.entries.extent(0), lists = scores.extent(0), g = hq / lists, lists_per_head = lists / codes.extent(0);
  workspace memory(policy.scratch, scratch_bytes({hq, m, c}), "scan");
  const detail::scorer_scratch all = detail::scorer_scratch::carve(memory, hq, m, c);
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    detail::run_tasks(policy, lists, [&](std::size_t list) {
      const std::size_t head = list / lists_per_head, first = list * g;
      detail::group_scorer<detail::simd_kernels<decltype(isa)>> scorer(all.from(first, m, c), reduction, g, m, c,
                                                                       canonical::softmax_scale::of(head_dim, scale));
      const detail::token_items items{codes.data + head * codes.stride(0), codes.stride(1), n};
      scorer.prepare(table, first, items, n, nullptr);
      scorer.score(items, scores.data + list * scores.stride(0));
    });
  });
}

PQKV_HOST_OPERATION(op::scan, distance_table_view<>, codes_view<>, view<float, 2>, group_reduction, std::size_t, float)

}  // namespace pqkv
