// SPDX-License-Identifier: Apache-2.0
// What is kept and given of a step's answers, each operation by itself: statistics of the queries that a pass answered, and the lists of
// retrieve().
#include <doctest/doctest.h>

#include <vector>

#include <pqkv/detail/host/sequence_steps.hpp>
#include <pqkv/selector/concept.hpp>

#include "cases/inputs.hpp"
#include "cases/step_table.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv_cases::step_table;
using pqkv::exec::host;
template <class Op>
using on_host = pqkv::kernel<Op, pqkv::backend::host>;
}  // namespace

TEST_CASE("count: statistics of the queries that a pass answered, and of no slot behind the step's end") {
  table t;
  const std::size_t tokens = 4, lists = 2, hq = 4;
  t.sequences = {prompt_of(30, true), prompt_of(30, true), {}, {}};
  std::vector<std::uint32_t> of_plan = {1, 1, 0, 0}, listed = {3, 4, 5, 6, 0, 0, 9, 9};
  std::vector<pqkv::token_span> spans(tokens * lists, {2, 25, 30});
  std::vector<pqkv::middle_range> ranges = {{2, 25, 3}, {2, 25, 3}, {2, 24, 3}, {2, 24, 3}, {}, {}, {2, 9, 1}, {2, 9, 1}};
  std::vector<float> query(tokens * hq * d, 1.0f);
  query[(1 * hq + 2) * d + 3] = nonfinite(1);
  query[(1 * hq + 2) * d + 4] = nonfinite(1);  // the same query head
  query[(3 * hq + 0) * d] = nonfinite(0);      // of a token behind the end
  const pqkv::step_plan<pqkv::space::host> plan{pqkv::make_view(of_plan.data(), tokens), pqkv::make_view(spans.data(), tokens * lists),
                                                pqkv::make_view(ranges.data(), tokens * h), pqkv::make_view(listed.data(), tokens * lists)};
  const auto traffic = [](const pqkv::middle_range& middle) { return pqkv::selector::traffic{middle.size(), 100}; };
  const std::vector<std::uint32_t> slots = {1, 0}, counts = {3, 1};  // the plan begins with the second token, three are left
  const auto count = [&](bool attends) {
    on_host<pqkv::op::count_attended>::run(
        host<>{}, t.slots(),
        pqkv::attended_queries<pqkv::space::host>{plan, 1, step_of(slots, counts),
                                                  pqkv::as_const(pqkv::make_view(query.data(), tokens * hq, d)), lists, 64, attends},
        traffic);
  };
  count(true);
  CHECK(t.statistics[1].steps == 2);
  CHECK(t.statistics[0].steps == 1);
  CHECK(t.statistics[1].tokens_attended == (7 + 7 + 3 + 4) / 2 + (7 + 7 + 5 + 6) / 2);
  CHECK(t.statistics[1].attended_bytes == (7 + 7 + 3 + 4 + 7 + 7 + 5 + 6) * 64);
  CHECK(t.statistics[1].index_bytes == 23 + 22);
  CHECK(t.statistics[1].selector_bytes == 200);
  CHECK(t.statistics[0].tokens_attended == 7);
  CHECK(t.statistics[0].index_bytes == 0);  // nothing was ranked
  CHECK(t.statistics[1].nonfinite_queries == 1);
  CHECK(t.statistics[0].nonfinite_queries == 0);
  count(false);  // retrieve() looks at the queries alone
  CHECK(t.statistics[1].steps == 2);
  CHECK(t.statistics[1].nonfinite_queries == 2);
}

TEST_CASE("write lists: what was found, the whole middle where it is attended to whole, and -1 behind both") {
  table t;
  t.sequences = {prompt_of(30, true), prompt_of(12, false), {}, {}};
  const std::size_t k_max = 8;
  std::vector<std::int32_t> found = {4, 9, 11, 0, 5, 6, 0, 0, 0, 0, 0, 0}, indices(4 * 1 * k_max, -7);  // [4 tokens, 1 list, 3]
  std::vector<std::uint32_t> counts(4, 77), listed = {3, 2, 0, 0}, of_plan = {0, 0, 1, 2};
  std::vector<pqkv::token_span> spans(4);
  std::vector<pqkv::middle_range> ranges(4 * h);
  const std::vector<std::uint32_t> slots = {0, 1, 2}, per_row = {2, 1, 1};
  const pqkv::step_plan<pqkv::space::host> plan{pqkv::make_view(of_plan.data(), 4), pqkv::make_view(spans.data(), 4),
                                                pqkv::make_view(ranges.data(), 4 * h), pqkv::make_view(listed.data(), 4)};
  const pqkv::selector::coverage_rule late{pqkv::selector::coverage::everything, pqkv::selector::coverage::listed};
  on_host<pqkv::op::write_lists>::run(
      host<>{}, {pqkv::make_view(std::as_const(t.sequences).data(), batch), step_of(slots, per_row), 0, t.rule.flat(), late}, plan,
      pqkv::as_const(pqkv::make_view(found.data(), 4, 3)), pqkv::make_view(indices.data(), 4, 1, k_max),
      pqkv::make_view(counts.data(), 4, 1));
  CHECK(counts == std::vector<std::uint32_t>{3, 2, 5, 0});
  const std::vector<std::int32_t> wanted = {4, 9, 11, -1, -1, -1, -1, -1, 0,  5,  -1, -1, -1, -1, -1, -1,
                                            2, 3, 4,  5,  6,  -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  CHECK(indices == wanted);
}
