// SPDX-License-Identifier: Apache-2.0
// Codebooks: the bfloat16 mean and the centred centroids against the plain oracle to the bit, owners and views, and every refusal
// with its text and nothing changed.
#include <pqkv/quantize/codebook.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <type_traits>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/plain_quantize.hpp"
#include "cases/policies.hpp"

using pqkv::codebook;
using pqkv::kmeans_outcome;
using pqkv::kmeans_params;
using pqkv::pq_shape;
using pqkv_cases::content;
using pqkv_cases::layout;
namespace exec = pqkv::exec;
namespace space = pqkv::space;

static_assert(std::is_trivially_copyable_v<pqkv::codebook_view<>>, "a view goes into kernels by value");
static_assert(!std::is_copy_constructible_v<codebook> && std::is_nothrow_move_constructible_v<codebook>);
static_assert(std::is_convertible_v<pqkv::mutable_codebook_view<>, pqkv::codebook_view<>> &&
              !std::is_convertible_v<pqkv::codebook_view<>, pqkv::mutable_codebook_view<>>);
static_assert(!std::is_convertible_v<pqkv::codebook_view<space::device>, pqkv::codebook_view<>> &&
              std::is_convertible_v<pqkv::codebook_view<space::pinned>, pqkv::codebook_view<>>);

namespace {

bool same(pqkv::codebook_view<> a, pqkv::codebook_view<> b) {
  return a.metric() == b.metric() && pqkv_cases::same_bits(a.mean.data, b.mean.data, a.mean.size()) &&
         pqkv_cases::same_bits(a.squared_radius.data, b.squared_radius.data, a.squared_radius.size()) &&
         pqkv_cases::same_bits(a.centroids.data, b.centroids.data, a.centroids.size());
}

/// Both parts of a trained codebook, by the oracle.
template <class T>
void check_against_plain(pqkv::view<T, 3> keys, const codebook& book, const kmeans_params& params) {
  const auto view = book.view();
  const std::size_t m = view.subspaces(), ds = view.sub_dim(), c = view.size();
  const auto points = pqkv::split_subspaces(keys, m);
  for (std::size_t head = 0; head < view.heads(); ++head) {
    const auto mean = pqkv_cases::plain_mean_row(keys[head], c, params);
    CHECK(pqkv_cases::same_bits(&view.mean(head, 0), mean.data(), mean.size()));
    for (std::size_t j = 0; j < m; ++j) {
      const auto expected = pqkv_cases::plain_kmeans(points[head][j], &mean[j * ds], c, params, head * m + j, view.metric());
      REQUIRE(expected.trained);
      CHECK(pqkv_cases::same_bits(&view.centroids(head, j, 0, 0), expected.centroids.data(), view.row_dim() * c));
      if (view.metric() == pqkv::key_metric::inner_product) CHECK(view.squared_radius(head, j) == expected.squared_radius);
    }
  }
}

template <class T>
void check_training(content what, layout where, const pq_shape& shape, std::size_t n, const kmeans_params& params) {
  const auto keys = pqkv_cases::make_rows<T>(what, shape.kv_heads, n, shape.head_dim, n, where);
  pqkv_cases::for_each_isa([&](auto isa) {
    codebook book(shape), threaded(shape);
    CHECK(pqkv::train(exec::host<decltype(isa)>{}, keys.view(), book, params) == kmeans_outcome::trained);
    CHECK(pqkv::train(exec::host<decltype(isa), pqkv_cases::threaded_runner>{}, keys.view(), threaded, params) == kmeans_outcome::trained);
    CHECK(same(book.view(), threaded.view()));
    if constexpr (std::is_same_v<decltype(isa), pqkv::isa::scalar>) check_against_plain(keys.view(), book, params);
    if constexpr (!std::is_same_v<decltype(isa), pqkv::isa::scalar>) {
      codebook scalar(shape);
      pqkv::train(exec::host<pqkv::isa::scalar>{}, keys.view(), scalar, params);
      CHECK(same(book.view(), scalar.view()));
    }
  });
}

}  // namespace

TEST_CASE("training equals the plain oracle to the bit: storage types, layouts, instruction sets, threads") {
  check_training<float>(content::gaussian, layout::dense, {2, 64, 2, 6}, 200, {4, 1, 256});
  check_training<float>(content::offset, layout::token_major, {3, 32, 4, 4}, 100, {10, 2, 256});
  check_training<pqkv::half>(content::gaussian, layout::interleaved, {2, 128, 2, 5}, 90, {3, 3, 256});
  check_training<pqkv::bfloat16>(content::offset, layout::padded, {2, 64, 8, 4}, 300, {5, 4, 256});
  check_training<pqkv::bfloat16>(content::gaussian, layout::transposed, {1, 48, 16, 4}, 200, {5, 5, 2});
  check_training<float>(content::gaussian, layout::transposed, {1, 256, 1, 8}, 300, {1, 6, 256});
}

TEST_CASE("the inner-product metric trains on rows put on a sphere, to the bit of the plain oracle") {
  constexpr auto metric = pqkv::key_metric::inner_product;
  check_training<float>(content::gaussian, layout::dense, {2, 64, 2, 6, metric}, 200, {4, 1, 256});
  check_training<float>(content::offset, layout::token_major, {3, 32, 4, 4, metric}, 100, {10, 2, 256});
  check_training<pqkv::half>(content::gaussian, layout::interleaved, {2, 128, 2, 5, metric}, 90, {3, 3, 256});
  check_training<pqkv::bfloat16>(content::gaussian, layout::transposed, {1, 48, 16, 4, metric}, 200, {5, 5, 2});
  check_training<float>(content::gaussian, layout::padded, {1, 256, 1, 8, metric}, 300, {1, 6, 256});
}

TEST_CASE("inner-product metric: every training row lies on its sphere, the radius is the largest norm") {
  const pq_shape shape{1, 16, 2, 4, pqkv::key_metric::inner_product};
  auto keys = pqkv_cases::make_rows(content::gaussian, 1, 400, 16, 15);
  for (std::size_t i = 0; i < 8; ++i) keys(0, 17, i) *= 50;  // of subspace 0 alone
  codebook book(shape);
  REQUIRE(pqkv::train(exec::host<>{}, std::as_const(keys).view(), book) == kmeans_outcome::trained);
  for (std::size_t j = 0; j < 2; ++j) {
    double largest = 0;
    for (std::size_t t = 0; t < 400; ++t) {
      double norm = 0;
      for (std::size_t i = 0; i < 8; ++i) {
        const double y = static_cast<double>(keys(0, t, j * 8 + i)) - static_cast<double>(book.view().mean(0, j * 8 + i));
        norm += y * y;
      }
      largest = std::max(largest, norm);
    }
    CHECK(book.view().squared_radius(0, j) == doctest::Approx(largest).epsilon(1e-5));
    for (std::size_t x = 0; x < 16; ++x) CHECK(book.view().centroids(0, j, 8, x) >= 0);  // means of added coordinates
  }
  CHECK(book.view().squared_radius(0, 0) > 100 * book.view().squared_radius(0, 1));
  for (std::size_t t = 0; t < 400; ++t) keys(0, t, 3) = 1e30f * static_cast<float>(t);  // |y|^2 overflows, y does not
  CHECK(pqkv::train(exec::host<>{}, std::as_const(keys).view(), book) == kmeans_outcome::too_few_rows);
}

TEST_CASE("the mean is that of the training rows, rounded to bfloat16; centroids are centred on it") {
  const pq_shape shape{2, 16, 2, 4};
  const auto keys = pqkv_cases::make_rows(content::offset, 2, 500, 16, 7);
  codebook book(shape);
  REQUIRE(pqkv::train(exec::host<>{}, keys.view(), book) == kmeans_outcome::trained);
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t i = 0; i < 16; ++i) {
      double exact = 0, largest = 0;
      for (std::size_t t = 0; t < 500; ++t) {
        exact += static_cast<double>(keys.view()(head, t, i)) / 500;
        largest = std::max(largest, std::fabs(static_cast<double>(keys.view()(head, t, i))));
      }
      const float mean = book.view().mean(head, i);
      CHECK((pqkv::float_bits(mean) & 0xffffu) == 0);
      CHECK(std::fabs(static_cast<double>(mean) - exact) <= 0x1p-8 * std::fabs(exact) + 1e-5);
      // Without centring, centroids of dimension 1, 5, ... would be 40 to 600 from zero.
      for (std::size_t x = 0; x < 16; ++x) CHECK(std::fabs(book.view().centroids(head, i / 8, i % 8, x)) < 12);
    }
}

TEST_CASE("a key with a non-finite element is left out of the mean, and of its own subspace's clusters") {
  const pq_shape shape{1, 16, 2, 4};
  auto keys = pqkv_cases::make_rows(content::gaussian, 1, 60, 16, 8);
  pqkv_cases::random_source random(8);
  pqkv_cases::plant_nonfinite(keys.view(), 12, random);
  codebook book(shape);
  CHECK(pqkv::train(exec::host<>{}, keys.view(), book) == kmeans_outcome::trained);
  check_against_plain(keys.view(), book, {});
  std::size_t bad = 0;
  for (std::size_t i = 0; i < book.view().centroids.size(); ++i) bad += !pqkv::is_finite(book.view().centroids.data[i]);
  CHECK(bad == 0);
  for (std::size_t t = 0; t < 60; ++t) keys(0, t, 0) = pqkv_cases::nonfinite(t);
  codebook nothing(shape);
  CHECK(pqkv::train(exec::host<>{}, keys.view(), nothing) == kmeans_outcome::too_few_rows);
  for (std::size_t i = 0; i < 16; ++i) CHECK(nothing.view().mean(0, i) == 0);
}

TEST_CASE("one untrained head or subspace makes the whole outcome untrained; the list says which") {
  const pq_shape shape{3, 16, 2, 4};
  auto keys = pqkv_cases::make_rows(content::gaussian, 3, 60, 16, 9);
  for (std::size_t t = 0; t < 60; ++t) keys(1, t, 8 + t % 8) = pqkv_cases::nonfinite(t);
  codebook book(shape);
  CHECK(pqkv::train(exec::host<>{}, keys.view(), book) == kmeans_outcome::too_few_rows);
  std::vector<std::uint8_t> outcome(6, 99);
  pqkv::train(exec::host<>{}, keys.view(), book.mutable_view(), pqkv::make_view(outcome.data(), 3, 2));
  CHECK(outcome == std::vector<std::uint8_t>{0, 0, 0, 1, 0, 0});
}

TEST_CASE("slices of several threads train one codebook together") {
  const pq_shape shape{3, 16, 2, 4};
  const auto keys = pqkv_cases::make_rows(content::gaussian, 3, 80, 16, 10);
  codebook expected(shape), book(shape);
  REQUIRE(pqkv::train(exec::host<>{}, keys.view(), expected) == kmeans_outcome::trained);
  std::vector<std::uint8_t> outcome(6, 99);
  struct meeting_point {
    std::atomic<std::size_t> arrived = 0;
    static void wait(void* self) {
      auto& arrived = static_cast<meeting_point*>(self)->arrived;
      const std::size_t round = arrived++ / 3;
      while (arrived.load() < 3 * (round + 1)) std::this_thread::yield();
    }
  } meeting;
  std::vector<std::thread> threads;
  for (std::size_t ith = 0; ith < 3; ++ith)
    threads.emplace_back([&, ith] {
      const exec::host<pqkv::isa::best, exec::slice> mine{{ith, 3, meeting_point::wait, &meeting}, {}};
      pqkv::train(mine, keys.view(), book.mutable_view(), pqkv::make_view(outcome.data(), 3, 2));
    });
  for (std::thread& one : threads) one.join();
  CHECK(outcome == std::vector<std::uint8_t>(6, 0));
  CHECK(same(book.view(), expected.view()));
}

TEST_CASE("the owner: shape, bytes, zeros at first, views of its memory, what it was trained with") {
  const pq_shape shape{2, 24, 4, 5};
  codebook book(shape);
  CHECK(book.shape() == shape);
  CHECK(book.size_bytes() == codebook::required_bytes(shape));
  CHECK(book.size_bytes() == (2 * 24 * 32 + 2 * 24) * sizeof(float));
  const auto view = book.view();
  CHECK(view.heads() == 2);
  CHECK(view.subspaces() == 4);
  CHECK(view.sub_dim() == 6);
  CHECK(view.size() == 32);
  CHECK(view.head_dim() == 24);
  CHECK(view.centroids(1, 3, 5, 31) == 0);
  book.mutable_view().centroids(1, 3, 5, 31) = 4;
  book.mutable_view().mean(1, 23) = 5;
  CHECK(view.centroids(1, 3, 5, 31) == 4);
  CHECK(view.mean(1, 23) == 5);
  const auto keys = pqkv_cases::make_rows(content::gaussian, 2, 50, 24, 11);
  pqkv::train(exec::host<>{}, keys.view(), book, {3, 42, 17});
  CHECK(book.trained_with.iterations == 3);
  CHECK(book.trained_with.seed == 42);
  CHECK(book.trained_with.rows_per_centroid == 17);
  const codebook moved = std::move(book);
  CHECK(moved.view().centroids.data == view.centroids.data);
  CHECK(codebook{}.size_bytes() == 0);
  const codebook sphere({2, 24, 4, 5, pqkv::key_metric::inner_product});
  CHECK(sphere.size_bytes() == codebook::required_bytes(sphere.shape()));
  CHECK(sphere.size_bytes() == (2 * 4 * 7 * 32 + 2 * 24 + 2 * 4) * sizeof(float));
  CHECK(sphere.view().sub_dim() == 6);
  CHECK(sphere.view().row_dim() == 7);
  CHECK(sphere.view().metric() == pqkv::key_metric::inner_product);
}

TEST_CASE("an owner of an impossible shape is refused") {
  CHECK_THROWS_WITH_AS(codebook({2, 20, 2, 6}), "pqkv::codebook: head_dim must be a multiple of 8, got 20", pqkv::value_error);
  CHECK_THROWS_WITH_AS(codebook({2, 64, 2, 9}), "pqkv::codebook: bits must be at most 8 (b), got 9", pqkv::value_error);
}

TEST_CASE("rows are seen by subspace without a copy") {
  auto keys = pqkv_cases::make_rows(content::gaussian, 2, 5, 12, 12, layout::transposed);
  const auto split = pqkv::split_subspaces(keys.view(), 3);
  for (std::size_t axis = 0; axis < 4; ++axis) CHECK(split.extent(axis) == std::vector<std::size_t>{2, 3, 5, 4}[axis]);
  for (std::size_t j = 0; j < 3; ++j)
    for (std::size_t i = 0; i < 4; ++i) CHECK(&split(1, j, 4, i) == &keys(1, 4, j * 4 + i));
}

TEST_CASE("bad arguments: each named with its number, codebook and outcome as they were") {
  const pq_shape shape{2, 16, 2, 4};
  const auto keys = pqkv_cases::make_rows(content::gaussian, 4, 60, 32, 13);
  codebook book = pqkv_cases::make_book(shape, 14);
  const codebook before = pqkv_cases::make_book(shape, 14);
  std::vector<std::uint8_t> outcome(8, 99);
  const auto good = keys.view().slice(0, 0, 2).slice(2, 0, 16);
  const auto refused = [&](auto wrong_keys, auto wrong_book, const kmeans_params& params, auto kind, const char* text) {
    CHECK(pqkv::can_train(wrong_keys, wrong_book, pqkv::make_view(outcome.data(), 2, 2), params).message() == text);
    CHECK_THROWS_WITH_AS(pqkv::train(exec::host<>{}, wrong_keys, wrong_book, pqkv::make_view(outcome.data(), 2, 2), params), text,
                         decltype(kind));
    CHECK(same(book.view(), before.view()));
    CHECK(outcome == std::vector<std::uint8_t>(8, 99));
  };
  const pqkv::shape_error shape_error("");
  const auto view = book.mutable_view();
  CHECK(pqkv::can_train(good, view, pqkv::make_view(outcome.data(), 2, 2), {}).ok());
  refused(good.slice(0, 0, 1), view, {}, shape_error, "pqkv::train: keys.extent(0) must be 2 (h, from codebook), got 1");
  refused(keys.view().slice(2, 0, 16), view, {}, shape_error, "pqkv::train: keys.extent(0) must be 2 (h, from codebook), got 4");
  refused(good.slice(2, 0, 8), view, {}, shape_error, "pqkv::train: keys.extent(2) must be 16 (d, from codebook), got 8");
  refused(good, view, {.iterations = 0}, pqkv::value_error(""), "pqkv::train: params.iterations must be at least 1 (L), got 0");
  auto short_of_dimensions = view;
  short_of_dimensions.centroids = view.centroids.slice(2, 0, 4);
  refused(good, short_of_dimensions, {}, shape_error, "pqkv::train: codebook.centroids.extent(2) must be 8 (ds = d / m), got 4");
  std::vector<float> radius(4);
  auto no_room_for_the_coordinate = view;
  no_room_for_the_coordinate.squared_radius = pqkv::make_view(radius.data(), 2, 2);
  refused(good, no_room_for_the_coordinate, {}, shape_error,
          "pqkv::train: codebook.centroids.extent(2) must be 9 (ds + 1 = d / m + 1, beside a squared_radius), got 8");
  CHECK_THROWS_WITH_AS(pqkv::train(exec::host<>{}, good.slice(0, 0, 1), book),
                       "pqkv::train: keys.extent(0) must be 2 (h, from codebook), got 1", pqkv::shape_error);
  CHECK(same(book.view(), before.view()));
  CHECK(book.trained_with.seed == before.trained_with.seed);
}

TEST_CASE("a view that kernels could not run on is refused by every function that takes a codebook") {
  const pq_shape shape{2, 16, 2, 4};
  const codebook book = pqkv_cases::make_book(shape, 14);
  const auto good = book.view();
  const auto rows = pqkv_cases::make_rows(content::gaussian, 2, 60, 16, 13);
  std::vector<std::uint8_t> codes(2 * 2 * 128);
  std::vector<float> query(4 * 16), entries(4 * 2 * 16), bias(4);
  const auto refused = [&](pqkv::codebook_view<> wrong, const std::string& parameter) {
    const pqkv::view<std::uint8_t, 3> out{codes.data(), {2, 2, 60}, {256, 128, 1}};
    const std::string encode = pqkv::can_encode(rows.view(), wrong, out).message();
    CHECK(encode.find("pqkv::encode: " + parameter + " must be ") == 0);
    CHECK_THROWS(pqkv::encode(exec::host<>{}, rows.view(), wrong, out));
    CHECK_THROWS_WITH(pqkv::inner_product_table(exec::host<>{}, pqkv::make_view(query.data(), 4, 16), wrong,
                                                {pqkv::make_view(entries.data(), 4, 2, 16), pqkv::make_view(bias.data(), 4)}),
                      doctest::Contains(("pqkv::inner_product_table: " + parameter).c_str()));
  };
  auto wrong = good;
  wrong.centroids.extents[3] = 8;
  refused(wrong, "codebook.centroids.extent(3)");
  wrong = good;
  wrong.centroids.strides[2] = 40;
  refused(wrong, "codebook.centroids.stride(2)");
  wrong = good;
  wrong.centroids.extents[2] = 12;
  refused(wrong, "codebook.centroids.extent(2)");
  wrong = good;
  wrong.mean.extents[0] = 1;
  refused(wrong, "codebook.mean.extent(0)");
  wrong = good;
  wrong.mean.extents[1] = 512;
  refused(wrong, "codebook.mean.extent(1)");
  wrong = good;
  wrong.mean.strides[1] = 2;
  refused(wrong, "codebook.mean.stride(1)");
  wrong = good;
  wrong.mean.extents[1] = 17;
  refused(wrong, "codebook.mean.extent(1)");
  const codebook sphere = pqkv_cases::make_book({2, 16, 2, 4, pqkv::key_metric::inner_product}, 14);
  wrong = sphere.view();
  wrong.squared_radius.extents[1] = 1;
  refused(wrong, "codebook.squared_radius.extent(1)");
  wrong = sphere.view();
  wrong.squared_radius = {};
  refused(wrong, "codebook.centroids.extent(2)");
}
