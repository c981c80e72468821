// SPDX-License-Identifier: Apache-2.0
// The canonical functions against libm in double precision and against plain restatements; every instruction set's exponential
// against the scalar one to the bit.
#include <pqkv/core/canonical.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <pqkv/detail/host/simd/kernels.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"

namespace canonical = pqkv::canonical;
using canonical::softmax_scale;

namespace {
constexpr float inf = std::numeric_limits<float>::infinity();

/// Arguments u <= 0 over all of the exponential's range, dense near its ends.
std::vector<float> exponents(softmax_scale s, std::size_t count, std::uint64_t seed) {
  pqkv_cases::random_source random(seed);
  std::vector<float> u = {0.0f, -0.0f, -std::numeric_limits<float>::denorm_min(), s.floor, std::nextafter(s.floor, 0.0f)};
  for (std::size_t i = 0; i < count; ++i) {
    u.push_back(s.floor * random.uniform());
    u.push_back(-std::ldexp(random.uniform() + 1, -static_cast<int>(random.below(40))));
  }
  // Where the integer part changes: half-way between two powers.
  for (int k = 0; k < 125; ++k)
    for (const float away : {-inf, 0.0f, inf}) u.push_back(std::nextafter(-(static_cast<float>(k) + 0.5f) / s.scale, away));
  std::erase_if(u, [&](float x) { return x < s.floor || x > 0; });
  return u;
}
}  // namespace

TEST_CASE("the softmax scale is log2(e) / sqrt(d), rounded once") {
  for (const std::size_t d : {8u, 16u, 64u, 96u, 128u, 256u}) {
    const softmax_scale s = softmax_scale::of(d);
    CHECK(s.scale == static_cast<float>(std::log2(std::exp(1.0)) / std::sqrt(static_cast<double>(d))));
    CHECK(s.floor == -125.0f / s.scale);
  }
}

TEST_CASE("the exponential is within 2^-23.3 of libm's in double precision") {
  double worst = 0;
  for (const std::size_t d : {8u, 64u, 128u, 256u}) {
    const softmax_scale s = softmax_scale::of(d);
    for (const float u : exponents(s, 50000, d)) {
      const double exact = std::exp2(static_cast<double>(u) * static_cast<double>(s.scale));
      worst = std::max(worst, std::fabs(static_cast<double>(canonical::exponential(u, s)) - exact) / exact);
    }
  }
  CHECK(worst <= std::exp2(-23.3));
  CHECK(worst > std::exp2(-25.0));  // it is a float: closer means that the comparison compares nothing
}

TEST_CASE("the exponential is exact at powers of two, and takes positive arguments") {
  const softmax_scale one{1.0f, -125.0f};
  for (int k = -125; k <= 126; ++k) CHECK(canonical::exponential(static_cast<float>(k), one) == std::ldexp(1.0f, k));
  CHECK(canonical::exponential(-0.0f, one) == 1.0f);
  CHECK(canonical::exponential(-0.5f, one) == doctest::Approx(std::sqrt(0.5)).epsilon(1e-7));
}

TEST_CASE("the exponential is exactly 0 below the floor and a normal number at it") {
  for (const std::size_t d : {8u, 64u, 256u}) {
    const softmax_scale s = softmax_scale::of(d);
    CHECK(pqkv::float_bits(canonical::exponential(std::nextafter(s.floor, -inf), s)) == 0u);
    CHECK(pqkv::float_bits(canonical::exponential(-std::numeric_limits<float>::max(), s)) == 0u);
    CHECK(canonical::exponential(s.floor, s) >= 0x1.fp-126f);
    CHECK(canonical::exponential(s.floor, s) <= 0x1.1p-125f);
  }
}

TEST_CASE("every instruction set computes the same exponentials to the bit, at any length") {
  const softmax_scale s = softmax_scale::of(64);
  std::vector<float> u = exponents(s, 20000, 5);
  u.insert(u.begin() + 100, {std::nextafter(s.floor, -inf), -1e30f, 3.0f});
  pqkv_cases::for_each_isa([&](auto isa) {
    for (const std::size_t n : {0u, 1u, 7u, 8u, 9u, 15u, 16u, 17u, 31u, static_cast<unsigned>(u.size())}) {
      std::vector<float> out(n + 1, -1.0f);
      pqkv::detail::simd_kernels<decltype(isa)>::exponentials(u.data(), n, s, out.data());
      std::size_t wrong = out[n] != -1.0f;
      for (std::size_t i = 0; i < n; ++i) wrong += pqkv::float_bits(out[i]) != pqkv::float_bits(canonical::exponential(u[i], s));
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("dot and squared distance are one chain of fused multiply-adds, ascending, at any stride") {
  pqkv_cases::random_source random(6);
  for (const std::size_t n : {0u, 1u, 2u, 13u, 64u, 256u})
    for (const std::size_t stride : {1u, 3u, 64u}) {
      std::vector<float> a(n), b(n * stride + 1);
      for (float& x : a) x = random.gaussian();
      for (float& x : b) x = random.gaussian();
      float dot = 0, distance = 0;
      for (std::size_t i = 0; i < n; ++i) {
        dot = std::fma(a[i], b[i * stride], dot);
        const float e = a[i] - b[i * stride];
        distance = std::fma(e, e, distance);
      }
      CHECK(pqkv::float_bits(canonical::dot(a.data(), b.data(), stride, n)) == pqkv::float_bits(dot));
      CHECK(pqkv::float_bits(canonical::squared_distance(a.data(), b.data(), stride, n)) == pqkv::float_bits(distance));
    }
  // Fused: the rounded product would be 1 and the difference 0.
  const float a[2] = {0x1.000002p0f, 1.0f}, b[2] = {0x1.fffffcp-1f, -1.0f};
  CHECK(canonical::dot(a, b, 1, 2) == std::fma(a[1], b[1], a[0] * b[0]));
  CHECK(canonical::fma(a[0], b[0], -1.0f) == static_cast<float>(static_cast<double>(a[0]) * static_cast<double>(b[0]) - 1.0));
  CHECK(canonical::fma(a[0], b[0], -1.0f) != 0.0f);
}

TEST_CASE("max takes the second of two when either is a NaN, as maxps does") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(canonical::max(1, 2) == 2);
  CHECK(canonical::max(2, 1) == 2);
  CHECK(canonical::max(nan, 1) == 1);
  CHECK(std::isnan(canonical::max(1, nan)));
  CHECK(std::signbit(canonical::max(0.0f, -0.0f)));
}

TEST_CASE("to_fixed is P * 2^40 rounded to nearest even") {
  pqkv_cases::random_source random(7);
  const auto plain = [](float p) { return static_cast<std::uint64_t>(std::llrint(std::ldexp(static_cast<double>(p), 40))); };
  for (int i = 0; i < 200000; ++i) {
    const float p = std::ldexp(1 + random.uniform(), 9 - static_cast<int>(random.below(80)));
    REQUIRE(canonical::to_fixed(p) == plain(p));
  }
  CHECK(canonical::to_fixed(0.0f) == 0);
  CHECK(canonical::to_fixed(1.0f) == std::uint64_t{1} << 40);
  CHECK(canonical::to_fixed(1024.0f) == std::uint64_t{1} << 50);
  CHECK(canonical::to_fixed(0x1p-41f) == 0);         // 0.5: to even
  CHECK(canonical::to_fixed(0x1.8p-40f) == 2);       // 1.5: to even
  CHECK(canonical::to_fixed(0x1.4p-39f) == 2);       // 2.5: to even
  CHECK(canonical::to_fixed(0x1.000002p-41f) == 1);  // just above 0.5
  CHECK(canonical::to_fixed(0x1.fffffep-42f) == 0);  // just below
  CHECK(canonical::to_fixed(std::numeric_limits<float>::denorm_min()) == 0);
}

TEST_CASE("to_fixed_parts are to_fixed's number in two parts") {
  const auto require_same = [](float p) {
    const canonical::fixed_parts parts = canonical::to_fixed_parts(p);
    REQUIRE(static_cast<std::uint64_t>(std::int64_t{parts.upper} * 4194304 + parts.lower) == canonical::to_fixed(p));
    REQUIRE(std::abs(parts.lower) <= 1 << 21);
    REQUIRE(parts.upper >= 0);
    REQUIRE(parts.upper <= 1 << 22);
  };
  pqkv_cases::random_source random(8);
  for (int i = 0; i < 200000; ++i) require_same(std::ldexp(1 + random.uniform(), 3 - static_cast<int>(random.below(60))));
  for (int i = 0; i < 200000; ++i) require_same((static_cast<float>(random.below(1 << 20)) + 0.5f) * 0x1p-40f);  // halves: to even
  for (const int step : {17, 18, 19, 20, 40, 41, 42})  // where the parts meet, and where the lower ends
    for (std::uint32_t i = 0; i < 64; ++i) {
      const float at = std::ldexp(1.0f, -step);
      require_same(pqkv::float_from_bits(pqkv::float_bits(at) + i - 32));
      require_same(at * (static_cast<float>(i) + 0.5f));
    }
  for (const float p :
       {0.0f, 1.0f, 16.0f, 0x1p-41f, 0x1.8p-40f, 0x1.4p-39f, 0x1.000002p-41f, 0x1.fffffep-42f, std::numeric_limits<float>::denorm_min()})
    require_same(p);
}

TEST_CASE("recentring is asked for below 2^20 a token, and A is clamped") {
  CHECK(canonical::needs_recentring((std::uint64_t{1000} << 20) - 1, 1000));
  CHECK_FALSE(canonical::needs_recentring(std::uint64_t{1000} << 20, 1000));
  CHECK_FALSE(canonical::needs_recentring(0, 0));
  const softmax_scale s = softmax_scale::of(64);
  CHECK(canonical::recentring(-3.5f, s) == -3.5f);
  CHECK(canonical::recentring(-1e9f, s) == -120.0f / s.scale);
  CHECK(canonical::recentring(-inf, s) == -120.0f / s.scale);
}

TEST_CASE("the inverse of the normaliser is rounded from double, and 0 for nothing") {
  CHECK(canonical::inverse_normaliser(0) == 0.0f);
  CHECK(canonical::inverse_normaliser(std::uint64_t{1} << 40) == 1.0f);
  CHECK(canonical::inverse_normaliser(3) == static_cast<float>(std::ldexp(1.0, 40) / 3.0));
  CHECK(canonical::inverse_normaliser(0xffffffffffffffffu) == 0x1p-24f);
}

TEST_CASE("order keys have the order of floats; -0 equals +0, NaN is below all") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), tiny = std::numeric_limits<float>::denorm_min();
  const float most = std::numeric_limits<float>::max();
  const std::vector<float> ascending = {-inf, -most, -1.5f, -1.0f, -0x1p-126f, -tiny, 0.0f, tiny, 0x1p-126f, 1.0f, 1.5f, most, inf};
  for (std::size_t i = 0; i + 1 < ascending.size(); ++i) CHECK(canonical::order_key(ascending[i]) < canonical::order_key(ascending[i + 1]));
  CHECK(canonical::order_key(-0.0f) == canonical::order_key(0.0f));
  for (const float x : {nan, -nan, pqkv::float_from_bits(0x7f800001u), pqkv::float_from_bits(0xffffffffu)})
    CHECK(canonical::order_key(x) < canonical::order_key(-inf));
  pqkv_cases::random_source random(8);
  std::size_t wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    const float a = pqkv::float_from_bits(static_cast<std::uint32_t>(random.bits()));
    const float b = i % 2 ? pqkv::float_from_bits(static_cast<std::uint32_t>(random.bits())) : std::nextafter(a, inf);
    if (std::isnan(a) || std::isnan(b)) continue;
    wrong += (canonical::order_key(a) < canonical::order_key(b)) != (a < b);
    wrong += (canonical::order_key(a) == canonical::order_key(b)) != (a == b);
    wrong += canonical::from_order_key(canonical::order_key(a)) != a;
  }
  CHECK(wrong == 0);
  CHECK(canonical::from_order_key(canonical::order_key(-inf)) == -inf);
  CHECK(std::isnan(canonical::from_order_key(0xffffffffu)));  // above every number
}

TEST_CASE("the fixed-point exponent brings the largest number to [2^29, 2^30)") {
  pqkv_cases::random_source random(9);
  for (int e = -70; e <= 127; ++e)
    for (const float significand : {1.0f, 1 + random.uniform(), 0x1.fffffep0f}) {
      const float largest = std::ldexp(significand, e);
      const double scaled = std::ldexp(static_cast<double>(largest), canonical::fixed_point_exponent(largest));
      REQUIRE(scaled >= 0x1p29);
      REQUIRE(scaled < 0x1p30);
    }
  CHECK(canonical::fixed_point_exponent(0.0f) == 100);
  CHECK(canonical::fixed_point_exponent(std::numeric_limits<float>::denorm_min()) == 100);
  for (int e = -126; e <= 127; ++e) REQUIRE(canonical::power_of_two(e) == std::ldexp(1.0f, e));
}

TEST_CASE("fixed point rounds to nearest even, either sign") {
  for (const float x : {0.5f, 1.5f, 2.5f, 3.5f, 0.49999997f, 0.50000006f, 8388607.5f, 1073741760.0f, 0.0f, 0x1p-149f})
    for (const float s : {1.0f, -1.0f}) {
      CHECK(canonical::fixed_point(s * x, 1.0f) == std::llrint(s * x));
      CHECK(canonical::fixed_point(s * x * 0x1p-40f, 0x1p40f) == std::llrint(s * std::ldexp(x * 0x1p-40f, 40)));
    }
}

TEST_CASE("a fixed-point mean is free of order and within one step of the exact mean") {
  pqkv_cases::random_source random(10);
  for (const float size : {1e-15f, 1.0f, 600.0f, 1e30f}) {
    std::vector<float> x(1001);
    double exact = 0;
    float largest = 0;
    for (float& one : x) {
      one = size * random.gaussian();
      exact += static_cast<double>(one);
      largest = std::max(largest, std::fabs(one));
    }
    exact /= 1001;
    const int s = canonical::fixed_point_exponent(largest);
    const float scale = canonical::power_of_two(s);
    std::int64_t forward = 0, backward = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      forward += canonical::fixed_point(x[i], scale);
      backward += canonical::fixed_point(x[x.size() - 1 - i], scale);
    }
    CHECK(forward == backward);
    const double mean = static_cast<double>(canonical::fixed_point_mean(forward, x.size(), scale));
    CHECK(std::fabs(mean - exact) <= std::ldexp(0.5, -s) + std::fabs(exact) * 0x1p-23);
  }
  CHECK(canonical::fixed_point_mean(-3, 2, 1.0f) == -1.5f);
}

TEST_CASE("the sphere's coordinate is the correctly rounded root of what the radius leaves, and 0 outside") {
  pqkv_cases::random_source random(11);
  for (std::size_t i = 0; i < 2000; ++i) {
    const float radius = std::fabs(random.gaussian()) * 100, norm = radius * static_cast<float>(random.below(1001)) / 1000.0f;
    const double rest = static_cast<double>(radius - norm);
    // The double root is off by less than half its last place, so rounding it to float is the correct rounding but for exact ties,
    // which a root cannot be.
    CHECK(canonical::sphere_coordinate(radius, norm) == static_cast<float>(std::sqrt(rest)));
  }
  CHECK(canonical::sphere_coordinate(4, 4) == 0);
  CHECK(pqkv::float_bits(canonical::sphere_coordinate(4, 5)) == 0);
  CHECK(canonical::sphere_coordinate(4, std::numeric_limits<float>::infinity()) == 0);
}
