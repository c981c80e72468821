// SPDX-License-Identifier: Apache-2.0
// The memory of a codebook on the device, and its training.
#pragma once

#include <pqkv/quantize/codebook.hpp>

#include "data.cuh"

namespace bench {

/// Centroids near the normal distribution at first.
struct codebook_memory {
  std::size_t h, d, m, c;
  pqkv::device_buffer<float> centroids, mean;
  pqkv::device_buffer<std::uint8_t> outcome;

  codebook_memory(std::size_t heads, std::size_t head_dim, std::size_t subspaces, unsigned bits)
      : h(heads),
        d(head_dim),
        m(subspaces),
        c(std::size_t{1} << bits),
        centroids(normals<float>(h * d * c)),
        mean(normals<float>(h * d)),
        outcome(h * m, nullptr) {}
  pqkv::mutable_codebook_view<device> view() const {
    return {pqkv::make_view<device>(centroids.data(), h, m, d / m, c), pqkv::make_view<device>(mean.data(), h, d)};
  }
  /// @tparam Op  for those alone that train, and include what that needs
  template <class Op = pqkv::op::kmeans>
  std::size_t training_scratch_bytes(std::size_t n, const pqkv::kmeans_params& params) const {
    return device_bytes<Op>({h * m, n, d / m, c, params});
  }
  /// Multiplications and additions of L assignments of all training rows, 2 n c ds each.
  double training_flops(std::size_t n, const pqkv::kmeans_params& params) const {
    return 2.0 * static_cast<double>(params.iterations * h * d * c) * static_cast<double>(pqkv::training_rows(params, n, c).count);
  }
};

}  // namespace bench
