// SPDX-License-Identifier: Apache-2.0
// A thread pool that does not model task_runner is refused where the policy is named.
// expect: task_runner
#include <pqkv/pqkv.hpp>

struct pool_without_run {};

pqkv::exec::host<pqkv::isa::best, pool_without_run> policy;
