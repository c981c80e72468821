// SPDX-License-Identifier: Apache-2.0
// One CTA a row, or a thread an element. Sums and maxima over a CTA have one order, so a step gives the same bits whenever it is run.
#include <cuda_runtime.h>

#include "../rotary.hpp"
#include "kernels.hpp"

namespace minillama::cuda {
namespace {

constexpr unsigned threads = 256, warps = threads / 32, all_lanes = 0xffffffffu;

template <class... Parameter, class... Argument>
void launch(const stream& on, const char* name, void (*kernel)(Parameter...), dim3 grid, unsigned of_cta, Argument... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(of_cta);
  config.stream = on.get();
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameter>(arguments)...), name);
}

unsigned extent(std::size_t size) { return static_cast<unsigned>(size); }

struct sum_of {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct larger_of {
  __device__ float operator()(float a, float b) const { return a < b ? b : a; }
};

/// What all threads of a CTA have, combined; every thread gets it.
template <class Combine>
__device__ float over_cta(float x, Combine combine) {
  __shared__ float of_warp[warps];
  for (int step = 16; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(all_lanes, x, step));
  __syncthreads();  // what an earlier call left was read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warp[0];
  for (unsigned warp = 1; warp < warps; ++warp) x = combine(x, of_warp[warp]);
  return x;
}

__global__ void __launch_bounds__(threads) embed_kernel(const float* embedding, const token_id* tokens, std::size_t hidden, float* x) {
  const float* row = embedding + std::size_t{tokens[blockIdx.x]} * hidden;
  for (std::size_t i = threadIdx.x; i < hidden; i += threads) x[blockIdx.x * hidden + i] = row[i];
}

__global__ void __launch_bounds__(threads)
    normalise_kernel(const float* x, const float* weight, float epsilon, std::size_t hidden, float* out) {
  const float* row = x + blockIdx.x * hidden;
  float squares = 0;
  for (std::size_t i = threadIdx.x; i < hidden; i += threads) squares += row[i] * row[i];
  const float all = over_cta(squares, sum_of{});
  const float scale = 1.0f / sqrtf(all / static_cast<float>(hidden) + epsilon) + 0.0f * all;  // NaN where the sum overflows, as on the host
  for (std::size_t i = threadIdx.x; i < hidden; i += threads) out[blockIdx.x * hidden + i] = row[i] * scale * weight[i];
}

/// Heads of the stacked row are grid.x, tokens grid.y; a thread turns pairs.
__global__ void __launch_bounds__(threads) split_kernel(split_projection rows) {
  const std::size_t head = blockIdx.x, token = blockIdx.y, d = rows.head_dim, half = d / 2, hq = rows.query_heads, h = rows.kv_heads;
  const float* from = rows.qkv + (token * (hq + 2 * h) + head) * d;
  float* to = head < hq       ? rows.queries + (token * hq + head) * d
              : head < hq + h ? rows.keys + (head - hq) * rows.head_stride + token * d
                              : rows.values + (head - hq - h) * rows.head_stride + token * d;
  const std::size_t before = rows.position != nullptr ? *rows.position : 0;
  const auto position = static_cast<float>(before + rows.first_position + token);
  for (std::size_t i = threadIdx.x; i < half; i += blockDim.x) {
    rotary_pair pair{from[i], from[i + half]};
    if (head < hq + h) {
      const float angle = position * rows.frequencies[i];
      pair = turned(pair, cosf(angle), sinf(angle));
    }
    to[i] = pair.first;
    to[i + half] = pair.second;
  }
}

/// Queries are grid.x, heads grid.y.
__global__ void __launch_bounds__(threads) causal_softmax_kernel(float* scores, std::size_t tokens, std::size_t first, std::size_t window) {
  float* row = scores + (std::size_t{blockIdx.y} * gridDim.x + blockIdx.x) * tokens;
  const std::size_t end = first + blockIdx.x + 1, begin = end > window ? end - window : 0;
  float top = row[begin];
  for (std::size_t t = begin + threadIdx.x; t < end; t += threads) top = larger_of{}(top, row[t]);
  top = over_cta(top, larger_of{});
  float total = 0;
  for (std::size_t t = begin + threadIdx.x; t < end; t += threads) total += row[t] = expf(row[t] - top);
  const float scale = 1.0f / over_cta(total, sum_of{});
  for (std::size_t t = threadIdx.x; t < tokens; t += threads) row[t] = t >= begin && t < end ? row[t] * scale : 0.0f;
}

/// Tokens are grid.y.
__global__ void __launch_bounds__(threads) activate_kernel(const float* gate_up, std::size_t intermediate, float* out) {
  const std::size_t i = std::size_t{blockIdx.x} * threads + threadIdx.x, token = blockIdx.y;
  if (i >= intermediate) return;
  const float gate = gate_up[token * 2 * intermediate + i], up = gate_up[(token * 2 + 1) * intermediate + i];
  out[token * intermediate + i] = gate / (1.0f + expf(-gate)) * up;
}

__global__ void advance_kernel(std::uint32_t* position) { ++*position; }

}  // namespace

void embed(const stream& on, const float* embedding, const token_id* tokens, std::size_t n, std::size_t hidden, float* x) {
  launch(on, "embed_kernel", embed_kernel, dim3(extent(n)), threads, embedding, tokens, hidden, x);
}

void normalise(const stream& on, const float* x, const float* weight, float epsilon, std::size_t n, std::size_t hidden, float* out) {
  launch(on, "normalise_kernel", normalise_kernel, dim3(extent(n)), threads, x, weight, epsilon, hidden, out);
}

void split(const stream& on, const split_projection& rows, std::size_t n) {
  const std::size_t half = rows.head_dim / 2, of_cta = half < 32 ? 32 : half > threads ? threads : (half + 31) / 32 * 32;
  launch(on, "split_kernel", split_kernel, dim3(extent(rows.query_heads + 2 * rows.kv_heads), extent(n)), extent(of_cta), rows);
}

void causal_softmax(const stream& on, float* scores, std::size_t heads, std::size_t n, std::size_t tokens, std::size_t first,
                    std::size_t window) {
  launch(on, "causal_softmax_kernel", causal_softmax_kernel, dim3(extent(n), extent(heads)), threads, scores, tokens, first, window);
}

void activate(const stream& on, const float* gate_up, std::size_t n, std::size_t intermediate, float* out) {
  launch(on, "activate_kernel", activate_kernel, dim3(extent((intermediate + threads - 1) / threads), extent(n)), threads, gate_up,
         intermediate, out);
}

void advance(const stream& on, std::uint32_t* position) { launch(on, "advance_kernel", advance_kernel, dim3(1), 1, position); }

}  // namespace minillama::cuda
