// SPDX-License-Identifier: Apache-2.0
// What the CUDA benchmarks share: random data on the device, and the time of calls that are captured in a CUDA graph and replayed, by
// events: one JSON line each, median and spread. Programs end with 77 where there is no GPU.
#pragma once

#include <pqkv/cuda.cuh>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace bench {
using device = pqkv::space::device;

inline pqkv::random_stream draws{20, 0};
inline std::uint64_t drawn = 0;
inline std::uint32_t word() { return draws(drawn++); }
/// About normal: a sum of four uniforms.
inline float gaussian() {
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(word() >> 8) * 0x1p-24f;
  return (sum - 2) * 1.7320508f;
}

template <class T>
pqkv::device_buffer<T> upload(const std::vector<T>& from) {
  pqkv::device_buffer<T> there(from.size(), nullptr);
  there.upload(from.data(), nullptr);
  pqkv::sync(pqkv::exec::cuda{});
  return there;
}
inline std::vector<float> gaussians(std::size_t count, float size = 1) {
  std::vector<float> x(count);
  for (float& one : x) one = size * gaussian();
  return x;
}
/// Rows for bandwidth alone: a block of random rows repeated.
inline std::vector<pqkv::bfloat16> many_rows(std::size_t count) {
  std::vector<pqkv::bfloat16> x(count);
  for (std::size_t i = 0; i < count; ++i) x[i] = i < 1000003 ? pqkv::bfloat16(gaussian()) : x[i - 1000003];
  return x;
}

/// Prefix of the names that are measured.
inline std::string wanted;
inline bool is_wanted(const char* name) { return std::strncmp(name, wanted.c_str(), wanted.size()) == 0; }

/// Prints the time of one call: captured `calls` times in a graph, replayed `replays` times.
template <class Call>
void measure(const char* name, int calls, int replays, Call call) {
  if (!is_wanted(name)) return;
  using pqkv::detail::check_cuda;
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t step = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), name, "stream");
  check_cuda(cudaEventCreate(&begin), name, "event");
  check_cuda(cudaEventCreate(&end), name, "event");
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), name, "capture");
  for (int i = 0; i < calls; ++i) call(static_cast<void*>(stream), i);
  check_cuda(cudaStreamEndCapture(stream, &graph), name, "capture");
  check_cuda(cudaGraphInstantiate(&step, graph, 0), name, "instantiate");
  std::vector<float> times;
  for (int i = 0; i < replays + 3; ++i) {
    check_cuda(cudaEventRecord(begin, stream), name, "record");
    check_cuda(cudaGraphLaunch(step, stream), name, "launch");
    check_cuda(cudaEventRecord(end, stream), name, "record");
    check_cuda(cudaStreamSynchronize(stream), name, "sync");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end), name, "elapsed");
    if (i >= 3) times.push_back(ms * 1000 / static_cast<float>(calls));
  }
  std::sort(times.begin(), times.end());
  std::printf("{\"name\": \"%s\", \"us\": %.2f, \"us_p10\": %.2f, \"us_p90\": %.2f, \"calls\": %d, \"replays\": %d}\n", name,
              static_cast<double>(times[times.size() / 2]), static_cast<double>(times[times.size() / 10]),
              static_cast<double>(times[times.size() * 9 / 10]), calls, replays);
  std::fflush(stdout);
  cudaGraphExecDestroy(step);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
}

/// Prints what it runs on and takes the prefix from the command line; false where there is no GPU.
inline bool begin(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return false;
  }
  cudaDeviceProp properties{};
  cudaGetDeviceProperties(&properties, 0);
  std::printf("{\"device\": \"%s\", \"multiprocessors\": %d}\n", properties.name, properties.multiProcessorCount);
  if (argc > 1) wanted = argv[1];
  return true;
}

}  // namespace bench
