// SPDX-License-Identifier: Apache-2.0
// Layers with a sliding window on a GPU: a streaming cache without sinks, with rows in device memory and in pinned memory under it, against
// attention in double over the window (cases/window_life.hpp). Ends with 77 where there is no GPU.
//
//   sliding_window                all of it
//   sliding_window --seconds S    while the time lasts, for compute-sanitizer
#include "on_device.cuh"

#include <pqkv/device_pqcache.cuh>

#include "cases/window_life.hpp"

namespace {
using namespace pqkv_cases;

template <class Rows>
void lives(const typename Rows::params& rows, const char* what, workload& work, verdict& all) {
  if (!work.another()) return;
  const window_counts counts = live_in_windows<Rows>(pqkv::exec::cuda{}, rows);
  all.check(counts.differing == 0, "%s: %zu of %zu queries differ", what, counts.differing, counts.queries);
  all.check(counts.miscounted == 0, "%s: %zu steps are counted wrongly", what, counts.miscounted);
  all.check(counts.bounded > 400 && counts.queries > counts.bounded + 200, "%s: %zu of %zu queries leave tokens out", what, counts.bounded,
            counts.queries);
}

template <class T, class Eviction>
void tiers(const char* what, workload& work, verdict& all) {
  using rows_type = pqkv::tiered_rows<pqkv::dense_rows<T, pqkv::space::pinned>, device, Eviction>;
  for (const std::size_t recent : {1u, 24u, 64u})
    for (const std::size_t block : {1u, 16u, 256u}) {
      typename rows_type::params rows;
      rows.sink_tokens = 0, rows.recent_tokens = recent, rows.block_tokens = block, rows.cache_tokens = recent == 24 ? 0 : 256;
      lives<rows_type>(rows, what, work, all);
    }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  workload work(argc, argv, 1);
  verdict memory("a window in device memory"), pinned("a window in pinned memory");
  work.part(0.3);
  lives<pqkv::dense_rows<float, device>>({}, "rows in device memory", work, memory);
  work.part(1);
  tiers<float, pqkv::eviction::lfu>("rows in pinned memory", work, pinned);
  work.print();
  const bool passed = memory.passed(3);
  return pinned.passed(work.small() ? 3 : 27) && passed ? 0 : 1;
}
