// SPDX-License-Identifier: Apache-2.0
// The parts of an index where the caller places them: a sequence's share, cells by hand, what counting and uncounting change, and which
// bytes a sequence is made of. That the parts hold what training finds is tested with their owner (pq_index_test.cpp).
#include <doctest/doctest.h>

#include <vector>

#include <pqkv/pqkv.hpp>

namespace {
using pqkv::leaving_tokens;
const pqkv::pq_index_shape shape{2, 2, 32, 2, 4, 40, pqkv::key_metric::squared_l2, 0, 8, pqkv::search_path::joint};  // capacity: 40

/// A view of zeros, and the memory under it.
struct placed {
  std::vector<std::max_align_t> memory =
      std::vector<std::max_align_t>(pqkv::pq_index<>::required_bytes(shape) / sizeof(std::max_align_t) + 8);
  pqkv::pq_index_view<> all = [&] {
    pqkv::arena from(memory.data(), memory.size() * sizeof(std::max_align_t));
    return pqkv::pq_index_view<>::place(from, shape);
  }();
};
}  // namespace

TEST_CASE("pq index view: a sequence's share is a part of all") {
  const placed memory;
  const auto& all = memory.all;
  const auto second = all.sequence(1);
  CHECK(second.kv_heads == 2);
  CHECK(&second.codes(0, 1, 3) == &all.codes(2, 1, 3));
  CHECK(&second.book.centroids(1, 0, 5, 7) == &all.book.centroids(3, 0, 5, 7));
  CHECK(&second.index.counts(1, 9) == &all.index.counts(3, 9));
  CHECK_FALSE(second.has_fine());
}

TEST_CASE("pq index view: cells, counts and what is forgotten, by hand") {
  const placed memory;
  const auto own = memory.all.sequence(1);
  for (std::size_t t = 0; t < 10; ++t) own.codes(0, 0, t) = static_cast<std::uint8_t>(t % 3), own.codes(0, 1, t) = 5;
  CHECK(own.cell(0, 0) == 5);
  CHECK(own.cell(0, 2) == 2 * 16 + 5);
  memory.all.commit({1, 4, 8});  // tokens 4 to 7 of sequence 1: codes 1, 2, 0, 1
  CHECK(own.index.counts(0, 5) == 1);
  CHECK(own.index.counts(0, 16 + 5) == 2);
  CHECK(own.index.counts(0, 32 + 5) == 1);
  CHECK(own.index.counts(1, 0) == 4);  // the other head's codes are 0
  CHECK(own.index.first(0) == 4);
  CHECK(own.index.last(0) == 8);
  CHECK(memory.all.index.last(0) == 0);  // sequence 0 has none
  own.index.merged(0) = 8;
  memory.all.forget({1, 7, 8}, pqkv::sequence{});
  CHECK(own.index.counts(0, 16 + 5) == 1);
  CHECK(own.index.last(0) == 7);
  CHECK(own.index.merged(0) == 7);                 // what was merged behind it is void
  memory.all.forget({1, 7, 7}, pqkv::sequence{});  // nothing
  CHECK(own.index.last(0) == 7);
}

TEST_CASE("pq index view: the bytes of a sequence") {
  const placed memory;
  const auto bytes = [](const pqkv::slot_parts& parts, std::size_t n) {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < parts.count; ++i) sum += parts.part[i].segments * parts.part[i].bytes(n);
    return sum;
  };
  const std::size_t codebook = 2 * (2 * 16 * 16 + 32) * sizeof(float);  // centroids and mean of two heads
  CHECK(bytes(memory.all.learnt_parts(), 0) == codebook);
  CHECK(bytes(memory.all.learnt_parts(), 7) == codebook + 2 * 2 * 7);
  const std::size_t index = 2 * (256 + 257 + 3) * sizeof(std::uint32_t);  // counts, offsets, lengths
  CHECK(bytes(memory.all.parts(), 7) == codebook + 2 * 2 * 7 + index + 2 * 7 * sizeof(std::int32_t));
}
