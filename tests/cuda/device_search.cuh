// SPDX-License-Identifier: Apache-2.0
// A problem of the host's search tests on a device, and retrieve() there.
#pragma once

#include "on_device.cuh"

#include "cases/search_cases.hpp"

namespace pqkv_cases {

struct problem_on_device {
  on_device<const float, 3> entries;
  on_device<const float, 1> bias;
  on_device<const std::uint8_t, 3> codes;
  on_device<const pqkv::middle_range, 1> ranges;

  explicit problem_on_device(const search_problem& of)
      : entries(of.table().entries), bias(of.table().bias), codes(of.codes()), ranges(of.ranges()) {}
  pqkv::distance_table_view<device> table() const { return {entries.view(), bias.view()}; }
};

/// run_retrieve() of the host's tests, on the device.
inline retrieved device_retrieve(const device_scratch& scratch, const search_problem& problem, const problem_on_device& there,
                                 pqkv::cell_index_view<device> index, pqkv::group_reduction reduction, pqkv::search_path path,
                                 const std::vector<pqkv::attended_sum>& attended = {}) {
  const search_shape& shape = problem.shape();
  const std::size_t lists = pqkv::score_lists(reduction, shape.h, shape.hq()), k_max = problem.most_selected() + 2, stride = k_max + 3;
  std::vector<std::int32_t> indices(lists * stride, -7);
  std::vector<std::uint32_t> counts(lists, 12345);
  std::vector<std::uint8_t> skipped(shape.hq(), 9);
  const on_device<std::int32_t, 2> indices_there(pqkv::view<std::int32_t, 2>{indices.data(), {lists, k_max}, {stride, 1}});
  const on_device<std::uint32_t, 1> counts_there(pqkv::make_view(counts.data(), lists));
  const on_device<std::uint8_t, 1> skipped_there(pqkv::make_view(skipped.data(), shape.hq()));
  const pqkv::retrieve_params how{.head_dim = shape.d, .reduction = reduction, .path = path};
  if (attended.empty()) {
    pqkv::retrieve(scratch.policy(), there.table(), there.codes.view(), index, there.ranges.view(), indices_there.view(),
                   counts_there.view(), how, skipped_there.view());
  } else {
    const on_device attended_there(pqkv::make_view(attended.data(), attended.size()));
    pqkv::retrieve(scratch.policy(), there.table(), there.codes.view(), index, there.ranges.view(), indices_there.view(),
                   counts_there.view(), how, skipped_there.view(), {}, attended_there.view());
    pqkv::sync(scratch.policy());
  }
  indices = indices_there.bytes();
  indices.resize(lists * stride, -7);
  counts = counts_there.bytes();
  retrieved out;
  out.skipped = skipped_there.bytes();
  out.read(indices, counts, k_max, stride);
  return out;
}

/// Lists of any length, of which anything is selected. @param round  which lengths the first lists have
inline search_problem ragged_problem(const search_shape& shape, std::size_t round, random_source& random) {
  search_problem problem(shape, every_table[random.below(std::size(every_table))], every_code[random.below(4)], random);
  for (std::size_t head = 0; head < shape.h; ++head) {
    const std::size_t begin = random.below(300), lengths[] = {0, 1, 7, 255, 256, 300, 5000, 40000, shape.n - begin},
                      length = lengths[(head + round) % std::size(lengths)],
                      ks[] = {0, 1, length, length / 2, length / 64, random.below(length + 1)};
    problem.set_range(head, begin, begin + length, ks[random.below(std::size(ks))]);
  }
  return problem;
}

}  // namespace pqkv_cases
