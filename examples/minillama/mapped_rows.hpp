// SPDX-License-Identifier: Apache-2.0
// How readers of mapped files hand a tensor over: row by row, and every megabyte the pages that were read go back to the system, so that
// a file and the weights made of it are never in memory together.
#pragma once
#include <cstddef>
#include <functional>
#include <optional>
#include <span>

#include "mapped_file.hpp"
#include "weight_type.hpp"

namespace minillama {

/// Is given one row of a tensor: its number, and its elements as they are stored.
using row_taker = std::function<void(std::size_t row, std::span<const std::byte> elements)>;

/// Hands over the rows of a tensor up to the first one that holds NaN or infinity.
///
/// @param tensor   its bytes, in `file`
/// @param columns  elements of a row
/// @returns the index of the first element that is not finite, where there is one
std::optional<std::size_t> hand_over_rows(const mapped_file& file, std::span<const std::byte> tensor, weight_type type, std::size_t columns,
                                          const row_taker& take);

}  // namespace minillama
