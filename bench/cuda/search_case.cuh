// SPDX-License-Identifier: Apache-2.0
// Codes and distance tables of h heads of n tokens on the device, and an index over the codes: what the search is timed on.
#pragma once

#include <pqkv/search/cell_index.hpp>
#include <pqkv/search/distance_table.hpp>

#include "data.cuh"

namespace bench {

/// Codes, and 16 tables, so that replays see different queries.
struct search_case {
  std::size_t h, hq, m, n, c;
  pqkv::pq_shape shape;
  pqkv::device_buffer<float> entries, bias;
  pqkv::device_buffer<std::uint8_t> codes;
  static constexpr std::size_t tables = 16;

  /// @param size  deviation of a table's entries. With 6 no query head is recentred; with 40 and 4 or more subspaces, all are
  search_case(std::size_t heads, std::size_t g, std::size_t subspaces, unsigned bits, std::size_t tokens, float size = 6)
      : h(heads), hq(heads * g), m(subspaces), n(tokens), c(std::size_t{1} << bits), shape{heads, 128, subspaces, bits} {
    entries = normals<float>(tables * hq * m * c, size);
    bias = normals<float>(hq);
    codes = filled<std::uint8_t>(h * m * n, bell_codes{next_stream(), static_cast<std::uint32_t>(c)});
  }
  pqkv::codes_view<device> codes_view() const { return pqkv::as_const(pqkv::make_view<device>(codes.data(), h, m, n)); }
  pqkv::distance_table_view<device> table(int turn) const {
    const float* const first = entries.data() + static_cast<std::size_t>(turn) % tables * hq * m * c;
    return {pqkv::make_view<device>(first, hq, m, c), pqkv::as_const(pqkv::make_view<device>(bias.data(), hq))};
  }
};

/// The memory of a joint-code index, empty at first.
struct index_memory {
  std::size_t h, m, n, cells;
  pqkv::device_buffer<std::uint32_t> counts, offsets, ranges;
  pqkv::device_buffer<std::int32_t> ids;
  pqkv::device_buffer<std::uint8_t> cell_codes;

  index_memory(const pqkv::pq_shape& shape, std::size_t tokens)
      : h(shape.kv_heads),
        m(shape.subspaces),
        n(tokens),
        cells(shape.cells()),
        counts(h * cells, nullptr),
        offsets(h * (cells + 1), nullptr),
        ranges(3 * h, nullptr),
        ids(h * n, nullptr) {
    const pqkv::cell_index digits(shape, 1);
    cell_codes = upload(std::vector<std::uint8_t>(digits.view().cell_codes.data, digits.view().cell_codes.data + m * cells));
  }
  pqkv::mutable_cell_index_view<device> view() const {
    return {pqkv::make_view<device>(counts.data(), h, cells),
            pqkv::make_view<device>(offsets.data(), h, cells + 1),
            pqkv::make_view<device>(ids.data(), h, n),
            pqkv::make_view<device>(ranges.data(), h),
            pqkv::make_view<device>(ranges.data() + h, h),
            pqkv::make_view<device>(ranges.data() + 2 * h, h),
            pqkv::as_const(pqkv::make_view<device>(cell_codes.data(), m, cells))};
  }
  /// As it was at first; only enqueues.
  void clear(void* stream) const {
    for (const auto* part : {&counts, &offsets, &ranges})
      pqkv::detail::check_cuda(cudaMemsetAsync(part->data(), 0, part->size_bytes(), static_cast<cudaStream_t>(stream)), "bench",
                               "cudaMemsetAsync");
  }
  /// All tokens are to be merged again.
  void unmerge(void* stream) const {
    pqkv::detail::check_cuda(cudaMemsetAsync(ranges.data() + h, 0, h * sizeof(std::uint32_t), static_cast<cudaStream_t>(stream)), "bench",
                             "cudaMemsetAsync");
  }
};

}  // namespace bench
