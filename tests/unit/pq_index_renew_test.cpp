// SPDX-License-Identifier: Apache-2.0
// Renewing codebooks searches less than its parts would, because codes say which of the kept centroids is nearest, and has their bits:
// those of replacing centroids, k-means from there, and encoding, one after the other, on every instruction set and with tasks on threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::axis_order;
using pqkv::key_metric;
const pqkv::exec::host<> cpu;
constexpr std::size_t h = 2, m = 4, d = 48, first = 5;

struct renewal {
  unsigned bits;
  std::size_t trained, n;
  axis_order axes = axis_order::contiguous;
  key_metric metric = key_metric::squared_l2;
  std::size_t iterations = 1;
  std::size_t ranked() const { return std::max(trained, n - 20); }
  pqkv::pq_index_shape shape() const { return {1, h, d, m, bits, n + 7, metric, 0, 8, pqkv::search_path::scan, axes}; }
};

/// An index that was learnt from tokens [first, trained) and has the codes of all tokens that have left the window since.
template <class T>
pqkv::pq_index<> learnt(const pqkv::strided_rows<T>& all, const renewal& call) {
  pqkv::pq_index<> index(cpu, call.shape());
  std::vector<std::uint8_t> outcomes(h * m);
  index.learn(cpu, 0, all, first, call.trained, call.trained, {.iterations = 2}, pqkv::make_view(outcomes.data(), h, m));
  const pqkv::leaving_tokens leaving{0, static_cast<std::uint32_t>(call.trained), static_cast<std::uint32_t>(call.ranked())};
  index.view().encode(cpu, all, pqkv::make_view(&leaving, 1));
  return index;
}

/// The parts of a renewal, one after the other, in plain C++.
template <class T>
std::vector<std::uint8_t> renew_in_parts(const pqkv::strided_rows<T>& all, const pqkv::pq_index_view<>& own, const renewal& call,
                                         const pqkv::kmeans_params& params) {
  const pqkv::exec::host<pqkv::isa::scalar> plain;
  const pqkv::leaving_tokens window{0, static_cast<std::uint32_t>(call.ranked()), static_cast<std::uint32_t>(call.n)};
  own.encode(plain, all, pqkv::make_view(&window, 1));
  const std::uint64_t fresh = call.n - call.trained, count = own.book.size() * fresh / (call.n - first);
  pqkv::kernel<pqkv::op::replace_centroids, pqkv::backend::host>::run(
      plain, all, 0, own, {first, call.n, call.trained, {fresh, count, {params.seed, ~std::uint64_t{0}}}});
  std::vector<float> ordered;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = first; t < call.n; ++t)
      for (std::size_t i = 0; i < d; ++i) ordered.push_back(all.key(head, t)[own.axes(i)]);
  const auto keys = pqkv::make_view(static_cast<const float*>(ordered.data()), h, call.n - first, d);
  std::vector<std::uint8_t> outcomes(h * m);
  pqkv::kmeans(plain, pqkv::split_subspaces(keys, m), pqkv::make_view(static_cast<const float*>(own.book.mean.data), h, m, d / m),
               own.book.centroids, pqkv::make_view(outcomes.data(), h, m), params, own.book.squared_radius);
  pqkv::encode(plain, keys, own.book, own.codes.slice(2, first, call.n - first));
  return outcomes;
}

/// Renews under a policy and in parts. Returns how many codes and centroids a renewal changed.
template <class T, class P>
std::size_t compare(const P& policy, rows<T>& keys, const renewal& call) {
  const pqkv::strided_rows<T> all{keys.view(), keys.view()};
  const auto index = learnt(all, call), plain = learnt(all, call);
  const auto got = index.view().sequence(0), wanted = plain.view().sequence(0);
  const std::vector<float> before(got.book.centroids.data, got.book.centroids.data + got.book.centroids.size());
  pqkv::kmeans_params params{.iterations = call.iterations, .seed = 3};
  std::vector<std::uint8_t> outcomes(h * m);
  index.renew(policy, 0, all, first, call.ranked(), call.trained, call.n, params, pqkv::make_view(outcomes.data(), h, m));
  params.start = pqkv::kmeans_start::given;
  CHECK(outcomes == renew_in_parts(all, wanted, call, params));
  CHECK(std::memcmp(got.book.centroids.data, wanted.book.centroids.data, before.size() * sizeof(float)) == 0);
  if (call.metric == key_metric::inner_product)
    CHECK(std::memcmp(got.book.squared_radius.data, wanted.book.squared_radius.data, h * m * sizeof(float)) == 0);
  std::size_t differing = 0;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t j = 0; j < m; ++j)
      for (std::size_t t = first; t < call.ranked(); ++t) differing += got.codes(head, j, t) != wanted.codes(head, j, t) ? 1 : 0;
  CHECK(differing == 0);
  std::size_t moved = 0;
  for (std::size_t i = 0; i < before.size(); ++i) moved += got.book.centroids.data[i] != before[i] ? 1 : 0;
  return moved;
}
}  // namespace

TEST_CASE("pq index: a renewal has the bits of its parts, on every instruction set") {
  for (const content what : every_content) {
    CAPTURE(what);
    auto keys = make_rows<float>(what, h, 900, d, 7, layout::padded);
    auto half_keys = make_rows<pqkv::half>(what, h, 900, d, 7);
    for_each_isa([&](auto isa) {
      const pqkv::exec::host<decltype(isa), threaded_runner> policy;
      CHECK(compare(policy, keys, {8, 800, 900}) > 0);                                  // 28 of 256 centroids are replaced
      CHECK(compare(policy, keys, {6, 700, 830, axis_order::rotary_halves}) > 0);       // 10 of 64; the last block is not full
      CHECK(compare(policy, half_keys, {8, 600, 900, axis_order::rotary_halves}) > 0);  // 85 of 256
    });
  }
}

TEST_CASE("pq index: a renewal that cannot use what is known has the bits of its parts too") {
  auto keys = make_rows<float>(content::gaussian, h, 900, d, 9);
  CHECK(compare(cpu, keys, {8, 400, 900}) > 0);  // more than half of the centroids
  CHECK(compare(cpu, keys, {4, 800, 900}) > 0);  // 16 centroids
  CHECK(compare(cpu, keys, {6, 898, 900}) > 0);  // none is replaced, all move
  CHECK(compare(cpu, keys, {8, 800, 900, axis_order::rotary_halves, key_metric::inner_product}) > 0);
  CHECK(compare(cpu, keys, {8, 800, 900, axis_order::contiguous, key_metric::squared_l2, 3}) > 0);  // further iterations
  for (const float unit : {0x1p-70f, 0x1p60f}) {                                                    // no shortlist of 16-bit integers
    auto scaled = make_rows<float>(content::gaussian, h, 900, d, 9);
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t t = 0; t < 900; ++t)
        for (std::size_t i = 0; i < d; ++i) scaled(head, t, i) *= unit;
    CHECK(compare(cpu, scaled, {6, 800, 900}) > 0);
  }
}

TEST_CASE("pq index: a key with a number that is not finite has code 0 in every subspace after a renewal") {
  auto keys = make_rows<float>(content::gaussian, h, 900, d, 11);
  keys(0, 300, 2) = NAN;  // one head, one subspace
  keys(0, 850, d - 1) = INFINITY;
  keys(1, 5, 20) = 0x1.8p127f;  // the difference from the mean overflows in neither
  const renewal call{6, 800, 900};
  CHECK(compare(cpu, keys, call) > 0);
  const pqkv::strided_rows<float> all{keys.view(), keys.view()};
  const auto index = learnt(all, call);
  std::vector<std::uint8_t> outcomes(h * m);
  index.renew(cpu, 0, all, first, call.ranked(), call.trained, call.n, {.iterations = 1}, pqkv::make_view(outcomes.data(), h, m));
  for (std::size_t j = 0; j < m; ++j) CHECK(index.view().codes(0, j, 300) == 0);
}
