// SPDX-License-Identifier: Apache-2.0
// How kernels are launched: on the policy's stream, as a cluster where one is asked for, with the launch's own failure reported
// at once and by name.
#pragma once

#include <array>

#include "../../exec/cuda.hpp"
#include "../../exec/kernel.hpp"
#include "error.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// What the runtime said about kernels, kept by each thread: it says the same every time, and choosing how to rank long lists asks some
/// twenty questions. Two with the same place displace each other.
/// @tparam Question  compared with ==, has place()
template <class Question, class Answer>
class kept_answers {
 public:
  /// @param ask  asks the runtime
  template <class Ask>
  static Answer get(const Question& question, const Ask& ask) {
    entry& one = entries()[question.place() % entries().size()];
    if (!(one.question == question)) {
      one.question = {};  // if ask() throws
      one.answer = ask();
      one.question = question;
    }
    return one.answer;
  }

 private:
  struct entry {
    Question question{};
    Answer answer{};
  };
  static std::array<entry, 128>& entries() {
    static thread_local std::array<entry, 128> all{};
    return all;
  }
};

/// A kernel on a device, launched in a way. Without a kernel it asks about the device.
struct launch_question {
  const void* kernel = nullptr;
  int device = -1;
  unsigned threads = 0, cluster = 0;
  std::size_t shared_bytes = 0;
  bool together = false;

  bool operator==(const launch_question&) const = default;
  std::size_t place() const {
    std::size_t mixed = reinterpret_cast<std::uintptr_t>(kernel) / 16;
    for (const std::size_t part : {static_cast<std::size_t>(device), std::size_t{threads}, std::size_t{cluster}, shared_bytes})
      mixed = (mixed ^ part) * 0x9e3779b97f4a7c15u;
    return mixed >> 32;
  }
};

/// What the launches of one call share.
struct launcher {
  cudaStream_t stream;
  const char* function;  // the public function, named in errors

  launcher(const exec::cuda& policy, const char* name) : stream(static_cast<cudaStream_t>(policy.stream)), function(name) {}

  int device() const {
    int number = 0;
    check_cuda(cudaGetDevice(&number), function, "cudaGetDevice");
    return number;
  }
  /// Whether the code that will run was compiled for 9.0 or later. A Hopper device can compile PTX for older devices, but such code has
  /// neither clusters nor the wait of block::wait_for_last_kernel().
  template <class... Parameter>
  bool is_built_for_hopper(void (*kernel)(Parameter...)) const {
    return facts_of(kernel).ptx_version >= 90;
  }
  unsigned multiprocessors() const { return device_limits().multiprocessors; }
  /// The most CTAs that a cluster of the kernel can have on the current device: 1 below compute capability 9.0.
  template <class... Parameter>
  unsigned largest_cluster(void (*kernel)(Parameter...)) const {
    return is_built_for_hopper(kernel) ? tuning::select_cluster : 1;
  }
  /// Bytes of shared memory that a CTA may have.
  std::size_t shared_limit() const { return device_limits().shared_bytes; }
  /// Bytes of dynamic shared memory that a CTA of the kernel may have.
  template <class... Parameter>
  std::size_t shared_limit(void (*kernel)(Parameter...)) const {
    return shared_limit() - facts_of(kernel).shared_bytes;
  }

  struct shape {
    dim3 grid;
    unsigned threads;
    std::size_t shared_bytes = 0;
    unsigned cluster = 1;  // CTAs of a cluster, along grid.x; more than 1 needs compute capability 9.0
    bool early = false;     // may start before the kernel ahead of it has ended; it must then wait for that kernel itself
    bool together = false;  // all CTAs run at a time, or none: they wait for each other
  };

  /// How many clusters of the launch the current device can run at a time.
  template <class... Parameter>
  unsigned resident_clusters(const char* name, void (*kernel)(Parameter...), const shape& launch) const {
    const auto* const of = reinterpret_cast<const void*>(kernel);
    const launch_question question{of, device(), launch.threads, launch.cluster, launch.shared_bytes, launch.together};
    return kept_answers<launch_question, unsigned>::get(question, [&] {
      allow(name, kernel, launch);
      const configuration made(launch, stream);
      int count = 0;
      check_cuda(cudaOccupancyMaxActiveClusters(&count, of, &made.config), function, name);
      return static_cast<unsigned>(count);
    });
  }

  /// An empty grid launches nothing.
  template <class... Parameter, class... Argument>
  void operator()(const char* name, void (*kernel)(Parameter...), const shape& launch, Argument... arguments) const {
    if (launch.grid.x == 0 || launch.grid.y == 0 || launch.grid.z == 0) return;
    allow(name, kernel, launch);
    const configuration made(launch, stream);
    check_cuda(cudaLaunchKernelEx(&made.config, kernel, static_cast<Parameter>(arguments)...), function, name);
  }

 private:
  struct configuration {
    cudaLaunchAttribute attributes[3]{};
    cudaLaunchConfig_t config{};

    configuration(const shape& launch, cudaStream_t stream) {
      unsigned count = 0;
      if (launch.early) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
      }
      if (launch.together) {
        attributes[count].id = cudaLaunchAttributeCooperative;
        attributes[count++].val.cooperative = 1;
      }
      if (launch.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {launch.cluster, 1, 1};
      }
      config.gridDim = launch.grid;
      config.blockDim = dim3(launch.threads);
      config.dynamicSmemBytes = launch.shared_bytes;
      config.stream = stream;
      config.attrs = attributes;
      config.numAttrs = count;
    }
    configuration(const configuration&) = delete;
    configuration& operator=(const configuration&) = delete;
  };
  struct kernel_facts {
    int ptx_version = 0;
    std::size_t shared_bytes = 0;  // declared statically
  };
  struct limits {
    unsigned multiprocessors = 0;
    std::size_t shared_bytes = 0;
  };
  template <class... Parameter>
  kernel_facts facts_of(void (*kernel)(Parameter...)) const {
    const auto* const of = reinterpret_cast<const void*>(kernel);
    return kept_answers<launch_question, kernel_facts>::get({.kernel = of, .device = device()}, [&] {
      cudaFuncAttributes attributes{};
      check_cuda(cudaFuncGetAttributes(&attributes, of), function, "cudaFuncGetAttributes");
      return kernel_facts{attributes.ptxVersion, attributes.sharedSizeBytes};
    });
  }
  limits device_limits() const {
    const int number = device();
    return kept_answers<launch_question, limits>::get({.device = number}, [&] {
      int count = 0, bytes = 0;
      check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, number), function, "cudaDeviceGetAttribute");
      check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, number), function, "cudaDeviceGetAttribute");
      return limits{static_cast<unsigned>(count), static_cast<std::size_t>(bytes)};
    });
  }
  /// Allows what the launch needs beyond what every kernel may have: much shared memory, clusters of more than 8 CTAs.
  template <class... Parameter>
  void allow(const char* name, void (*kernel)(Parameter...), const shape& launch) const {
    constexpr std::size_t always_there = 4 * 1024;  // 48 KB are available without a request, including what kernels declare statically
    constexpr unsigned portable_cluster = 8;
    const auto* const of = reinterpret_cast<const void*>(kernel);
    if (launch.shared_bytes > always_there)
      check_cuda(cudaFuncSetAttribute(of, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(launch.shared_bytes)), function,
                 name);
    if (launch.cluster > portable_cluster)
      check_cuda(cudaFuncSetAttribute(of, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), function, name);
  }
};

constexpr unsigned ceil_div(std::size_t a, std::size_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace pqkv::detail
