// SPDX-License-Identifier: Apache-2.0
// Encoding on the host. A task is a run of tokens of one head.
#pragma once

#include <algorithm>
#include <limits>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../quantize/codes.hpp"
#include "kmeans.hpp"

namespace pqkv::inline PQKV_MODE {

namespace detail {

/// Tokens first to last - 1 of one head.
template <class Kernels, class T, class Space>
class encode_run {
 public:
  static constexpr std::size_t max_tokens = 1024;  // of a task: long enough to repay its start, short enough to share out one head

  encode_run(view<T, 3, Space> keys, codebook_view<> book, mutable_codes_view<> codes, std::size_t head, std::size_t first,
             std::size_t last)
      : keys_(keys), book_(book), codes_(codes), head_(head), first_(first), last_(last), ds_(book.sub_dim()), tile_(book.row_dim()) {}

  void run() {
    std::fill_n(odd_, last_ - first_, false);
    for (std::size_t j = 0; j < book_.subspaces(); ++j) search(j);
    for (std::size_t t = first_; t < last_; ++t) {
      if (!odd_[t - first_]) continue;
      if (!Kernels::all_finite(load_row<Kernels>(row_of(keys_, head_, t), keys_.extent(2), copy_), keys_.extent(2)))
        for (std::size_t j = 0; j < book_.subspaces(); ++j) codes_(head_, j, t) = 0;
    }
  }

 private:
  static constexpr std::size_t block_rows = nearest_search<Kernels>::block_rows;

  /// y of token t in subspace j, without the coordinate that the inner-product metric adds. Its elements are finite if the key's are,
  /// unless the difference overflows.
  row_extent load(std::size_t j, std::size_t t, float* y) {
    const auto whole = row_of(keys_, head_, t);
    const kv_row<std::remove_cv_t<T>> part{whole.data + j * ds_ * whole.stride, whole.stride};
    if (part.stride == 1 && t + block_rows < last_) {  // measured: bench/encode, Zen 5, 2026-11
      const T* const ahead = row_of(keys_, head_, t + block_rows).data + j * ds_;
      for (std::size_t e = 0; e < ds_; e += cache_line_bytes / sizeof(T)) __builtin_prefetch(ahead + e);
    }
    Kernels::centre(load_row<Kernels>(part, ds_, copy_), &book_.mean(head_, j * ds_), ds_, y);
    const row_extent extent = Kernels::measure(y, ds_);
    odd_[t - first_] |= !is_finite(extent.largest);
    return extent;
  }

  void search(std::size_t j) {
    nearest_search<Kernels> nearest(&book_.centroids(head_, j, 0, 0), book_.size(), book_.row_dim(), last_ - first_);
    std::uint8_t index[block_rows];
    float squared_norm[block_rows];
    const bool on_sphere = book_.metric() == key_metric::inner_product;
    for (std::size_t start = first_; start < last_; start += block_rows) {
      const std::size_t rows = std::min(block_rows, last_ - start);
      std::uint32_t usable = ~std::uint32_t{0};
      for (std::size_t r = 0; r < rows; ++r) {
        const row_extent extent = load(j, start + r, tile_.row(r));
        squared_norm[r] = is_finite(extent.largest) ? extent.squared_norm : std::numeric_limits<float>::infinity();
        if (!on_sphere) continue;
        if (!lift_to_sphere(tile_.row(r), ds_, book_.squared_radius(head_, j))) usable &= ~(std::uint32_t{1} << r);
        squared_norm[r] += tile_.row(r)[ds_] * tile_.row(r)[ds_];
      }
      nearest.find_rows(tile_, squared_norm, rows, index);
      for (std::size_t r = 0; r < rows; ++r) codes_(head_, j, start + r) = (usable >> r & 1u) != 0 ? index[r] : std::uint8_t{0};
    }
  }

  view<T, 3, Space> keys_;
  codebook_view<> book_;
  mutable_codes_view<> codes_;
  std::size_t head_, first_, last_, ds_;
  row_tile<Kernels> tile_;
  alignas(cache_line_bytes) float copy_[max_head_dim];
  bool odd_[max_tokens];  // whether a token may have an element that is not finite
};

}  // namespace detail

template <>
struct kernel<op::encode, backend::host> {
  template <class P, class T, class Space>
  static void run(const P& policy, view<T, 3, Space> keys, codebook_view<> book, mutable_codes_view<> codes);
};

template <class P, class T, class Space>
void kernel<op::encode, backend::host>::run(const P& policy, view<T, 3, Space> keys, codebook_view<> book, mutable_codes_view<> codes) {
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    using part = detail::encode_run<detail::simd_kernels<decltype(isa)>, T, Space>;
    const std::size_t n = keys.extent(1), runs = (n + part::max_tokens - 1) / part::max_tokens;
    detail::run_tasks(policy, keys.extent(0) * runs, [&](std::size_t task) {
      const std::size_t first = task % runs * part::max_tokens;
      part(keys, book, codes, task / runs, first, std::min(n, first + part::max_tokens)).run();
    });
  });
}

template <>
struct kernel<op::decode, backend::host> {
  template <class P, class T, class Space>
  static void run(const P& policy, codes_view<> codes, codebook_view<> book, view<T, 3, Space> keys);
};

template <class P, class T, class Space>
void kernel<op::decode, backend::host>::run(const P& policy, codes_view<> codes, codebook_view<> book, view<T, 3, Space> keys) {
  const std::size_t ds = book.sub_dim();
  detail::run_tasks(policy, codes.extent(0), [&](std::size_t head) {
    for (std::size_t t = 0; t < codes.extent(2); ++t)
      for (std::size_t j = 0; j < codes.extent(1); ++j)
        for (std::size_t i = 0; i < ds; ++i)
          keys(head, t, j * ds + i) = static_cast<T>(book.mean(head, j * ds + i) + book.centroids(head, j, i, codes(head, j, t)));
  });
}

PQKV_HOST_OPERATION(op::encode, view<const float, 3>, codebook_view<>, mutable_codes_view<>)
PQKV_HOST_OPERATION(op::encode, view<float, 3>, codebook_view<>, mutable_codes_view<>)
PQKV_HOST_OPERATION(op::encode, view<const half, 3>, codebook_view<>, mutable_codes_view<>)
PQKV_HOST_OPERATION(op::encode, view<half, 3>, codebook_view<>, mutable_codes_view<>)
PQKV_HOST_OPERATION(op::encode, view<const bfloat16, 3>, codebook_view<>, mutable_codes_view<>)
PQKV_HOST_OPERATION(op::encode, view<bfloat16, 3>, codebook_view<>, mutable_codes_view<>)

}  // namespace pqkv
