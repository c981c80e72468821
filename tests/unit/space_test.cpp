// SPDX-License-Identifier: Apache-2.0
// Memory spaces: which code may read which memory, as compile-time facts.
#include <pqkv/core/space.hpp>

#include <doctest/doctest.h>

using namespace pqkv::space;

namespace {
struct somewhere {};
template <class From>
constexpr int readers =
    usable_from<From, host> + 2 * usable_from<From, device> + 4 * usable_from<From, pinned> + 8 * usable_from<From, managed>;
}  // namespace

TEST_CASE("four types are spaces, others are not") {
  static_assert(is_space<host> && is_space<pinned> && is_space<managed> && is_space<device>);
  static_assert(!is_space<somewhere> && !is_space<int> && !is_space<const host>);
  CHECK(is_space<host>);
}

TEST_CASE("host and device read their own memory, and both read pinned and managed memory") {
  static_assert(readers<host> == 1, "host memory: host alone");
  static_assert(readers<device> == 2, "device memory: device alone");
  static_assert(readers<pinned> == (1 | 2 | 4));
  static_assert(readers<managed> == (1 | 2 | 8));
  static_assert(!usable_from<somewhere, host> && !usable_from<host, somewhere>);
  CHECK_FALSE(usable_from<device, host>);
}
