// SPDX-License-Identifier: Apache-2.0
// Instruction sets as types: what run time detection finds, and what isa::best turns into.
#include <pqkv/exec/isa.hpp>

#include <doctest/doctest.h>

#include <string>
#include <type_traits>

#include "cases/policies.hpp"

namespace isa = pqkv::isa;

static_assert(std::is_base_of_v<isa::scalar, isa::avx2>, "what AVX2 does not override is the scalar code");
static_assert(isa::level::avx2 > isa::level::scalar);

namespace {
template <class Isa>
std::string chosen() {
  return isa::with<Isa>([](auto found) -> std::string { return std::is_same_v<decltype(found), isa::avx2> ? "avx2" : "scalar"; });
}
}  // namespace

TEST_CASE("detection says what the CPU says, every time") {
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  const bool has_avx2 = false;
#endif
  CHECK(isa::detect() == (has_avx2 ? isa::level::avx2 : isa::level::scalar));
  CHECK(isa::detected() == isa::detect());
  CHECK(isa::detected() == isa::detected());
}

TEST_CASE("best is what was detected; a named set is used as it is") {
  CHECK(chosen<isa::best>() == (isa::detected() >= isa::level::avx2 ? "avx2" : "scalar"));
  CHECK(chosen<isa::scalar>() == "scalar");
  CHECK(chosen<isa::avx2>() == "avx2");
}

TEST_CASE("the body's result comes back, references too") {
  int x = 1;
  int& same = isa::with<isa::best>([&](auto) -> int& { return x; });
  CHECK(&same == &x);
  isa::with<isa::scalar>([&](auto) { x = 2; });
  CHECK(x == 2);
}

TEST_CASE("tests run on every instruction set this CPU has, scalar first") {
  std::string seen;
  pqkv_cases::for_each_isa([&](auto found) { seen += std::is_same_v<decltype(found), isa::avx2> ? "avx2 " : "scalar "; });
  CHECK(seen == (isa::detected() >= isa::level::avx2 ? "scalar avx2 " : "scalar "));
}
