// SPDX-License-Identifier: Apache-2.0
// Encoding against the plain oracle: every quantizer shape, storage type and layout, ties, non-finite and extreme keys, sizes
// around a task's length; and the owner's planes.
#include <pqkv/quantize/codes.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/plain_quantize.hpp"
#include "cases/policies.hpp"

using pqkv::codebook;
using pqkv::codes;
using pqkv::pq_shape;
using pqkv_cases::content;
using pqkv_cases::layout;
namespace exec = pqkv::exec;

namespace {

constexpr std::uint8_t untouched = 0xee;

/// Encodes into an owner with room to spare; the number of codes that differ from `expected` or lie outside and were written.
template <class Policy, class T>
std::size_t wrong_codes(const Policy& policy, pqkv::view<T, 3> keys, const codebook& book, const std::vector<std::uint8_t>& expected) {
  const std::size_t n = keys.extent(1), h = keys.extent(0), m = book.shape().subspaces;
  codes made(book.shape(), n + 40);
  const auto all = made.mutable_view();
  std::fill_n(all.data, made.size_bytes(), untouched);
  pqkv::encode(policy, keys, book.view(), all.slice(2, 20, n));
  std::size_t wrong = 0;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t t = 0; t < n + 40; ++t)
        wrong += all(head, j, t) != (t < 20 || t >= n + 20 ? untouched : expected[(head * m + j) * n + t - 20]);
  return wrong;
}

template <class T>
void check_encoding(const pqkv_cases::rows<T>& keys, const codebook& book) {
  const auto expected = pqkv_cases::plain_encode(keys.view(), book.view());
  pqkv_cases::for_each_isa([&](auto isa) { CHECK(wrong_codes(exec::host<decltype(isa)>{}, keys.view(), book, expected) == 0); });
}

}  // namespace

TEST_CASE("encoding equals the plain nearest centroid for every m, b and d") {
  std::size_t turn = 0;
  for (const std::size_t m : {1u, 2u, 4u, 8u, 16u})
    for (unsigned b = 4; b <= 8; ++b)
      for (std::size_t d = 8; d <= 256; d += 8) {
        if (d % m != 0) continue;
        CAPTURE(m);
        CAPTURE(b);
        CAPTURE(d);
        ++turn;
        const codebook book = pqkv_cases::make_book({1, d, m, b}, turn, turn % 3 ? content::gaussian : content::duplicates);
        const content what = pqkv_cases::every_content[turn / 5 % 4];
        const layout where = pqkv_cases::every_layout[turn % 5];
        switch (turn % 3) {
          case 0:
            check_encoding(pqkv_cases::make_rows<float>(what, 1, 5, d, turn, where), book);
            break;
          case 1:
            check_encoding(pqkv_cases::make_rows<pqkv::half>(what, 1, 5, d, turn, where), book);
            break;
          default:
            check_encoding(pqkv_cases::make_rows<pqkv::bfloat16>(what, 1, 5, d, turn, where), book);
            break;
        }
      }
  CHECK(turn == 5 * (4 * 32 + 16));
}

TEST_CASE("enough keys for a shortlist: blocks that are full and not, codebooks that are searched at once and in parts") {
  std::size_t turn = 0;
  for (const std::size_t n : {7u, 8u, 31u, 32u, 33u, 100u})
    for (const pq_shape shape : {pq_shape{1, 256, 1, 8}, {1, 256, 1, 7}, {1, 200, 1, 8}, {1, 256, 2, 8}, {1, 120, 8, 6}, {2, 128, 2, 6}})
      for (const pqkv::key_metric metric : {pqkv::key_metric::squared_l2, pqkv::key_metric::inner_product}) {
        pq_shape of = shape;
        of.metric = metric;
        CAPTURE(n);
        CAPTURE(of.head_dim);
        CAPTURE(of.bits);
        ++turn;
        auto keys = pqkv_cases::make_rows<float>(pqkv_cases::every_content[turn % 4], of.kv_heads, n, of.head_dim, turn,
                                                 pqkv_cases::every_layout[turn % 5]);
        if (turn % 3 == 0)  // one key that is much longer than its neighbours
          for (std::size_t i = 0; i < of.head_dim; ++i) keys(0, n / 2, i) *= turn % 2 ? 1e4f : 1e20f;
        check_encoding(keys, pqkv_cases::make_book(of, turn, turn % 2 ? content::gaussian : content::duplicates));
      }
}

TEST_CASE("under the inner-product metric keys are encoded on the sphere, the ones outside of it with a coordinate of 0") {
  std::size_t turn = 0, differ = 0;
  for (const std::size_t m : {1u, 2u, 4u, 8u, 16u})
    for (unsigned b = 4; b <= 8; ++b)
      for (const std::size_t d : {16u, 80u, 256u}) {
        ++turn;
        const pq_shape shape{2, d, m, b, pqkv::key_metric::inner_product};
        const codebook book = pqkv_cases::make_book(shape, turn);
        auto keys = pqkv_cases::make_rows<float>(pqkv_cases::every_content[turn % 4], 2, 9, d, turn, pqkv_cases::every_layout[turn % 5]);
        keys(1, 3, d - 1) = 3e25f;  // its norm overflows: code 0
        check_encoding(keys, book);
        const auto codes = pqkv_cases::plain_encode(std::as_const(keys).view(), book.view());
        CHECK(codes[(1 * m + m - 1) * 9 + 3] == 0);
        codebook flat({2, d, m, b});
        for (std::size_t head = 0; head < 2; ++head) {
          for (std::size_t i = 0; i < d; ++i) flat.mutable_view().mean(head, i) = book.view().mean(head, i);
          for (std::size_t j = 0; j < m; ++j)
            for (std::size_t i = 0; i < d / m; ++i)
              for (std::size_t x = 0; x < shape.centroids(); ++x)
                flat.mutable_view().centroids(head, j, i, x) = book.view().centroids(head, j, i, x);
        }
        differ += codes != pqkv_cases::plain_encode(std::as_const(keys).view(), flat.view());
      }
  CHECK(differ > turn / 2);  // the added coordinate decides something
}

TEST_CASE("any layout of the same keys gives the same codes, head by head") {
  const codebook book = pqkv_cases::make_book({3, 40, 4, 5}, 1);
  const auto dense = pqkv_cases::make_rows<pqkv::half>(content::gaussian, 3, 150, 40, 2);
  const auto expected = pqkv_cases::plain_encode(dense.view(), book.view());
  for (const layout where : pqkv_cases::every_layout) {
    const auto keys = pqkv_cases::make_rows<pqkv::half>(content::gaussian, 3, 150, 40, 2, where);
    CHECK(wrong_codes(exec::host<>{}, keys.view(), book, expected) == 0);
  }
  std::set<std::uint8_t> used(expected.begin(), expected.end());
  CHECK(used.size() == 32);  // or the comparison could be of constants
}

TEST_CASE("sizes around a task's 1024 tokens, serial and threaded") {
  const codebook book = pqkv_cases::make_book({2, 16, 2, 4}, 3);
  for (const std::size_t n : {0u, 1u, 7u, 1023u, 1024u, 1025u, 3000u}) {
    const auto keys = pqkv_cases::make_rows(content::gaussian, 2, n, 16, n);
    const auto expected = pqkv_cases::plain_encode(keys.view(), book.view());
    CAPTURE(n);
    pqkv_cases::for_each_isa([&](auto isa) {
      CHECK(wrong_codes(exec::host<decltype(isa)>{}, keys.view(), book, expected) == 0);
      CHECK(wrong_codes(exec::host<decltype(isa), pqkv_cases::threaded_runner>{}, keys.view(), book, expected) == 0);
    });
  }
}

TEST_CASE("slices of several threads encode each token once") {
  const codebook book = pqkv_cases::make_book({2, 16, 2, 4}, 3);
  const auto keys = pqkv_cases::make_rows(content::gaussian, 2, 2500, 16, 4);
  codes whole({2, 16, 2, 4}, 2500), parts({2, 16, 2, 4}, 2500);
  pqkv::encode(exec::host<>{}, keys.view(), book.view(), whole.mutable_view());
  for (std::size_t ith = 0; ith < 4; ++ith)
    pqkv::encode(exec::host<pqkv::isa::best, exec::slice>{{ith, 4}, {}}, keys.view(), book.view(), parts.mutable_view());
  CHECK(std::equal(whole.view().data, whole.view().data + whole.size_bytes(), parts.view().data));
}

TEST_CASE("ties go to the lower index: every centroid twice, in both halves and mirrored") {
  for (unsigned b = 4; b <= 8; ++b)
    for (const bool mirrored : {false, true}) {
      const pq_shape shape{1, 24, 2, b};
      codebook book = pqkv_cases::make_book(shape, b);
      const std::size_t c = shape.centroids();
      for (std::size_t j = 0; j < 2; ++j)
        for (std::size_t i = 0; i < 12; ++i)
          for (std::size_t x = c / 2; x < c; ++x)
            book.mutable_view().centroids(0, j, i, x) = book.view().centroids(0, j, i, mirrored ? c - 1 - x : x - c / 2);
      auto keys = pqkv_cases::make_rows(content::gaussian, 1, 100, 24, b);
      for (std::size_t t = 0; t < 60; ++t)  // some keys are centroids themselves: distance 0 to both copies
        for (std::size_t i = 0; i < 24; ++i) keys(0, t, i) = book.view().mean(0, i) + book.view().centroids(0, i / 12, i % 12, t % c);
      pqkv_cases::for_each_isa([&](auto isa) {
        codes made(shape, 100);
        pqkv::encode(exec::host<decltype(isa)>{}, keys.view(), book.view(), made.mutable_view());
        std::size_t upper = 0;
        for (std::size_t j = 0; j < 2; ++j)
          for (std::size_t t = 0; t < 100; ++t) upper += made.view()(0, j, t) >= c / 2;
        CHECK(upper == 0);
      });
      check_encoding(keys, book);
    }
  // One value for all: everything ties.
  codebook flat = pqkv_cases::make_book({1, 24, 2, 6}, 1);
  std::fill_n(flat.mutable_view().centroids.data, flat.view().centroids.size(), 1.5f);
  const auto keys = pqkv_cases::make_rows(content::gaussian, 1, 50, 24, 1);
  pqkv_cases::for_each_isa(
      [&](auto isa) { CHECK(wrong_codes(exec::host<decltype(isa)>{}, keys.view(), flat, std::vector<std::uint8_t>(100, 0)) == 0); });
}

TEST_CASE("distances that differ by rounding alone are decided by fused multiply-adds in ascending order") {
  // Centroids are one vector in different orders, keys are the mean: every distance is the same sum in another order.
  std::size_t unfused_differs = 0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const pq_shape shape{4, 32, 2, 6};
    codebook book = pqkv_cases::make_book(shape, seed);
    pqkv_cases::random_source random(seed);
    pqkv_cases::rows<float> keys(4, 1, 32);
    for (std::size_t head = 0; head < 4; ++head) {
      for (std::size_t i = 0; i < 32; ++i) keys(head, 0, i) = book.view().mean(head, i);
      for (std::size_t j = 0; j < 2; ++j) {
        std::vector<float> one(16), distance(64);
        for (float& x : one) x = random.gaussian();
        for (std::size_t x = 0; x < 64; ++x) {
          for (std::size_t i = 0; i < 16; ++i) std::swap(one[i], one[i + random.below(16 - i)]);
          for (std::size_t i = 0; i < 16; ++i) book.mutable_view().centroids(head, j, i, x) = one[i];
          for (std::size_t i = 0; i < 16; ++i) {
            volatile float square = one[i] * one[i];  // volatile: rounded, whatever the compiler would fuse
            distance[x] += square;
          }
        }
        const auto unfused = static_cast<std::size_t>(std::min_element(distance.begin(), distance.end()) - distance.begin());
        const std::vector<float> zero(16);
        unfused_differs += unfused != pqkv_cases::plain_nearest(zero.data(), &book.view().centroids(head, j, 0, 0), 64, 16).first;
      }
    }
    check_encoding(keys, book);
  }
  CHECK(unfused_differs > 20);  // of 80
}

TEST_CASE("a key with a non-finite element gets code 0 in every subspace, its neighbours their own") {
  const pq_shape shape{2, 32, 4, 5};
  codebook book = pqkv_cases::make_book(shape, 5);
  for (std::size_t head = 0; head < 2; ++head)  // centroid 0 is nobody's nearest
    for (std::size_t j = 0; j < 4; ++j)
      for (std::size_t i = 0; i < 8; ++i) book.mutable_view().centroids(head, j, i, 0) = 1e6f;
  const auto check = [&]<class T>(pqkv_cases::rows<T> keys) {
    pqkv_cases::random_source random(6);
    std::vector<bool> bad(2 * 200);
    for (const auto& [head, token] : pqkv_cases::plant_nonfinite(keys.view(), 90, random)) bad[head * 200 + token] = true;
    pqkv_cases::for_each_isa([&](auto isa) {
      codes made(shape, 200);
      pqkv::encode(exec::host<decltype(isa)>{}, keys.view(), book.view(), made.mutable_view());
      std::size_t wrong = 0;
      for (std::size_t head = 0; head < 2; ++head)
        for (std::size_t j = 0; j < 4; ++j)
          for (std::size_t t = 0; t < 200; ++t) wrong += (made.view()(head, j, t) == 0) != bad[head * 200 + t];
      CHECK(wrong == 0);
    });
    check_encoding(keys, book);
  };
  check(pqkv_cases::make_rows<float>(content::gaussian, 2, 200, 32, 7));
  check(pqkv_cases::make_rows<pqkv::half>(content::gaussian, 2, 200, 32, 8, layout::token_major));
  check(pqkv_cases::make_rows<pqkv::bfloat16>(content::gaussian, 2, 200, 32, 9, layout::transposed));
}

TEST_CASE("keys whose distances overflow or vanish are encoded alike everywhere") {
  const codebook book = pqkv_cases::make_book({1, 16, 2, 6}, 10);
  for (const float size :
       {0x1p-140f, 0x1p-60f, 0x1p60f, 0x1p61f, 0x1p62f, 1e19f, 0x1p63f, 0x1p64f, 0x1p120f, std::numeric_limits<float>::max() / 8}) {
    auto keys = pqkv_cases::make_rows(content::gaussian, 1, 40, 16, 11);
    for (std::size_t t = 0; t < 40; ++t)
      for (std::size_t i = 0; i < 16; ++i) keys(0, t, i) *= size;
    check_encoding(keys, book);
  }
}

TEST_CASE("where every canonical distance overflows code 0 is given, though a product could still tell centroids apart") {
  const pq_shape shape{1, 8, 1, 4};
  codebook book(shape);
  for (std::size_t x = 0; x < 16; ++x) book.mutable_view().centroids(0, 0, 0, x) = x == 5 ? 6.3e18f : 6.4e18f;
  pqkv_cases::rows<float> keys(1, 20, 8);
  for (std::size_t t = 0; t < 20; ++t) keys(0, t, 0) = -1.3e19f;
  check_encoding(keys, book);
  CHECK(pqkv_cases::plain_encode(std::as_const(keys).view(), book.view())[0] == 0);
}

TEST_CASE("the chosen centroid is nearest in double precision too, up to rounding") {
  const codebook book = pqkv_cases::make_book({1, 64, 2, 8}, 12);
  auto keys = pqkv_cases::make_rows(content::gaussian, 1, 300, 64, 13);
  codes made({1, 64, 2, 8}, 300);
  pqkv::encode(exec::host<>{}, keys.view(), book.view(), made.mutable_view());
  double worst = 0;
  for (std::size_t j = 0; j < 2; ++j)
    for (std::size_t t = 0; t < 300; ++t) {
      const auto distance = [&](std::size_t x) {
        double sum = 0;
        for (std::size_t i = 0; i < 32; ++i) {
          const double e = static_cast<double>(keys(0, t, j * 32 + i)) - static_cast<double>(book.view().mean(0, j * 32 + i)) -
                           static_cast<double>(book.view().centroids(0, j, i, x));
          sum += e * e;
        }
        return sum;
      };
      double least = distance(0);
      for (std::size_t x = 1; x < 256; ++x) least = std::min(least, distance(x));
      worst = std::max(worst, distance(made.view()(0, j, t)) / least - 1);
    }
  CHECK(worst < 1e-5);
}

TEST_CASE("the owner: planes a multiple of 128 apart, views of its memory") {
  CHECK(pqkv::code_plane_stride(0) == 0);
  CHECK(pqkv::code_plane_stride(1) == 128);
  CHECK(pqkv::code_plane_stride(128) == 128);
  CHECK(pqkv::code_plane_stride(129) == 256);
  const pq_shape shape{3, 32, 4, 6};
  codes made(shape, 200);
  CHECK(made.capacity() == 200);
  CHECK(made.size_bytes() == 3 * 4 * 256);
  CHECK(codes::required_bytes(shape, 200) == made.size_bytes());
  const auto view = made.mutable_view();
  for (std::size_t axis = 0; axis < 3; ++axis) {
    CHECK(view.extent(axis) == std::vector<std::size_t>{3, 4, 200}[axis]);
    CHECK(view.stride(axis) == std::vector<std::size_t>{1024, 256, 1}[axis]);
  }
  view(2, 3, 199) = 5;
  CHECK(made.view()(2, 3, 199) == 5);
  CHECK(codes{}.size_bytes() == 0);
  CHECK_THROWS_WITH_AS(codes({3, 32, 3, 6}, 10), "pqkv::codes: subspaces must be 1, 2, 4, 8 or 16, got 3", pqkv::value_error);
}

TEST_CASE("bad arguments: each named with its number, no code written") {
  const pq_shape shape{2, 16, 2, 4};
  const codebook book = pqkv_cases::make_book(shape, 1);
  const auto keys = pqkv_cases::make_rows(content::gaussian, 3, 30, 32, 2);
  codes made({3, 16, 4, 4}, 60);
  std::fill_n(made.mutable_view().data, made.size_bytes(), untouched);
  const auto good_keys = keys.view().slice(0, 0, 2).slice(2, 0, 16);
  const auto good_codes = made.mutable_view().slice(0, 0, 2).slice(1, 0, 2).slice(2, 0, 30);
  CHECK(pqkv::can_encode(good_keys, book.view(), good_codes).ok());
  const auto refused = [&](auto wrong_keys, pqkv::mutable_codes_view<> wrong_codes, const char* text) {
    CHECK(pqkv::can_encode(wrong_keys, book.view(), wrong_codes).message() == text);
    CHECK_THROWS_WITH_AS(pqkv::encode(exec::host<>{}, wrong_keys, book.view(), wrong_codes), text, pqkv::shape_error);
  };
  refused(keys.view().slice(2, 0, 16), good_codes, "pqkv::encode: keys.extent(0) must be 2 (h, from codebook), got 3");
  refused(keys.view().slice(0, 0, 2), good_codes, "pqkv::encode: keys.extent(2) must be 16 (d, from codebook), got 32");
  refused(good_keys, good_codes.slice(0, 0, 1), "pqkv::encode: codes.extent(0) must be 2 (h, from codebook), got 1");
  refused(good_keys, made.mutable_view().slice(0, 0, 2).slice(2, 0, 30),
          "pqkv::encode: codes.extent(1) must be 2 (m, from codebook), got 4");
  refused(good_keys, made.mutable_view().slice(0, 0, 2).slice(1, 0, 2),
          "pqkv::encode: codes.extent(2) must be 30 (n, from keys), got 60");
  auto spread = good_codes;
  spread.strides[2] = 2;
  refused(good_keys, spread, "pqkv::encode: codes.stride(2) must be 1 (last axis contiguous), got 2");
  CHECK(std::count(made.view().data, made.view().data + made.size_bytes(), untouched) == static_cast<std::ptrdiff_t>(made.size_bytes()));
}
