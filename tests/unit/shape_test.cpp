// SPDX-License-Identifier: Apache-2.0
// The shape of a product quantizer: its derived numbers, and which shapes are refused with which text.
#include <pqkv/quantize/shape.hpp>

#include <doctest/doctest.h>

#include <set>
#include <string>

using pqkv::can_quantize;
using pqkv::pq_shape;

static_assert(can_quantize({8, 128, 2, 6}).ok());

namespace {
std::string refusal(const pq_shape& shape) {
  const pqkv::status checked = can_quantize(shape, "codebook");
  return checked.ok() ? "" : checked.message();
}
}  // namespace

TEST_CASE("derived numbers") {
  constexpr pq_shape shape{8, 128, 4, 5};
  CHECK(shape.sub_dim() == 32);
  CHECK(shape.centroids() == 32);
  CHECK(shape.joint_bits() == 20);
  CHECK(shape.cells() == 1048576);
  CHECK(shape == pq_shape{8, 128, 4, 5});
  CHECK(shape != pq_shape{8, 128, 4, 6});
  CHECK(pq_shape{8, 128}.subspaces == 2);
  CHECK(pq_shape{8, 128}.bits == 6);
}

TEST_CASE("a shape is accepted exactly when it meets the bounds") {
  const std::set<std::size_t> every_m{1, 2, 4, 8, 16};
  std::size_t wrong = 0, accepted = 0;
  for (const std::size_t h : {0u, 1u, 64u})
    for (std::size_t d = 0; d <= 300; ++d)
      for (std::size_t m = 0; m <= 33; ++m)
        for (unsigned b = 0; b <= 10; ++b) {
          const bool good = h >= 1 && every_m.contains(m) && b >= 4 && b <= 8 && d > 0 && d % 8 == 0 && d <= 256 && d % m == 0;
          const pqkv::status checked = can_quantize({h, d, m, b});
          wrong += checked.ok() != good;
          wrong += !good && checked.what != pqkv::status::code::value;
          accepted += good;
        }
  CHECK(wrong == 0);
  CHECK(accepted == 2 * 5 * (4 * 32 + 16));
}

TEST_CASE("a refusal names parameter, rule and what came") {
  CHECK(refusal({8, 128, 2, 6}) == "");
  CHECK(refusal({0, 128, 2, 6}) == "pqkv::codebook: kv_heads must be at least 1 (h), got 0");
  CHECK(refusal({8, 128, 3, 6}) == "pqkv::codebook: subspaces must be 1, 2, 4, 8 or 16, got 3");
  CHECK(refusal({8, 128, 32, 6}) == "pqkv::codebook: subspaces must be 1, 2, 4, 8 or 16, got 32");
  CHECK(refusal({8, 128, 0, 6}) == "pqkv::codebook: subspaces must be 1, 2, 4, 8 or 16, got 0");
  CHECK(refusal({8, 128, 2, 3}) == "pqkv::codebook: bits must be at least 4 (b), got 3");
  CHECK(refusal({8, 128, 2, 9}) == "pqkv::codebook: bits must be at most 8 (b), got 9");
  CHECK(refusal({8, 100, 2, 6}) == "pqkv::codebook: head_dim must be a multiple of 8, got 100");
  CHECK(refusal({8, 0, 2, 6}) == "pqkv::codebook: head_dim must be a multiple of 8, got 0");
  CHECK(refusal({8, 264, 2, 6}) == "pqkv::codebook: head_dim must be at most 256 (d), got 264");
  CHECK(refusal({8, 24, 16, 6}) == "pqkv::codebook: head_dim must be a multiple of 16 (m), got 24");
  CHECK(can_quantize({0, 0, 0, 0}).message().starts_with("pqkv::pq_shape: "));
}
