// SPDX-License-Identifier: Apache-2.0
// A matrix [rows, columns] by rows is, to cuBLAS, its transpose [columns, rows] with a leading dimension of `columns`.
#include "products.hpp"

#include <limits>

namespace minillama::cuda {
namespace {

// What cuBLAS's manual recommends for Hopper under cublasSetWorkspace(), and more than for the devices before it.
constexpr std::size_t workspace_bytes = std::size_t{32} << 20;

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw pqkv::cuda_error(static_cast<int>(cudaErrorUnknown), std::string("cuda: ") + call + ": " + cublasGetStatusString(status));
}

int as_int(std::size_t extent) {
  if (extent > static_cast<std::size_t>(std::numeric_limits<int>::max()))
    throw pqkv::shape_error("cuda: an extent of " + std::to_string(extent) + " is more than cuBLAS takes");
  return static_cast<int>(extent);
}

}  // namespace

products::products(const stream& on) : workspace_(workspace_bytes) {
  check(cublasCreate(&handle_), "cublasCreate");
  // In this order: setting the stream sets the default workspace, which a captured call would have to take from the driver.
  check(cublasSetStream(handle_, on.get()), "cublasSetStream");
  check(cublasSetWorkspace(handle_, workspace_.data(), workspace_.size()), "cublasSetWorkspace");
  check(cublasSetMathMode(handle_, CUBLAS_DEFAULT_MATH), "cublasSetMathMode");  // TF32 is an option that is not taken
}

products::~products() { cublasDestroy(handle_); }

void products::project(const float* x, std::size_t n, std::size_t inputs, const float* weights, std::size_t outputs, float* y,
                       written how) const {
  const float one = 1, kept = how == written::added ? 1.0f : 0.0f;
  const int in = as_int(inputs), out = as_int(outputs);
  if (n == 1)  // a vector: memory-bound, and cuBLAS has kernels for it
    check(cublasSgemv(handle_, CUBLAS_OP_T, in, out, &one, weights, in, x, 1, &kept, y, 1), "cublasSgemv");
  else
    check(cublasSgemm(handle_, CUBLAS_OP_T, CUBLAS_OP_N, out, as_int(n), in, &one, weights, in, x, in, &kept, y, out), "cublasSgemm");
}

void products::score(const float* queries, std::size_t query_row, std::size_t g, std::size_t n, std::size_t d, const float* keys,
                     std::size_t tokens, float scale, float* scores) const {
  const float none = 0;
  check(cublasSgemmStridedBatched(handle_, CUBLAS_OP_T, CUBLAS_OP_N, as_int(tokens), as_int(n), as_int(d), &scale, keys, as_int(d), 0,
                                  queries, as_int(query_row), static_cast<long long>(d), &none, scores, as_int(tokens),
                                  static_cast<long long>(n * tokens), as_int(g)),
        "cublasSgemmStridedBatched");
}

void products::gather(const float* weights, std::size_t g, std::size_t n, std::size_t tokens, const float* values, std::size_t d,
                      float* out, std::size_t out_row) const {
  const float one = 1, none = 0;
  check(cublasSgemmStridedBatched(handle_, CUBLAS_OP_N, CUBLAS_OP_N, as_int(d), as_int(n), as_int(tokens), &one, values, as_int(d), 0,
                                  weights, as_int(tokens), static_cast<long long>(n * tokens), &none, out, as_int(out_row),
                                  static_cast<long long>(d), as_int(g)),
        "cublasSgemmStridedBatched");
}

}  // namespace minillama::cuda
