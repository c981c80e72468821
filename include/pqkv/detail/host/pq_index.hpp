// SPDX-License-Identifier: Apache-2.0
// The index of product quantization on the host: codes of the tokens that leave windows, with one task for each head of each sequence; and
// copies of keys from a store that is not strided.
#pragma once

#include <algorithm>

#include "../../search/pq_index.hpp"
#include "axes.hpp"
#include "codes.hpp"
#include "residual.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::gather_keys, backend::host> {
  /// @param axes  axis_map, or pair_axes of these heads
  template <class P, class Rows, class Axes, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first, const Axes& axes,
                  view<T, 3> out) {
    detail::run_tasks(policy, out.extent(0), [&](std::size_t h) {  // a row of integers is multiplied by its scale, a pair by its weight
      for (std::size_t i = 0; i < out.extent(1); ++i) {
        const auto key = rows.key(head + h, first + sample(i));
        for (std::size_t e = 0; e < out.extent(2); ++e) out(h, i, e) = static_cast<T>(axes.of_key(key, h, e));
      }
    });
  }
};

template <>
struct kernel<op::order_axes, backend::host> {
  template <class P>
  static void run(const P&, view<const float, 2> rows, const axis_map& axes, view<float, 2> out) noexcept {
    for (std::size_t r = 0; r < rows.extent(0); ++r)
      for (std::size_t i = 0; i < rows.extent(1); ++i) out(r, i) = rows(r, axes(i));
  }
  /// @param heads  of the index
  template <class P>
  static void run(const P&, view<const float, 2> rows, const pair_axes<>& axes, const head_map<>& map, std::size_t heads,
                  view<float, 2> out) noexcept {
    const std::size_t g = rows.extent(0) / map.heads(heads);
    detail::in_float_environment([&] {
      for (std::size_t r = 0; r < rows.extent(0); ++r)
        for (std::size_t i = 0; i < rows.extent(1); ++i) out(r, i) = axes.of_query(&rows(r, 0), map.head(r / g), i);
    });
  }
};

template <>
struct kernel<op::encode_leaving, backend::host> {
  template <class P, class Rows>
  static void run(const P& policy, const pq_index_view<>& index, const Rows& rows, view<const leaving_tokens, 1> leaving) {
    const std::size_t h = index.kv_heads;
    const exec::host<typename P::isa_type> here;
    policy.runner.run(leaving.extent(0) * h, [&](std::size_t task) {
      const leaving_tokens tokens = leaving(task / h);
      const std::size_t head = tokens.slot * h + task % h;
      if constexpr (requires { rows.strided_keys(head, std::size_t{1}, std::size_t{0}, std::size_t{0}); })
        if (index.axes.is_identity()) {
          if (tokens.size() != 0) encode(here, index, head, tokens.first, rows.strided_keys(head, 1, tokens.first, tokens.size()));
          return;
        }
      using T = ordered_element<copied_element<typename Rows::value_type>>;
      constexpr std::size_t at_once = 16;
      alignas(cache_line_bytes) T copy[at_once * max_head_dim];
      const std::size_t d = rows.head_dim();
      for (std::size_t first = tokens.first; first < tokens.last; first += at_once) {
        const auto keys = make_view(copy, std::size_t{1}, std::min<std::size_t>(at_once, tokens.last - first), d);
        const stratified_sample all{keys.extent(1), keys.extent(1), {}};
        if (index.pairs.empty())
          kernel<op::gather_keys, backend::host>::run(here, rows, head, all, first, index.axes, keys);
        else
          kernel<op::gather_keys, backend::host>::run(here, rows, head, all, first, index.pairs.heads(head, 1), keys);
        encode(here, index, head, first, as_const(keys));
      }
    });
  }

 private:
  template <class P, class T>
  static void encode(const P& here, const pq_index_view<>& index, std::size_t head, std::size_t first, view<T, 3> keys) {
    const auto book = index.book.slice(head, 1);
    const auto codes = index.codes.slice(0, head, 1).slice(2, first, keys.extent(1));
    kernel<op::encode, backend::host>::run(here, keys, book, codes);
    if (index.has_fine())
      kernel<op::encode_residual, backend::host>::run(here, keys, as_const(codes), book, index.fine_book.slice(head, 1),
                                                      index.fine_codes.slice(0, head, 1).slice(1, first, keys.extent(1)));
  }
};

}  // namespace pqkv
