// SPDX-License-Identifier: Apache-2.0
// Codes that come with training are those that encoding finds afterwards: whatever the keys are like, however long training goes on, and
// where rows repeat each other, so that clusters become empty and are filled with rows that are as near to another centroid.
#include <doctest/doctest.h>

#include <cstring>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::key_metric;
const pqkv::exec::host<> cpu;
constexpr std::size_t h = 2;

struct problem {
  content what;
  std::size_t n, m, sub_dim;
  unsigned bits;
  key_metric metric;
  std::size_t iterations, not_finite;
  std::uint64_t seed;
};

problem random_problem(std::uint64_t seed) {
  random_source random(seed);
  problem p{};
  p.seed = seed;
  p.what = every_content[random.below(4)];
  p.bits = static_cast<unsigned>(4 + random.below(5));
  const std::size_t c = std::size_t{1} << p.bits;
  p.n = c + random.below(3 * c) + 20;
  p.m = std::size_t{1} << random.below(4);
  p.sub_dim = 8 / p.m << random.below(3);  // d is a multiple of 8
  p.metric = random.below(3) == 0 ? key_metric::inner_product : key_metric::squared_l2;
  p.iterations = 1 + random.below(12);
  p.not_finite = random.below(4) == 0 ? 1 + random.below(8) : 0;
  return p;
}

struct seen_problems {
  std::size_t trained = 0, failed = 0, stopped = 0;
};

/// Learns with codes, and in parts; both under the policy.
template <class T, class P>
void check(const P& policy, const problem& p, seen_problems& seen) {
  CAPTURE(p.seed);
  const std::size_t first = 3, d = p.m * p.sub_dim;
  auto keys = make_rows<T>(p.what, h, first + p.n, d, p.seed, every_layout[p.seed % 5]);
  random_source random(p.seed + 1);
  if (p.not_finite != 0) plant_nonfinite(keys.view(), p.not_finite, random);
  const pqkv::strided_rows<T> rows{keys.view(), keys.view()};
  const pqkv::pq_index_shape shape{1, h, d, p.m, p.bits, first + p.n, p.metric, 0, 8, pqkv::search_path::scan};
  const pqkv::pq_index<> index(policy, shape);
  std::vector<std::uint8_t> outcomes(h * p.m), expected(h * p.m);
  const pqkv::kmeans_params params{.iterations = p.iterations, .seed = p.seed};
  index.learn(policy, 0, rows, first, first + p.n, first + p.n, params, pqkv::make_view(outcomes.data(), h, p.m));
  const auto own = index.view().sequence(0);

  const auto part = pqkv::as_const(keys.view()).slice(1, first, p.n);
  pqkv::codebook book(shape.coarse());
  pqkv::train(policy, part, book.mutable_view(), pqkv::make_view(expected.data(), h, p.m), params);
  CHECK(outcomes == expected);
  for (const std::uint8_t one : outcomes)
    if (one != static_cast<std::uint8_t>(pqkv::kmeans_outcome::trained)) return static_cast<void>(++seen.failed);
  ++seen.trained;
  CHECK(std::memcmp(own.book.centroids.data, book.view().centroids.data, book.view().centroids.size() * sizeof(float)) == 0);
  CHECK(std::memcmp(own.book.mean.data, book.view().mean.data, book.view().mean.size() * sizeof(float)) == 0);
  pqkv::codes codes(shape.coarse(), p.n);
  pqkv::encode(policy, part, book.view(), codes.mutable_view());
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < h; ++i)
    for (std::size_t j = 0; j < p.m; ++j)
      for (std::size_t t = 0; t < p.n; ++t) wrong += own.codes(i, j, first + t) != codes.view()(i, j, t) ? 1 : 0;
  CHECK(wrong == 0);

  // Where one more iteration changes nothing, training has stopped by itself, and no row was searched for again.
  pqkv::codebook longer(shape.coarse());
  pqkv::train(policy, part, longer.mutable_view(), pqkv::make_view(expected.data(), h, p.m),
              {.iterations = p.iterations + 1, .seed = p.seed});
  seen.stopped += std::memcmp(longer.view().centroids.data, book.view().centroids.data, book.view().centroids.size() * sizeof(float)) == 0;
}
}  // namespace

TEST_CASE("pq index: codes that come with training are those of encoding") {
  seen_problems seen;
  for (std::uint64_t seed = 0; seed < problems(60); ++seed) {
    const problem p = random_problem(seed);
    for_each_isa([&](auto isa) {
      const pqkv::exec::host<decltype(isa), threaded_runner> policy;
      seed % 3 == 0   ? check<float>(policy, p, seen)
      : seed % 3 == 1 ? check<pqkv::half>(policy, p, seen)
                      : check<pqkv::bfloat16>(policy, p, seen);
    });
  }
  CHECK(seen.trained > problems(60));
  CHECK(seen.stopped > problems(10));
}

TEST_CASE("pq index: codes that come with training, of fewer distinct keys than centroids") {
  seen_problems seen;
  for (std::uint64_t seed = 100; seed < 104; seed += quick_step)
    for (const std::size_t sub_dim : {1u, 2u})  // duplicates have at most 3 values in one coordinate, 9 in two
      for (const std::size_t iterations : {1u, 2u, 3u, 10u})
        for_each_isa([&](auto isa) {
          const pqkv::exec::host<decltype(isa)> policy;
          check<float>(policy, {content::duplicates, 200, 8, sub_dim, 6, key_metric::squared_l2, iterations, 0, seed}, seen);
        });
  CHECK(seen.failed == 0);
}
