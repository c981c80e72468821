// SPDX-License-Identifier: Apache-2.0
// Renewal of codebooks over new keys on the device: op::replace_centroids says which centroids are replaced, encode() finds the tokens of
// each centroid, and sums in fixed point give the means. So centroids and codes have the bits of the host's.
#pragma once

#include "../../core/canonical.hpp"
#include "../../search/pq_index.hpp"
#include "block/copy.cuh"
#include "block/nearest.cuh"
#include "block/reduce.cuh"
#include "codes.cuh"
#include "kernel.cuh"
#include "memory.cuh"
#include "pq_index.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The memory of op::renew_replaced: numbers of 64 bits that begin as zeros.
struct renewal_memory {
  unsigned long long* written;  // how many codes were written
  unsigned long long* sums;     // [problems, c, width] in fixed point, two's complement
  unsigned long long* counts;   // [problems, c] tokens in the sums
  std::uint8_t* replaced;       // [problems, max_centroids] 1: the centroid is replaced
  std::size_t problems, c, width;

  renewal_memory(std::uint64_t* words, std::size_t all_problems, std::size_t centroids, std::size_t row)
      : written(reinterpret_cast<unsigned long long*>(words)),
        sums(written + 1),
        counts(sums + all_problems * centroids * row),
        replaced(reinterpret_cast<std::uint8_t*>(counts + all_problems * centroids)),
        problems(all_problems),
        c(centroids),
        width(row) {}
  std::size_t words() const { return op::renew_replaced::words(problems, c, width); }
};

/// One key's part in a subspace: minus the mean and, for inner products, lifted to the sphere.
class centred_part {
 public:
  __device__ centred_part(const pq_index_view<space::device>& index, std::size_t h, std::size_t j)
      : index_(index), h_(h), j_(j), ds_(static_cast<unsigned>(index.book.sub_dim())) {}
  __device__ unsigned width() const { return static_cast<unsigned>(index_.book.row_dim()); }

  /// By a warp: writes the row to y [width]. Returns whether the token can be used: its key is finite, and so is the row.
  /// @param element  element(i) of the key, axes in order
  /// @param code     that the token has: 0 if its key is not finite. Only then is the whole key read
  template <class Element>
  __device__ bool load(const Element& element, std::uint8_t code, float* y) const {
    const unsigned lane = threadIdx.x % 32, d = static_cast<unsigned>(index_.book.head_dim()), first = j_ * ds_;
    bool finite = true;
    for (unsigned i = lane; code == 0 && i < d; i += 32) finite &= is_finite(element(i));
    for (unsigned i = lane; i < ds_; i += 32) {
      y[i] = canonical::sub(element(first + i), index_.book.mean(h_, first + i));
      finite &= is_finite(y[i]);
    }
    __syncwarp();
    if (index_.book.metric() == key_metric::inner_product) {
      const float norm = canonical::dot(y, y, 1, ds_);
      if (lane == 0) y[ds_] = canonical::sphere_coordinate(index_.book.squared_radius(h_, j_), norm);
      finite &= is_finite(norm);
      __syncwarp();
    }
    return __all_sync(block::all_lanes, finite ? 1 : 0) != 0;
  }

 private:
  const pq_index_view<space::device>& index_;
  std::size_t h_;
  std::size_t j_;
  unsigned ds_;
};

/// grid.x: subspaces; grid.y: heads. Moves each replaced centroid to the mean of the new tokens that have its code, if there are any.
template <unsigned Threads, class T>
PQKV_HIDDEN __global__ void __launch_bounds__(Threads)
    move_replaced_kernel(pq_index_view<space::device> index, view<const T, 3, space::device> keys, std::size_t begin,
                         renewal_memory memory) {
  constexpr unsigned warps = Threads / 32;
  __shared__ block::reduction<std::uint32_t, Threads> highest;
  __shared__ float rows[warps][max_head_dim + 1];
  const std::size_t j = blockIdx.x, h = blockIdx.y, problem = h * gridDim.x + j;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = static_cast<unsigned>(memory.c);
  const centred_part part(index, h, j);
  const unsigned width = part.width();
  const std::uint8_t *codes = &index.codes(h, j, begin), *replaced = memory.replaced + problem * max_centroids;
  unsigned long long *sums = memory.sums + problem * c * width, *counts = memory.counts + problem * c;
  float* const y = rows[warp];
  const auto for_tokens = [&](auto use) {
    for (std::size_t t = warp; t < keys.extent(1); t += warps) {
      const T* const key = &keys(h, t, 0);
      __syncwarp();
      if (part.load([&](unsigned i) { return static_cast<float>(key[i]); }, codes[t], y)) use(codes[t]);
    }
  };
  std::uint32_t largest = 0;  // magnitudes as bits have the order of the floats
  for_tokens([&](std::uint8_t) {
    for (unsigned e = lane; e < width; e += 32) {
      const std::uint32_t magnitude = float_bits(y[e]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
  });
  const float scale = canonical::power_of_two(canonical::fixed_point_exponent(float_from_bits(highest.max(largest))));
  for_tokens([&](std::uint8_t code) {
    if (replaced[code] == 0) return;
    for (unsigned e = lane; e < width; e += 32)
      atomicAdd(&sums[code * width + e], static_cast<unsigned long long>(canonical::fixed_point(y[e], scale)));
    if (lane == 0) atomicAdd(&counts[code], 1ull);
  });
  __threadfence();
  __syncthreads();
  for (unsigned at = threadIdx.x; at < c * width; at += Threads) {
    const unsigned x = at / width, e = at - x * width;
    const std::uint64_t count = __ldcg(&counts[x]);
    if (count != 0)
      index.book.centroids(h, j, e, x) = canonical::fixed_point_mean(static_cast<std::int64_t>(__ldcg(&sums[at])), count, scale);
  }
}

/// grid.x: subspaces; grid.y: heads; grid.z: CTAs that share the tokens [first, last), each taking Threads at a time. Writes the codes of
/// those whose centroid was replaced.
template <unsigned Threads, class Rows>
__global__ void __launch_bounds__(Threads) encode_replaced_kernel(Rows rows, std::size_t first_head, pq_index_view<space::device> index,
                                                                  std::size_t first, std::size_t last, renewal_memory memory) {
  constexpr unsigned warps = Threads / 32;
  __shared__ float row[warps][max_head_dim + 1];
  const std::size_t j = blockIdx.x, h = blockIdx.y, problem = h * gridDim.x + j;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = static_cast<unsigned>(memory.c);
  const centred_part part(index, h, j);
  const std::uint8_t* replaced = memory.replaced + problem * max_centroids;
  const float* centroids = &index.book.centroids(h, j, 0, 0);
  float* const y = row[warp];
  unsigned long long written = 0;
  for (std::size_t base = first + (std::size_t{blockIdx.z} * warps + warp) * 32; base < last; base += std::size_t{gridDim.z} * Threads) {
    const bool is_there = base + lane < last;
    const std::uint8_t code = is_there ? index.codes(h, j, base + lane) : std::uint8_t{0};
    const unsigned found = __ballot_sync(block::all_lanes, is_there && replaced[code] != 0);
    written += static_cast<unsigned>(__popc(found));
    for (unsigned left = found; left != 0; left &= left - 1) {  // rare: the least used centroids have few tokens
      const int who = __ffs(static_cast<int>(left)) - 1;
      const std::size_t t = base + static_cast<unsigned>(who);
      const auto old = static_cast<std::uint8_t>(__shfl_sync(block::all_lanes, code, who));
      const auto key = rows.key(first_head + h, t);
      __syncwarp();
      const bool usable = part.load([&](unsigned i) { return index.pairs.of_key(key, h, i); }, old, y);
      std::uint64_t best = ~0ull;
      for (unsigned x = lane; x < c; x += 32) {
        float distance = 0;
        block::for_strided<16>(centroids + x, c, part.width(), [&](std::size_t i, float of_centroid) {
          const float e = canonical::sub(y[i], of_centroid);
          distance = canonical::fma(e, e, distance);
        });
        const std::uint64_t nearest = block::nearest_key(distance, x);
        best = nearest < best ? nearest : best;
      }
      for (int step = 16; step > 0; step /= 2) {
        const std::uint64_t other = __shfl_xor_sync(block::all_lanes, best, step);
        best = other < best ? other : best;
      }
      if (lane == 0) index.codes(h, j, t) = usable ? static_cast<std::uint8_t>(best & 0xffu) : std::uint8_t{0};
    }
  }
  if (lane == 0 && written != 0) atomicAdd(memory.written, written);
}

}  // namespace detail

template <>
struct kernel<op::renew_replaced, backend::cuda> {
  /// @param keys  [h, n, d] keys of tokens [call.begin, call.begin + n), axes in order
  /// @param work  op::renew_replaced::words() numbers; the first is written: how many codes of older tokens were written
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<space::device>& index,
                  const replaced_centroids& call, view<const T, 3, space::device> keys, std::size_t iterations, std::uint64_t* work) {
    constexpr unsigned threads = 512;
    const std::size_t h = index.kv_heads, m = index.book.subspaces();
    const detail::renewal_memory memory(work, h * m, index.book.size(), index.book.row_dim());
    const dim3 problems(static_cast<unsigned>(m), static_cast<unsigned>(h));
    const detail::launcher launch(policy, "renew_replaced");
    zero_bytes(policy, work, memory.words() * sizeof *work);
    launch("replace_centroids_kernel", detail::replace_centroids_kernel<Rows>, {problems, max_centroids}, rows, head, index, call,
           memory.replaced);
    const auto encode_new = [&] { pqkv::encode(policy, keys, index.book, index.codes.slice(2, call.begin, keys.extent(1))); };
    for (std::size_t iteration = 0; iteration < iterations; ++iteration) {
      encode_new();
      const std::size_t sums = (memory.words() - 1) * sizeof *work - h * m * max_centroids;
      if (iteration != 0) zero_bytes(policy, memory.sums, sums);
      launch("move_replaced_kernel", detail::move_replaced_kernel<threads, T>, {problems, threads}, index, keys, call.begin, memory);
    }
    const std::size_t last = call.begin < call.last ? call.begin : call.last;
    encode_new();
    if (call.first >= last) return;
    const unsigned ctas = detail::ceil_div(last - call.first, 256 * 16), most = 4 * detail::tuning::multiprocessors;
    launch("encode_replaced_kernel", detail::encode_replaced_kernel<256, Rows>,
           {dim3(problems.x, problems.y, ctas < most ? ctas : most), 256}, rows, head, index, call.first, last, memory);
  }
};

}  // namespace pqkv
