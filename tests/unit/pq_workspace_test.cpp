// SPDX-License-Identifier: Apache-2.0
// The memory that ranking works in: parts that do not overlap and are all inside of what was counted, and ordered queries only where
// axes are ordered.
#include <doctest/doctest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include <pqkv/search/pq_workspace.hpp>

TEST_CASE("pq_workspace: parts lie one behind the other, in the bytes that were counted") {
  for (const pqkv::axis_order axes : {pqkv::axis_order::contiguous, pqkv::axis_order::rotary_halves, pqkv::axis_order::weighted_pairs})
    for (const std::size_t fine : {0u, 4u}) {
      pqkv::pq_index_shape shape;
      shape.kv_heads = 2, shape.head_dim = 16, shape.capacity = 50, shape.axes = axes, shape.fine_subspaces = fine;
      CHECK(shape.axis_places().is_identity() == (axes == pqkv::axis_order::contiguous));
      pqkv::arena count;
      pqkv::pq_workspace<>::place(count, shape, 3, 4, pqkv::group_reduction::none);
      const pqkv::buffer<std::byte> memory(count.used_bytes());
      pqkv::arena carve(memory);
      const auto work = pqkv::pq_workspace<>::place(carve, shape, 3, 4, pqkv::group_reduction::none);
      std::vector<std::pair<const std::byte*, const std::byte*>> parts;
      const auto add = [&](const auto& part) {
        if (part.data != nullptr)
          parts.emplace_back(reinterpret_cast<const std::byte*>(part.data), reinterpret_cast<const std::byte*>(part.data + part.size()));
      };
      add(work.table.entries), add(work.table.bias), add(work.fine_table.entries), add(work.fine_table.bias), add(work.skipped);
      add(work.shortlist), add(work.lengths), add(work.shortlist_ranges), add(work.outcomes), add(work.ordered);
      CHECK(parts.size() == 4 + (axes == pqkv::axis_order::contiguous ? 0 : 1) + (fine == 0 ? 0 : 5));
      CHECK(work.ordered.size() == (axes == pqkv::axis_order::contiguous ? 0 : 3 * 4 * 16));
      std::sort(parts.begin(), parts.end());
      CHECK(parts.front().first >= memory.data());
      CHECK(parts.back().second <= memory.data() + memory.size());
      for (std::size_t i = 1; i < parts.size(); ++i) CHECK(parts[i].first >= parts[i - 1].second);
    }
}
