// SPDX-License-Identifier: Apache-2.0
// minillama's kernels as they stand, compiled for the host: threads of a CTA are fibers that run in turn from one barrier to the next.
#include <cuda_runtime_api.h>
#include <ucontext.h>
#include <vector_functions.h>

#include <cmath>
#include <functional>
#include <memory>
#include <tuple>
#include <vector>

#include "emulation.hpp"

namespace {

constexpr std::size_t stack_bytes = 64 * 1024;
dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

/// One CTA at a time.
struct cta {
  struct fiber {
    ucontext_t context{};
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    float given = 0;  // to a shuffle
    bool done = true;
  };

  std::vector<fiber> fibers = std::vector<fiber>(256);
  std::function<void()> body;
  ucontext_t scheduler{};
  unsigned now = 0;

  static cta& running() {
    static cta one;
    return one;
  }
  static void enter() {
    running().body();
    running().fibers[running().now].done = true;
  }

  void prepare(fiber& one) {
    getcontext(&one.context);
    one.context.uc_stack.ss_sp = one.stack.get();
    one.context.uc_stack.ss_size = stack_bytes;
    one.context.uc_link = &scheduler;
    makecontext(&one.context, enter, 0);
    one.done = false;
  }
  void run(const dim3& grid, unsigned threads) {
    blockDim = dim3(threads);
    gridDim = grid;
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y);
        threadIdx = dim3(now = 0);
        prepare(fibers[0]);
        swapcontext(&scheduler, &fibers[0].context);
        if (fibers[0].done) {  // there is no barrier in this kernel: fibers cost more than calls
          for (unsigned i = 1; i < threads; ++i) {
            threadIdx = dim3(i);
            body();
          }
          continue;
        }
        for (unsigned i = 1; i < threads; ++i) prepare(fibers[i]);
        for (bool left = true, first = true; left; first = false) {
          left = first;
          for (now = first ? 1 : 0; now < threads; ++now) {
            if (fibers[now].done) continue;
            threadIdx = dim3(now);
            swapcontext(&scheduler, &fibers[now].context);
            left = left || !fibers[now].done;
          }
        }
      }
  }
  /// Back when all other threads came as far.
  void barrier() { swapcontext(&fibers[now].context, &scheduler); }
  float shuffle(float x, int mask) {
    fibers[now].given = x;
    barrier();
    const float got = fibers[now ^ static_cast<unsigned>(mask)].given;
    barrier();
    return got;
  }
};

template <class... Parameter>
cudaError_t launch_later(const cudaLaunchConfig_t* config, void (*kernel)(Parameter...), Parameter... arguments) {
  const dim3 grid = config->gridDim;
  const unsigned threads = config->blockDim.x;
  if (threads > 256 || threads == 0 || grid.x == 0 || grid.y == 0 || grid.y > 65535) return cudaErrorInvalidConfiguration;
  minillama_test::emulated::enqueue([=, all = std::tuple(arguments...)] {
    cta::running().body = [&] { std::apply(kernel, all); };
    cta::running().run(grid, threads);
  });
  return cudaSuccess;
}

}  // namespace

#undef __global__
#undef __device__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads() cta::running().barrier()
#define __shfl_xor_sync(lanes, x, mask) (static_cast<void>(lanes), cta::running().shuffle(x, mask))
#define cudaLaunchKernelEx launch_later

#include "../../../examples/minillama/cuda/kernels.cu"
