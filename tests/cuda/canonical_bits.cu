// SPDX-License-Identifier: Apache-2.0
// Computes every canonical function, the random streams and the 16-bit scalars on a GPU and on the host, on a million random
// inputs each, and compares the bits. Prints a line for each that differs and "N differences" at the end.
//
//   exit code 0   no difference
//   exit code 1   differences, or a CUDA call that failed
//   exit code 77  "no CUDA device": nothing was compared (the code that ctest's SKIP_RETURN_CODE takes)
//
// Inputs are drawn by the library's own Philox from bits of every kind (subnormals, infinities, NaNs) where a function takes
// any, and inside its stated domain where it has one. A NaN equals any NaN: processors differ in its bits, selection does not
// look at them. Must hold under every flag of nvcc, --use_fast_math included:
//   nvcc -O3 -std=c++20 -arch=sm_90 -Iinclude tests/cuda/canonical_bits.cu -o canonical_bits && ./canonical_bits
#include <pqkv/pqkv.hpp>

#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

namespace canonical = pqkv::canonical;
using device = pqkv::space::device;
using pqkv::float_bits;
using pqkv::float_from_bits;

constexpr std::size_t input_count = 1'000'000, max_results = 12;
constexpr std::uint64_t seed = 20250101;

/// Draws of input i: words of all bits, and floats of several domains made of them.
struct input {
  std::uint64_t number;
  canonical::softmax_scale scale;

  PQKV_HD std::uint32_t word(std::uint32_t k) const { return pqkv::random_stream{seed, k}(number); }
  /// Any float whatever.
  PQKV_HD float any(std::uint32_t k) const { return float_from_bits(word(k)); }
  /// Any finite float, subnormals included; the exponent is spread over all of its range.
  PQKV_HD float finite(std::uint32_t k) const {
    const float x = any(k);
    return pqkv::is_finite(x) ? x : float_from_bits(word(k) & 0x80ffffffu);
  }
  /// Of size 2^-40 to 2^24: sums of such cancel, round and carry.
  PQKV_HD float moderate(std::uint32_t k) const {
    const std::uint32_t w = word(k), exponent = 87u + ((w >> 23) & 63u);
    return float_from_bits((w & 0x807fffffu) | (exponent << 23));
  }
  /// In [0, 1).
  PQKV_HD float unit(std::uint32_t k) const { return static_cast<float>(word(k) >> 8) * 0x1p-24f; }
};

struct results {
  std::uint64_t bits[max_results] = {};
  bool is_float[max_results] = {};
  std::uint32_t count = 0;

  PQKV_HD void give(float x) {
    is_float[count] = true;
    bits[count++] = float_bits(x);
  }
  PQKV_HD void give(std::uint64_t x) { bits[count++] = x; }
};

struct rounded_operations {
  static constexpr const char* name = "fma add sub mul div sqrt, finite operands of any size";
  PQKV_HD static void run(const input& in, results& out) {
    const float a = in.finite(0), b = in.finite(1), c = in.finite(2);
    out.give(canonical::fma(a, b, c));
    out.give(canonical::add(a, b));
    out.give(canonical::sub(a, b));
    out.give(canonical::mul(a, b));
    out.give(canonical::div(a, b));
    out.give(canonical::sqrt(float_from_bits(float_bits(a) & 0x7fffffffu)));  // fabs would flush under fast math
    const float x = in.moderate(3), y = in.moderate(4), z = in.moderate(5);
    out.give(canonical::fma(x, y, z));
    out.give(canonical::add(x, y));
    out.give(canonical::sub(x, y));
    out.give(canonical::mul(x, y));
    out.give(canonical::div(x, y));
    out.give(canonical::add(canonical::mul(x, y), z));  // must stay two roundings
  }
};

struct comparisons {
  static constexpr const char* name = "max, is_finite, order_key, any bits";
  PQKV_HD static void run(const input& in, results& out) {
    out.give(canonical::max(in.any(0), in.any(1)));
    out.give(canonical::max(in.moderate(2), in.moderate(3)));
    out.give(canonical::max(float_from_bits(in.word(0) & 0x807fffffu), float_from_bits(in.word(1) & 0x807fffffu)));  // subnormals
    out.give(std::uint64_t{pqkv::is_finite(in.any(0))});
    out.give(std::uint64_t{canonical::order_key(in.any(0))});
    out.give(std::uint64_t{canonical::order_key(float_from_bits(in.word(0) & 0x80000000u))});
  }
};

struct chains {
  static constexpr const char* name = "dot, squared_distance, strides 1 and 3, sphere_coordinate";
  PQKV_HD static void run(const input& in, results& out) {
    float a[16], b[48];
    for (std::uint32_t i = 0; i < 16; ++i) a[i] = in.moderate(i);
    for (std::uint32_t i = 0; i < 48; ++i) b[i] = in.moderate(16 + i);
    out.give(canonical::dot(a, b, 1, 16));
    out.give(canonical::dot(a, b, 3, 16));
    out.give(canonical::squared_distance(a, b, 1, 16));
    out.give(canonical::squared_distance(a, b, 3, 15));
    out.give(canonical::sphere_coordinate(canonical::dot(b, b, 1, 16), canonical::dot(a, a, 1, 16)));
    for (std::uint32_t i = 0; i < 16; ++i) b[i] = float_from_bits(float_bits(a[i]) + (in.word(i) & 15u));  // near-ties
    out.give(canonical::squared_distance(a, b, 1, 16));
  }
};

struct exponentials {
  static constexpr const char* name = "exponential, recentring";
  PQKV_HD static void run(const input& in, results& out) {
    const float floor = in.scale.floor;
    out.give(canonical::exponential(in.unit(0) * floor * 1.1f, in.scale));
    out.give(canonical::exponential(-in.unit(1), in.scale));
    out.give(canonical::exponential(in.unit(2) * -0.5f * floor, in.scale));
    out.give(canonical::exponential(float_from_bits(float_bits(floor) + (in.word(3) & 7u) - 4u), in.scale));
    out.give(canonical::recentring(in.moderate(4), in.scale));
  }
};

struct normalisers {
  static constexpr const char* name = "to_fixed, to_fixed_parts, needs_recentring, inverse_normaliser";
  PQKV_HD static void run(const input& in, results& out) {
    const float p = in.unit(0), tiny = p * float_from_bits(((in.word(1) & 63u) + 64u) << 23), large = p * 1024.0f;
    out.give(canonical::to_fixed(p));
    out.give(canonical::to_fixed(tiny));
    out.give(canonical::to_fixed(large));
    for (const float x : {p, tiny, p * 16.0f}) {
      const canonical::fixed_parts parts = canonical::to_fixed_parts(x);
      out.give(std::uint64_t{static_cast<std::uint32_t>(parts.upper)} << 32 | static_cast<std::uint32_t>(parts.lower));
    }
    out.give(canonical::to_fixed(float_from_bits(in.word(2) & 0x007fffffu)));
    const std::uint64_t z = (std::uint64_t{in.word(3)} << 32 | in.word(4)) >> (in.word(5) & 63u);
    out.give(canonical::inverse_normaliser(z));
    out.give(canonical::inverse_normaliser(0));
    out.give(std::uint64_t{canonical::needs_recentring(z, in.word(6) & 0x7fffffu)});
  }
};

struct fixed_points {
  static constexpr const char* name = "fixed_point_exponent, power_of_two, fixed_point, fixed_point_mean";
  PQKV_HD static void run(const input& in, results& out) {
    const float x = in.finite(0), y = x * in.unit(1);
    const int s = canonical::fixed_point_exponent(x);
    const float scale = canonical::power_of_two(s);
    out.give(static_cast<std::uint64_t>(static_cast<std::int64_t>(s)));
    out.give(scale);
    const std::int64_t a = canonical::fixed_point(x, scale), b = canonical::fixed_point(y, scale);
    out.give(static_cast<std::uint64_t>(a));
    out.give(static_cast<std::uint64_t>(b));
    const std::int64_t sum = (a + b) * static_cast<std::int64_t>(in.word(2) & 0xffffffu);
    out.give(canonical::fixed_point_mean(sum, (in.word(3) & 0xffffffu) + 1u, scale));
  }
};

struct scalars {
  static constexpr const char* name = "half, bfloat16, any bits";
  PQKV_HD static void run(const input& in, results& out) {
    const float x = in.any(0), near = float_from_bits((in.word(1) & 0x8fffffffu) | 0x30000000u);  // around half's range
    out.give(std::uint64_t{pqkv::half(x).bits});
    out.give(std::uint64_t{pqkv::half(near).bits});
    out.give(std::uint64_t{pqkv::bfloat16(x).bits});
    pqkv::half h;
    h.bits = static_cast<std::uint16_t>(in.word(2));
    out.give(std::uint64_t{float_bits(static_cast<float>(h))});
    pqkv::bfloat16 b;
    b.bits = static_cast<std::uint16_t>(in.word(3));
    out.give(std::uint64_t{float_bits(static_cast<float>(b))});
  }
};

struct draws {
  static constexpr const char* name = "philox4x32, random_stream, stratified_sample";
  PQKV_HD static void run(const input& in, results& out) {
    const std::uint64_t key = std::uint64_t{in.word(0)} << 32 | in.word(1);
    const pqkv::philox_block block = pqkv::philox4x32(key, {{in.word(2), in.word(3), in.word(4), in.word(5)}});
    for (const std::uint32_t word : block.word) out.give(std::uint64_t{word});
    const pqkv::random_stream stream{key, in.word(6)};
    out.give(std::uint64_t{stream(in.word(7))});
    out.give(std::uint64_t{stream.below(in.word(8), in.word(9))});
    const std::size_t n = (in.word(10) & 0x7fffffu) + 1, c = std::size_t{16} << (in.word(11) % 5);
    const pqkv::stratified_sample sample = pqkv::training_rows({.iterations = 10, .seed = key, .rows_per_centroid = 256}, n, c);
    out.give(std::uint64_t{sample.count});
    out.give(std::uint64_t{sample(in.word(12) % sample.count)});
  }
};

template <class Probe>
__global__ void probe_kernel(std::size_t count, canonical::softmax_scale scale, pqkv::view<results, 1, device> out) {
  const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  results mine;
  Probe::run({i, scale}, mine);
  out(i) = mine;
}

bool succeeded(cudaError_t error, const char* what) {
  if (error != cudaSuccess) std::printf("%s: %s\n", what, cudaGetErrorString(error));
  return error == cudaSuccess;
}

bool is_nan(std::uint64_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

/// @return how many inputs gave other bits; all of them when the device failed
template <class Probe>
std::size_t differences(results* on_device, std::vector<results>& from_device, canonical::softmax_scale scale) {
  constexpr unsigned threads = 256;
  const unsigned blocks = static_cast<unsigned>((input_count + threads - 1) / threads);
  probe_kernel<Probe><<<blocks, threads>>>(input_count, scale, pqkv::make_view<device>(on_device, input_count));
  if (!succeeded(cudaGetLastError(), Probe::name) ||
      !succeeded(cudaMemcpy(from_device.data(), on_device, input_count * sizeof(results), cudaMemcpyDeviceToHost), Probe::name))
    return input_count;
  std::size_t different = 0;
  for (std::size_t i = 0; i < input_count; ++i) {
    results here;
    Probe::run({i, scale}, here);
    const results& there = from_device[i];
    std::uint32_t at = 0;
    const auto same = [&](std::uint32_t r) {
      return here.bits[r] == there.bits[r] || (here.is_float[r] && is_nan(here.bits[r]) && is_nan(there.bits[r]));
    };
    while (at < here.count && same(at)) ++at;
    if (at == here.count && here.count == there.count) continue;
    if (different++ == 0)
      std::printf("%s: input %zu, result %u: host %016llx, device %016llx\n", Probe::name, i, at,
                  static_cast<unsigned long long>(here.bits[at]), static_cast<unsigned long long>(there.bits[at]));
  }
  return different;
}

template <class... Probe>
std::size_t all_differences(results* on_device, std::vector<results>& from_device) {
  std::size_t total = 0;
  for (const std::size_t d : {8, 64, 128, 256}) {
    const canonical::softmax_scale scale = canonical::softmax_scale::of(d);
    total += (differences<Probe>(on_device, from_device, scale) + ...);
  }
  return total;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  results* on_device = nullptr;
  if (!succeeded(cudaMalloc(&on_device, input_count * sizeof(results)), "cudaMalloc")) return 1;
  std::vector<results> from_device(input_count);
  const std::size_t total =
      all_differences<rounded_operations, comparisons, chains, exponentials, normalisers, fixed_points, scalars, draws>(on_device,
                                                                                                                        from_device);
  succeeded(cudaFree(on_device), "cudaFree");
  std::printf("%zu differences\n", total);
  return total == 0 ? 0 : 1;
}
