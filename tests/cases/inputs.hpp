// SPDX-License-Identifier: Apache-2.0
// Seeded inputs for all tests: rows [h, n, d] of several characters in every layout that engines use. The same seed gives the
// same bits with every compiler and C library: no libm, no std distributions. What a layout leaves unused (padding, the other
// half of an interleaved row) holds NaN, so that code which reads it shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include <pqkv/core/scalar.hpp>
#include <pqkv/core/view.hpp>
#include <pqkv/quantize/codes.hpp>

namespace pqkv_cases {

/// A gaussian is twelve draws, and tests make millions: without optimisation a sixth of their time. A program that defines
/// PQKV_TEST_CASES_COMPILED, as those that link the target pqkv_test_cases do, takes these bodies from inputs.cpp: always optimised.
class random_source {
 public:
  explicit random_source(std::uint64_t seed);

  std::uint64_t bits();
  /// In [0, bound)
  std::size_t below(std::size_t bound);
  /// In [0, 1), a multiple of 2^-24, so exact in float
  float uniform();
  /// Sum of twelve uniforms less six: mean 0, variance 1, within +-6
  float gaussian();

 private:
  std::mt19937_64 engine_;
};

#if defined(PQKV_TEST_CASES_BODIES)
#define PQKV_TEST_CASES_INLINE
#else
#define PQKV_TEST_CASES_INLINE inline
#endif
#if defined(PQKV_TEST_CASES_BODIES) || !defined(PQKV_TEST_CASES_COMPILED)
PQKV_TEST_CASES_INLINE random_source::random_source(std::uint64_t seed) : engine_(seed) {}
PQKV_TEST_CASES_INLINE std::uint64_t random_source::bits() { return engine_(); }
PQKV_TEST_CASES_INLINE std::size_t random_source::below(std::size_t bound) { return static_cast<std::size_t>(engine_() % bound); }
PQKV_TEST_CASES_INLINE float random_source::uniform() { return static_cast<float>(engine_() >> 40) * 0x1p-24f; }
PQKV_TEST_CASES_INLINE float random_source::gaussian() {
  std::int64_t sum = 0;  // of multiples of 2^-20
  for (int i = 0; i < 12; ++i) sum += static_cast<std::int64_t>(engine_() >> 44);
  return static_cast<float>(sum - (std::int64_t{6} << 20)) * 0x1p-20f;
}
#endif
#undef PQKV_TEST_CASES_INLINE

/// What rows look like.
enum class content {
  gaussian,
  clustered,   // twelve centres, little noise, very uneven cluster sizes
  duplicates,  // elements from {-1, -0.0, 0, 1}, and every second row repeats an earlier one: exact ties everywhere
  offset       // gaussian plus +-40 to +-600 in every fourth dimension, as real keys have
};
inline constexpr content every_content[] = {content::gaussian, content::clustered, content::duplicates, content::offset};

/// Where rows lie in memory.
enum class layout {
  dense,        // [h, n, d]
  padded,       // [h, n, d + 5], first 3 elements of a row unused
  token_major,  // [n, h, d]
  interleaved,  // [h, n, 2, d]: K and V of a token side by side
  transposed    // [h, d, n]: elements of a row are n apart
};
inline constexpr layout every_layout[] = {layout::dense, layout::padded, layout::token_major, layout::interleaved, layout::transposed};

/// Owner of rows [h, n, d] in a layout.
template <class T = float>
class rows {
 public:
  rows() = default;
  rows(std::size_t h, std::size_t n, std::size_t d, layout where = layout::dense) {
    switch (where) {
      case layout::dense:
        place(0, {h, n, d}, {n * d, d, 1}, h * n * d);
        break;
      case layout::padded:
        place(3, {h, n, d}, {n * (d + 5), d + 5, 1}, h * n * (d + 5));
        break;
      case layout::token_major:
        place(0, {h, n, d}, {d, h * d, 1}, h * n * d);
        break;
      case layout::interleaved:
        place(0, {h, n, d}, {n * 2 * d, 2 * d, 1}, h * n * 2 * d);
        break;
      case layout::transposed:
        place(0, {h, n, d}, {d * n, 1, n}, h * n * d);
        break;
    }
  }

  pqkv::view<T, 3> view() { return at(memory_.data()); }
  pqkv::view<const T, 3> view() const { return at(memory_.data()); }
  /// The other half of an interleaved layout's rows.
  pqkv::view<T, 3> other_half() { return at(memory_.data() + shape_.extent(2)); }
  T& operator()(std::size_t head, std::size_t token, std::size_t i) { return view()(head, token, i); }

 private:
  struct three {
    std::size_t value[3];
  };
  void place(std::size_t first, three extents, three strides, std::size_t size) {
    memory_.assign(size, T(std::numeric_limits<float>::quiet_NaN()));
    first_ = first;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      shape_.extents[axis] = extents.value[axis];
      shape_.strides[axis] = strides.value[axis];
    }
  }
  template <class U>
  pqkv::view<U, 3> at(U* base) const {
    pqkv::view<U, 3> v{base == nullptr ? nullptr : base + first_, {}, {}};
    for (std::size_t axis = 0; axis < 3; ++axis) {
      v.extents[axis] = shape_.extents[axis];
      v.strides[axis] = shape_.strides[axis];
    }
    return v;
  }

  std::vector<T> memory_;
  std::size_t first_ = 0;
  pqkv::view<T, 3> shape_{};  // without data, so that a copy stays right
};

/// Fills rows that exist.
template <class T>
void fill(pqkv::view<T, 3> to, content what, random_source& random) {
  const std::size_t h = to.extent(0), n = to.extent(1), d = to.extent(2);
  std::vector<float> centres(12 * d), shift(d);
  for (std::size_t head = 0; head < h; ++head) {
    for (float& x : centres) x = 4 * random.gaussian();
    for (std::size_t i = 0; i < d; ++i) shift[i] = i % 4 == 1 ? (random.below(2) ? 1.0f : -1.0f) * (40 + 560 * random.uniform()) : 0.0f;
    for (std::size_t t = 0; t < n; ++t) {
      const std::size_t centre = random.below(1 + random.below(12));
      const bool repeats = what == content::duplicates && t % 2 == 1;
      const std::size_t repeated = random.below(t + 1);
      for (std::size_t i = 0; i < d; ++i) {
        float x = 0;
        switch (what) {
          case content::gaussian:
            x = random.gaussian();
            break;
          case content::clustered:
            x = centres[centre * d + i] + 0.0625f * random.gaussian();
            break;
          case content::duplicates:
            x = static_cast<float>(static_cast<int>(random.below(3)) - 1) * (random.below(2) ? 1.0f : -1.0f);
            break;
          case content::offset:
            x = random.gaussian() + shift[i];
            break;
        }
        to(head, t, i) = T(x);
      }
      if (repeats && repeated < t)
        for (std::size_t i = 0; i < d; ++i) to(head, t, i) = to(head, repeated, i);
    }
  }
}

/// Rows [h, n, d] by seed.
template <class T = float>
rows<T> make_rows(content what, std::size_t h, std::size_t n, std::size_t d, std::uint64_t seed, layout where = layout::dense) {
  rows<T> made(h, n, d, where);
  random_source random(seed);
  fill(made.view(), what, random);
  return made;
}

/// An infinity of either sign or a NaN, by turns.
template <class T = float>
T nonfinite(std::size_t turn) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  return T(turn % 3 == 0 ? inf : turn % 3 == 1 ? std::numeric_limits<float>::quiet_NaN() : -inf);
}

/// Overwrites one element in each of `count` rows with a non-finite value; returns (head, token) of each, some perhaps twice.
template <class T>
std::vector<std::pair<std::size_t, std::size_t>> plant_nonfinite(pqkv::view<T, 3> to, std::size_t count, random_source& random) {
  std::vector<std::pair<std::size_t, std::size_t>> planted;
  for (std::size_t i = 0; i < count; ++i) {
    planted.emplace_back(random.below(to.extent(0)), random.below(to.extent(1)));
    to(planted.back().first, planted.back().second, random.below(to.extent(2))) = nonfinite<T>(i);
  }
  return planted;
}

/// A codebook nobody trained: gaussian centroids (duplicates: from {-1, 0, 1}, so that cells tie), mean of bfloat16 values.
inline pqkv::codebook make_book(const pqkv::pq_shape& shape, std::uint64_t seed, content what = content::gaussian) {
  pqkv::codebook book(shape);
  random_source random(seed);
  const auto view = book.mutable_view();
  for (std::size_t i = 0; i < view.centroids.size(); ++i)
    view.centroids.data[i] = what == content::duplicates ? static_cast<float>(static_cast<int>(random.below(3)) - 1) : random.gaussian();
  for (std::size_t i = 0; i < view.mean.size(); ++i) view.mean.data[i] = float(pqkv::bfloat16(0.5f * random.gaussian()));
  for (std::size_t i = 0; i < view.squared_radius.size(); ++i)
    view.squared_radius.data[i] = static_cast<float>(shape.sub_dim()) * (0.5f + static_cast<float>(random.below(100)) / 50.0f);
  return book;
}

/// Codes of `n` tokens, uniform over the centroids.
inline pqkv::codes make_codes(const pqkv::pq_shape& shape, std::size_t n, std::uint64_t seed) {
  pqkv::codes made(shape, n);
  random_source random(seed);
  const auto view = made.mutable_view();
  for (std::size_t head = 0; head < view.extent(0); ++head)
    for (std::size_t j = 0; j < view.extent(1); ++j)
      for (std::size_t t = 0; t < n; ++t) view(head, j, t) = static_cast<std::uint8_t>(random.below(shape.centroids()));
  return made;
}

}  // namespace pqkv_cases
