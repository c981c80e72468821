// SPDX-License-Identifier: Apache-2.0
// Front page of the CUDA backend, for files that nvcc compiles: everything of <pqkv/pqkv.hpp>, and kernels for exec::cuda with the
// host's results. Plain C++ files of the same program include <pqkv/cuda_extern.hpp>.
#pragma once

#if !defined(__CUDACC__)
#error "pqkv: <pqkv/cuda.cuh> needs nvcc; plain C++ files include <pqkv/cuda_extern.hpp>"
#endif

#include "pqkv.hpp"

#include "exec/sync.hpp"

#include "detail/cuda/cuda_absent.hpp"
#include "detail/cuda/attended_sum.cuh"
#include "detail/cuda/attention.cuh"
#include "detail/cuda/block_cache.cuh"
#include "detail/cuda/cell_index.cuh"
#include "detail/cuda/codebook.cuh"
#include "detail/cuda/codes.cuh"
#include "detail/cuda/distance_table.cuh"
#include "detail/cuda/kmeans.cuh"
#include "detail/cuda/kv_store.cuh"
#include "detail/cuda/memory.cuh"
#include "detail/cuda/merge.cuh"
#include "detail/cuda/oracle.cuh"
#include "detail/cuda/pq_index.cuh"
#include "detail/cuda/pq_index_renew.cuh"
#include "detail/cuda/pq_step.cuh"
#include "detail/cuda/retrieve.cuh"
#include "detail/cuda/scan.cuh"
#include "detail/cuda/sequence_steps.cuh"
#include "detail/cuda/step_plan.cuh"
#include "detail/cuda/sync.cuh"
#include "detail/cuda/tiered_rows.cuh"
#include "detail/cuda/top_k.cuh"
