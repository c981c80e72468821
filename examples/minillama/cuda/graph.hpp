// SPDX-License-Identifier: Apache-2.0
// Calls on a stream, recorded once as a CUDA graph and replayed as one launch.
#pragma once
#include "memory.hpp"

namespace minillama::cuda {

class graph {
 public:
  graph() = default;
  /// Records what `enqueue` enqueues on the stream; nothing of it is run.
  /// @throws pqkv::cuda_error, and what `enqueue` throws
  template <class Enqueue>
  graph(const stream& on, Enqueue&& enqueue) {
    check(cudaStreamBeginCapture(on.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    try {
      enqueue();
    } catch (...) {
      cudaGraph_t broken{};
      if (cudaStreamEndCapture(on.get(), &broken) == cudaSuccess && broken) cudaGraphDestroy(broken);
      throw;
    }
    cudaGraph_t recorded{};
    check(cudaStreamEndCapture(on.get(), &recorded), "cudaStreamEndCapture");
    const cudaError_t made = cudaGraphInstantiate(&step_, recorded, 0);
    cudaGraphDestroy(recorded);
    check(made, "cudaGraphInstantiate");
    check(cudaGraphUpload(step_, on.get()), "cudaGraphUpload");  // or the first replay would
  }
  graph(graph&& other) noexcept : step_(std::exchange(other.step_, nullptr)) {}
  graph& operator=(graph&& other) noexcept {
    std::swap(step_, other.step_);
    return *this;
  }
  graph(const graph&) = delete;
  graph& operator=(const graph&) = delete;
  ~graph() {
    if (step_) cudaGraphExecDestroy(step_);
  }

  void replay(const stream& on) const { check(cudaGraphLaunch(step_, on.get()), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t step_{};
};

}  // namespace minillama::cuda
