// SPDX-License-Identifier: Apache-2.0
// Reports a failed call of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>

#include "../../core/error.hpp"

namespace pqkv::inline PQKV_MODE::detail {

/// @param function  the public function, e.g. "scan"
/// @param call      e.g. "score_kernel"
/// @throws cuda_error  "pqkv::scan: score_kernel: invalid argument (cudaErrorInvalidValue)"
inline void check_cuda(cudaError_t error, const char* function, const char* call) {
  if (error == cudaSuccess) return;
  char text[320];
  std::snprintf(text, sizeof text, "pqkv::%s: %s: %s (%s)", function, call, cudaGetErrorString(error), cudaGetErrorName(error));
#if PQKV_HAS_EXCEPTIONS
  throw cuda_error(static_cast<int>(error), text);
#else
  PQKV_ON_ERROR(text);
  std::abort();
#endif
}

}  // namespace pqkv::detail
