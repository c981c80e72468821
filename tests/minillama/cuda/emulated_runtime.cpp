// SPDX-License-Identifier: Apache-2.0
// The calls of the CUDA runtime and of cuBLAS that minillama makes. Products are plain loops over columns, as BLAS defines them.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "emulation.hpp"

namespace minillama_test::emulated {
namespace {

using work_list = std::vector<std::function<void()>>;

struct machine {
  work_list queue;
  work_list* captured = nullptr;
  std::size_t waits = 0, allocations = 0;
  std::map<void*, std::size_t> blocks;
};

machine& here() {
  static machine one;
  return one;
}

void drain() {
  work_list all;
  std::swap(all, here().queue);
  for (const auto& work : all) work();
}

constexpr std::size_t guard_bytes = 256;
constexpr int guard_byte = 0x5a, fresh_byte = 0xff;  // floats of fresh bytes are NaN

cudaError_t take(void** memory, std::size_t bytes) {
  if (here().captured) return cudaErrorStreamCaptureUnsupported;
  char* block = static_cast<char*>(std::malloc(bytes + 2 * guard_bytes));
  std::memset(block, guard_byte, bytes + 2 * guard_bytes);
  std::memset(block + guard_bytes, fresh_byte, bytes);
  *memory = block + guard_bytes;
  here().blocks[*memory] = bytes;
  ++here().allocations;
  return cudaSuccess;
}

/// Waits, as the runtime does. A guard that was written over ends the test.
cudaError_t give_back(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  drain();
  const auto found = here().blocks.find(memory);
  if (found == here().blocks.end()) std::abort();
  const char *begin = static_cast<char*>(memory) - guard_bytes, *end = static_cast<char*>(memory) + found->second;
  for (std::size_t i = 0; i < guard_bytes; ++i)
    if (begin[i] != guard_byte || end[i] != guard_byte) std::abort();
  here().blocks.erase(found);
  std::free(const_cast<char*>(begin));
  return cudaSuccess;
}

/// C[m, n] = alpha op(A) op(B) + beta C, by columns.
void product(cublasOperation_t on_a, cublasOperation_t on_b, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
             int ldb, float beta, float* c, int ldc) {
  for (int column = 0; column < n; ++column)
    for (int row = 0; row < m; ++row) {
      double sum = 0;
      for (int i = 0; i < k; ++i) {
        const std::ptrdiff_t at_a = on_a == CUBLAS_OP_N ? row + std::ptrdiff_t{i} * lda : i + std::ptrdiff_t{row} * lda;
        const std::ptrdiff_t at_b = on_b == CUBLAS_OP_N ? i + std::ptrdiff_t{column} * ldb : column + std::ptrdiff_t{i} * ldb;
        sum += static_cast<double>(a[at_a]) * static_cast<double>(b[at_b]);
      }
      float& out = c[row + std::ptrdiff_t{column} * ldc];
      out = static_cast<float>(static_cast<double>(alpha) * sum) + (beta == 0 ? 0.0f : beta * out);
    }
}

/// Whether an operand of so many rows and columns, as stored, may have the leading dimension.
bool fits(cublasOperation_t on, int rows, int columns, int leading) { return leading >= (on == CUBLAS_OP_N ? rows : columns); }

}  // namespace

void enqueue(std::function<void()> work) { (here().captured ? *here().captured : here().queue).push_back(std::move(work)); }
std::size_t waits() { return here().waits; }
std::size_t allocations() { return here().allocations; }

}  // namespace minillama_test::emulated

using namespace minillama_test::emulated;

struct CUgraph_st {
  work_list work;
};
struct CUgraphExec_st {
  work_list work;
};

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "emulated");
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "emulated error"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
cudaError_t cudaMalloc(void** memory, std::size_t bytes) { return take(memory, bytes); }
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) { return take(memory, bytes); }
cudaError_t cudaFree(void* memory) { return give_back(memory); }
cudaError_t cudaFreeHost(void* memory) { return give_back(memory); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  enqueue([=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  if (here().captured) return cudaErrorStreamCaptureUnsupported;
  ++here().waits;
  drain();
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  here().captured = &(new CUgraph_st)->work;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(std::exchange(here().captured, nullptr));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* step, cudaGraph_t graph, unsigned long long) {
  *step = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t step) {
  delete step;
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t step, cudaStream_t) {
  for (const auto& work : step->work) enqueue(work);
  return cudaSuccess;
}

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
  *handle = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void*, std::size_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
const char* cublasGetStatusString(cublasStatus_t) { return "emulated status"; }

cublasStatus_t cublasSgemv_v2(cublasHandle_t, cublasOperation_t on_a, int m, int n, const float* alpha, const float* a, int lda,
                              const float* x, int, const float* beta, float* y, int) {
  if (lda < m) return CUBLAS_STATUS_INVALID_VALUE;
  const int rows = on_a == CUBLAS_OP_N ? m : n, inputs = on_a == CUBLAS_OP_N ? n : m;
  enqueue([=, alpha = *alpha, beta = *beta] { product(on_a, CUBLAS_OP_N, rows, 1, inputs, alpha, a, lda, x, inputs, beta, y, rows); });
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t, cublasOperation_t on_a, cublasOperation_t on_b, int m, int n, int k,
                                         const float* alpha, const float* a, int lda, long long stride_a, const float* b, int ldb,
                                         long long stride_b, const float* beta, float* c, int ldc, long long stride_c, int batch) {
  if (!fits(on_a, m, k, lda) || !fits(on_b, k, n, ldb) || ldc < m) return CUBLAS_STATUS_INVALID_VALUE;
  enqueue([=, alpha = *alpha, beta = *beta] {
    for (int i = 0; i < batch; ++i)
      product(on_a, on_b, m, n, k, alpha, a + i * stride_a, lda, b + i * stride_b, ldb, beta, c + i * stride_c, ldc);
  });
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t on_a, cublasOperation_t on_b, int m, int n, int k,
                              const float* alpha, const float* a, int lda, const float* b, int ldb, const float* beta, float* c, int ldc) {
  return cublasSgemmStridedBatched(handle, on_a, on_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}

}  // extern "C"
