// SPDX-License-Identifier: Apache-2.0
// The second stage of a quantizer against the plain statement: residual rows, k-means of them, fine codes, for shapes in which the fine
// subspaces are smaller, as large and larger than the first ones; non-finite keys; and that it tells keys apart better than one stage.
#include <pqkv/quantize/residual.hpp>

#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/plain_rerank.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::codebook;
using pqkv::codes;
using pqkv::pq_shape;
using pqkv::residual_codes;
namespace exec = pqkv::exec;
constexpr std::uint8_t untouched = 0xee;

/// Encodes into an owner with room to spare; the number of codes that differ from `expected` or lie outside and were written.
template <class Policy, class T>
std::size_t wrong_codes(const Policy& policy, pqkv::view<T, 3> keys, const codes& first, const codebook& book, const codebook& fine,
                        const std::vector<std::uint8_t>& expected) {
  const std::size_t n = keys.extent(1), h = keys.extent(0), m = fine.shape().subspaces;
  residual_codes made(fine.shape(), n + 40);
  const auto all = made.mutable_view();
  std::fill_n(all.data, made.size_bytes(), untouched);
  pqkv::encode_residual(policy, keys, first.view().slice(2, 0, n), book.view(), fine.view(), all.slice(1, 20, n));
  std::size_t wrong = 0;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n + 40; ++t)
      for (std::size_t j = 0; j < m; ++j)
        wrong += all(head, t, j) != (t < 20 || t >= n + 20 ? untouched : expected[(head * n + t - 20) * m + j]);
  return wrong;
}

template <class T>
void check_encoding(const rows<T>& keys, const codebook& book, const codebook& fine, const codes& first) {
  const auto expected = plain_encode_residual(keys.view(), first.view(), book.view(), fine.view());
  for_each_isa([&](auto isa) { CHECK(wrong_codes(exec::host<decltype(isa)>{}, keys.view(), first, book, fine, expected) == 0); });
  CHECK(wrong_codes(exec::host<pqkv::isa::best, threaded_runner>{}, keys.view(), first, book, fine, expected) == 0);
}

/// Sum over tokens of |y - what the codes stand for|^2; without `fine` of one stage.
double distortion(const rows<float>& keys, const codebook& book, const codes& first, const codebook* fine, const residual_codes* second) {
  const auto all = keys.view();
  const std::size_t ds = book.shape().sub_dim();
  double sum = 0;
  for (std::size_t head = 0; head < all.extent(0); ++head)
    for (std::size_t t = 0; t < all.extent(1); ++t)
      for (std::size_t i = 0; i < all.extent(2); ++i) {
        double r = static_cast<double>(all(head, t, i)) - static_cast<double>(book.view().mean(head, i)) -
                   static_cast<double>(book.view().centroids(head, i / ds, i % ds, first.view()(head, i / ds, t)));
        if (fine != nullptr) {
          const std::size_t ds2 = fine->shape().sub_dim();
          r -= static_cast<double>(fine->view().centroids(head, i / ds2, i % ds2, second->view()(head, t, i / ds2)));
        }
        sum += r * r;
      }
  return sum;
}
}  // namespace

TEST_CASE("residual: fine codes equal the plain nearest centroid of the plain residual, whichever subspaces are larger") {
  std::size_t turn = 0;
  for (const std::size_t m : {1u, 2u, 8u})
    for (const std::size_t fine_m : {1u, 2u, 4u, 16u})
      for (const unsigned bits : {4u, 6u, 8u})
        for (const std::size_t d : {16u, 80u, 256u}) {
          CAPTURE(m);
          CAPTURE(fine_m);
          CAPTURE(d);
          ++turn;
          const auto metric = turn % 4 == 0 ? pqkv::key_metric::inner_product : pqkv::key_metric::squared_l2;
          const pq_shape shape{2, d, m, 5, metric};
          const codebook book = make_book(shape, turn);
          const codebook fine =
              make_book(pqkv::residual_shape(shape, fine_m, bits), turn + 1000, turn % 3 ? content::gaussian : content::duplicates);
          const codes first = make_codes(shape, 21, turn);
          const content what = every_content[turn / 5 % 4];
          const layout where = every_layout[turn % 5];
          if (turn % 3 == 0) check_encoding(make_rows<float>(what, 2, 21, d, turn, where), book, fine, first);
          if (turn % 3 == 1) check_encoding(make_rows<pqkv::half>(what, 2, 21, d, turn, where), book, fine, first);
          if (turn % 3 == 2) check_encoding(make_rows<pqkv::bfloat16>(what, 2, 21, d, turn, where), book, fine, first);
        }
}

TEST_CASE("residual: sizes around a task's 1024 tokens") {
  const pq_shape shape{2, 16, 2, 4};
  const codebook book = make_book(shape, 3), fine = make_book(pqkv::residual_shape(shape, 4, 4), 4);
  for (const std::size_t n : {0u, 1u, 7u, 1023u, 1024u, 1025u, 2100u})
    check_encoding(make_rows(content::gaussian, 2, n, 16, n), book, fine, make_codes(shape, n, n));
}

TEST_CASE("residual: training is k-means of the plain residuals, the same bits for every instruction set and thread count") {
  for (const std::size_t m : {1u, 4u})
    for (const std::size_t fine_m : {2u, 8u})
      for (const std::size_t per_centroid : {0u, 9u}) {
        const pq_shape shape{3, 48, m, 4}, second = pqkv::residual_shape(shape, fine_m, 5);
        const auto keys = make_rows<pqkv::half>(content::gaussian, 3, 500, 48, m + fine_m, layout::padded);
        const pqkv::kmeans_params params{.iterations = 3, .seed = 5, .rows_per_centroid = per_centroid};
        codebook book(shape);
        REQUIRE(pqkv::train(exec::host<>{}, keys.view(), book, params) == pqkv::kmeans_outcome::trained);
        codes first(shape, 500);
        pqkv::encode(exec::host<>{}, keys.view(), book.view(), first.mutable_view());

        // The plain rows, clustered without a sample.
        const auto chosen = plain_training_rows(params, 500, 32);
        rows<float> residuals(3, chosen.size(), 48);
        for (std::size_t head = 0; head < 3; ++head)
          for (std::size_t i = 0; i < chosen.size(); ++i) {
            const auto r = plain_residual(keys.view(), first.view(), book.view(), head, chosen[i]);
            for (std::size_t e = 0; e < 48; ++e) residuals(head, i, e) = r[e];
          }
        codebook wanted(second);
        std::vector<std::uint8_t> outcome(3 * fine_m, 9), expected(3 * fine_m, 9);
        const std::vector<float> zero(3 * 48);
        auto all = params;
        all.rows_per_centroid = 0;
        pqkv::kmeans(exec::host<pqkv::isa::scalar>{}, pqkv::split_subspaces(residuals.view(), fine_m),
                     pqkv::make_view(zero.data(), 3, fine_m, 48 / fine_m), wanted.mutable_view().centroids,
                     pqkv::make_view(expected.data(), 3, fine_m), all);
        const auto check = [&](const auto& policy) {
          codebook fine(second);
          std::fill_n(fine.mutable_view().mean.data, 3 * 48, 7.0f);
          pqkv::train_residual(policy, keys.view(), first.view(), book.view(), fine.mutable_view(),
                               pqkv::make_view(outcome.data(), 3, fine_m), params);
          CHECK(outcome == expected);
          CHECK(same_bits(fine.view().centroids.data, wanted.view().centroids.data, wanted.view().centroids.size()));
          CHECK(same_bits(fine.view().mean.data, zero.data(), 3 * 48));
        };
        for_each_isa([&](auto isa) { check(exec::host<decltype(isa)>{}); });
        check(exec::host<pqkv::isa::best, threaded_runner>{});
      }
}

TEST_CASE("residual: many rows are trained in runs of heads") {
  CHECK(pqkv::detail::residual_training_heads(8, 0, 128) == 8);
  CHECK(pqkv::detail::residual_training_heads(8, 1000, 128) == 8);
  CHECK(pqkv::detail::residual_training_heads(8, 65536, 128) == 8);
  CHECK(pqkv::detail::residual_training_heads(8, 131072, 128) == 4);
  CHECK(pqkv::detail::residual_training_heads(8, 10000000, 256) == 1);
}

TEST_CASE("residual: keys that are not finite get code 0 and take no part in training") {
  const pq_shape shape{2, 32, 2, 4}, second = pqkv::residual_shape(shape, 4, 4);
  auto keys = make_rows<float>(content::gaussian, 2, 300, 32, 7);
  random_source random(8);
  const auto planted = plant_nonfinite(keys.view(), 40, random);
  codebook book(shape), fine(second);
  REQUIRE(pqkv::train(exec::host<>{}, keys.view(), book, {.iterations = 2}) == pqkv::kmeans_outcome::trained);
  codes first(shape, 300);
  pqkv::encode(exec::host<>{}, keys.view(), book.view(), first.mutable_view());
  std::vector<std::uint8_t> outcome(8);
  const auto train = [&] {
    pqkv::train_residual(exec::host<>{}, keys.view(), first.view(), book.view(), fine.mutable_view(),
                         pqkv::make_view(outcome.data(), 2, 4));
    const auto view = fine.view().centroids;
    return std::vector<float>(view.data, view.data + view.size());
  };
  const auto trained = train();
  CHECK(std::all_of(trained.begin(), trained.end(), [](float x) { return std::isfinite(x); }));
  for (const auto& [head, t] : planted)
    for (std::size_t i = 0; i < 32; ++i)
      if (std::isfinite(keys(head, t, i))) keys(head, t, i) = 1e6f;  // nor do their finite elements
  CHECK(train() == trained);
  check_encoding(keys, book, fine, first);
  codebook far = make_book(second, 9);  // centroid 0 is nobody's nearest
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t j = 0; j < 4; ++j)
      for (std::size_t i = 0; i < 8; ++i) far.mutable_view().centroids(head, j, i, 0) = 1e15f;
  const auto made = plain_encode_residual(keys.view(), first.view(), book.view(), far.view());
  for (const auto& [head, t] : planted) CHECK(made[(head * 300 + t) * 4] == 0);
  check_encoding(keys, book, far, first);
  // A residual that overflows, of a key that is finite.
  for (std::size_t i = 0; i < 8; ++i) book.mutable_view().centroids(0, 0, i, 3) = -3e38f;
  for (std::size_t i = 0; i < 8; ++i) keys(0, 5, i) = 3e38f;
  first.mutable_view()(0, 0, 5) = 3;
  check_encoding(keys, book, far, first);
  CHECK(plain_encode_residual(keys.view(), first.view(), book.view(), far.view())[5 * 4] == 0);
}

TEST_CASE("residual: two stages stand closer to the keys than one") {
  const pq_shape shape{1, 64, 2, 6}, second = pqkv::residual_shape(shape, 4, 6);
  const auto keys = make_rows<float>(content::gaussian, 1, 2000, 64, 1);
  codebook book(shape), fine(second);
  REQUIRE(pqkv::train(exec::host<>{}, keys.view(), book) == pqkv::kmeans_outcome::trained);
  codes first(shape, 2000);
  pqkv::encode(exec::host<>{}, keys.view(), book.view(), first.mutable_view());
  std::vector<std::uint8_t> outcome(4);
  pqkv::train_residual(exec::host<>{}, keys.view(), first.view(), book.view(), fine.mutable_view(), pqkv::make_view(outcome.data(), 1, 4));
  CHECK(outcome == std::vector<std::uint8_t>(4, static_cast<std::uint8_t>(pqkv::kmeans_outcome::trained)));
  residual_codes made(second, 2000);
  pqkv::encode_residual(exec::host<>{}, keys.view(), first.view(), book.view(), fine.view(), made.mutable_view());
  const double one = distortion(keys, book, first, nullptr, nullptr), two = distortion(keys, book, first, &fine, &made);
  CHECK(two < 0.85 * one);
  CHECK(two > 0);
}

TEST_CASE("residual: too few distinct residuals are reported") {
  const pq_shape shape{1, 16, 2, 4}, second = pqkv::residual_shape(shape, 2, 4);
  auto keys = make_rows<float>(content::gaussian, 1, 15, 16, 1);
  const codebook book = make_book(shape, 2);
  codebook fine(second);
  codes first(shape, 15);
  std::vector<std::uint8_t> outcome(2);
  pqkv::train_residual(exec::host<>{}, keys.view(), first.view(), book.view(), fine.mutable_view(), pqkv::make_view(outcome.data(), 1, 2));
  CHECK(outcome == std::vector<std::uint8_t>(2, static_cast<std::uint8_t>(pqkv::kmeans_outcome::too_few_rows)));
}

TEST_CASE("residual: the owner lies token-major") {
  const pq_shape second{3, 32, 4, 6};
  residual_codes made(second, 200);
  CHECK(made.capacity() == 200);
  CHECK(made.size_bytes() == 3 * 200 * 4);
  CHECK(residual_codes::required_bytes(second, 200) == made.size_bytes());
  const auto view = made.mutable_view();
  for (std::size_t axis = 0; axis < 3; ++axis) {
    CHECK(view.extent(axis) == std::vector<std::size_t>{3, 200, 4}[axis]);
    CHECK(view.stride(axis) == std::vector<std::size_t>{800, 4, 1}[axis]);
  }
  view(2, 199, 3) = 5;
  CHECK(made.view()(2, 199, 3) == 5);
  CHECK(residual_codes{}.size_bytes() == 0);
  CHECK_THROWS_WITH_AS(residual_codes({3, 32, 3, 6}, 10), "pqkv::residual_codes: subspaces must be 1, 2, 4, 8 or 16, got 3",
                       pqkv::value_error);
  CHECK(pqkv::residual_shape({3, 32, 2, 6, pqkv::key_metric::inner_product}, 4, 8) == pq_shape{3, 32, 4, 8});
}

TEST_CASE("residual: bad arguments, each named with its number") {
  using pqkv::shape_error;
  using pqkv::value_error;
  const pq_shape shape{2, 16, 2, 4};
  const codebook book = make_book(shape, 1);
  codebook fine = make_book(pqkv::residual_shape(shape, 4, 4), 2), three = make_book({3, 16, 4, 4}, 3), wide = make_book({2, 32, 4, 4}, 3),
           sphere = make_book({2, 16, 4, 4, pqkv::key_metric::inner_product}, 4);
  const auto keys = make_rows(content::gaussian, 3, 30, 32, 2);
  const auto good = keys.view().slice(0, 0, 2).slice(2, 0, 16);
  const codes first = make_codes({3, 16, 4, 4}, 31, 3);
  const auto good_codes = first.view().slice(0, 0, 2).slice(1, 0, 2).slice(2, 0, 30);
  residual_codes made({3, 16, 8, 4}, 40);
  const auto good_fine = made.mutable_view().slice(0, 0, 2).slice(1, 0, 30).slice(2, 0, 4);
  std::vector<std::uint8_t> outcome(20);
  const auto good_outcome = pqkv::make_view(outcome.data(), 2, 4);
  CHECK(pqkv::can_encode_residual(good, good_codes, book.view(), fine.view(), good_fine).ok());
  CHECK(pqkv::can_train_residual(good, good_codes, book.view(), fine.mutable_view(), good_outcome, {}).ok());
  const auto encoding = [&](auto k, auto c, const codebook& f, auto out) {
    return [&, k, c, out] { pqkv::encode_residual(exec::host<>{}, k, c, book.view(), f.view(), out); };
  };
  const auto refuse_shape = [&](auto call, const std::string& where, double expected, double got) {
    CHECK(unless_refused<shape_error>(call, where, expected, got) == "");
  };
  const std::string e = "encode_residual: ", t = "train_residual: ";
  refuse_shape(encoding(keys.view().slice(2, 0, 16), good_codes, fine, good_fine), e + "keys.extent(0)", 2, 3);
  refuse_shape(encoding(keys.view().slice(0, 0, 2), good_codes, fine, good_fine), e + "keys.extent(2)", 16, 32);
  refuse_shape(encoding(good, first.view().slice(1, 0, 2).slice(2, 0, 30), fine, good_fine), e + "codes.extent(0)", 2, 3);
  refuse_shape(encoding(good, first.view().slice(0, 0, 2).slice(2, 0, 30), fine, good_fine), e + "codes.extent(1)", 2, 4);
  refuse_shape(encoding(good, first.view().slice(0, 0, 2).slice(1, 0, 2), fine, good_fine), e + "codes.extent(2)", 30, 31);
  refuse_shape(encoding(good, good_codes, three, good_fine), e + "fine.centroids.extent(0)", 2, 3);
  refuse_shape(encoding(good, good_codes, wide, good_fine), e + "fine.mean.extent(1)", 16, 32);
  CHECK(unless_refused<value_error>(encoding(good, good_codes, sphere, good_fine), e + "fine.squared_radius", 0, 8) == "");
  const auto whole = made.mutable_view();
  refuse_shape(encoding(good, good_codes, fine, whole.slice(1, 0, 30).slice(2, 0, 4)), e + "fine_codes.extent(0)", 2, 3);
  refuse_shape(encoding(good, good_codes, fine, whole.slice(0, 0, 2).slice(2, 0, 4)), e + "fine_codes.extent(1)", 30, 40);
  refuse_shape(encoding(good, good_codes, fine, whole.slice(0, 0, 2).slice(1, 0, 30)), e + "fine_codes.extent(2)", 4, 8);
  const auto training = [&](auto out, pqkv::kmeans_params params) {
    return [&, out, params] { pqkv::train_residual(exec::host<>{}, good, good_codes, book.view(), fine.mutable_view(), out, params); };
  };
  refuse_shape(training(pqkv::make_view(outcome.data(), 1, 4), {}), t + "outcome.extent(0)", 2, 1);
  refuse_shape(training(pqkv::make_view(outcome.data(), 2, 8), {}), t + "outcome.extent(1)", 4, 8);
  CHECK(unless_refused<value_error>(training(good_outcome, {.iterations = 0}), t + "params.iterations", 1, 0) == "");
}
