// SPDX-License-Identifier: Apache-2.0
// An operation that the host alone has: no header would help, and the message says so.
// expect: pqkv: this operation does not exist on CUDA; docs/policies.md lists what each backend has
#include <pqkv/cuda.cuh>

using pqkv::space::device;

int main() {
  const auto rows = pqkv::view<const float, 3, device>{};
  pqkv::prefill_attention(pqkv::exec::cuda{}, rows, pqkv::strided_kv(rows, rows), 0, pqkv::view<float, 3, device>{});
}
