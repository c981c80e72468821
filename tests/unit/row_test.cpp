// SPDX-License-Identifier: Apache-2.0
// A row of strided keys: where it begins and how far its elements are apart.
#include <doctest/doctest.h>

#include <pqkv/core/row.hpp>

TEST_CASE("row_of names the row that the view's strides mean") {
  float memory[2 * 3 * 4 * 2];
  for (int i = 0; i < 48; ++i) memory[i] = static_cast<float>(i);
  const pqkv::view<float, 3> padded{memory, {2, 3, 4}, {24, 8, 2}};  // every other float
  for (std::size_t head = 0; head < 2; ++head)
    for (std::size_t token = 0; token < 3; ++token) {
      const pqkv::kv_row<float> row = pqkv::row_of(padded, head, token);
      CHECK(row.stride == 2);
      for (std::size_t i = 0; i < 4; ++i) CHECK(row.data[i * row.stride] == padded(head, token, i));
    }
  const pqkv::view<const float, 3> transposed{memory, {2, 4, 3}, {12, 1, 4}};
  CHECK(pqkv::row_of(transposed, 1, 3).data == memory + 15);
  CHECK(pqkv::row_of(transposed, 1, 3).stride == 4);
}
