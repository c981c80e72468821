// SPDX-License-Identifier: Apache-2.0
// What the CUDA benchmarks are timed on, made on the device: random numbers near the normal distribution, codes and keys in clusters.
// Never zeros, and different between heads. Every array takes a stream of its own, in the order of the calls, so that a program's data
// are the same in every run with the same name prefix.
#pragma once

#include <pqkv/core/random.hpp>
#include <pqkv/core/scalar.hpp>
#include <pqkv/core/view.hpp>
#include <pqkv/detail/cuda/memory.cuh>
#include <pqkv/detail/cuda/sync.cuh>
#include <pqkv/exec/cuda.hpp>

#include <cstdint>
#include <vector>

namespace bench {
using device = pqkv::space::device;

/// Scratch of a call on the device.
template <class Op>
std::size_t device_bytes(const typename Op::sizes& sizes) {
  return pqkv::scratch_bytes<Op>(pqkv::exec::cuda{}, sizes);
}

inline pqkv::random_stream next_stream() {
  static std::uint64_t stream = 0;
  return {20, stream++};
}

/// Draw i, mean 0 and variance 1: a sum of four uniforms.
PQKV_HD inline float normal_draw(pqkv::random_stream draws, std::uint64_t i) {
  const pqkv::philox_block block =
      pqkv::philox4x32(draws.seed, {{static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i >> 32),
                                     static_cast<std::uint32_t>(draws.stream), static_cast<std::uint32_t>(draws.stream >> 32)}});
  float sum = 0;
  for (int word = 0; word < 4; ++word) sum += static_cast<float>(block.word[word] >> 8) * 0x1p-24f;
  return (sum - 2) * 1.7320508f;
}

/// Independent numbers.
template <class T>
struct normal_numbers {
  pqkv::random_stream draws;
  float size = 1;
  PQKV_HD T operator()(std::size_t i) const { return static_cast<T>(size * normal_draw(draws, i)); }
};

/// Rows [h, n, d] around 512 directions a head, spread 1 between and 0.5 inside them, as codes of real keys differ.
template <class T>
struct clustered_keys {
  pqkv::random_stream directions, choices, noise;
  std::size_t n, d;
  PQKV_HD T operator()(std::size_t i) const {
    const std::size_t row = i / d, direction = row / n * 512 + choices.below(row, 512);
    return static_cast<T>(normal_draw(directions, direction * d + i % d) + 0.5f * normal_draw(noise, i));
  }
};

/// Codes below c, those in the middle the most frequent.
struct bell_codes {
  pqkv::random_stream draws;
  std::uint32_t c;
  PQKV_HD std::uint8_t operator()(std::size_t i) const {
    const float x = normal_draw(draws, i) * 0.2f + 0.5f, inside = x < 0 ? 0.0f : x > 0.999f ? 0.999f : x;
    return static_cast<std::uint8_t>(inside * static_cast<float>(c));
  }
};

template <class T, class Make>
__global__ void __launch_bounds__(256) fill_kernel(T* to, std::size_t count, Make make) {
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += std::size_t{gridDim.x} * blockDim.x)
    to[i] = make(i);
}

/// A new array, element i is make(i).
template <class T, class Make>
pqkv::device_buffer<T> filled(std::size_t count, Make make) {
  pqkv::device_buffer<T> there(count, nullptr);
  fill_kernel<T, Make><<<2048, 256>>>(there.data(), count, make);
  pqkv::detail::check_cuda(cudaGetLastError(), "bench", "fill_kernel");
  pqkv::sync(pqkv::exec::cuda{});
  return there;
}
template <class T>
pqkv::device_buffer<T> normals(std::size_t count, float size = 1) {
  return filled<T>(count, normal_numbers<T>{next_stream(), size});
}
template <class T>
pqkv::device_buffer<T> clustered(std::size_t h, std::size_t n, std::size_t d) {
  const pqkv::random_stream directions = next_stream(), choices = next_stream(), noise = next_stream();
  return filled<T>(h * n * d, clustered_keys<T>{directions, choices, noise, n, d});
}

template <class T>
pqkv::device_buffer<T> upload(const std::vector<T>& from) {
  pqkv::device_buffer<T> there(from.size(), nullptr);
  there.upload(from.data(), nullptr);
  pqkv::sync(pqkv::exec::cuda{});
  return there;
}

}  // namespace bench
