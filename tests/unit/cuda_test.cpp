// SPDX-License-Identifier: Apache-2.0
// The CUDA policy in plain C++: complete, small, and of a space that host memory does not reach. What a call without the backend
// says is a compile test.
#include <pqkv/exec/cuda.hpp>

#include <doctest/doctest.h>

#include <type_traits>

#include <pqkv/core/view.hpp>

using pqkv::exec::cuda;
namespace space = pqkv::space;

static_assert(pqkv::exec::policy<cuda>);
static_assert(std::is_trivially_copyable_v<cuda> && std::is_aggregate_v<cuda>);
static_assert(std::is_same_v<cuda::backend_type, pqkv::backend::cuda> && std::is_same_v<cuda::space_type, space::device>);

TEST_CASE("the policy holds the caller's stream and device scratch") {
  int stream = 0;
  alignas(64) std::byte block[128];
  const cuda gpu{&stream, pqkv::arena(block, sizeof block)};
  CHECK(gpu.stream == &stream);
  CHECK(gpu.scratch.capacity_bytes() == 128);
  CHECK(cuda{}.stream == nullptr);
  CHECK(cuda{}.scratch.counting());
}

TEST_CASE("it takes device, pinned and managed memory, never host memory") {
  static_assert(pqkv::reachable_from<space::device, cuda> && pqkv::reachable_from<space::pinned, cuda> &&
                pqkv::reachable_from<space::managed, cuda>);
  static_assert(!pqkv::reachable_from<space::host, cuda>);
  static_assert(!std::is_convertible_v<pqkv::view<float, 2>, pqkv::view<const float, 2, cuda::space_type>>);
  float x[4] = {};
  const pqkv::view<const float, 2, cuda::space_type> device = pqkv::make_view<space::pinned>(x, 2, 2);
  CHECK(device.data == x);
}
