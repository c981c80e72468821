// SPDX-License-Identifier: Apache-2.0
// How kernels are launched: on the policy's stream, as a cluster where one is asked for, with the launch's own failure reported
// at once and by name.
#pragma once

#include "../../exec/cuda.hpp"
#include "../../exec/kernel.hpp"
#include "error.cuh"
#include "tuning.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// What the launches of one call share.
struct launcher {
  cudaStream_t stream;
  const char* function;  // the public function, named in errors

  launcher(const exec::cuda& policy, const char* name) : stream(static_cast<cudaStream_t>(policy.stream)), function(name) {}

  /// Whether the code that will run was compiled for 9.0 or later. A Hopper device can compile PTX for older devices, but such code has
  /// neither clusters nor the wait of block::wait_for_last_kernel().
  template <class... Parameter>
  bool is_built_for_hopper(void (*kernel)(Parameter...)) const {
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), function, "cudaFuncGetAttributes");
    return attributes.ptxVersion >= 90;
  }

  unsigned multiprocessors() const {
    int device = 0, count = 0;
    check_cuda(cudaGetDevice(&device), function, "cudaGetDevice");
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), function, "cudaDeviceGetAttribute");
    return static_cast<unsigned>(count);
  }
  /// The most CTAs that a cluster of the kernel can have on the current device: 1 below compute capability 9.0.
  template <class... Parameter>
  unsigned largest_cluster(void (*kernel)(Parameter...)) const {
    return is_built_for_hopper(kernel) ? tuning::select_cluster : 1;
  }
  /// Bytes of shared memory that a CTA may have.
  std::size_t shared_limit() const {
    int device = 0, bytes = 0;
    check_cuda(cudaGetDevice(&device), function, "cudaGetDevice");
    check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), function, "cudaDeviceGetAttribute");
    return static_cast<std::size_t>(bytes);
  }

  /// Bytes of dynamic shared memory that a CTA of the kernel may have.
  template <class... Parameter>
  std::size_t shared_limit(void (*kernel)(Parameter...)) const {
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), function, "cudaFuncGetAttributes");
    return shared_limit() - attributes.sharedSizeBytes;
  }

  struct shape {
    dim3 grid;
    unsigned threads;
    std::size_t shared_bytes = 0;
    unsigned cluster = 1;  // CTAs of a cluster, along grid.x; more than 1 needs compute capability 9.0
    bool together = false;  // all CTAs run at a time, or none: they wait for each other
    bool early = false;    // may start before the kernel ahead of it has ended; it must then wait for that kernel itself
  };

  /// How many clusters of the launch the current device can run at a time. Allows clusters of more than 8 CTAs.
  template <class... Parameter>
  unsigned resident_clusters(const char* name, void (*kernel)(Parameter...), const shape& launch) const {
    allow_shared_memory(name, kernel, launch);
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed, 1), function,
               name);
    const configuration made(launch, stream);
    int count = 0;
    check_cuda(cudaOccupancyMaxActiveClusters(&count, reinterpret_cast<const void*>(kernel), &made.config), function, name);
    return static_cast<unsigned>(count);
  }

  /// An empty grid launches nothing.
  template <class... Parameter, class... Argument>
  void operator()(const char* name, void (*kernel)(Parameter...), const shape& launch, Argument... arguments) const {
    if (launch.grid.x == 0 || launch.grid.y == 0 || launch.grid.z == 0) return;
    allow_shared_memory(name, kernel, launch);
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
  template <class... Parameter>
  void allow_shared_memory(const char* name, void (*kernel)(Parameter...), const shape& launch) const {
    constexpr std::size_t always_there = 4 * 1024;  // 48 KB are available without a request, including what kernels declare statically
    if (launch.shared_bytes > always_there)
      check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(launch.shared_bytes)),
                 function, name);
  }
};

constexpr unsigned ceil_div(std::size_t a, std::size_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace pqkv::detail
