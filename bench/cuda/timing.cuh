// SPDX-License-Identifier: Apache-2.0
// How the CUDA benchmarks time a call, and the main() that they share: one JSON line each, times in microseconds by events.
//
// Warm: the call is captured several times in one CUDA graph, the graph is replayed, its time divided; what fits the L2 cache stays
// there. Cold: a graph of one call, and before each replay a kernel reads eight times the L2 cache, which leaves nothing of the call's data
// there and no line that waits to be written. Events stand before and after the graph. They are enqueued while an earlier kernel runs (one
// that waits, or the one that reads), so no time of the host is in them; the start of a graph is: `ceiling/empty_kernel` says how long
// that takes. Nothing is subtracted.
#pragma once

#include <pqkv/detail/cuda/memory.cuh>
#include <pqkv/detail/cuda/sync.cuh>
#include <pqkv/exec/cuda.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "memory_read.cuh"

namespace bench {

/// "name/axis:value/..."
inline std::string named(std::string name, std::initializer_list<std::pair<const char*, std::size_t>> numbers) {
  for (const auto& [axis, value] : numbers) name.append("/").append(axis).append(":").append(std::to_string(value));
  return name;
}

/// What the command line asked for: measurements whose names begin with a prefix, or the names alone.
inline std::string wanted;
inline bool lists_names = false;
/// Whether to make the data and measure. Asked once for each name before any data are made, so that listing names needs no GPU.
inline bool is_wanted(const std::string& name) {
  if (lists_names) std::printf("%s\n", name.c_str());
  return !lists_names && name.compare(0, wanted.size(), wanted) == 0;
}
/// The same of several names, each of which is asked.
template <class Names>
bool is_any_wanted(const Names& names) {
  bool any = false;
  for (const std::string& name : names) any |= is_wanted(name);
  return any;
}

/// How often a call is timed, and what it does at the least.
struct timing {
  int calls = 16;         // in the graph of the warm times
  int replays = 50;       // of it
  int cold_replays = 30;  // of the graph of one call; 0: no cold times
  double bytes = 0;       // that a call must read and write in device memory; 0: not said
  double flops = 0;       // multiplications and additions of it; 0: not said
};

/// A stream with two events.
class stopwatch {
 public:
  stopwatch() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  stopwatch(const stopwatch&) = delete;
  stopwatch& operator=(const stopwatch&) = delete;
  ~stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  static void check(cudaError_t error, const char* call) { pqkv::detail::check_cuda(error, "bench", call); }
  cudaStream_t stream() const { return stream_; }

  /// Microseconds of what work() enqueues, after what before() does.
  /// @param before  enqueues something that takes longer than enqueueing the work
  template <class Before, class Work>
  float time(Before before, Work work) const {
    before();
    check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    work();
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return ms * 1000;
  }

 private:
  cudaStream_t stream_{};
  cudaEvent_t begin_{}, end_{};
};

template <class Clock>
__global__ void wait_kernel(Clock cycles) {
  const Clock begin = clock64();
  while (clock64() - begin < cycles) {
  }
}

/// A call captured `calls` times, call(stream, i) the i-th.
class call_graph {
 public:
  template <class Call>
  call_graph(cudaStream_t stream, int calls, Call& call) {
    stopwatch::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    for (int i = 0; i < calls; ++i) call(static_cast<void*>(stream), i);
    stopwatch::check(cudaStreamEndCapture(stream, &graph_), "cudaStreamEndCapture");
    stopwatch::check(cudaGraphInstantiate(&step_, graph_, 0), "cudaGraphInstantiate");
    stopwatch::check(cudaGraphUpload(step_, stream), "cudaGraphUpload");
  }
  call_graph(const call_graph&) = delete;
  call_graph& operator=(const call_graph&) = delete;
  ~call_graph() {
    cudaGraphExecDestroy(step_);
    cudaGraphDestroy(graph_);
  }
  void launch(cudaStream_t stream) const { stopwatch::check(cudaGraphLaunch(step_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraph_t graph_{};
  cudaGraphExec_t step_{};
};

/// Sorted times of one call, after three that are not counted.
template <class Before>
std::vector<float> times_of(const stopwatch& watch, const call_graph& graph, int calls, int replays, Before before) {
  constexpr int uncounted = 3;
  std::vector<float> times;
  for (int i = 0; i < replays + uncounted; ++i) {
    const float us = watch.time(before, [&] { graph.launch(watch.stream()); });
    if (i >= uncounted) times.push_back(us / static_cast<float>(calls));
  }
  std::sort(times.begin(), times.end());
  return times;
}

/// Median, tenth and ninetieth percentile as JSON members.
inline void print_times(const std::vector<float>& times) {
  const auto at = [&](std::size_t tenths) { return static_cast<double>(times[std::min(times.size() - 1, times.size() * tenths / 10)]); };
  std::printf("\"us\": %.2f, \"us_p10\": %.2f, \"us_p90\": %.2f", at(5), at(1), at(9));
}

inline void print_line(const std::string& name, const timing& how, const std::vector<float>& warm, const std::vector<float>& cold) {
  std::printf("{\"name\": \"%s\", ", name.c_str());
  print_times(warm);
  std::printf(", \"calls\": %d, \"replays\": %d", how.calls, how.replays);
  if (how.bytes > 0) std::printf(", \"bytes\": %.0f", how.bytes);
  if (how.flops > 0) std::printf(", \"flops\": %.0f", how.flops);
  if (!cold.empty()) {
    std::printf(", \"cold\": {");
    print_times(cold);
    std::printf(", \"calls\": 1, \"replays\": %d}", how.cold_replays);
  }
  std::printf("}\n");
  std::fflush(stdout);
}

/// Sorted times of a graph of `calls` calls with a warm cache.
inline std::vector<float> warm_times_of(const stopwatch& watch, const call_graph& graph, int calls, int replays) {
  return times_of(watch, graph, calls, replays, [&] {
    wait_kernel<long long><<<1, 1, 0, watch.stream()>>>(100000);  // 60 us
    stopwatch::check(cudaGetLastError(), "wait_kernel");
  });
}

/// Prints the times of call(stream, i), which only enqueues, where the name is wanted.
template <class Call>
void measure(const std::string& name, const timing& how, Call call) {
  if (!is_wanted(name)) return;
  const stopwatch watch;
  const l2_flush flush(l2_bytes());
  std::vector<float> cold;
  stopwatch::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // data are made on another stream
  for (int i = 0; i < 100; ++i) flush(watch.stream());                 // 10 ms: clocks rise
  if (how.cold_replays > 0) {
    const call_graph single(watch.stream(), 1, call);
    cold = times_of(watch, single, 1, how.cold_replays, [&] { flush(watch.stream()); });
  }
  const call_graph warm(watch.stream(), how.calls, call);
  print_line(name, how, warm_times_of(watch, warm, how.calls, how.replays), cold);
}

/// The main() of every CUDA benchmark: `program [name prefix]`, or `program --names`, which lists them without a GPU.
/// @return 77 where there is no GPU, 2 for a command line that it does not know, 1 after a failure, which is printed
inline int run(int argc, char** argv, void (*measure_all)()) {
  const std::string argument = argc > 1 ? argv[1] : "";
  lists_names = argument == "--names";
  if (argc > 2 || (!lists_names && argument.compare(0, 1, "-") == 0)) {
    std::fprintf(stderr, "%s: takes the prefix of the names to measure, or --names; got '%s'\n", argv[0], argv[argc - 1]);
    return 2;
  }
  int devices = 0;
  if (!lists_names && (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)) {
    std::fprintf(stderr, "%s: no CUDA device\n", argv[0]);
    return 77;
  }
  wanted = argument;
  try {
    measure_all();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}

}  // namespace bench
