// SPDX-License-Identifier: Apache-2.0
// The asymmetric distance table of a query: its product with every centroid. After it, a token's score is m look-ups.
// Source: Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", 2011 (asymmetric distance computation).
#pragma once

#include "../quantize/codebook.hpp"
#include "head_map.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct inner_product_table {};
struct squared_l2_table {};
}  // namespace op

/// @tparam T  float or const float
template <class T, class Space = space::host>
struct basic_distance_table_view {
  view<T, 3, Space> entries;  // [hq, m, c]
  view<T, 1, Space> bias;     // [hq]: <q, mean>, the same for all tokens; only logit_max across heads needs it

  template <class To>
  requires space::usable_from<Space, To> PQKV_HD constexpr operator basic_distance_table_view<const T, To>() const {
    return {entries, bias};
  }
};

/// Read-only tables.
template <class Space = space::host>
using distance_table_view = basic_distance_table_view<const float, Space>;
/// Writable tables.
template <class Space = space::host>
using mutable_distance_table_view = basic_distance_table_view<float, Space>;

/// Owner of the tables of hq queries in host memory. One thread may write at a time, or any number read. Its views end with it.
class distance_table {
 public:
  distance_table() = default;
  distance_table(std::size_t query_heads, const pq_shape& shape)
      : hq_(query_heads), m_(shape.subspaces), c_(shape.centroids()), entries_(hq_ * m_ * c_), bias_(hq_) {}
  static constexpr std::size_t required_bytes(std::size_t query_heads, const pq_shape& shape) {
    return query_heads * (shape.subspaces * shape.centroids() + 1) * sizeof(float);
  }
  /// Takes tables from the caller's memory of any space, or counts the bytes.
  template <class Space = space::host>
  static constexpr mutable_distance_table_view<Space> place(arena& memory, std::size_t query_heads, const pq_shape& shape) {
    const std::size_t m = shape.subspaces, c = shape.centroids();
    return {make_view<Space>(memory.take<float>(query_heads * m * c), query_heads, m, c),
            make_view<Space>(memory.take<float>(query_heads), query_heads)};
  }
  std::size_t size_bytes() const { return entries_.size_bytes() + bias_.size_bytes(); }
  mutable_distance_table_view<> mutable_view() { return {make_view(entries_.data(), hq_, m_, c_), make_view(bias_.data(), hq_)}; }
  distance_table_view<> view() const { return {as_const(make_view(entries_.data(), hq_, m_, c_)), as_const(make_view(bias_.data(), hq_))}; }

 private:
  std::size_t hq_{}, m_{}, c_{};
  buffer<float> entries_, bias_;
};

/// The checks of both tables.
template <class Query, class Book, class Table, class Map = head_map<>>
constexpr status can_build_table(const Query& query, const Book& book, const Table& table, const char* function,
                                 const Map& map = {}) noexcept {
  const std::size_t h = map.heads(book.heads());
  if (const status s = can_use_codebook(book, function); !s.ok()) return s;
  return detail::checks(function)
      .extent("query.extent(1)", query.extent(1), book.head_dim(), "d, from codebook")
      .that(h > 0 && query.extent(0) % h == 0, status::code::shape, "query.extent(0)", relation::multiple_of, "h", h, query.extent(0))
      .that(map.empty() || (map.kv_heads != 0 && book.heads() % map.kv_heads == 0), status::code::shape, "map.kv_heads", relation::divisor,
            "codebook's heads", book.heads(), map.kv_heads)
      .extent("table.entries.extent(0)", table.entries.extent(0), query.extent(0), "hq, from query")
      .extent("table.entries.extent(1)", table.entries.extent(1), book.subspaces(), "m, from codebook")
      .extent("table.entries.extent(2)", table.entries.extent(2), book.size(), "c, from codebook")
      .extent("table.bias.extent(0)", table.bias.extent(0), query.extent(0), "hq, from query")
      .extent("table.entries.stride(2)", table.entries.stride(2), 1, "last axis contiguous")
      .extent("query.stride(1)", query.stride(1), 1, "last axis contiguous");
}

/// table.entries[q, j, x] = <query[q] sub-vector j, centroids[h(q), j, :, x]>; table.bias[q] = <query[q], mean[h(q)]>.
///
/// Canonical: chains of fused multiply-adds in ascending order from +0.
///
/// @param query  [hq, d] float, after rotary embedding; hq % h == 0, query head q belongs to KV head q / (hq / h)
/// @param book   [h, m, ds, c]
/// @param table  [hq, m, c] and [hq], written; non-finite where the query is, and scan and retrieve then skip that query head
/// @param map    the sequence of the codebook that each row of queries asks; empty: heads in order
/// @throws shape_error, value_error
/// @cost   hq * d * c multiply-adds; no allocation; asynchronous on device policies
template <exec::policy P>
void inner_product_table(const P& policy, view<const float, 2, typename P::space_type> query, codebook_view<typename P::space_type> book,
                         mutable_distance_table_view<typename P::space_type> table, const head_map<typename P::space_type>& map = {}) {
  require_ok(can_build_table(query, book, table, "inner_product_table", map));
  detail::run_operation<op::inner_product_table>(policy, query, book, table, map);
}

/// table.entries[q, j, x] = -|query[q] sub-vector j - mean - centroids[h(q), j, :, x]|^2. Larger is nearer, so every reduction and top_k
/// apply unchanged. table.bias[q] = 0. Shapes, errors and cost as inner_product_table(). A codebook of the inner-product metric is a
/// value_error, since its centroids stand for points of a sphere.
template <exec::policy P>
void squared_l2_table(const P& policy, view<const float, 2, typename P::space_type> query, codebook_view<typename P::space_type> book,
                      mutable_distance_table_view<typename P::space_type> table) {
  require_ok(can_build_table(query, book, table, "squared_l2_table"));
  require_ok(detail::checks("squared_l2_table")
                 .that(book.metric() == key_metric::squared_l2, status::code::value, "codebook.squared_radius", relation::required,
                       "empty: the table is of key_metric::squared_l2", 0, book.squared_radius.size()));
  detail::run_operation<op::squared_l2_table>(policy, query, book, table);
}

}  // namespace pqkv
