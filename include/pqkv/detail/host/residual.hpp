// SPDX-License-Identifier: Apache-2.0
// Residuals on the host. A task is a run of tokens of one head.
#pragma once

#include <algorithm>
#include <limits>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../quantize/residual.hpp"
#include "kmeans.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The residuals of one head's keys.
template <class Kernels, class T, class Space>
class residual_source {
 public:
  residual_source(view<T, 3, Space> keys, codes_view<> codes, codebook_view<> book, std::size_t head)
      : keys_(keys), codes_(codes), book_(book), head_(head) {}

  /// Whether all elements of a key are finite.
  bool finite(std::size_t t) {
    return Kernels::all_finite(load_row<Kernels>(row_of(keys_, head_, t), book_.head_dim(), copy_), book_.head_dim());
  }

  /// Coordinates [first, first + count) of token t: out[i] = (x - mean) - centroid
  void take(std::size_t t, std::size_t first, std::size_t count, float* out) {
    const auto whole = row_of(keys_, head_, t);
    const kv_row<std::remove_cv_t<T>> part{whole.data + first * whole.stride, whole.stride};
    Kernels::centre(load_row<Kernels>(part, count, copy_), &book_.mean(head_, first), count, out);
    const std::size_t ds = book_.sub_dim(), c = book_.size();
    for (std::size_t i = 0; i < count;) {
      const std::size_t j = (first + i) / ds, within = (first + i) % ds, run = std::min(count - i, ds - within);
      const float* centroid = &book_.centroids(head_, j, within, codes_(head_, j, t));
      for (std::size_t e = 0; e < run; ++e) out[i + e] = canonical::sub(out[i + e], centroid[e * c]);
      i += run;
    }
  }

 private:
  view<T, 3, Space> keys_;
  codes_view<> codes_;
  codebook_view<> book_;
  std::size_t head_;
  alignas(cache_line_bytes) float copy_[max_head_dim];
};

}  // namespace detail

template <>
struct kernel<op::residual_rows, backend::host> {
  static constexpr std::size_t run_rows = 1024;

  /// @param rows  [h, sample.count, d]; NaNs for a key that takes no part
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, codes_view<> codes, codebook_view<> book, const stratified_sample& sample,
                  view<float, 3> rows);
};

template <class P, class T, class Space>
void kernel<op::residual_rows, backend::host>::run(const P& policy, view<T, 3, Space> keys, codes_view<> codes, codebook_view<> book,
                                                   const stratified_sample& sample, view<float, 3> rows) {
  const std::size_t count = sample.count, runs = (count + run_rows - 1) / run_rows, d = book.head_dim();
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    detail::run_tasks(policy, keys.extent(0) * runs, [&](std::size_t task) {
      const std::size_t head = task / runs, first = task % runs * run_rows;
      detail::residual_source<detail::simd_kernels<decltype(isa)>, T, Space> source(keys, codes, book, head);
      for (std::size_t i = first; i < std::min(count, first + run_rows); ++i) {
        const std::size_t t = sample(i);
        if (source.finite(t))
          source.take(t, 0, d, &rows(head, i, 0));
        else
          std::fill_n(&rows(head, i, 0), d, std::numeric_limits<float>::quiet_NaN());
      }
    });
  });
}

template <>
struct kernel<op::encode_residual, backend::host> {
  static constexpr std::size_t run_tokens = 1024;

  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, codes_view<> codes, codebook_view<> book, codebook_view<> fine,
                  mutable_residual_codes_view<> fine_codes);

 private:
  template <class Kernels, class Source>
  static void encode_run(Source& source, codebook_view<> fine, mutable_residual_codes_view<> fine_codes, std::size_t head,
                         std::size_t first, std::size_t last) {
    using search = detail::nearest_search<Kernels>;
    const std::size_t ds = fine.sub_dim();
    bool finite[run_tokens];
    for (std::size_t t = first; t < last; ++t) finite[t - first] = source.finite(t);
    detail::row_tile<Kernels> r(ds);
    std::uint8_t index[search::block_rows];
    float squared_norm[search::block_rows];
    for (std::size_t j = 0; j < fine.subspaces(); ++j) {
      search nearest(&fine.centroids(head, j, 0, 0), fine.size(), ds, last - first);
      for (std::size_t start = first; start < last; start += search::block_rows) {
        const std::size_t rows = std::min(search::block_rows, last - start);
        std::uint32_t usable = 0;
        for (std::size_t i = 0; i < rows; ++i) {
          source.take(start + i, j * ds, ds, r.row(i));
          const detail::row_extent extent = Kernels::measure(r.row(i), ds);
          const bool whole = is_finite(extent.largest);
          squared_norm[i] = whole ? extent.squared_norm : std::numeric_limits<float>::infinity();
          usable |= static_cast<std::uint32_t>(finite[start + i - first] && whole) << i;
        }
        nearest.find_rows(r, squared_norm, rows, index);
        for (std::size_t i = 0; i < rows; ++i) fine_codes(head, start + i, j) = (usable >> i & 1u) != 0 ? index[i] : std::uint8_t{0};
      }
    }
  }
};

template <class P, class T, class Space>
void kernel<op::encode_residual, backend::host>::run(const P& policy, view<T, 3, Space> keys, codes_view<> codes, codebook_view<> book,
                                                     codebook_view<> fine, mutable_residual_codes_view<> fine_codes) {
  const std::size_t n = keys.extent(1), runs = (n + run_tokens - 1) / run_tokens;
  isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
    detail::run_tasks(policy, keys.extent(0) * runs, [&](std::size_t task) {
      const std::size_t head = task / runs, first = task % runs * run_tokens;
      detail::residual_source<detail::simd_kernels<decltype(isa)>, T, Space> source(keys, codes, book, head);
      encode_run<detail::simd_kernels<decltype(isa)>>(source, fine, fine_codes, head, first, std::min(n, first + run_tokens));
    });
  });
}

PQKV_HOST_OPERATION(op::residual_rows, view<const float, 3>, codes_view<>, codebook_view<>, const stratified_sample&, view<float, 3>)
PQKV_HOST_OPERATION(op::residual_rows, view<const half, 3>, codes_view<>, codebook_view<>, const stratified_sample&, view<float, 3>)
PQKV_HOST_OPERATION(op::residual_rows, view<const bfloat16, 3>, codes_view<>, codebook_view<>, const stratified_sample&, view<float, 3>)
PQKV_HOST_OPERATION(op::encode_residual, view<const float, 3>, codes_view<>, codebook_view<>, codebook_view<>,
                    mutable_residual_codes_view<>)
PQKV_HOST_OPERATION(op::encode_residual, view<const half, 3>, codes_view<>, codebook_view<>, codebook_view<>, mutable_residual_codes_view<>)
PQKV_HOST_OPERATION(op::encode_residual, view<const bfloat16, 3>, codes_view<>, codebook_view<>, codebook_view<>,
                    mutable_residual_codes_view<>)

}  // namespace pqkv
