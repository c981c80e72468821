// SPDX-License-Identifier: Apache-2.0
// The engine of a GPU, as ../engine.hpp chooses it. Without CUDA both functions refuse.
#pragma once
#include <memory>

#include "../engine.hpp"

namespace minillama::cuda {

/// @throws usage_error when the program was built without CUDA, or the machine has no GPU that it can use
void require_gpu();

/// Copies the weights to the current device, which CUDA_VISIBLE_DEVICES chooses. @throws usage_error as above; pqkv::cuda_error
std::unique_ptr<engine> make_engine(const model& llama);

}  // namespace minillama::cuda
