// SPDX-License-Identifier: Apache-2.0
// 16-bit storage types against a plain double-precision statement of their formats, on every bit pattern, on every midpoint
// between two neighbours, and on random floats; and against the compiler's own _Float16 where it has one.
#include <pqkv/core/scalar.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "cases/inputs.hpp"

using pqkv::bfloat16;
using pqkv::float_bits;
using pqkv::float_from_bits;
using pqkv::half;

static_assert(sizeof(half) == 2 && sizeof(bfloat16) == 2);
static_assert(std::is_trivially_copyable_v<half> && std::is_trivially_copyable_v<bfloat16>);
static_assert(half(1.0f).bits == 0x3c00 && half(-2.0f).bits == 0xc000 && half(65504.0f).bits == 0x7bff);
static_assert(bfloat16(1.0f).bits == 0x3f80 && bfloat16(-2.0f).bits == 0xc000);
static_assert(float(half(0.5f)) == 0.5f && float(bfloat16(0.5f)) == 0.5f);
static_assert(!std::is_convertible_v<float, half> && !std::is_convertible_v<half, float>, "conversions are written out");
static_assert(pqkv::storage_scalar<float> && pqkv::storage_scalar<const half> && pqkv::storage_scalar<bfloat16>);
static_assert(!pqkv::storage_scalar<double> && !pqkv::storage_scalar<std::uint16_t>);

namespace {

struct format {
  int exponent_bits, fraction_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int lowest() const { return 1 - bias(); }  // exponent of the smallest normal number
  int highest() const { return bias(); }     // exponent of the largest
};
constexpr format half_format{5, 10}, bfloat16_format{8, 7};

/// The number that a bit pattern stands for.
double plain_value(unsigned bits, format f) {
  const double sign = bits >> (f.exponent_bits + f.fraction_bits) ? -1 : 1;
  const int exponent = static_cast<int>((bits >> f.fraction_bits) & ((1u << f.exponent_bits) - 1u));
  const int fraction = static_cast<int>(bits & ((1u << f.fraction_bits) - 1u));
  if (exponent == (1 << f.exponent_bits) - 1) {
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, f.lowest() - f.fraction_bits);
  return sign * std::ldexp((1 << f.fraction_bits) + fraction, exponent - f.bias() - f.fraction_bits);
}

/// x rounded to the format, nearest even.
double plain_rounded(float x, format f) {
  if (std::isnan(x) || std::isinf(x) || x == 0) return x;
  const int exponent = std::max(std::ilogb(x), f.lowest());
  const double rounded =
      std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), f.fraction_bits - exponent)), exponent - f.fraction_bits);
  return std::fabs(rounded) >= std::ldexp(1.0, f.highest() + 1) ? std::copysign(std::numeric_limits<double>::infinity(), rounded) : rounded;
}

/// Equal as numbers, zeros with their sign, all NaNs alike.
bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b); }

template <class T>
bool converts(float x, format f) {
  return same(static_cast<float>(T(x)), plain_rounded(x, f));
}

template <class T>
void check_every_pattern(format f) {
  std::size_t wrong_value = 0, wrong_round_trip = 0;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    T stored;
    stored.bits = static_cast<std::uint16_t>(bits);
    const float value = static_cast<float>(stored);
    wrong_value += !same(value, plain_value(bits, f));
    const T again(value);
    wrong_round_trip += std::isnan(value) ? !std::isnan(static_cast<float>(again)) : again.bits != stored.bits;
  }
  CHECK(wrong_value == 0);
  CHECK(wrong_round_trip == 0);
}

template <class T>
void check_boundaries(format f) {
  // Between two neighbours of the format lie the middle and the floats beside it: where rounding changes its mind.
  std::size_t wrong = 0;
  for (unsigned bits = 0; bits < 0x7fffu; ++bits) {
    T low, high;
    low.bits = static_cast<std::uint16_t>(bits);
    high.bits = static_cast<std::uint16_t>(bits + 1);
    double next = plain_value(high.bits, f);
    if (std::isnan(next)) break;
    if (std::isinf(next)) next = std::ldexp(1.0, f.highest() + 1);  // where it would be if the exponent went on
    const float middle = static_cast<float>((plain_value(low.bits, f) + next) / 2);
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, infinity)})
      for (const float s : {1.0f, -1.0f}) wrong += !converts<T>(s * x, f);
  }
  CHECK(wrong == 0);
}

template <class T>
void check_random(format f, std::uint64_t seed) {
  pqkv_cases::random_source random(seed);
  std::size_t wrong = 0;
  for (int i = 0; i < 500000; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(random.bits());
    wrong += !converts<T>(float_from_bits(bits), f);
    // Most random exponents are out of half's range: put half of the draws inside.
    wrong += !converts<T>(float_from_bits((bits & 0x807fffffu) | ((96u + bits % 52u) << 23)), f);
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("half: every bit pattern has its value and comes back") { check_every_pattern<half>(half_format); }
TEST_CASE("bfloat16: every bit pattern has its value and comes back") { check_every_pattern<bfloat16>(bfloat16_format); }
TEST_CASE("half: ties go to even at every boundary, subnormal and overflow included") { check_boundaries<half>(half_format); }
TEST_CASE("bfloat16: ties go to even at every boundary, subnormal and overflow included") { check_boundaries<bfloat16>(bfloat16_format); }
TEST_CASE("half: random floats round to nearest even") { check_random<half>(half_format, 1); }
TEST_CASE("bfloat16: random floats round to nearest even") { check_random<bfloat16>(bfloat16_format, 2); }

TEST_CASE("known values at the edges of half") {
  CHECK(half(65519.0f).bits == 0x7bff);  // below the middle of 65504 and 65536
  CHECK(half(65520.0f).bits == 0x7c00);  // the middle goes to even, which is infinity
  CHECK(half(-1e10f).bits == 0xfc00);
  CHECK(half(0x1p-24f).bits == 0x0001);  // smallest subnormal
  CHECK(half(0x1p-25f).bits == 0x0000);  // its half: to even
  CHECK(half(0x1.000002p-25f).bits == 0x0001);
  CHECK(half(-0x1p-30f).bits == 0x8000);     // the sign of a vanished number stays
  CHECK(half(0x1.ffcp-15f).bits == 0x0400);  // rounds up to the smallest normal number
}

TEST_CASE("known values at the edges of bfloat16") {
  CHECK(bfloat16(1.00390625f).bits == 0x3f80);  // 1 + 2^-8: to even
  CHECK(bfloat16(1.01171875f).bits == 0x3f82);  // 1 + 3 * 2^-8: to even
  CHECK(bfloat16(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(bfloat16(std::numeric_limits<float>::denorm_min()).bits == 0x0000);
  CHECK(bfloat16(-0.0f).bits == 0x8000);
}

TEST_CASE("every NaN stays a NaN, every infinity an infinity with its sign") {
  pqkv_cases::random_source random(3);
  for (int i = 0; i < 10000; ++i) {
    const std::uint32_t payload = 1u + static_cast<std::uint32_t>(random.below(0x7fffff)), sign = i % 2 ? 0x80000000u : 0u;
    const float nan = float_from_bits(sign | 0x7f800000u | payload);
    REQUIRE((half(nan).bits & 0x7fffu) > 0x7c00u);
    REQUIRE((bfloat16(nan).bits & 0x7fffu) > 0x7f80u);
  }
  REQUIRE((half(float_from_bits(0x7f800001u)).bits & 0x7fffu) > 0x7c00u);  // a payload that lies in the dropped bits alone
  REQUIRE((bfloat16(float_from_bits(0xff800001u)).bits & 0x7fffu) > 0x7f80u);
  const float inf = std::numeric_limits<float>::infinity();
  CHECK(half(inf).bits == 0x7c00);
  CHECK(half(-inf).bits == 0xfc00);
  CHECK(bfloat16(inf).bits == 0x7f80);
  CHECK(bfloat16(-inf).bits == 0xff80);
}

#if defined(__FLT16_MANT_DIG__) && (defined(__x86_64__) || defined(__clang__) || __GNUC__ >= 13)  // g++ 12 has it on x86 alone
TEST_CASE("half equals the compiler's _Float16") {
  std::size_t wrong = 0;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    half stored;
    stored.bits = static_cast<std::uint16_t>(bits);
    const auto native = __builtin_bit_cast(_Float16, stored.bits);
    wrong += !same(static_cast<float>(stored), static_cast<float>(native));
  }
  CHECK(wrong == 0);
  pqkv_cases::random_source random(4);
  for (int i = 0; i < 300000; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(random.bits());
    const float x = float_from_bits((bits & 0x807fffffu) | ((96u + bits % 52u) << 23));
    wrong += half(x).bits != __builtin_bit_cast(std::uint16_t, static_cast<_Float16>(x));
  }
  CHECK(wrong == 0);
}
#endif

TEST_CASE("finite is decided on the bits") {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float x : {0.0f, -0.0f, 1.0f, std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min()}) {
    CHECK(pqkv::is_finite(x));
    CHECK(pqkv::is_finite(-x));
  }
  for (const float x : {inf, -inf, float_from_bits(0x7f800001u), float_from_bits(0xffc00000u), float_from_bits(0x7fffffffu)})
    CHECK_FALSE(pqkv::is_finite(x));
}

TEST_CASE("bits of a float come back") {
  CHECK(float_bits(1.0f) == 0x3f800000u);
  CHECK(float_bits(float_from_bits(0x7f800001u)) == 0x7f800001u);
  CHECK(float_from_bits(0xc0490fdbu) == doctest::Approx(-3.14159265).epsilon(1e-7));
}
