// SPDX-License-Identifier: Apache-2.0
// Views: indexing by strides, slices, sub-views, joins, and the conversions that the memory space in the type allows or refuses.
#include <pqkv/core/view.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <array>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

using pqkv::make_view;
using pqkv::view;
namespace space = pqkv::space;

static_assert(std::is_trivially_copyable_v<view<float, 4>> && std::is_aggregate_v<view<float, 4>>);
static_assert(sizeof(view<float, 2>) == 5 * sizeof(std::size_t), "pointer, extents, strides, no more");
static_assert(view<const float, 3>::rank() == 3);
static_assert(std::is_same_v<view<const float, 3>::value_type, float> && std::is_same_v<view<const float, 3>::element_type, const float>);
static_assert(std::is_same_v<view<float, 3>::space_type, space::host>, "host memory unless said otherwise");

template <class From, class To>
constexpr bool converts = std::is_convertible_v<From, To>;

// Constness goes one way.
static_assert(converts<view<float, 2>, view<const float, 2>> && !converts<view<const float, 2>, view<float, 2>>);
static_assert(!converts<view<float, 2>, view<double, 2>> && !converts<view<float, 2>, view<float, 1>>);
// Spaces: a device view is no host view, pinned and managed memory is either.
static_assert(!converts<view<float, 2, space::device>, view<float, 2>> && !converts<view<float, 2>, view<float, 2, space::device>>);
static_assert(converts<view<float, 2, space::pinned>, view<float, 2>>);
static_assert(converts<view<float, 2, space::pinned>, view<float, 2, space::device>>);
static_assert(converts<view<float, 2, space::managed>, view<float, 2>>);
static_assert(converts<view<float, 2, space::managed>, view<float, 2, space::device>>);
static_assert(converts<view<float, 2, space::pinned>, view<const float, 2>>, "both at once");
static_assert(!converts<view<const float, 2, space::pinned>, view<float, 2>>);
static_assert(!converts<view<float, 2>, view<float, 2, space::pinned>>);

TEST_CASE("a made view is row-major and contiguous") {
  std::vector<int> memory(2 * 3 * 4);
  std::iota(memory.begin(), memory.end(), 0);
  const auto v = make_view(memory.data(), 2, 3u, std::size_t{4});
  static_assert(std::is_same_v<decltype(v), const view<int, 3>>);
  CHECK(v.extent(0) == 2);
  CHECK(v.extent(1) == 3);
  CHECK(v.extent(2) == 4);
  CHECK(v.stride(0) == 12);
  CHECK(v.stride(1) == 4);
  CHECK(v.stride(2) == 1);
  CHECK(v.size() == 24);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) CHECK(v(i, j, k) == (i * 3 + j) * 4 + k);
  v(1, 2, 3) = 100;
  CHECK(memory[23] == 100);
}

TEST_CASE("a space can be named") {
  float x[4] = {};
  static_assert(std::is_same_v<decltype(make_view<space::device>(x, 2, 2)), view<float, 2, space::device>>);
  CHECK(make_view<space::device>(x, 2, 2).data == x);
}

TEST_CASE("strides may be anything: transposed, padded, one element many times") {
  std::vector<int> memory(100);
  std::iota(memory.begin(), memory.end(), 0);
  const view<const int, 2> transposed{memory.data(), {10, 10}, {1, 10}};
  CHECK(transposed(3, 7) == 73);
  const view<const int, 2> padded{memory.data() + 2, {3, 5}, {8, 1}};
  CHECK(padded(2, 4) == 2 + 16 + 4);
  const view<const int, 2> repeated{memory.data() + 5, {3, 4}, {0, 0}};
  CHECK(repeated(2, 3) == 5);
}

TEST_CASE("the first index gives a sub-view with the other axes' strides") {
  std::vector<int> memory(60);
  std::iota(memory.begin(), memory.end(), 0);
  const view<int, 3> v{memory.data(), {2, 3, 4}, {1, 20, 2}};
  const view<int, 2> inner = v[1];
  CHECK(inner.extent(0) == 3);
  CHECK(inner.extent(1) == 4);
  CHECK(inner.stride(0) == 20);
  CHECK(inner.stride(1) == 2);
  CHECK(inner(2, 3) == v(1, 2, 3));
  CHECK(v[1][2](3) == v(1, 2, 3));
}

TEST_CASE("a slice of any axis shares memory and strides") {
  std::vector<int> memory(60);
  std::iota(memory.begin(), memory.end(), 0);
  const auto v = make_view(memory.data(), 3, 4, 5);
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const auto part = v.slice(axis, 1, 2);
    for (std::size_t other = 0; other < 3; ++other) {
      CHECK(part.extent(other) == (other == axis ? 2 : v.extent(other)));
      CHECK(part.stride(other) == v.stride(other));
    }
    CHECK(&part(0, 0, 0) == &v(axis == 0, axis == 1, axis == 2));
    CHECK(&part(1, 1, 1) == &v(1 + (axis == 0), 1 + (axis == 1), 1 + (axis == 2)));
  }
  CHECK(v.slice(1, 4, 0).empty());
}

TEST_CASE("empty means no memory or an axis of length 0") {
  int x[1] = {};
  CHECK(view<int, 2>{}.empty());
  CHECK(make_view(x, 3, 0).empty());
  CHECK(make_view(static_cast<int*>(nullptr), 3, 1).empty());
  CHECK_FALSE(make_view(x, 1, 1).empty());
}

TEST_CASE("conversions keep pointer, extents and strides") {
  float x[64] = {};
  const view<float, 2, space::pinned> pinned{x + 1, {2, 3}, {20, 4}};
  const view<const float, 2> host = pinned;
  const view<float, 2, space::device> device = pinned;
  const view<const float, 2, space::pinned> constant = pqkv::as_const(pinned);
  for (std::size_t axis = 0; axis < 2; ++axis) {
    CHECK(host.extent(axis) == pinned.extent(axis));
    CHECK(host.stride(axis) == pinned.stride(axis));
    CHECK(device.extent(axis) == pinned.extent(axis));
    CHECK(device.stride(axis) == pinned.stride(axis));
    CHECK(constant.extent(axis) == pinned.extent(axis));
    CHECK(constant.stride(axis) == pinned.stride(axis));
  }
  CHECK(host.data == x + 1);
  CHECK(device.data == x + 1);
  CHECK(constant.data == x + 1);
}

TEST_CASE("flatten joins the first two axes") {
  std::vector<int> memory(60);
  std::iota(memory.begin(), memory.end(), 0);
  const auto v = make_view(memory.data(), 3, 4, 5);
  const view<int, 2> joined = pqkv::flatten(v);
  CHECK(joined.extent(0) == 12);
  CHECK(joined.extent(1) == 5);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 4; ++j) CHECK(joined(i * 4 + j, 2) == v(i, j, 2));
  const view<int, 3> padded{memory.data(), {2, 3, 4}, {18, 6, 1}};  // rows apart, axes dense on each other
  CHECK(pqkv::flatten(padded)(5, 3) == padded(1, 2, 3));
  CHECK(pqkv::flatten(pqkv::flatten(v)).extent(0) == 60);
}

TEST_CASE("insert_axis puts an axis of extent 1 anywhere and moves no element") {
  std::vector<int> memory(60);
  std::iota(memory.begin(), memory.end(), 0);
  const view<int, 2> v{memory.data(), {3, 4}, {20, 2}};
  const view<int, 3> first = pqkv::insert_axis<0>(v), middle = pqkv::insert_axis<1>(v), last = pqkv::insert_axis<2>(v);
  CHECK(first.extent(0) == 1);
  CHECK(middle.extent(1) == 1);
  CHECK(last.extent(2) == 1);
  CHECK(first.size() == 12);
  CHECK(middle.size() == 12);
  CHECK(last.size() == 12);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 4; ++j) {
      CHECK(&first(0, i, j) == &v(i, j));
      CHECK(&middle(i, 0, j) == &v(i, j));
      CHECK(&last(i, j, 0) == &v(i, j));
    }
}

TEST_CASE("all of it at compile time") {
  static constexpr int memory[6] = {0, 1, 2, 3, 4, 5};
  constexpr auto v = make_view(memory, 2, 3);
  static_assert(v(1, 2) == 5 && v[1](0) == 3 && v.slice(1, 1, 2)(1, 0) == 4 && pqkv::flatten(v)(4) == 4);
  CHECK(v.size() == 6);
}

TEST_CASE("containers become views of their elements, and one that is too short is refused") {
  std::vector<int> numbers(24);
  std::iota(numbers.begin(), numbers.end(), 0);
  const view<int, 3> cube = make_view(numbers, 2, 3, 4);
  CHECK(cube(1, 2, 3) == 23);
  const view<int, 1> row = make_view(numbers);
  CHECK(row.extent(0) == 24);
  const std::vector<int>& fixed = numbers;
  const view<const int, 2> part = make_view(fixed, 4, 5);  // fewer than there are
  CHECK(part(3, 4) == 19);
  std::span<int> some(numbers.data() + 4, 6);
  CHECK(make_view(some, 2, 3)(1, 2) == 9);
  CHECK(make_view(std::span<const int>(numbers), 24)(23) == 23);
  std::array<float, 4> four{1, 2, 3, 4};
  CHECK(make_view(four, 2, 2)(1, 0) == 3);
  const view<const int, 1, pqkv::space::pinned> pinned = make_view<pqkv::space::pinned>(fixed);
  CHECK(pinned.extent(0) == 24);
  CHECK_THROWS_AS(make_view(numbers, 5, 5), pqkv::shape_error);
  std::vector<int> none;
  CHECK(make_view(none).extent(0) == 0);
  CHECK_THROWS_AS(make_view(none, 1), pqkv::shape_error);
}

TEST_CASE("is_flat says what flatten() can join") {
  int memory[24] = {};
  CHECK(pqkv::is_flat(make_view(memory, 2, 3, 4)));
  CHECK(pqkv::is_flat(view<int, 3>{memory, {2, 3, 4}, {12, 4, 1}}));
  CHECK_FALSE(pqkv::is_flat(view<int, 3>{memory, {2, 2, 4}, {12, 4, 1}}));
  CHECK(pqkv::is_flat(view<int, 3>{memory, {1, 2, 4}, {12, 4, 1}}));
  CHECK_FALSE(pqkv::is_flat(view<int, 3>{memory, {2, 3, 2}, {12, 4, 2}}));
}

#if defined(__cpp_lib_mdspan)
TEST_CASE("a strided std::mdspan becomes a view") {
  std::vector<int> memory(24);
  std::iota(memory.begin(), memory.end(), 0);
  const std::mdspan<int, std::dextents<std::size_t, 2>, std::layout_left> span(memory.data(), 4, 6);
  const view<int, 2> v = make_view(span);
  CHECK(v.extent(1) == 6);
  CHECK(v.stride(1) == 4);
  CHECK(v(1, 2) == 9);
}
#endif
