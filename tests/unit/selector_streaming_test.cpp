// SPDX-License-Identifier: Apache-2.0
// The selector `streaming` attends to sinks and window alone.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"

TEST_CASE("selector streaming: the middle is not attended to, whatever the budget says") {
  using namespace pqkv_cases;
  using cache_type = pqkv::pqcache<pqkv::dense_rows<pqkv::half>, pqkv::selector::streaming>;
  const pqkv::exec::host<> cpu;
  const auto p = cache_params<cache_type>(1, 2, 6, 24, 150, 5, 7, 50);
  cache_type cache(p);
  prompt given(2, 120, 24, 3);
  prefill(cpu, cache, 0, given);
  slot_model<pqkv::half> model(2, 24, p.budget);
  model.add(given.keys.view(), given.values.view());
  model.commit();
  const std::vector<float> query = random_query(cache, 4);
  const reply r = ask(cpu, cache, query);
  CHECK(cache.retrieve_capacity(0) == 0);
  for (std::size_t q = 0; q < 6; ++q) {
    CHECK(r.counts[q / 3] == 0);
    CHECK(relative_error(r.out.data() + q * 24, model.attend(query, q, {}).out) < 1e-5);
  }
  CHECK(cache.statistics(0).tokens_attended == 12);
  CHECK(cache.statistics(0).attended_bytes == 12 * 2 * 2 * 24 * sizeof(pqkv::half));
  CHECK(cache.statistics(0).selector_bytes == 0);
}
