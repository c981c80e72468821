// SPDX-License-Identifier: Apache-2.0
// Scores of a group of query heads on the host. scan() and retrieve() are both made of `group_scorer`: it prepares the tables of one list's
// query heads once, then scores items. Items are tokens or the cells of a joint-code index. A token's table entries are looked up; the
// products of cells are expanded from the table. Everything after that is the same SIMD code. A product has the same factors in the same
// order for both kinds of items, so the two paths agree to the bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../search/scan.hpp"
#include "quantized_scan.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Items to score: tokens, or cells that each stand for several tokens, given by planes of codes. A tile of products fits in the
/// first-level cache.
struct token_items {
  static constexpr std::size_t tile = 2048;
  const std::uint8_t* codes;
  std::size_t stride, n;
  const std::uint32_t* weights = nullptr;  // [n] how many tokens each item stands for; null: one

  /// Calls use(i, values, weights, count) for every tile of products of entries [m, c]; i is the tile's first item.
  template <class Leaf, class Use>
  void products(const float* entries, std::size_t m, std::size_t c, Use use) const {
    alignas(cache_line_bytes) float values[tile];
    for (std::size_t first = 0; first < n; first += tile) {
      const std::size_t count = std::min(tile, n - first);
      Leaf::products(entries, m, c, codes + first, stride, count, values);
      use(first, static_cast<const float*>(values), weights == nullptr ? nullptr : weights + first, count);
    }
  }
  /// The sum of F over the products of entries [m, c].
  template <class Leaf>
  std::uint64_t total(const float* entries, std::size_t m, std::size_t c) const {
    std::uint64_t z = 0;
    products<Leaf>(entries, m, c, [&](std::size_t, const float* p, const std::uint32_t* weight, std::size_t count) {
      z += Leaf::total(p, weight, count);
    });
    return z;
  }
  /// scores[t] = fma(product, factor[q], scores[t]) for the products of entries [g, m, c], q ascending.
  template <class Leaf>
  void add_scaled(const float* entries, const float* factor, std::size_t g, std::size_t m, std::size_t c, float* scores) const {
    for (std::size_t q = 0; q < g; ++q)
      products<Leaf>(entries + q * m * c, m, c, [&](std::size_t at, const float* p, const std::uint32_t*, std::size_t count) {
        Leaf::add_scaled(p, factor[q], count, scores + at);
      });
  }
  template <class Leaf, class Use>
  void sums(const float* entries, std::size_t m, std::size_t c, Use use) const {
    alignas(cache_line_bytes) float values[tile];
    for (std::size_t first = 0; first < n; first += tile) {
      const std::size_t count = std::min(tile, n - first);
      Leaf::sums(entries, m, c, codes + first, stride, count, values);
      use(first, static_cast<const float*>(values), weights == nullptr ? nullptr : weights + first, count);
    }
  }
};

/// All c^m cells in ascending order; each stands for weights[cell] tokens. The first code is the most significant digit.
struct cell_items {
  const std::uint32_t* weights;
  std::uint64_t weight_sum;
  std::size_t n;
  float* values;  // [n], scratch

  template <class Leaf, class Use>
  void products(const float* entries, std::size_t m, std::size_t c, Use use) const {
    expand_products<Leaf>(entries, m, c, values);
    use(std::size_t{0}, static_cast<const float*>(values), weights, n);
  }
  template <class Leaf>
  std::uint64_t total(const float* entries, std::size_t m, std::size_t c) const {
    return Leaf::cell_total(grid<Leaf>(entries, 1, m, c), weights, weight_sum);
  }
  template <class Leaf>
  void add_scaled(const float* entries, const float* factor, std::size_t g, std::size_t m, std::size_t c, float* scores) const {
    for (std::size_t q = 0; q < g; q += cell_grid::most)
      Leaf::add_cells(grid<Leaf>(entries + q * m * c, std::min(g - q, cell_grid::most), m, c), factor + q, scores);
  }
  template <class Leaf, class Use>
  void sums(const float* entries, std::size_t m, std::size_t c, Use use) const {
    expand(
        entries, m, c, [](float prefix, const float* row, std::size_t count, float* out) { Leaf::offsets(prefix, row, count, out); },
        values);
    use(std::size_t{0}, static_cast<const float*>(values), weights, n);
  }

 private:
  template <class Leaf>
  static void expand_products(const float* entries, std::size_t m, std::size_t c, float* out) {
    expand(
        entries, m, c, [](float prefix, const float* row, std::size_t count, float* to) { Leaf::multiples(prefix, row, count, to); }, out);
  }
  /// Extends the prefixes by one subspace after the other, in place. Prefixes are taken from the last to the first, so that a prefix's
  /// products are written where no other one is still to be read.
  template <class Extend>
  static void expand(const float* entries, std::size_t m, std::size_t c, Extend extend, float* out) {
    std::copy_n(entries, c, out);
    std::size_t width = c;
    for (std::size_t j = 1; j < m; ++j, width *= c)
      for (std::size_t prefix = width; prefix-- > 0;) extend(out[prefix], entries + j * c, c, out + prefix * c);
  }
  /// The products of entries [g, m, c], g up to cell_grid::most, as prefixes and rows. Prefixes of a long code go to `values`, which is
  /// large enough: there are at least 16 times as many cells as prefixes.
  template <class Leaf>
  cell_grid grid(const float* entries, std::size_t g, std::size_t m, std::size_t c) const {
    static constexpr float one = 1;
    const std::size_t prefixes = n / c;
    if (m == 1) return {g, prefixes, c, &one, 0, entries, c};
    if (m == 2) return {g, prefixes, c, entries, m * c, entries + c, m * c};
    for (std::size_t q = 0; q < g; ++q) expand_products<Leaf>(entries + q * m * c, m - 1, c, values + q * prefixes);
    return {g, prefixes, c, values, prefixes, entries + (m - 1) * c, m * c};
  }
};

/// Scratch of one list: two times g * m * c floats, and g floats.
struct scorer_scratch {
  float* shifted;  // u = table - maximum, or the table itself for logits
  float* entries;  // what items look up
  float* factor;   // R, or the bias

  template <class Carver>
  static scorer_scratch carve(Carver& memory, std::size_t g, std::size_t m, std::size_t c) {
    return {memory.template take<float>(g * m * c), memory.template take<float>(g * m * c), memory.template take<float>(g)};
  }
};

template <class Leaf>
class group_scorer {
 public:
  group_scorer(const scorer_scratch& scratch, group_reduction reduction, std::size_t g, std::size_t m, std::size_t c,
               canonical::softmax_scale scale)
      : scratch_(scratch), reduction_(reduction), g_(g), m_(m), c_(c), scale_(scale) {}

  /// Prepares query heads [first, first + g) of the table. Writes to `skipped` (null or [g]) which of them have a non-finite entry.
  /// @param tokens    how many tokens all items stand for
  /// @param attended  null, or [g] sums of other tokens, over which the probabilities are normalised too
  /// @param given     null, or [g] normalisers of the probabilities; the items' own sums are then not computed
  template <class Items>
  void prepare(distance_table_view<> table, std::size_t first, const Items& items, std::uint64_t tokens, std::uint8_t* skipped,
               const attended_sum* attended = nullptr, const normaliser* given = nullptr) {
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
  }

  /// The items' part of the normaliser of query head first + q, around `centre`; 0 if its table has a non-finite entry.
  template <class Items>
  std::uint64_t part_of_sum(distance_table_view<> table, std::size_t first, std::size_t q, const Items& items, float centre) {
    if (!is_finite(table, first + q)) return 0;
    subtract_maxima(q, table.entries.data + (first + q) * table.entries.stride(0), table.entries.stride(1), 0);
    move_centre(q, centre);
    return exponentiate(scratch_.shifted + q * m_ * c_, scratch_.entries + q * m_ * c_, items);
  }
  /// The largest sum over j of u_j among the items, around the same centre; -infinity if there are no items.
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
    if (reduction_ == group_reduction::probability_sum)
      return items.template add_scaled<Leaf>(scratch_.entries, scratch_.factor, g_, m_, c_, scores);
    for (std::size_t q = 0; q < g_; ++q) {
      const float* entries = scratch_.entries + q * m_ * c_;
      const float factor = scratch_.factor[q];
      switch (reduction_) {
        case group_reduction::probability_sum:
          break;
        case group_reduction::probability_max:
          items.template products<Leaf>(entries, m_, c_, [&](std::size_t at, const float* p, const std::uint32_t*, std::size_t count) {
            Leaf::max_scaled(p, factor, count, scores + at);
          });
          break;
        case group_reduction::logit_max:
          items.template sums<Leaf>(entries, m_, c_, [&](std::size_t at, const float* z, const std::uint32_t*, std::size_t count) {
            Leaf::max_shifted(z, factor, count, scores + at);
          });
          break;
        case group_reduction::logit_sum:
        case group_reduction::none:
          items.template sums<Leaf>(entries, m_, c_, [&](std::size_t at, const float* z, const std::uint32_t*, std::size_t count) {
            Leaf::add(z, count, scores + at);
          });
          break;
      }
    }
  }

  bool adds_logits() const { return pqkv::adds_logits(reduction_); }

  /// Rounds the sum of the group's tables to integers; only for reductions that adds_logits(). The bound is the distance to the canonical
  /// scores. Let A be the sum, over query heads and subspaces, of the largest magnitude. The canonical score rounds m + g - 2 times, and
  /// the summed table once for each subspace.
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
  /// Whether a query head's table has finite entries only, and the bias if it is used.
  bool is_finite(distance_table_view<> table, std::size_t q) const {
    bool finite = pqkv::is_finite(table.bias(q)) || !uses_bias();
    for (std::size_t j = 0; j < m_; ++j)
      finite &= Leaf::all_finite(table.entries.data + q * table.entries.stride(0) + j * table.entries.stride(1), c_);
    return finite;
  }

  /// Makes a query head contribute nothing: it adds 0, or loses every maximum.
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
    float* u = scratch_.shifted + q * m_ * c_;
    float* e = scratch_.entries + q * m_ * c_;
    float zero = subtract_maxima(q, entries, stride, bias);  // the logit whose product is 1
    std::uint64_t z = exponentiate(u, e, items);
    if (canonical::needs_recentring(z, tokens)) {
      const float centre = canonical::recentring(largest_sum(q, items), scale_);
      zero = canonical::add(zero, centre);
      move_centre(q, centre);
      z = exponentiate(u, e, items);
    }
    const bool beside = attended.weight != 0 && pqkv::is_finite(zero);  // without a finite bias nothing can be compared
    scratch_.factor[q] = canonical::inverse_normaliser(beside ? z + attended.relative_to(zero, scale_) : z);
    if (z == 0) leave_out(q);
  }

  void take_given(std::size_t q, const float* entries, std::size_t stride, const normaliser& given) {
    if (given.sum == 0) return leave_out(q);
    subtract_maxima(q, entries, stride, 0);
    move_centre(q, given.centre);
    Leaf::exponentials(scratch_.shifted + q * m_ * c_, m_ * c_, scale_, scratch_.entries + q * m_ * c_);
    scratch_.factor[q] = canonical::inverse_normaliser(given.sum);
  }

  /// u = entries minus the largest entry of their subspace. Returns the bias plus these largest entries.
  float subtract_maxima(std::size_t q, const float* entries, std::size_t stride, float bias) const {
    float* u = scratch_.shifted + q * m_ * c_;
    for (std::size_t j = 0; j < m_; ++j) {
      const float* row = entries + j * stride;
      const float top = *std::max_element(row, row + c_);
      for (std::size_t x = 0; x < c_; ++x) u[j * c_ + x] = canonical::sub(row[x], top);
      bias = canonical::add(bias, top);
    }
    return bias;
  }
  /// Subtracts A from the sums of u; 0 changes nothing.
  void move_centre(std::size_t q, float centre) const {
    float* u = scratch_.shifted + q * m_ * c_;
    const float shift = canonical::div(centre, static_cast<float>(m_));
    for (std::size_t x = 0; x < m_ * c_; ++x) u[x] = canonical::sub(u[x], shift);
  }
  template <class Items>
  float largest_sum(std::size_t q, const Items& items) const {
    float best = float_from_bits(0xff800000u);
    items.template sums<Leaf>(scratch_.shifted + q * m_ * c_, m_, c_,
                              [&](std::size_t, const float* logits, const std::uint32_t* weights, std::size_t count) {
                                best = canonical::max(Leaf::largest(logits, weights, count), best);
                              });
    return best;
  }

  template <class Items>
  std::uint64_t exponentiate(const float* u, float* e, const Items& items) const {
    Leaf::exponentials(u, m_ * c_, scale_, e);
    return items.template total<Leaf>(e, m_, c_);
  }

  scorer_scratch scratch_;
  group_reduction reduction_;
  std::size_t g_, m_, c_;
  canonical::softmax_scale scale_;
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
      const detail::scorer_scratch own{all.shifted + first * m * c, all.entries + first * m * c, all.factor + first};
      detail::group_scorer<detail::leaf<decltype(isa)>> scorer(own, reduction, g, m, c, canonical::softmax_scale::of(head_dim, scale));
      const detail::token_items items{codes.data + head * codes.stride(0), codes.stride(1), n};
      scorer.prepare(table, first, items, n, nullptr);
      scorer.score(items, scores.data + list * scores.stride(0));
    });
  });
}

PQKV_HOST_OPERATION(op::scan, distance_table_view<>, codes_view<>, view<float, 2>, group_reduction, std::size_t, float)

}  // namespace pqkv
