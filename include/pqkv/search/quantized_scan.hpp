// SPDX-License-Identifier: Apache-2.0
// Logits of every encoded token from tables of small integers: about one instruction for each look-up and query head, within a stated bound
// of the exact logits. For filters and estimates. scan() and retrieve(), which are exact, decide which tokens are selected. Sources:
// quantized tables in registers, Andre et al., "Cache locality is not enough", 2015, and "Quicker ADC", 2019.
#pragma once

#include <concepts>

#include "scan.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct quantize_table {};
struct quantized_scan {};
}  // namespace op

/// The type of a quantized table's entries: 16 bits, or 8 where half the look-ups are worth a larger bound.
template <class T>
concept table_integer = std::same_as<T, std::uint8_t> || std::same_as<T, std::uint16_t>;

/// The most subspaces of a quantized table.
inline constexpr std::size_t max_quantized_subspaces = 16;

/// How to turn the integers of one query head into logits.
struct table_quantization {
  double step = 0;    // the logit of one unit, the same in all subspaces
  double offset = 0;  // the logit of a sum of 0
  double bound = 0;   // |value(sum) - logit| at most, for the float logit of scan() under `none`

  /// The logit that a sum stands for.
  PQKV_HD constexpr double value(std::uint16_t sum) const { return step * sum + offset; }
};

/// Quantized tables of hq query heads.
///
/// @tparam Entry    std::uint16_t or std::uint8_t, const for read-only tables
/// @tparam Scaling  table_quantization, const like Entry
template <class Entry, class Scaling, class Space = space::host>
struct basic_quantized_table_view {
  view<Entry, 3, Space> entries;    // [hq, m, c], contiguous
  view<Scaling, 1, Space> scaling;  // [hq]
};
/// Read-only tables.
template <table_integer Entry, class Space = space::host>
using quantized_table_view = basic_quantized_table_view<const Entry, const table_quantization, Space>;
/// Writable tables.
template <table_integer Entry, class Space = space::host>
using mutable_quantized_table_view = basic_quantized_table_view<Entry, table_quantization, Space>;

/// Owner of the quantized tables of hq queries in host memory.
template <table_integer Entry>
class quantized_table {
 public:
  quantized_table() = default;
  quantized_table(std::size_t query_heads, const pq_shape& shape)
      : hq_(query_heads), m_(shape.subspaces), c_(shape.centroids()), entries_(hq_ * m_ * c_), scaling_(hq_) {}
  std::size_t size_bytes() const { return entries_.size_bytes() + scaling_.size_bytes(); }
  mutable_quantized_table_view<Entry> mutable_view() { return {make_view(entries_.data(), hq_, m_, c_), make_view(scaling_.data(), hq_)}; }
  quantized_table_view<Entry> view() const {
    return {as_const(make_view(entries_.data(), hq_, m_, c_)), as_const(make_view(scaling_.data(), hq_))};
  }

 private:
  std::size_t hq_{}, m_{}, c_{};
  buffer<Entry> entries_;
  buffer<table_quantization> scaling_;
};

/// The checks of quantize_table().
template <class Table, class Quantized>
constexpr status can_quantize_table(const Table& table, const Quantized& out) noexcept {
  const std::size_t hq = table.entries.extent(0), m = table.entries.extent(1), c = table.entries.extent(2);
  return detail::checks("quantize_table")
      .at_least("table.entries.extent(1)", m, 1, "m")
      .at_most("table.entries.extent(1)", m, max_quantized_subspaces, "m")
      .that(c >= 16 && c <= max_centroids && (c & (c - 1)) == 0, status::code::value, "table.entries.extent(2)", relation::stated,
            "16, 32, 64, 128 or 256", 64, c)
      .extent("table.entries.stride(2)", table.entries.stride(2), 1, "last axis contiguous")
      .extent("out.entries.extent(0)", out.entries.extent(0), hq, "hq, from table")
      .extent("out.entries.extent(1)", out.entries.extent(1), m, "m, from table")
      .extent("out.entries.extent(2)", out.entries.extent(2), c, "c, from table")
      .extent("out.entries.stride(0)", out.entries.stride(0), m * c, "contiguous")
      .extent("out.entries.stride(1)", out.entries.stride(1), c, "contiguous")
      .extent("out.entries.stride(2)", out.entries.stride(2), 1, "contiguous")
      .extent("out.scaling.extent(0)", out.scaling.extent(0), hq, "hq, from table")
      .extent("out.scaling.stride(0)", out.scaling.stride(0), 1, "contiguous");
}

/// The checks of quantized_scan().
template <class Table, class Codes, class Sums>
constexpr status can_scan_quantized(const Table& table, const Codes& codes, const Sums& sums) noexcept {
  const std::size_t h = codes.extent(0), hq = table.entries.extent(0), m = table.entries.extent(1), c = table.entries.extent(2);
  return detail::checks("quantized_scan")
      .that(h > 0 && hq % h == 0, status::code::shape, "table.entries.extent(0)", relation::multiple_of, "h", h, hq)
      .at_least("table.entries.extent(1)", m, 1, "m")
      .at_most("table.entries.extent(1)", m, max_quantized_subspaces, "m")
      .that(c >= 16 && c <= max_centroids && (c & (c - 1)) == 0, status::code::value, "table.entries.extent(2)", relation::stated,
            "16, 32, 64, 128 or 256", 64, c)
      .extent("table.entries.stride(0)", table.entries.stride(0), m * c, "contiguous")
      .extent("table.entries.stride(1)", table.entries.stride(1), c, "contiguous")
      .extent("table.entries.stride(2)", table.entries.stride(2), 1, "contiguous")
      .extent("codes.extent(1)", codes.extent(1), m, "m, from table")
      .extent("codes.stride(2)", codes.stride(2), 1, "last axis contiguous")
      .extent("sums.extent(0)", sums.extent(0), hq, "hq, from table")
      .extent("sums.extent(1)", sums.extent(1), codes.extent(2), "n, from codes")
      .extent("sums.stride(1)", sums.stride(1), 1, "last axis contiguous");
}

/// Rounds the tables of each query head to integers whose sums fit in 16 bits.
///
/// entries[q, j, x] = round((table[q, j, x] - min over x of table[q, j]) / step[q]); offset[q] = sum over j of those minima
///
/// The step is the smallest without overflow. With 16 bits the ranges of all subspaces share 65535 - m; with 8 bits the widest range gets
/// 255. bound[q] is m / 2 steps, plus what the rounding of the float logit itself may add.
///
/// @param table  [hq, m, c] float, from inner_product_table()
/// @param out    [hq, m, c] and [hq], written. A query head with a non-finite entry gets zeros, as under `none` of scan(). If float logits
///               could overflow, the bound is infinite
/// @throws shape_error, value_error
/// @cost   hq * m * c roundings; no allocation
template <exec::policy P, table_integer Entry>
void quantize_table(const P& policy, distance_table_view<typename P::space_type> table,
                    mutable_quantized_table_view<Entry, typename P::space_type> out) {
  require_ok(can_quantize_table(table, out));
  detail::run_operation<op::quantize_table>(policy, table, out);
}

/// Sums the integers of every encoded token.
///
/// sums[q, t] = sum over j of table.entries[q, j, codes[h(q), j, t]], modulo 2^16; table.scaling(q).value(sums[q, t]) is the logit within
/// table.scaling(q).bound
///
/// @param table  [hq, m, c] uint16 or uint8, from quantize_table(), whose sums never reach 2^16
/// @param codes  [h, m, n] uint8, planar, from encode()
/// @param sums   [hq, n] uint16, written
/// @throws shape_error, value_error
/// @cost   hq * m * n look-ups in registers; codes are read once for all query heads of a group; no allocation
template <exec::policy P, table_integer Entry>
void quantized_scan(const P& policy, basic_quantized_table_view<const Entry, const table_quantization, typename P::space_type> table,
                    codes_view<typename P::space_type> codes, view<std::uint16_t, 2, typename P::space_type> sums) {
  require_ok(can_scan_quantized(table, codes, sums));
  detail::run_operation<op::quantized_scan>(policy, table, codes, sums);
}

}  // namespace pqkv
