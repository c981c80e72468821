// SPDX-License-Identifier: Apache-2.0
// What this device can do at most, measured so that results are read as shares: reading and copying device memory, reading the L2 cache,
// multiply-adds in float, and the time of a kernel that does nothing. Prints what it runs on first; bench/gpu.sh runs it in every run.
//
//   ceilings [name prefix | --names]    exit code 77 where there is no GPU
#include "data.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

template <class Word>
__global__ void __launch_bounds__(512) copy_kernel(const Word* from, Word* to, std::size_t count) {
  constexpr unsigned at_once = 4;
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  std::size_t at = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; at + (at_once - 1) * step < count; at += at_once * step) {
    Word words[at_once];
#pragma unroll
    for (unsigned i = 0; i < at_once; ++i) words[i] = __ldcs(from + at + i * step);
#pragma unroll
    for (unsigned i = 0; i < at_once; ++i) __stcs(to + at + i * step, words[i]);
  }
  for (; at < count; at += step) to[at] = from[at];
}

/// Eight chains a thread.
template <class T>
__global__ void __launch_bounds__(512) multiply_add_kernel(unsigned rounds, T start, T* sink) {
  constexpr unsigned chains = 8;
  T sum[chains];
  for (unsigned i = 0; i < chains; ++i) sum[i] = start + static_cast<T>(threadIdx.x + i);
#pragma unroll 16  // the loop's own instructions take issue slots
  for (unsigned round = 0; round < rounds; ++round)
#pragma unroll
    for (unsigned i = 0; i < chains; ++i) sum[i] = sum[i] * static_cast<T>(0.999) + start;
  T total = 0;
  for (unsigned i = 0; i < chains; ++i) total += sum[i];
  if (total == static_cast<T>(0.12345)) *sink = total;
}

template <class T>
__global__ void empty_kernel(T*) {}

void print_device() {
  cudaDeviceProp properties{};
  int runtime = 0, driver = 0;
  stopwatch::check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  stopwatch::check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  stopwatch::check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  std::printf(
      "{\"device\": \"%s\", \"multiprocessors\": %u, \"memory_bytes\": %zu, \"l2_bytes\": %zu, \"cuda_runtime\": \"%d.%d\", "
      "\"cuda_of_driver\": \"%d.%d\"}\n",
      properties.name, multiprocessors(), properties.totalGlobalMem, l2_bytes(), runtime / 1000, runtime % 1000 / 10, driver / 1000,
      driver % 1000 / 10);
}

/// Prints the fastest of several launch shapes.
/// @param launch  launch(stream, CTAs)
template <class Launch>
void measure_best(const std::string& name, timing how, Launch launch) {
  const stopwatch watch;
  std::vector<float> best;
  for (const unsigned of_each : {2u, 4u, 8u, 16u}) {
    auto call = [&](void* stream, int) {
      launch(static_cast<cudaStream_t>(stream), of_each * multiprocessors());
      stopwatch::check(cudaGetLastError(), name.c_str());
    };
    const call_graph graph(watch.stream(), how.calls, call);
    const std::vector<float> times = warm_times_of(watch, graph, how.calls, how.replays);
    if (best.empty() || times[times.size() / 2] < best[best.size() / 2]) best = times;
  }
  print_line(name, how, best, {});
}

void memory() {
  constexpr std::size_t bytes = std::size_t{1} << 30, words = bytes / sizeof(uint4);
  constexpr std::size_t cached_bytes = std::size_t{16} << 20;
  constexpr unsigned rounds = 32;
  const std::string read = named("ceiling/read", {{"bytes", bytes}}), copy = named("ceiling/copy", {{"bytes", 2 * bytes}}),
                    l2_read = named("ceiling/l2_read", {{"bytes", cached_bytes}});
  if (!is_any_wanted(std::initializer_list<std::string>{read, copy, l2_read})) return;
  const auto from = filled<std::uint32_t>(bytes / 4, next_stream());
  const pqkv::device_buffer<std::uint32_t> to(bytes / 4, nullptr), sink(1, nullptr);
  const auto* source = reinterpret_cast<const uint4*>(from.data());
  auto* target = reinterpret_cast<uint4*>(to.data());
  measure_best(read, {.calls = 2, .replays = 20, .bytes = bytes},
               [&](cudaStream_t stream, unsigned ctas) { read_kernel<uint4><<<ctas, 512, 0, stream>>>(source, words, 1, sink.data()); });
  measure_best(copy, {.calls = 2, .replays = 20, .bytes = 2 * bytes},
               [&](cudaStream_t stream, unsigned ctas) { copy_kernel<uint4><<<ctas, 512, 0, stream>>>(source, target, words); });
  measure_best(l2_read, {.calls = 2, .replays = 20, .bytes = cached_bytes * rounds}, [&](cudaStream_t stream, unsigned ctas) {
    read_kernel<uint4><<<ctas, 512, 0, stream>>>(source, cached_bytes / sizeof(uint4), rounds, sink.data());
  });
}

void arithmetic() {
  const std::string name = "ceiling/fma/type:f32";
  if (!is_wanted(name)) return;
  const pqkv::device_buffer<float> sink(1, nullptr);
  constexpr unsigned rounds = 1u << 13, ctas_of_each = 4;
  const double flops = 2.0 * 8 * rounds * 512 * ctas_of_each * multiprocessors();
  measure(name, {.calls = 2, .replays = 20, .cold_replays = 0, .flops = flops}, [&](void* stream, int) {
    multiply_add_kernel<float><<<ctas_of_each * multiprocessors(), 512, 0, static_cast<cudaStream_t>(stream)>>>(rounds, 0.5f, sink.data());
  });
}

void launches() {
  const auto call = [](void* stream, int) { empty_kernel<int><<<1, 32, 0, static_cast<cudaStream_t>(stream)>>>(nullptr); };
  measure("ceiling/empty_kernel/chain:1", {.calls = 1}, call);
  measure("ceiling/empty_kernel/chain:64", {.calls = 64, .cold_replays = 0}, call);
}

void measure_all() {
  if (!lists_names) print_device();
  memory();
  arithmetic();
  launches();
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
