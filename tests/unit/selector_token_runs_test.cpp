// SPDX-License-Identifier: Apache-2.0
// Runs of tokens: how a range falls into them, which are taken and which tokens of the last one, against sorting all tokens; where their
// rows are, and how many bytes a slot of any length has.
#include <doctest/doctest.h>

#include <limits>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::middle_range;
using pqkv::selector::front_run;
using pqkv::selector::token_runs;

/// Tokens by the score of their runs, equal ones by position: the best k, ascending.
std::vector<std::int32_t> plain_take(const std::vector<float>& scores, const middle_range& range, std::uint32_t length) {
  std::vector<std::int32_t> order;
  for (std::uint32_t t = range.begin; t < range.end; ++t) order.push_back(static_cast<std::int32_t>(t));
  const auto score = [&](std::int32_t t) {
    const float x = scores[static_cast<std::uint32_t>(t) / length - range.begin / length];
    return std::isnan(x) ? -std::numeric_limits<double>::infinity() : std::max(static_cast<double>(x), -1e300);
  };
  std::sort(order.begin(), order.end(),
            [&](std::int32_t a, std::int32_t b) { return score(a) > score(b) || (score(a) == score(b) && a < b); });
  order.resize(range.selected());
  std::sort(order.begin(), order.end());
  return order;
}
}  // namespace

TEST_CASE("token runs: every token of a range is in one run, and computed runs are those that are cut") {
  for (const std::uint32_t length : {1u, 2u, 5u, 16u})
    for (std::uint32_t begin = 0; begin < 20; ++begin)
      for (std::uint32_t end = begin; end < 40; ++end)
        for (const front_run front : {front_run::computed, front_run::kept}) {
          const token_runs runs{{begin, end, 0}, length, front};
          std::uint32_t next = begin, expected = 0, called = 0;
          for (std::uint32_t i = 0; i < runs.count(); ++i) {
            REQUIRE(runs.begin(i) == next);
            REQUIRE(runs.end(i) > next);
            REQUIRE(runs.begin(i) / length == runs.first() + i);
            REQUIRE((runs.end(i) - 1) / length == runs.first() + i);
            next = runs.end(i);
            const bool cut_in_front = runs.begin(i) % length != 0 && front == front_run::computed, cut_behind = next % length != 0;
            REQUIRE(runs.is_computed(i) == (cut_in_front || cut_behind));
            expected += runs.is_computed(i) ? i + 1 : 0;
          }
          REQUIRE(next == end);
          runs.for_each_computed([&](std::uint32_t i) { called += i + 1; });
          REQUIRE(called == expected);
        }
}

TEST_CASE("token runs: the best are taken whole, the last one's first tokens, as if all tokens were sorted") {
  random_source random(0x70);
  const float inf = std::numeric_limits<float>::infinity(), special[] = {inf, -inf, std::numeric_limits<float>::quiet_NaN(), 0.0f, -0.0f};
  for (std::size_t turn = 0; turn < 3000; ++turn) {
    const auto length = static_cast<std::uint32_t>(1 + random.below(20)), begin = static_cast<std::uint32_t>(random.below(50));
    const auto size = static_cast<std::uint32_t>(1 + random.below(300));
    const middle_range range{begin, begin + size, static_cast<std::uint32_t>(random.below(size + 3))};
    const token_runs runs{range, length};
    std::vector<float> scores(runs.count());
    for (float& x : scores) x = random.below(8) == 0 ? special[random.below(5)] : static_cast<float>(random.below(turn % 2 ? 5 : 100000));
    std::vector<std::int32_t> best(runs.count()), got(range.selected());
    pqkv::selector::take_runs(pqkv::exec::host<>{}, runs, pqkv::make_view(std::as_const(scores).data(), 1, scores.size()),
                              pqkv::make_view(best.data(), 1, best.size()), pqkv::make_view(got.data(), got.size()));
    REQUIRE(got == plain_take(scores, range, length));
  }
}

TEST_CASE("token runs: a slot's share of the table holds the whole runs of as many tokens, for every length") {
  for (const std::size_t capacity : {1u, 15u, 16u, 100u})
    for (const std::size_t length : {1u, 3u, 16u, 4096u})
      for (const std::size_t row : {8u, 24u}) {
        const pqkv::selector::run_table table{6, capacity, length, row};
        pqkv::arena count;
        const auto rows = table.place(count);
        CHECK(rows.extent(1) == capacity / length);
        CHECK(rows.stride(0) >= rows.extent(1) * row);
        std::vector<float> memory(6 * table.head_floats());
        const auto parts = table.parts({memory.data(), {6, table.runs(), row}, {table.head_floats(), row, 1}}, 3);
        REQUIRE(parts.count == 1);
        for (std::size_t n = 0; n <= capacity; ++n) REQUIRE(parts.part[0].bytes(n) >= n / length * row * sizeof(float));
        const std::byte* const end = reinterpret_cast<const std::byte*>(memory.data() + memory.size());
        CHECK(parts.part[0].segment(1, 2) + parts.part[0].bytes(capacity) <= end);
      }
}
