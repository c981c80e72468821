// SPDX-License-Identifier: Apache-2.0
// The main() of every benchmark: measures the machine's ceilings, prints them and what the data is with the context, then runs
// Google Benchmark, whose flags all apply (--benchmark_filter, --benchmark_format=json, --benchmark_repetitions, ...). Names carry
// their axes, `scan/m:2/b:6/g:4/n:131072/isa:avx2`, and stay as they are from version to version.
#pragma once

#include "ceilings.hpp"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <string>
#include <utility>

namespace bench {

/// "name/axis:value/..."; axes whose value is a text come last.
inline std::string named(std::string name, std::initializer_list<std::pair<const char*, std::size_t>> numbers,
                         std::initializer_list<std::pair<const char*, const char*>> texts = {}) {
  for (const auto& [axis, value] : numbers) name.append("/").append(axis).append(":").append(std::to_string(value));
  for (const auto& [axis, value] : texts) name.append("/").append(axis).append(":").append(value);
  return name;
}

/// body(isa, name) for every ISA that the library has SIMD kernels for and this CPU can run.
template <class Body>
void for_each_isa(Body body) {
  body(pqkv::isa::scalar{}, "scalar");
  if (pqkv::isa::detected() >= pqkv::isa::level::avx2) body(pqkv::isa::avx2{}, "avx2");
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512) body(pqkv::isa::avx512{}, "avx512");
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512_vbmi) body(pqkv::isa::avx512_vbmi{}, "avx512_vbmi");
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512_bf16) body(pqkv::isa::avx512_bf16{}, "avx512_bf16");
}

template <class Isa>
inline constexpr bool is_scalar = std::is_same_v<Isa, pqkv::isa::scalar>;

/// Runs body() in the benchmark's loop and reports how much of a ceiling it used.
///
/// @param counter  name of the share, e.g. "of_fma_peak"; null for a result that no single ceiling binds
/// @param amount   operations or bytes of one iteration
/// @param ceiling  of those, per second
template <class Body>
void timed(benchmark::State& state, const char* counter, double amount, double ceiling, Body body) {
  const stopwatch watch;
  for (auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
  const double seconds = watch.seconds() / static_cast<double>(state.iterations());
  if (counter != nullptr && ceiling > 0) state.counters[counter] = amount / seconds / ceiling;
}

/// Tokens per second, beside the time.
inline void count_tokens(benchmark::State& state, std::size_t tokens) {
  state.SetItemsProcessed(static_cast<std::int64_t>(tokens) * state.iterations());
}

template <class Body>
benchmark::internal::Benchmark* add(const std::string& name, Body body) {
  return benchmark::RegisterBenchmark(name.c_str(), body)->Unit(benchmark::kMicrosecond);
}

/// As Linux names the processor; empty elsewhere.
inline std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  return {};
}

inline void add_context(const ceilings& found) {
  const auto in_units = [](double rate, const char* unit) {
    char text[64];
    std::snprintf(text, sizeof text, "%.2f %s", rate * 1e-9, unit);
    return std::string(text);
  };
  benchmark::AddCustomContext("ceiling fma scalar", in_units(found.scalar_flops, "Gflop/s"));
  if (found.avx2_flops > 0) benchmark::AddCustomContext("ceiling fma avx2", in_units(found.avx2_flops, "Gflop/s"));
  if (found.avx512_flops > 0) benchmark::AddCustomContext("ceiling fma avx512", in_units(found.avx512_flops, "Gflop/s"));
  if (found.integer_products > 0)
    benchmark::AddCustomContext("ceiling 16-bit integer products avx512", in_units(found.integer_products, "Gop/s"));
  if (found.bfloat16_products > 0)
    benchmark::AddCustomContext("ceiling bfloat16 products avx512_bf16", in_units(found.bfloat16_products, "Gflop/s"));
  benchmark::AddCustomContext("ceiling streaming read, 256 MiB", in_units(found.streaming_read_bytes, "GB/s"));
  benchmark::AddCustomContext("ceiling cached read, 256 KiB", in_units(found.cached_read_bytes, "GB/s"));
  benchmark::AddCustomContext("ceiling random 512 B rows, prefetched", in_units(found.random_row_bytes, "GB/s"));
  if (const std::string name = processor(); !name.empty()) benchmark::AddCustomContext("cpu", name);
#ifdef __clang__
  benchmark::AddCustomContext("compiler", "clang " __clang_version__);
#else
  benchmark::AddCustomContext("compiler", "g++ " __VERSION__);
#endif
  benchmark::AddCustomContext("ceiling ascending 512 B rows, 1 in 32", in_units(found.sparse_row_bytes, "GB/s"));
  benchmark::AddCustomContext("ceiling ascending 512 B rows, 1 in 10", in_units(found.dense_row_bytes, "GB/s"));
  benchmark::AddCustomContext("threads", "1, unless a name has an axis `threads`");
}

/// @param add_all  registers the benchmarks
/// @param data     what they are timed on, for the context
inline int run(int argc, char** argv, void (*add_all)(), const char* data) {
  bool lists_only = false;
  for (int i = 1; i < argc; ++i) lists_only |= std::strncmp(argv[i], "--benchmark_list_tests", 22) == 0;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  add_all();
#if !defined(__OPTIMIZE__)
  if (!lists_only) {
    std::fputs("compiled without optimisation, so times would say nothing: configure with -DCMAKE_BUILD_TYPE=Release and "
               "-DPQKV_BENCH_STARTS_ONLY=OFF\n", stderr);
    return 2;
  }
#endif
  if (!lists_only) {
    machine() = measure::all();
    add_context(machine());
    benchmark::AddCustomContext("data", data);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace bench
