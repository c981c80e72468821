// SPDX-License-Identifier: Apache-2.0
// A layer's cache in GPU memory: prefill, then append and attend captured once in a CUDA graph that is replayed for every token, with
// maintain() in between. Random numbers stand for a model's keys, values and queries.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -Iinclude examples/08_cuda_graph.cu -o cuda_graph      exit code 77 where there is no GPU
#include <pqkv/device_pqcache.cuh>

#include <cstdio>
#include <stdexcept>
#include <vector>

namespace {
using device = pqkv::space::device;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

/// `count` numbers in [-1, 1), drawn from `seed`.
std::vector<float> numbers(std::size_t count, std::uint64_t seed) {
  pqkv::random_stream draws{2026, seed};
  std::vector<float> drawn(count);
  for (std::size_t i = 0; i < count; ++i) drawn[i] = static_cast<float>(draws(i)) * 0x1p-31f - 1.0f;
  return drawn;
}

/// Enqueues the copy of `from` to the device, and waits for it: `from` may go.
void copy(const std::vector<float>& from, const pqkv::device_buffer<float>& to, cudaStream_t stream) {
  check(cudaMemcpyAsync(to.data(), from.data(), to.size_bytes(), cudaMemcpyHostToDevice, stream));
  check(cudaStreamSynchronize(stream));
}
}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no GPU");
    return 77;
  }
  constexpr std::size_t h = 2, hq = 8, d = 64, prompt = 4096, steps = 200;
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const pqkv::exec::cuda gpu{stream, {}};  // every call enqueues on this stream and returns

  // Other rows: quantized_rows<device> for 8-bit integers, paged_rows<bfloat16, device> for pages of the engine,
  // tiered_rows<dense_rows<bfloat16, space::pinned>, device> for keys and values in host memory.
  using cache_type = pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16, device>>;
  cache_type::params params;
  params.kv_heads = h, params.query_heads = hq, params.head_dim = d, params.capacity = prompt + steps;
  params.budget.ratio = 0.1;
  cache_type cache(gpu, params);  // takes all its device memory here

  const pqkv::device_buffer<float> keys(h * prompt * d, stream), values(h * prompt * d, stream);
  copy(numbers(keys.size(), 1), keys, stream);
  copy(numbers(values.size(), 2), values, stream);
  cache.prefill(gpu, 0, pqkv::make_view<device>(keys.data(), h, prompt, d), pqkv::make_view<device>(values.data(), h, prompt, d));

  // The graph reads each token's key, value and query from the same places, which the engine fills before each replay.
  const pqkv::device_buffer<float> k(h * d, stream), v(h * d, stream), q(hq * d, stream), out(hq * d, stream);
  cudaGraph_t graph;
  cudaGraphExec_t step;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cache.append(gpu, pqkv::make_view<device>(k.data(), 1, h, d), pqkv::make_view<device>(v.data(), 1, h, d));
  cache.attend(gpu, pqkv::make_view<device>(q.data(), 1, hq, d), pqkv::make_view<device>(out.data(), 1, hq, d));
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&step, graph, 0));

  for (std::size_t i = 0; i < steps; ++i) {
    copy(numbers(k.size(), 3 * i + 3), k, stream);
    copy(numbers(v.size(), 3 * i + 4), v, stream);
    copy(numbers(q.size(), 3 * i + 5), q, stream);
    check(cudaGraphLaunch(step, stream));
    if (i % 64 == 63) cache.maintain(gpu);  // outside of the graph, every few hundred steps at the least
  }
  pqkv::sync(gpu);  // waits; what went wrong on the device is a cuda_error here

  const std::size_t tokens = cache.size(gpu, 0);  // the device knows how long a sequence is: this waits too
  std::printf("%zu tokens, %llu refused\n", tokens, static_cast<unsigned long long>(cache.statistics(gpu, 0).refused));
  check(cudaGraphExecDestroy(step));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
  return tokens == prompt + steps ? 0 : 1;
}
