// SPDX-License-Identifier: Apache-2.0
// A selector written by a user takes part in a pqcache like the library's own: it is told of prompts, of tokens that leave the
// window, of forks and resets, and its lists are what is attended to.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;

/// Every second token of the middle, the newest first to be left out; remembers what it was told.
class every_other {
 public:
  struct params {
    std::size_t phase = 0;
  };
  static pqkv::status can_construct(const pqkv::cache_shape&, const params& settings) noexcept {
    return pqkv::detail::checks("pqcache").at_most("selector.phase", static_cast<double>(settings.phase), 1, "0 or 1");
  }
  static std::size_t index_bytes(const pqkv::cache_shape& shape, const params&) { return shape.batch; }
  static std::size_t scratch_bytes(const pqkv::cache_shape&, const params&) { return 0; }
  every_other(const pqkv::cache_shape& shape, const params& settings) : phase_(settings.phase), heads_(shape.kv_heads), told_(shape.batch) {
    latest = this;
  }

  std::size_t lists() const { return heads_; }
  pqkv::selector::coverage covers(std::size_t) const { return pqkv::selector::coverage::listed; }
  pqkv::selector::traffic step_traffic(pqkv::middle_range middle, std::size_t) const { return {middle.size(), 3}; }

  void observe_prefill(const auto&, std::size_t slot, const auto& keys, pqkv::middle_range middle) {
    told_[slot] = {keys.extent(1), middle.end};
  }
  void append(const auto&, std::size_t slot, const auto& keys, std::size_t first, std::size_t last) {
    told_[slot].gap = told_[slot].gap || first != told_[slot].ranked;
    told_[slot].tokens = keys.extent(1);
    told_[slot].ranked = last;
  }
  void select(const auto&, const auto&, const auto&, const auto& ranges, const auto& indices, const auto& counts) {
    for (std::size_t list = 0; list < counts.extent(0); ++list) {
      counts(list) = 0;
      for (std::size_t t = ranges(list).begin; t < ranges(list).end && counts(list) < ranges(list).retrieve; ++t)
        if (t % 2 == phase_) indices(list, counts(list)++) = static_cast<std::int32_t>(t);
    }
  }
  void fork(const auto&, std::size_t from, std::size_t to, std::size_t) { told_[to] = told_[from]; }
  void reset(std::size_t slot) { told_[slot] = {}; }
  void maintain(const auto&, std::size_t slot, const auto&, pqkv::middle_range) { ++told_[slot].maintained; }

  struct hearsay {
    std::size_t tokens = 0, ranked = 0;
    bool gap = false;
    std::size_t maintained = 0;
  };
  const hearsay& told(std::size_t slot) const { return told_[slot]; }
  static inline const every_other* latest = nullptr;

 private:
  std::size_t phase_, heads_;
  std::vector<hearsay> told_;
};

struct not_a_selector {
  struct params {};
};
using policy = pqkv::exec::host<>;
static_assert(pqkv::selector_for<every_other, policy>);
static_assert(pqkv::selector_for<pqkv::selector::pq, policy>);
static_assert(pqkv::selector_for<pqkv::selector::full, policy>);
static_assert(pqkv::selector_for<pqkv::selector::streaming, policy>);
static_assert(pqkv::selector_for<pqkv::selector::oracle, policy>);
static_assert(!pqkv::selector_for<not_a_selector, policy>);

using cache_type = pqkv::pqcache<float, every_other>;
}  // namespace

TEST_CASE("selector: one of the user's own decides what is attended to") {
  auto p = cache_params<cache_type>(2, 2, 4, 16, 200, 3, 10, 20);
  p.selector.phase = 1;
  cache_type cache(p);
  const policy cpu;
  prompt given(2, 60, 16, 1);
  prefill(cpu, cache, 1, given);
  slot_model<float> model(2, 16, p.budget);
  model.add(given.keys.view(), given.values.view());
  model.settle();
  const std::vector<float> query = random_query(cache, 2);
  const reply r = ask(cpu, cache, query, {0, 1});
  std::vector<std::int32_t> odd;
  for (std::int32_t t = 3; t < 43; t += 2) odd.push_back(t);
  REQUIRE(odd.size() == 20);
  const std::vector<float> own(query.begin() + 64, query.end());
  for (std::size_t q = 0; q < 4; ++q) {
    CHECK(r.list(2 + q / 2) == odd);
    const plain_result exact = model.attend(own, q, odd);
    CHECK(relative_error(r.out.data() + 64 + q * 16, exact.out) < 1e-5);
  }
  const auto& statistics = cache.statistics(1);
  CHECK(statistics.steps == 1);
  CHECK(statistics.tokens_attended == 3 + 20 + 10);
  CHECK(statistics.index_bytes == 47);
  CHECK(statistics.selector_bytes == 3);
}

TEST_CASE("selector: hears of prompts, of every token that leaves the window, of forks, resets and maintenance") {
  cache_type cache(cache_params<cache_type>(2, 1, 1, 8, 100, 4, 10, 5));
  const every_other& heard = *every_other::latest;
  const policy cpu;
  prefill(cpu, cache, 0, prompt(1, 30, 8, 1));
  CHECK(heard.told(0).tokens == 30);
  CHECK(heard.told(0).ranked == 20);
  for (std::uint64_t i = 0; i < 7; ++i) {
    append_random(cpu, cache, i, {1, 0});
    CHECK(heard.told(0).tokens == 31 + i);
    CHECK(heard.told(0).ranked == 21 + i);
  }
  CHECK_FALSE(heard.told(0).gap);
  CHECK(heard.told(1).tokens == 0);
  for (std::uint64_t i = 0; i < 14; ++i) append_random(cpu, cache, i, {0, 1});
  CHECK(heard.told(1).ranked == 0);  // sinks and window are not full before
  cache.fork(cpu, 0, 1);
  CHECK(heard.told(1).ranked == 27);
  cache.maintain(cpu);
  CHECK(heard.told(0).maintained == 1);
  cache.reset(0);
  CHECK(heard.told(0).tokens == 0);
  cache.maintain(cpu);
  CHECK(heard.told(0).maintained == 0);  // an empty slot needs none
  CHECK(heard.told(1).maintained == 2);
}

TEST_CASE("selector: its own checks and sizes take part in construction and plan") {
  auto p = cache_params<cache_type>(3, 1, 1, 8, 100, 4, 10, 5);
  CHECK(cache_type::plan(p).index_bytes == 3);
  p.selector.phase = 2;
  CHECK_FALSE(cache_type::can_construct(p).ok());
  CHECK(unless_refused<pqkv::value_error>([&] { cache_type cache(p); }, "pqcache: selector.phase", 1, 2) == "");
}
