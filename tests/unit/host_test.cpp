// SPDX-License-Identifier: Apache-2.0
// The host policy: its five answers, and that instruction set, runner and float environment of the caller change no result.
#include <pqkv/exec/host.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/float_modes.hpp"
#include "cases/inputs.hpp"
#include "cases/plain_quantize.hpp"
#include "cases/policies.hpp"

namespace exec = pqkv::exec;
using pqkv_cases::content;

namespace {
struct pool {
  template <class F>
  void run(std::size_t count, F&& f) {
    ++calls;
    for (std::size_t i = 0; i < count; ++i) f(i);
  }
  int calls = 0;
};
}  // namespace

static_assert(exec::policy<exec::host<>>);
static_assert(std::is_same_v<exec::host<>::backend_type, pqkv::backend::host>);
static_assert(std::is_same_v<exec::host<>::space_type, pqkv::space::host>);
static_assert(std::is_same_v<exec::host<>::isa_type, pqkv::isa::best>);
static_assert(std::is_same_v<exec::host<>::runner_type, exec::serial>);
static_assert(std::is_trivially_copyable_v<exec::host<>>, "a small value");
static_assert(std::is_same_v<exec::host<pqkv::isa::avx2, pool&>::runner_type, pool&>);

// Asked of a policy that holds a reference, these are answers, not errors: std::optional asks them.
using with_pool = exec::host<pqkv::isa::best, pool&>;
static_assert(std::is_copy_constructible_v<with_pool>);
static_assert(!std::is_copy_assignable_v<with_pool>);
static_assert(!std::is_default_constructible_v<with_pool>, "there is no pool to refer to");
static_assert(std::is_trivially_copyable_v<with_pool>);
static_assert(std::is_default_constructible_v<exec::host<>> && std::is_copy_assignable_v<exec::host<>>);

TEST_CASE("an engine that has its pool late keeps its policy in an optional") {
  struct engine {
    std::optional<with_pool> policy;
  };
  pool mine;
  engine late;
  CHECK_FALSE(late.policy.has_value());
  late.policy.emplace(with_pool{mine});
  CHECK(&late.policy->runner == &mine);
  const engine copy = late;
  CHECK(&copy.policy->runner == &mine);
  const std::optional<exec::host<>> cpu{exec::host<>{}};
  CHECK(cpu->scratch.counting());
}

TEST_CASE("a policy made of nothing runs serially and takes scratch from the heap") {
  const exec::host<> cpu;
  CHECK(cpu.scratch.counting());
  int ran = 0;
  cpu.runner.run(3, [&](std::size_t) { ++ran; });
  CHECK(ran == 3);
}

TEST_CASE("runner and scratch are the caller's") {
  const pqkv::buffer<std::byte> block(256);
  pool mine;
  const exec::host<pqkv::isa::scalar, pool&> cpu{mine, pqkv::arena(block)};
  CHECK(&cpu.runner == &mine);
  CHECK(cpu.scratch.capacity_bytes() == 256);
  const exec::host<pqkv::isa::best, exec::slice> part{{1, 4}, {}};
  CHECK(part.runner.ith == 1);
  CHECK(part.runner.nth == 4);
}

TEST_CASE("an engine's pool runs the library's tasks, once a call") {
  const pqkv::pq_shape shape{3, 16, 2, 4};
  const auto keys = pqkv_cases::make_rows(content::gaussian, 3, 50, 16, 1);
  const pqkv::codebook book = pqkv_cases::make_book(shape, 2);
  pqkv::codes codes(shape, 50);
  pool mine;
  pqkv::encode(exec::host<pqkv::isa::best, pool&>{mine}, keys.view(), book.view(), codes.mutable_view());
  CHECK(mine.calls == 1);
  const auto expected = pqkv_cases::plain_encode(keys.view(), book.view());
  CHECK(codes.view()(2, 1, 49) == expected.back());
}

namespace {
using pqkv_cases::float_modes;

/// Sets the caller's modes, calls, and returns which bits of them the call left changed; the test's own are restored.
template <class Call>
std::uint64_t changed_by(std::uint64_t modes, Call&& call) {
  const std::uint64_t own = float_modes::get();
  float_modes::set(modes);
  const std::uint64_t before = float_modes::get();
  call();
  const std::uint64_t after = float_modes::get();
  float_modes::set(own);
  return after ^ before;
}
constexpr std::uint64_t environments[] = {
    float_modes::usual | float_modes::flushing, float_modes::usual | float_modes::upwards, float_modes::usual | float_modes::downwards,
    float_modes::usual | float_modes::towards_zero | float_modes::flushing, float_modes::usual | float_modes::flags};

/// Runs every task in the first of these environments, as an engine's worker threads may.
struct flushing_runner {
  std::uint64_t* changed;  // bits that a task left changed
  template <class F>
  void run(std::size_t count, F&& f) const {
    for (std::size_t i = 0; i < count; ++i) *changed |= changed_by(environments[0], [&] { f(i); });
  }
};
}  // namespace

TEST_CASE("flush-to-zero and other rounding of the caller change no result and come back as they were") {
  // Distances of these keys are subnormal: with flush-to-zero every centroid would be equally near.
  const pqkv::pq_shape shape{2, 16, 2, 4};
  auto keys = pqkv_cases::make_rows(content::gaussian, 2, 200, 16, 3);
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t t = 0; t < 200; ++t)
      for (std::size_t i = 0; i < 16; ++i) keys(head, t, i) *= 0x1p-68f;
  pqkv::codebook expected_book(shape);
  REQUIRE(pqkv::train(exec::host<pqkv::isa::scalar>{}, keys.view(), expected_book) == pqkv::kmeans_outcome::trained);
  const auto expected_codes = pqkv_cases::plain_encode(keys.view(), expected_book.view());
  REQUIRE(std::count(expected_codes.begin(), expected_codes.end(), 0) < 200);
  const auto query = pqkv_cases::make_rows(content::gaussian, 1, 4, 16, 4);
  const auto expected_table = pqkv_cases::plain_inner_product_table(query.view()[0], expected_book.view());

  pqkv_cases::for_each_isa([&](auto isa) {
    const exec::host<decltype(isa)> cpu;
    for (const std::uint64_t environment : environments) {
      pqkv::codebook book(shape);
      pqkv::codes codes(shape, 200);
      pqkv::distance_table table(4, shape);
      CHECK(changed_by(environment, [&] { pqkv::train(cpu, keys.view(), book); }) == 0);
      CHECK(changed_by(environment, [&] { pqkv::encode(cpu, keys.view(), book.view(), codes.mutable_view()); }) == 0);
      CHECK(changed_by(environment, [&] { pqkv::inner_product_table(cpu, query.view()[0], book.view(), table.mutable_view()); }) == 0);
      CHECK(pqkv_cases::same_bits(book.view().centroids.data, expected_book.view().centroids.data, book.view().centroids.size()));
      CHECK(pqkv_cases::same_bits(book.view().mean.data, expected_book.view().mean.data, book.view().mean.size()));
      CHECK(pqkv_cases::same_bits(table.view().entries.data, expected_table.data(), expected_table.size()));
      std::size_t wrong = 0, i = 0;
      for (std::size_t head = 0; head < 2; ++head)
        for (std::size_t j = 0; j < 2; ++j)
          for (std::size_t t = 0; t < 200; ++t) wrong += codes.view()(head, j, t) != expected_codes[i++];
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("each task of a runner sets and restores the float environment") {
  const pqkv::pq_shape shape{4, 16, 2, 4};
  const auto keys = pqkv_cases::make_rows(content::gaussian, 4, 100, 16, 5);
  std::uint64_t changed = 0;
  pqkv::codebook book(shape), expected(shape);
  pqkv::train(exec::host<>{}, keys.view(), expected);
  pqkv::train(exec::host<pqkv::isa::best, flushing_runner>{{&changed}, {}}, keys.view(), book);
  CHECK(changed == 0);
  CHECK(pqkv_cases::same_bits(book.view().centroids.data, expected.view().centroids.data, book.view().centroids.size()));
}
