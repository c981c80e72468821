// SPDX-License-Identifier: Apache-2.0
// Instruction sets as types: what run time detection finds, and what isa::best turns into.
#include <pqkv/exec/isa.hpp>

#include <doctest/doctest.h>

#include <string>
#include <type_traits>

#include "cases/policies.hpp"

namespace isa = pqkv::isa;

static_assert(std::is_base_of_v<isa::scalar, isa::avx2> && std::is_base_of_v<isa::avx2, isa::avx512> &&
                  std::is_base_of_v<isa::avx512, isa::avx512_vbmi> && std::is_base_of_v<isa::avx512_vbmi, isa::avx512_bf16> &&
                  std::is_base_of_v<isa::scalar, isa::neon>,
              "what a set does not override is the code of the one before");
static_assert(isa::level::avx512_bf16 > isa::level::avx512_vbmi && isa::level::avx512_vbmi > isa::level::avx512 &&
              isa::level::avx512 > isa::level::avx2 && isa::level::avx2 > isa::level::scalar && isa::level::neon > isa::level::scalar);

namespace {
std::string name_of(isa::scalar) { return "scalar"; }
std::string name_of(isa::neon) { return "neon"; }
std::string name_of(isa::avx2) { return "avx2"; }
std::string name_of(isa::avx512) { return "avx512"; }
std::string name_of(isa::avx512_vbmi) { return "avx512_vbmi"; }
std::string name_of(isa::avx512_bf16) { return "avx512_bf16"; }

template <class Isa, class Widest = isa::avx512_bf16>
std::string chosen() {
  return isa::with<Isa, Widest>([](auto found) { return name_of(found); });
}
std::string best_name() {
  const char* const names[] = {"scalar", "neon", "avx2", "avx512", "avx512_vbmi", "avx512_bf16"};
  return names[static_cast<std::size_t>(isa::detected())];
}
}  // namespace

TEST_CASE("detection says what the CPU says, every time") {
  isa::level expected = isa::level::scalar;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) expected = isa::level::avx2;
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    expected = __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") ? isa::level::avx512_vbmi : isa::level::avx512;
  if (expected == isa::level::avx512_vbmi && __builtin_cpu_supports("avx512bf16")) expected = isa::level::avx512_bf16;
#elif defined(__aarch64__)
  expected = isa::level::neon;
#endif
  CHECK(isa::detect() == expected);
  CHECK(isa::detected() == isa::detect());
  CHECK(isa::detected() == isa::detected());
}

TEST_CASE("best is what was detected; a named set is used as it is") {
  CHECK(chosen<isa::best>() == best_name());
  CHECK(chosen<isa::scalar>() == "scalar");
  CHECK(chosen<isa::avx2>() == "avx2");
  CHECK(chosen<isa::avx512>() == "avx512");
  CHECK(chosen<isa::avx512_vbmi>() == "avx512_vbmi");
  CHECK(chosen<isa::avx512_bf16>() == "avx512_bf16");
}

TEST_CASE("what has no leaves of its own for a body is narrowed to what has") {
  CHECK(chosen<isa::avx512_bf16, isa::avx512>() == "avx512");
  CHECK(chosen<isa::avx512_vbmi, isa::avx512>() == "avx512");
  CHECK(chosen<isa::avx512, isa::avx512>() == "avx512");
  CHECK(chosen<isa::avx2, isa::avx512>() == "avx2");
  CHECK(chosen<isa::scalar, isa::avx512>() == "scalar");
  CHECK(chosen<isa::neon, isa::avx512>() == "neon");
}

TEST_CASE("the body's result comes back, references too") {
  int x = 1;
  int& same = isa::with<isa::best>([&](auto) -> int& { return x; });
  CHECK(&same == &x);
  isa::with<isa::scalar>([&](auto) { x = 2; });
  CHECK(x == 2);
}

TEST_CASE("tests run on every instruction set this CPU has, scalar first") {
  std::string seen, expected;
  pqkv_cases::for_each_isa([&](auto found) { seen += name_of(found) + " "; });
#if defined(__aarch64__)
  const char* const names[] = {"scalar", "neon"};
#else
  const char* const names[] = {"scalar", "avx2", "avx512", "avx512_vbmi", "avx512_bf16"};
#endif
  for (const char* name : names) {
    expected += std::string(name) + " ";
    if (best_name() == name) break;
  }
  CHECK(seen == expected);
}
