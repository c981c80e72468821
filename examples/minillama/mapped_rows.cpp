// SPDX-License-Identifier: Apache-2.0
#include "mapped_rows.hpp"

namespace minillama {

std::optional<std::size_t> hand_over_rows(const mapped_file& file, std::span<const std::byte> tensor, weight_type type, std::size_t columns,
                                          const row_taker& take) {
  constexpr std::size_t read_at_once = std::size_t{1} << 20;
  const std::size_t row_bytes = columns * element_bytes(type);
  std::size_t forgotten = 0;
  if (row_bytes == 0) return std::nullopt;
  for (std::size_t row = 0, end = row_bytes; end <= tensor.size(); ++row, end += row_bytes) {
    const auto elements = tensor.subspan(end - row_bytes, row_bytes);
    if (const std::size_t finite = first_non_finite(type, elements); finite != columns) return row * columns + finite;
    take(row, elements);
    if (end - forgotten < read_at_once && end != tensor.size()) continue;
    file.forget(tensor.subspan(forgotten, end - forgotten));
    forgotten = end;
  }
  return std::nullopt;
}

}  // namespace minillama
