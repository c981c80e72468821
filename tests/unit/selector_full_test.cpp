// SPDX-License-Identifier: Apache-2.0
// The selector `full` is dense attention over every token, at prefill and as the sequence grows.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"

TEST_CASE("selector full: attends to all tokens and lists the whole middle") {
  using namespace pqkv_cases;
  using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::full>;
  const pqkv::exec::host<> cpu;
  const auto p = cache_params<cache_type>(1, 2, 6, 24, 150, 5, 7, 3);
  cache_type cache(p);
  const prompt all(2, 120, 24, 3);
  slot_model<float> model(2, 24, p.budget);
  const auto part = [](pqkv::view<const float, 3> rows, std::size_t first, std::size_t count) { return rows.slice(1, first, count); };
  cache.prefill(cpu, 0, part(all.keys.view(), 0, 80), part(all.values.view(), 0, 80));
  model.add(part(all.keys.view(), 0, 80), part(all.values.view(), 0, 80));
  for (std::size_t t = 80; t < 120; ++t) {
    auto key = part(all.keys.view(), t, 1), value = part(all.values.view(), t, 1);
    const auto as_step = [](pqkv::view<const float, 3> rows) {  // [h, 1, d] as [1, h, d]
      return pqkv::view<const float, 3>{rows.data, {1, rows.extent(0), rows.extent(2)}, {0, rows.stride(0), rows.stride(2)}};
    };
    cache.append(cpu, as_step(key), as_step(value));
    model.add(key, value);
    model.commit();
    const std::vector<float> query = random_query(cache, t);
    const reply r = ask(cpu, cache, query);
    std::vector<std::int32_t> middle;
    for (std::size_t i = 5; i < t + 1 - 7; ++i) middle.push_back(static_cast<std::int32_t>(i));
    for (std::size_t q = 0; q < 6; ++q) {
      REQUIRE(r.list(q / 3) == middle);
      REQUIRE(relative_error(r.out.data() + q * 24, model.attend(query, q, middle).out) < 1e-5);
    }
  }
  CHECK(cache.statistics(0).tokens_attended == (81 + 120) * 40 / 2);
  CHECK(cache.statistics(0).index_bytes == 0);
  CHECK(cache_type::plan(p).index_bytes == 0);
  CHECK(cache.retrieve_capacity(0) == 120 - 5 - 7);
}
