// SPDX-License-Identifier: Apache-2.0
// Which coordinates of a key form a subspace. Product quantization codes each subspace by itself, so coordinates that vary together belong
// into one. Rotary embedding turns coordinates in pairs by the token's position: a pair that is cut in two costs both codes precision.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/error.hpp"
#include "../core/view.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct order_axes {};  // run(policy, rows [n, d], axis_map, out [n, d]): out[r, i] = rows[r, map(i)]
}  // namespace op

/// The order in which a row's coordinates are cut into subspaces. Any order gives right answers; a good one finds more.
enum class axis_order : std::uint8_t {
  contiguous,    // as they stand: for models that rotate neighbours (2 i, 2 i + 1), and for keys without rotary embedding
  rotary_halves  // for models that rotate i with i + d / 2, as Llama in Hugging Face's layout: both are in one subspace
};

/// Where the coordinates of an ordered row come from, by value into kernels.
struct axis_map {
  axis_order order = axis_order::contiguous;
  std::uint32_t subspaces = 1;  // m
  std::uint32_t head_dim = 0;   // d

  PQKV_HD constexpr bool is_identity() const { return order == axis_order::contiguous; }
  /// The row's coordinate that stands at place i. Of rotary_halves subspace j has [j ds / 2, (j + 1) ds / 2), and those of the upper half.
  PQKV_HD constexpr std::size_t operator()(std::size_t i) const {
    if (is_identity()) return i;
    const auto place = static_cast<std::uint32_t>(i);
    const std::uint32_t run = head_dim / subspaces / 2, j = place / (2 * run), within = place - 2 * run * j;
    return within < run ? j * run + within : head_dim / 2 + j * run + (within - run);
  }
};

/// Whether rows of d coordinates can be cut into m subspaces in that order.
constexpr status can_order_axes(const char* function, const char* name, axis_order order, std::size_t m, std::size_t d) noexcept {
  return detail::checks(function)
      .that(order <= axis_order::rotary_halves, status::code::value, name, relation::stated, "an axis_order", 1,
            static_cast<double>(order))
      .that(order == axis_order::contiguous || (m != 0 && d % (2 * m) == 0), status::code::value, name, relation::stated,
            "contiguous unless head_dim is a multiple of 2 * subspaces; head_dim", static_cast<double>(2 * m), static_cast<double>(d));
}

}  // namespace pqkv
