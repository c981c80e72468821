// SPDX-License-Identifier: Apache-2.0
// Rotary pairs ordered by their weight, on the host: records the queries seen, and decides which pairs of coordinates form a subspace. A
// task decides for one KV head.
#pragma once

#include <algorithm>
#include <array>
#include <numeric>

#include "../../core/canonical.hpp"
#include "../../core/random.hpp"
#include "../../core/row.hpp"
#include "../../exec/host.hpp"
#include "../../exec/kernel.hpp"
#include "../../quantize/axes.hpp"
#include "../../quantize/shape.hpp"
#include "../../core/float_environment.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::observe_queries, backend::host> {
  /// Runs in the calling thread, since it must not fail half-way. Queries that contain an infinity or a NaN are left out.
  template <class P, class T>
  static void run(const P&, view<T, 3> queries, const pair_axes<>& axes) noexcept {
    const std::size_t g = queries.extent(1) / axes.energy.extent(0), d = queries.extent(2);
    detail::in_float_environment([&] {
      for (std::size_t t = 0; t < queries.extent(0); ++t)
        for (std::size_t q = 0; q < queries.extent(1); ++q) {
          bool finite = true;
          for (std::size_t i = 0; i < d; ++i) finite &= is_finite(static_cast<float>(queries(t, q, i)));
          for (std::size_t i = 0; finite && i < d; ++i) axes.energy(q / g, i).add(static_cast<float>(queries(t, q, i)));
        }
    });
  }
};

template <>
struct kernel<op::deal_pairs, backend::host> {
  static constexpr std::size_t scratch_bytes(const op::deal_pairs::sizes&) { return 0; }

  /// @param head    first of the rows' heads; `axes` has these heads only
  /// @param sample  of the tokens from `first` on: the rows that training uses
  template <class P, class Rows>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first,
                  std::size_t subspaces, const pair_axes<>& axes) {
    detail::run_tasks(policy, axes.energy.extent(0), [&](std::size_t h) {
      const std::size_t d = axes.energy.extent(1);
      numbers weight{}, spread{};
      axes.is_dealt(h) = 0;
      if (!weigh(axes, h, d, weight)) return;
      measure(rows, head + h, sample, first, d, spread);
      deal(axes, h, d, subspaces, weight, spread);
      axes.is_dealt(h) = 1;
    });
  }

 private:
  using numbers = std::array<float, max_head_dim>;

  /// e_i / mean e of each pair; false if no query was seen.
  static bool weigh(const pair_axes<>& axes, std::size_t h, std::size_t d, numbers& weight) {
    float sum = 0;
    for (std::size_t i = 0; i < d; ++i) sum = canonical::add(sum, axes.energy(h, i).value());
    const float mean = canonical::div(sum, static_cast<float>(d));
    if (!(mean > 0)) return false;
    for (std::size_t i = 0; i < d / 2; ++i)
      weight[i] = pair_dealing::share(axes.energy(h, i).value(), axes.energy(h, i + d / 2).value(), mean);
    return true;
  }
  /// For each coordinate, the sum of squares of the sampled keys minus their mean. Keys that are not finite are left out, as in training.
  template <class Rows>
  static void measure(const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first, std::size_t d,
                      numbers& spread) {
    const auto each = [&](auto f) {
      for (std::size_t row = 0; row < sample.count; ++row) {
        const auto key = rows.key(head, first + sample(row));
        bool finite = true;
        for (std::size_t i = 0; i < d; ++i) finite &= is_finite(key[i]);
        for (std::size_t i = 0; finite && i < d; ++i) f(i, key[i]);
        if (finite) f.end_row();
      }
    };
    struct largest_of {
      float* largest;
      std::uint64_t* rows;
      void operator()(std::size_t, float x) const { *largest = canonical::max(x < 0 ? -x : x, *largest); }
      void end_row() const { ++*rows; }
    };
    float largest = 0;
    std::uint64_t count = 0;
    each(largest_of{&largest, &count});
    if (count == 0) return;
    struct sum_of {
      std::int64_t* sum;
      float scale;
      void operator()(std::size_t i, float x) const { sum[i] += canonical::fixed_point(x, scale); }
      void end_row() const {}
    };
    std::array<std::int64_t, max_head_dim> sum{};
    const float scale = canonical::power_of_two(canonical::fixed_point_exponent(largest));
    each(sum_of{sum.data(), scale});
    struct squares_of {
      const float* mean;
      square_sum* squares;
      void operator()(std::size_t i, float x) const { squares[i].add(canonical::sub(x, mean[i])); }
      void end_row() const {}
    };
    numbers mean{};
    std::array<square_sum, max_head_dim> squares{};
    for (std::size_t i = 0; i < d; ++i) mean[i] = canonical::fixed_point_mean(sum[i], count, scale);
    each(squares_of{mean.data(), squares.data()});
    for (std::size_t i = 0; i < d; ++i) spread[i] = squares[i].value();
  }
  static void deal(const pair_axes<>& axes, std::size_t h, std::size_t d, std::size_t m, const numbers& weight, const numbers& spread) {
    const std::size_t pairs = d / 2;
    numbers matter{};
    std::array<std::uint8_t, max_head_dim> order{};
    std::iota(order.begin(), order.begin() + pairs, std::uint8_t{0});
    for (std::size_t i = 0; i < pairs; ++i) matter[i] = canonical::mul(canonical::add(spread[i], spread[i + pairs]), weight[i]);
    std::sort(order.begin(), order.begin() + pairs,
              [&](std::uint8_t a, std::uint8_t b) { return matter[a] != matter[b] ? matter[a] > matter[b] : a < b; });
    const pair_axes_row row{&axes.source(h, 0), &axes.weight(h, 0)};
    for (std::size_t rank = 0; rank < pairs; ++rank) pair_dealing::place(row, d, m, rank, order[rank], weight[order[rank]]);
  }
};

}  // namespace pqkv
