// SPDX-License-Identifier: Apache-2.0
// decode(): the keys that codes stand for, against the definition, in every storage type and layout; what it refuses.
#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;

template <class T>
void check_decode(const pqkv::pq_shape& shape, std::size_t n, std::uint64_t seed, layout where) {
  const pqkv::codebook book = make_book(shape, seed);
  const pqkv::codes codes = make_codes(shape, n, seed + 1);
  rows<T> keys(shape.kv_heads, n, shape.head_dim, where);
  pqkv::decode(pqkv::exec::host<pqkv::isa::best, threaded_runner>{}, codes.view(), book.view(), keys.view());
  const std::size_t ds = shape.sub_dim();
  for (std::size_t h = 0; h < shape.kv_heads; ++h)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < shape.head_dim; ++i) {
        const std::size_t code = codes.view()(h, i / ds, t);
        const float wanted = book.view().mean(h, i) + book.view().centroids(h, i / ds, i % ds, code);
        REQUIRE(float(keys(h, t, i)) == float(T(wanted)));
      }
}
}  // namespace

TEST_CASE("decode: mean and centroid, rounded once, in every type and layout") {
  std::uint64_t seed = 1;
  for (const layout where : every_layout)
    for (const auto metric : {pqkv::key_metric::squared_l2, pqkv::key_metric::inner_product}) {
      check_decode<float>({2, 24, 4, 5, metric}, 37, ++seed, where);
      check_decode<pqkv::half>({1, 32, 1, 4, metric}, 5, ++seed, where);
      check_decode<pqkv::bfloat16>({3, 64, 16, 8, metric}, 70, ++seed, where);
      check_decode<float>({2, 16, 2, 6, metric}, 0, ++seed, where);
    }
}

TEST_CASE("decode: of one's own encoding the nearest that the codebook has, and of a centroid itself") {
  const pqkv::pq_shape shape{2, 32, 2, 4};
  const pqkv::exec::host<> cpu;
  const auto keys = make_rows<float>(content::clustered, 2, 200, 32, 5);
  pqkv::codebook book(shape);
  REQUIRE(pqkv::train(cpu, keys.view(), book) == pqkv::kmeans_outcome::trained);
  pqkv::codes codes(shape, 200), again(shape, 200);
  rows<float> decoded(2, 200, 32);
  pqkv::encode(cpu, keys.view(), book.view(), codes.mutable_view());
  pqkv::decode(cpu, codes.view(), book.view(), decoded.view());
  pqkv::encode(cpu, decoded.view(), book.view(), again.mutable_view());
  double error = 0, spread = 0;
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t t = 0; t < 200; ++t) {
      for (std::size_t j = 0; j < 2; ++j) CHECK(codes.view()(h, j, t) == again.view()(h, j, t));
      for (std::size_t i = 0; i < 32; ++i) {
        const double e = static_cast<double>(keys.view()(h, t, i)) - static_cast<double>(decoded(h, t, i)),
                     s = static_cast<double>(keys.view()(h, t, i)) - static_cast<double>(book.view().mean(h, i));
        error += e * e, spread += s * s;
      }
    }
  CHECK(error < 0.2 * spread);
}

TEST_CASE("decode: extents that disagree are refused") {
  const pqkv::pq_shape shape{2, 32, 2, 4};
  const pqkv::codebook book = make_book(shape, 1);
  const pqkv::codes codes = make_codes(shape, 10, 2);
  rows<float> keys(2, 10, 32), heads(3, 10, 32), tokens(2, 9, 32), wide(2, 10, 40);
  const auto call = [&](auto& into) { return [&] { pqkv::decode(pqkv::exec::host<>{}, codes.view(), book.view(), into.view()); }; };
  using pqkv::shape_error;
  CHECK(unless_refused<shape_error>(call(heads), "decode: keys.extent(0)", 2, 3) == "");
  CHECK(unless_refused<shape_error>(call(tokens), "decode: keys.extent(1)", 10, 9) == "");
  CHECK(unless_refused<shape_error>(call(wide), "decode: keys.extent(2)", 32, 40) == "");
  CHECK(unless_refused<shape_error>(
            [&] { pqkv::decode(pqkv::exec::host<>{}, codes.view().slice(1, 0, 1), book.view(), keys.view()); }, "decode: codes.extent(1)",
            2, 1) == "");
}
