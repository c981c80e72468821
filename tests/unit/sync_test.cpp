// SPDX-License-Identifier: Apache-2.0
// sync() on the host: callable from generic code, with nothing to wait for and nothing to throw. What it does on a device is
// tests/cuda/seam.cu.
#include <pqkv/exec/sync.hpp>

#include <doctest/doctest.h>

#include <cstdint>

#include <pqkv/pqkv.hpp>

namespace {
/// An engine's step, for any policy.
template <class Policy>
void best_two(const Policy& policy, const float* scores, std::int32_t* indices) {
  using space = typename Policy::space_type;
  pqkv::top_k(policy, pqkv::make_view<space>(scores, 1, 4), pqkv::make_view<space>(indices, 1, 2));
  pqkv::sync(policy);
}
}  // namespace

TEST_CASE("sync: results are there after it, whatever the host policy") {
  const float scores[] = {1, 4, 2, 3};
  std::int32_t indices[] = {-7, -7};
  best_two(pqkv::exec::host<>{}, scores, indices);
  CHECK(indices[0] == 1);
  CHECK(indices[1] == 3);
  indices[0] = indices[1] = -7;
  best_two(pqkv::exec::host<pqkv::isa::scalar, pqkv::exec::slice>{{.ith = 0, .nth = 1}}, scores, indices);
  CHECK(indices[0] == 1);
  CHECK(indices[1] == 3);
}
