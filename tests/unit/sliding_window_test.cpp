// SPDX-License-Identifier: Apache-2.0
// Layers with a sliding window: a streaming cache without sinks, in one memory and in two, on the host and on the backend that queues. On a
// GPU: cuda/sliding_window.cu.
#include <doctest/doctest.h>

#include "cases/queued_backend.hpp"
#include "cases/sanitized.hpp"
#include "cases/window_life.hpp"

namespace {
using namespace pqkv_cases;

void check(const window_counts& counts) {
  CHECK(counts.differing == 0);
  CHECK(counts.miscounted == 0);
  CHECK(counts.bounded > 400);
  CHECK(counts.queries > counts.bounded + 200);
}

/// Blocks of several sizes, and copies of fewer tokens than the window has, of as many, and of more.
template <class Rows, class P>
void check_tiers(const P& policy) {
  std::size_t turn = 0;
  for (const std::size_t recent : {1u, 24u, 64u})
    for (const std::size_t block : {1u, 16u, 256u}) {
      if (!looks_at(turn++)) continue;
      CAPTURE(recent);
      CAPTURE(block);
      typename Rows::params rows;
      rows.sink_tokens = 0, rows.recent_tokens = recent, rows.block_tokens = block, rows.cache_tokens = recent == 24 ? 0 : 256;
      if constexpr (requires { rows.slow.folder; }) rows.slow.folder = "/tmp";
      check(live_in_windows<Rows>(policy, rows));
    }
}
using pqkv::dense_rows;
using pqkv::tiered_rows;
}  // namespace

TEST_CASE("sliding window: rows in memory") { check(live_in_windows<dense_rows<float>>(pqkv::exec::host<>{})); }
TEST_CASE("sliding window: rows in slow memory and in a file, copies in fast memory") {
  check_tiers<tiered_rows<dense_rows<float>>>(pqkv::exec::host<>{});
  check_tiers<tiered_rows<pqkv::file_rows<float>, pqkv::space::host, pqkv::eviction::lru>>(pqkv::exec::host<>{});
}
TEST_CASE("sliding window: rows in device memory, by the backend that queues") {
  queue work;
  check(live_in_windows<dense_rows<float, pqkv::space::device>>(queued_policy{&work}));
}
TEST_CASE("sliding window: rows in pinned memory under a device's, by the backend that queues") {
  queue work;
  check_tiers<tiered_rows<dense_rows<float, pqkv::space::pinned>, pqkv::space::device>>(queued_policy{&work});
}
