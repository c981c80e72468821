// SPDX-License-Identifier: Apache-2.0
// The engine of a GPU in a build without CUDA.
#include "../command_line.hpp"
#include "engine.hpp"

namespace minillama::cuda {

void require_gpu() {
  throw usage_error("--device", "cuda: this program was built without CUDA; configure with -DMINILLAMA_CUDA=ON where nvcc and cuBLAS are");
}

std::unique_ptr<engine> make_engine(const model&) {
  require_gpu();
  return nullptr;
}

}  // namespace minillama::cuda
