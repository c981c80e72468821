// SPDX-License-Identifier: Apache-2.0
// The seam: a public function checks, then calls the kernel of its operation and the policy's backend. A backend of this test's
// own shows that nothing else stands between. What a missing backend says is a compile test.
#include <pqkv/exec/kernel.hpp>

#include <doctest/doctest.h>

#include <vector>

#include <pqkv/quantize/codes.hpp>

#include "cases/inputs.hpp"

namespace {
struct recording_backend {};
struct recording_policy {
  using backend_type = recording_backend;
  using space_type = pqkv::space::managed;
  std::vector<const void*>* seen;
};
}  // namespace

template <>
struct pqkv::kernel<pqkv::op::encode, recording_backend> {
  static void run(const recording_policy& policy, pqkv::view<const float, 3, pqkv::space::managed> keys,
                  pqkv::codebook_view<pqkv::space::managed> book, pqkv::mutable_codes_view<pqkv::space::managed> codes) {
    *policy.seen = {keys.data, book.centroids.data, book.mean.data, codes.data};
  }
};

TEST_CASE("a call reaches the specialisation of its operation and backend, with its own arguments") {
  const float keys[2 * 3 * 8] = {}, centroids[2 * 2 * 4 * 16] = {}, mean[2 * 8] = {};
  std::uint8_t codes[2 * 2 * 3] = {};
  std::vector<const void*> seen;
  using pqkv::space::managed;
  const pqkv::codebook_view<managed> book{pqkv::make_view<managed>(centroids, 2, 2, 4, 16), pqkv::make_view<managed>(mean, 2, 8)};
  pqkv::encode(recording_policy{&seen}, pqkv::make_view<managed>(keys, 2, 3, 8), book, pqkv::make_view<managed>(codes, 2, 2, 3));
  CHECK(seen == std::vector<const void*>{keys, centroids, mean, codes});
}

TEST_CASE("a call with bad extents ends before the kernel, whatever the backend") {
  const float keys[2 * 3 * 8] = {}, centroids[2 * 2 * 4 * 16] = {}, mean[2 * 8] = {};
  std::uint8_t codes[2 * 2 * 4] = {};
  std::vector<const void*> seen;
  using pqkv::space::managed;
  const pqkv::codebook_view<managed> book{pqkv::make_view<managed>(centroids, 2, 2, 4, 16), pqkv::make_view<managed>(mean, 2, 8)};
  CHECK_THROWS_WITH_AS(
      pqkv::encode(recording_policy{&seen}, pqkv::make_view<managed>(keys, 2, 3, 8), book, pqkv::make_view<managed>(codes, 2, 2, 4)),
      "pqkv::encode: codes.extent(2) must be 3 (n, from keys), got 4", pqkv::shape_error);
  CHECK(seen.empty());
}

namespace {
struct doubling {};  // an operation that the library does not have
}  // namespace

template <>
struct pqkv::kernel<doubling, pqkv::backend::host> {
  static int run(int x) { return 2 * x; }
};

TEST_CASE("an operation of one's own goes through the same seam") { CHECK(pqkv::kernel<doubling, pqkv::backend::host>::run(21) == 42); }
