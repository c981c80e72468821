// SPDX-License-Identifier: Apache-2.0
// The joint-code index on the host: a task is one head.
#pragma once

#include "../../exec/host.hpp"
#include "../../search/cell_index.hpp"

namespace pqkv {
namespace detail {

/// Digits of cells: cell = sum over j of code j * c^(m - 1 - j).
struct cell_digits {
  std::size_t m;
  unsigned bits;

  template <class Index>
  static cell_digits of(const Index& index) {
    const std::size_t m = index.cell_codes.extent(0);
    unsigned joint = 0;
    while ((std::size_t{1} << joint) < index.cells()) ++joint;
    return {m, joint / static_cast<unsigned>(m)};
  }
  std::size_t cell(const std::uint8_t* code, std::size_t stride) const {
    std::size_t value = 0;
    for (std::size_t j = 0; j < m; ++j) value = value << bits | code[j * stride];
    return value;
  }
};

}  // namespace detail

template <>
struct kernel<op::count_cells, backend::host> {
  template <class P>
  static void run(const P& policy, codes_view<> codes, std::size_t first, std::size_t last, mutable_cell_index_view<> index) {
    static_assert(exec::runs_whole_call<typename P::runner_type>,
                  "pqkv: count_cells changes an index once per call; give it a runner of whole calls, not exec::slice");
    for (std::size_t head = 0; head < codes.extent(0); ++head) {
      const bool fresh = index.first(head) == index.last(head);
      const std::size_t counted = last - (fresh ? first : index.first(head)), room = index.ids.extent(1);
      require_ok(detail::checks("count_cells")
                     .that(fresh || index.last(head) == first, status::code::value, "first", "index.last, where the counted tokens end",
                           static_cast<double>(index.last(head)), static_cast<double>(first))
                     .that(counted <= room, status::code::capacity, "index.ids.extent(1)", "tokens counted, room for at least",
                           static_cast<double>(counted), static_cast<double>(room)));
    }
    const auto digits = detail::cell_digits::of(index);
    policy.runner.run(codes.extent(0), [&](std::size_t head) {
      if (index.first(head) == index.last(head))
        index.first(head) = index.merged(head) = index.last(head) = static_cast<std::uint32_t>(first);
      for (std::size_t t = first; t < last; ++t) ++index.counts(head, digits.cell(&codes(head, 0, t), codes.stride(1)));
      index.last(head) = static_cast<std::uint32_t>(last);
    });
  }
};

template <>
struct kernel<op::merge_tails, backend::host> {
  template <class P>
  static void run(const P& policy, codes_view<> codes, mutable_cell_index_view<> index) {
    const auto digits = detail::cell_digits::of(index);
    const std::size_t cells = index.cells();
    policy.runner.run(codes.extent(0), [&](std::size_t head) {
      if (index.merged(head) == index.last(head)) return;
      // Offsets first hold where the next id of a cell goes, one place ahead; after the sort they are the lists' beginnings.
      std::uint32_t* offset = &index.offsets(head, 0);
      offset[0] = 0;
      std::uint32_t total = 0;
      for (std::size_t cell = 0; cell < cells; ++cell) {
        offset[cell + 1] = total;
        total += index.counts(head, cell);
      }
      for (std::size_t t = index.first(head); t < index.last(head); ++t)
        index.ids(head, offset[digits.cell(&codes(head, 0, t), codes.stride(1)) + 1]++) = static_cast<std::int32_t>(t);
      index.merged(head) = index.last(head);
    });
  }
};

}  // namespace pqkv
