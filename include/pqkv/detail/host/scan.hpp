// SPDX-License-Identifier: Apache-2.0
// Scores of a group on the host. `group_scorer` is what both scan() and retrieve() are made of: it prepares the tables of the query
// heads of one list once, then scores items. Items are tokens or the cells of a joint-code index; both go through the same leaves,
// which is why the two paths agree to the bit.
#pragma once

#include <algorithm>
#include <cstring>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../search/scan.hpp"
#include "simd/rows.hpp"

namespace pqkv {
namespace detail {

/// What is scored: n code tuples in planes, each standing for weights[i] tokens (null: one).
struct scored_items {
  const std::uint8_t* codes;
  std::size_t stride;
  std::size_t n;
  const std::uint32_t* weights;
};

/// Scratch of one list: g * m * c floats twice, g floats.
struct scorer_scratch {
  float* shifted;  // u = table - maximum, or the table itself for logits
  float* entries;  // what the items look up
  float* factor;   // R, or the bias

  template <class Carver>
  static scorer_scratch carve(Carver& memory, std::size_t g, std::size_t m, std::size_t c) {
    return {memory.template take<float>(g * m * c), memory.template take<float>(g * m * c), memory.template take<float>(g)};
  }
};

template <class Leaf>
class group_scorer {
 public:
  group_scorer(const scorer_scratch& scratch, group_reduction reduction, std::size_t g, std::size_t m, std::size_t c, std::size_t head_dim)
      : scratch_(scratch), reduction_(reduction), g_(g), m_(m), c_(c), scale_(canonical::softmax_scale::of(head_dim)) {}

  /// Takes query heads [first, first + g) of the table. Returns through `skipped` (null or [g]) which had a non-finite entry.
  /// @param tokens  what the items stand for in all
  void prepare(distance_table_view<> table, std::size_t first, const scored_items& items, std::uint64_t tokens, std::uint8_t* skipped) {
    for (std::size_t q = 0; q < g_; ++q) {
      const float* entries = table.entries.data + (first + q) * table.entries.stride(0);
      bool finite = is_finite(table.bias(first + q)) || !uses_bias();
      for (std::size_t j = 0; j < m_; ++j) finite &= all_finite(entries + j * table.entries.stride(1), c_);
      if (skipped != nullptr) skipped[q] = finite ? 0 : 1;
      if (!finite)
        leave_out(q);
      else if (uses_logits())
        take_logits(q, entries, table.entries.stride(1), table.bias(first + q));
      else
        take_probabilities(q, entries, table.entries.stride(1), items, tokens);
    }
  }

  void score(const scored_items& items, float* scores) const {
    const auto& s = scratch_;
    switch (reduction_) {
      case group_reduction::probability_sum:
        return Leaf::probability_sum(s.entries, s.factor, g_, m_, c_, items.codes, items.stride, items.n, scores);
      case group_reduction::probability_max:
        return Leaf::probability_max(s.entries, s.factor, g_, m_, c_, items.codes, items.stride, items.n, scores);
      case group_reduction::logit_max:
        return Leaf::logit_max(s.entries, s.factor, g_, m_, c_, items.codes, items.stride, items.n, scores);
      case group_reduction::logit_sum:
      case group_reduction::none:
        return Leaf::logit_sum(s.entries, g_, m_, c_, items.codes, items.stride, items.n, scores);
    }
  }

 private:
  bool uses_logits() const { return reduction_ != group_reduction::probability_sum && reduction_ != group_reduction::probability_max; }
  bool uses_bias() const { return reduction_ == group_reduction::logit_max; }

  /// A query head that contributes nothing: adds 0, or loses every maximum.
  void leave_out(std::size_t q) {
    const float nothing = uses_bias() ? float_from_bits(0xff800000u) : 0.0f;
    std::fill_n(scratch_.entries + q * m_ * c_, m_ * c_, nothing);
    scratch_.factor[q] = 0;
  }

  void take_logits(std::size_t q, const float* entries, std::size_t stride, float bias) {
    for (std::size_t j = 0; j < m_; ++j) std::copy_n(entries + j * stride, c_, scratch_.entries + (q * m_ + j) * c_);
    scratch_.factor[q] = bias;
  }

  void take_probabilities(std::size_t q, const float* entries, std::size_t stride, const scored_items& items, std::uint64_t tokens) {
    float* u = scratch_.shifted + q * m_ * c_;
    float* e = scratch_.entries + q * m_ * c_;
    for (std::size_t j = 0; j < m_; ++j) {
      const float* row = entries + j * stride;
      const float top = *std::max_element(row, row + c_);
      for (std::size_t x = 0; x < c_; ++x) u[j * c_ + x] = canonical::sub(row[x], top);
    }
    std::uint64_t z = exponentiate(u, e, items);
    if (canonical::needs_recentring(z, tokens)) {
      const float best = canonical::recentring(Leaf::best_sum(u, m_, c_, items.codes, items.stride, items.n, items.weights), scale_);
      const float shift = canonical::div(best, static_cast<float>(m_));
      for (std::size_t x = 0; x < m_ * c_; ++x) u[x] = canonical::sub(u[x], shift);
      z = exponentiate(u, e, items);
    }
    scratch_.factor[q] = canonical::inverse_normaliser(z);
    if (z == 0) leave_out(q);
  }

  std::uint64_t exponentiate(const float* u, float* e, const scored_items& items) const {
    Leaf::exponentials(u, m_ * c_, scale_, e);
    return Leaf::normaliser(e, m_, c_, items.codes, items.stride, items.n, items.weights);
  }

  scorer_scratch scratch_;
  group_reduction reduction_;
  std::size_t g_, m_, c_;
  canonical::softmax_scale scale_;
};

}  // namespace detail

template <>
struct kernel<op::scan, backend::host> {
  template <class P>
  static void run(const P& policy, distance_table_view<> table, codes_view<> codes, view<float, 2> scores, group_reduction reduction,
                  std::size_t head_dim) {
    const std::size_t m = codes.extent(1), n = codes.extent(2), c = table.entries.extent(2);
    const std::size_t hq = table.entries.extent(0), lists = scores.extent(0), g = hq / lists, lists_per_head = lists / codes.extent(0);
    workspace memory(policy.scratch, scan_scratch_bytes(hq, m, c), "scan");
    const detail::scorer_scratch all = detail::scorer_scratch::carve(memory, hq, m, c);
    isa::with<typename P::isa_type>([&](auto isa) {
      policy.runner.run(lists, [&](std::size_t list) {
        const detail::float_environment rounding;
        const std::size_t head = list / lists_per_head, first = list * g;
        const detail::scorer_scratch own{all.shifted + first * m * c, all.entries + first * m * c, all.factor + first};
        detail::group_scorer<detail::leaf<decltype(isa)>> scorer(own, reduction, g, m, c, head_dim);
        const detail::scored_items items{codes.data + head * codes.stride(0), codes.stride(1), n, nullptr};
        scorer.prepare(table, first, items, n, nullptr);
        scorer.score(items, scores.data + list * scores.stride(0));
      });
    });
  }
};

}  // namespace pqkv
