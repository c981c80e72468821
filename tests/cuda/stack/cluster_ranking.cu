// SPDX-License-Identifier: Apache-2.0
// The kernel that ranks long lists of a step and sums sinks and window beside it, for ../stack_test.py: its look-ups need no stack.
#include <pqkv/cache/quantized_rows.hpp>
#include <pqkv/detail/cuda/pq_step.cuh>

namespace pqkv::detail {
using lists = planned_lists<tuning::cluster_threads, 4, whole_sequence>;
using sums = sums_beside<quantized_store<space::device>, planned_spans>;
const void* kernel_with_sums() { return reinterpret_cast<const void*>(&cluster_kernel<tuning::cluster_threads, 4, lists, sums>); }
}  // namespace pqkv::detail
