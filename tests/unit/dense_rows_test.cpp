// SPDX-License-Identifier: Apache-2.0
// A cache's own rows: K and V side by side on a cache line, each where its position says, none on top of another; bytes counted before
// they are taken, also where they cannot be; parts that are the rows of a slot and nothing more.
#include <doctest/doctest.h>

#include <cstdint>
#include <new>
#include <set>

#include <pqkv/cache/dense_rows.hpp>
#include <pqkv/detail/host/memory.hpp>

#include "cases/inputs.hpp"

namespace {
using namespace pqkv_cases;
const pqkv::exec::host<pqkv::isa::scalar> cpu;

float mark(std::size_t head, std::size_t t, std::size_t i, bool value) {
  return static_cast<float>((head * 31 + t * 7 + i) % 251) * (value ? -1.0f : 1.0f);
}

template <class T>
void check_rows(const pqkv::cache_shape& shape) {
  const pqkv::dense_rows<T> rows(cpu, shape);
  const std::size_t heads = shape.batch * shape.kv_heads, n = shape.capacity, d = shape.head_dim;
  const auto written = rows.view();
  static_assert(pqkv::kv_rows<typename pqkv::dense_rows<T>::view_type>);
  REQUIRE(written.heads() == heads);
  REQUIRE(written.tokens() == n);
  REQUIRE(written.head_dim() == d);
  const std::size_t row_bytes = pqkv::dense_rows<T>::row_elements(d) * sizeof(T);
  CHECK(row_bytes % pqkv::cache_line_bytes == 0);
  CHECK(row_bytes >= 2 * d * sizeof(T));
  CHECK(row_bytes < 2 * d * sizeof(T) + pqkv::cache_line_bytes);
  CHECK(rows.size_bytes() == heads * n * row_bytes);
  CHECK(rows.size_bytes() == pqkv::dense_rows<T>::required_bytes(shape));
  CHECK(rows.room(0) == n);

  std::set<const void*> places;
  for (std::size_t head = 0; head < heads; ++head)
    for (std::size_t t = 0; t < n; ++t) {
      const auto key = written.key_slot(head, t), value = written.value_slot(head, t);
      REQUIRE(key.stride == 1);
      REQUIRE(value.stride == 1);
      REQUIRE(reinterpret_cast<std::uintptr_t>(key.data) % pqkv::cache_line_bytes == 0);
      REQUIRE(value.data == key.data + d);  // one run of lines
      REQUIRE(float(key.data[0]) == 0.0f);  // zeroed
      REQUIRE(places.insert(key.data).second);
      for (std::size_t i = 0; i < d; ++i) key.data[i] = T(mark(head, t, i, false)), value.data[i] = T(mark(head, t, i, true));
    }
  const auto store = rows.store();
  std::size_t wrong = 0;
  for (std::size_t head = 0; head < heads; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i)
        wrong +=
            float(store.key(head, t).data[i]) != mark(head, t, i, false) || float(store.value(head, t).data[i]) != mark(head, t, i, true);
  CHECK(wrong == 0);

  // The rows of a slot of a few tokens: runs of their bytes, a head each.
  const pqkv::slot_parts parts = rows.parts();
  REQUIRE(parts.count == 1);
  CHECK(parts.part[0].segments == shape.kv_heads);
  for (std::size_t slot = 0; slot < shape.batch; ++slot)
    for (std::size_t head = 0; head < shape.kv_heads; ++head)
      CHECK(static_cast<const void*>(parts.part[0].segment(slot, head)) == store.key(slot * shape.kv_heads + head, 0).data);
  CHECK(parts.part[0].bytes(3) == 3 * row_bytes);
  CHECK(parts.bytes(n) * shape.batch == rows.size_bytes());
}
}  // namespace

TEST_CASE("dense rows: every row of every type where its position says") {
  for (const std::size_t d : {8u, 24u, 64u, 136u}) {
    const pqkv::cache_shape shape{.batch = 3, .kv_heads = 2, .query_heads = 2, .head_dim = d, .capacity = 13};
    check_rows<float>(shape);
    check_rows<pqkv::half>(shape);
    check_rows<pqkv::bfloat16>(shape);
  }
  check_rows<float>({.batch = 1, .kv_heads = 1, .query_heads = 1, .head_dim = 8, .capacity = 1});
}

TEST_CASE("dense rows: bytes are the same counted, and more than can be counted is the most there is") {
  const pqkv::cache_shape huge{.batch = 65535, .kv_heads = 65535, .query_heads = 65535, .head_dim = 256, .capacity = 2147483647};
  const std::size_t most = pqkv::dense_rows<float>::required_bytes(huge);
  CHECK(most > static_cast<std::size_t>(-1) / 2);
  volatile std::size_t unknown = huge.capacity;  // a compiler that knows the size would warn of it
  pqkv::cache_shape asked = huge;
  asked.capacity = unknown;
  CHECK_THROWS_AS(pqkv::dense_rows<float>(cpu, asked), std::bad_alloc);
  pqkv::cache_shape near_wrap = huge;  // 2^16 * 2^16 * 2^22 * 2^9 * 2^2 is 2^65
  near_wrap.capacity = std::size_t{1} << 22;
  CHECK(pqkv::dense_rows<float>::required_bytes(near_wrap) >= pqkv::dense_rows<float>::required_bytes(huge));
  near_wrap.capacity = std::size_t{1} << 19;
  CHECK(pqkv::dense_rows<float>::required_bytes(near_wrap) == std::size_t{65535} * 65535 * (std::size_t{1} << 19) * 2048);
}

TEST_CASE("dense rows: a view of one that moved is where it was") {
  const pqkv::cache_shape shape{.batch = 1, .kv_heads = 1, .query_heads = 1, .head_dim = 8, .capacity = 4};
  pqkv::dense_rows<float> rows(cpu, shape);
  const float* const first = rows.view().key(0, 0).data;
  const pqkv::dense_rows<float> moved = std::move(rows);
  CHECK(moved.view().key(0, 0).data == first);
  CHECK(moved.size_bytes() == 4 * 64);
  CHECK(pqkv::dense_rows<float>().size_bytes() == 0);
}
