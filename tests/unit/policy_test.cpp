// SPDX-License-Identifier: Apache-2.0
// What counts as an execution policy, and which memory each can be handed.
#include <pqkv/exec/policy.hpp>

#include <doctest/doctest.h>

#include <pqkv/exec/cuda.hpp>
#include <pqkv/exec/host.hpp>

namespace exec = pqkv::exec;
namespace space = pqkv::space;

namespace {
struct own_backend {};
struct own_policy {
  using backend_type = own_backend;
  using space_type = space::managed;
};
struct without_backend {
  using space_type = space::host;
};
struct unknown_space {
  using backend_type = own_backend;
  using space_type = int;
};
struct not_copyable {
  using backend_type = own_backend;
  using space_type = space::host;
  not_copyable() = default;
  not_copyable(const not_copyable&) = delete;
};
}  // namespace

TEST_CASE("a policy names a backend and a memory space, and can be copied") {
  static_assert(exec::policy<exec::host<>> && exec::policy<exec::cuda> && exec::policy<own_policy>);
  static_assert(!exec::policy<without_backend> && !exec::policy<unknown_space> && !exec::policy<not_copyable> && !exec::policy<int>);
  CHECK(exec::policy<own_policy>);
}

TEST_CASE("memory reaches a policy when its space can be read there") {
  static_assert(pqkv::reachable_from<space::host, exec::host<>> && pqkv::reachable_from<space::pinned, exec::host<>> &&
                pqkv::reachable_from<space::managed, exec::host<>> && !pqkv::reachable_from<space::device, exec::host<>>);
  static_assert(pqkv::reachable_from<space::device, exec::cuda> && pqkv::reachable_from<space::pinned, exec::cuda> &&
                pqkv::reachable_from<space::managed, exec::cuda> && !pqkv::reachable_from<space::host, exec::cuda>);
  static_assert(pqkv::reachable_from<space::managed, own_policy> && !pqkv::reachable_from<space::host, own_policy>);
  CHECK_FALSE(pqkv::reachable_from<space::device, exec::host<>>);
}
