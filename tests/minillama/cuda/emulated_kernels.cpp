// SPDX-License-Identifier: Apache-2.0
// minillama's kernels as they stand, compiled for the host: threads of a CTA are fibers that run in turn from one barrier to the next. A
// fiber is entered once, by setcontext(); between barriers it is left and taken up again by longjmp(): contexts ask the kernel for the
// signal mask at every change, which took nine tenths of the test's time. A checked longjmp() takes another stack for an error.
#undef _FORTIFY_SOURCE
#include <cuda_runtime_api.h>
#include <setjmp.h>
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
    jmp_buf place;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    float given = 0;  // to a shuffle
    bool entered = false, done = true;
  };

  std::vector<fiber> fibers = std::vector<fiber>(256);
  std::function<void()> body;
  jmp_buf scheduler;
  unsigned now = 0;

  static cta& running() {
    static cta one;
    return one;
  }
  /// A fiber's life: one body after the other.
  static void enter() {
    for (;;) {
      running().body();
      running().fibers[running().now].done = true;
      running().barrier();
    }
  }

  /// Goes on with thread i, to its next barrier or its end.
  void resume(unsigned i) {
    threadIdx = dim3(now = i);
    if (_setjmp(scheduler) != 0) return;
    if (fibers[now].entered) _longjmp(fibers[now].place, 1);
    fibers[now].entered = true;
    ucontext_t context{};
    getcontext(&context);
    context.uc_stack.ss_sp = fibers[now].stack.get();
    context.uc_stack.ss_size = stack_bytes;
    makecontext(&context, enter, 0);
    setcontext(&context);
  }
  void run(const dim3& grid, unsigned threads) {
    blockDim = dim3(threads);
    gridDim = grid;
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y);
        fibers[0].done = false;
        resume(0);
        if (fibers[0].done) {  // there is no barrier in this kernel: fibers cost more than calls
          for (unsigned i = 1; i < threads; ++i) {
            threadIdx = dim3(i);
            body();
          }
          continue;
        }
        for (unsigned i = 1; i < threads; ++i) fibers[i].done = false;
        for (bool left = true, first = true; left; first = false) {
          left = first;
          for (unsigned i = first ? 1 : 0; i < threads; ++i) {
            if (fibers[i].done) continue;
            resume(i);
            left = left || !fibers[i].done;
          }
        }
      }
  }
  /// Back when all other threads came as far.
  void barrier() {
    if (_setjmp(fibers[now].place) == 0) _longjmp(scheduler, 1);
  }
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
