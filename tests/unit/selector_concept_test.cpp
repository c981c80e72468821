// SPDX-License-Identifier: Apache-2.0
// A selector written by a user takes part in a pqcache like the library's own: it is told of prompts, of tokens that leave the
// window and that are cut off, of forks and resets, and its lists are what is attended to.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;

/// What a selector was told of a slot: plain data, so that a fork copies it with the slot's other parts.
struct hearsay {
  std::uint32_t learned = 0;  // tokens of the sequence when it was learned
  std::uint32_t ranked = 0;   // tokens [0, ranked) left windows
  std::uint32_t prepared = 0, committed = 0, forgotten = 0, gaps = 0, maintained = 0;
};

/// Every second token of the middle, the newest first to be left out; remembers what it was told.
class every_other {
 public:
  struct params {
    std::size_t phase = 0;
  };
  static pqkv::status can_construct(const pqkv::cache_shape&, const params& settings) noexcept {
    return pqkv::detail::checks("pqcache").at_most("selector.phase", static_cast<double>(settings.phase), 1, "0 or 1");
  }
  static std::size_t index_bytes(const pqkv::cache_shape& shape, const params&) { return shape.batch * sizeof(hearsay); }
  static std::size_t scratch_bytes(const auto&, const pqkv::cache_shape&, const params&) { return 0; }
  every_other(const auto&, const pqkv::cache_shape& shape, const params& settings)
      : phase_(settings.phase), heads_(shape.kv_heads), told_(shape.batch) {}

  std::size_t lists() const { return heads_; }
  static pqkv::selector::coverage_rule covers() { return {pqkv::selector::coverage::listed, pqkv::selector::coverage::listed}; }
  static std::size_t least_rows() { return 5; }
  struct traffic_rule {
    pqkv::selector::traffic operator()(const pqkv::middle_range& middle) const { return {middle.size(), bytes}; }
    std::size_t bytes;
  };
  traffic_rule traffic_of(std::size_t element_bytes) const { return {element_bytes - 1}; }

  pqkv::selector::learning<pqkv::space::host> learn(const auto&, std::size_t slot, const auto& rows, const pqkv::sequence& at,
                                                    pqkv::middle_range middle) {
    told_[slot] = {};
    told_[slot].learned = at.n;
    told_[slot].ranked = middle.end;
    first_element = static_cast<float>(rows.key(slot * heads_, 0).data[0]);
    return {true, {}};
  }

  /// What the cache tells of tokens that come and go: a small value that forwards to the selector.
  struct handle {
    hearsay* told;

    void encode(const auto&, const auto& rows, pqkv::view<const pqkv::leaving_tokens, 1> leaving) const {
      for (std::size_t row = 0; row < leaving.extent(0); ++row)
        if (leaving(row).size() != 0) told[leaving(row).slot].prepared += rows.head_dim() == 0 ? 0 : leaving(row).size();
    }
    void commit(const pqkv::leaving_tokens& tokens) const noexcept {
      hearsay& one = told[tokens.slot];
      if (tokens.size() == 0) return;
      one.gaps += tokens.first != one.ranked ? 1 : 0;
      one.committed += tokens.size();
      one.ranked = tokens.last;
    }
    void forget(const pqkv::leaving_tokens& tokens, const pqkv::sequence& after) const noexcept {
      hearsay& one = told[tokens.slot];
      if (tokens.size() == 0) return;
      one.gaps += tokens.last != one.ranked || after.n < tokens.first ? 1 : 0;
      one.forgotten += tokens.size();
      one.ranked = tokens.first;
    }
    pqkv::slot_parts parts() const noexcept {
      pqkv::slot_parts all;
      all.add_fixed(told, 1, 1);
      return all;
    }
  };
  handle index() { return {told_.data()}; }

  void select(const auto&, const auto& query, const auto&, const pqkv::head_map<>& map, const auto& ranges, const auto& indices,
              const auto& counts) {
    slots.clear();
    for (std::size_t row = 0; row < ranges.extent(0) / heads_; ++row) slots.push_back(map.head(row * heads_) / heads_);
    queries = query.extent(0);
    for (std::size_t list = 0; list < counts.extent(0); ++list) {
      counts(list) = 0;
      for (std::size_t t = ranges(list).begin; t < ranges(list).end && counts(list) < ranges(list).retrieve; ++t)
        if (t % 2 == phase_) indices(list, counts(list)++) = static_cast<std::int32_t>(t);
    }
  }
  void clear(const auto&, std::size_t slot) { told_[slot] = {}; }
  void maintain(const auto&, std::size_t slot, const pqkv::sequence&, pqkv::middle_range) { ++told_[slot].maintained; }

  const hearsay& told(std::size_t slot) const { return told_[slot]; }
  float first_element = 0;         // of the slot that was learned last
  std::vector<std::size_t> slots;  // of the rows that were selected for last
  std::size_t queries = 0;

 private:
  std::size_t phase_, heads_;
  std::vector<hearsay> told_;
};

/// The least that a selector must say: the newest k of the middle.
struct newest : pqkv::selector::defaults {
  struct params {};
  static pqkv::status can_construct(const pqkv::cache_shape&, const params&) noexcept { return {}; }
  newest(const auto&, const pqkv::cache_shape& shape, const params&) : heads(shape.kv_heads) {}
  std::size_t lists() const { return heads; }
  void select(const auto&, const auto&, const auto&, const auto&, const auto& ranges, const auto& indices, const auto& counts) {
    for (std::size_t list = 0; list < counts.extent(0); ++list) {
      counts(list) = ranges(list).selected();
      for (std::uint32_t i = 0; i < counts(list); ++i) indices(list, i) = static_cast<std::int32_t>(ranges(list).end - counts(list) + i);
    }
  }
  std::size_t heads;
};

struct not_a_selector {
  struct params {};
};
using policy = pqkv::exec::host<>;
static_assert(pqkv::selector_for<every_other, policy>);
static_assert(pqkv::selector_for<newest, policy>);
static_assert(pqkv::selector_for<pqkv::selector::pq, policy>);
static_assert(pqkv::selector_for<pqkv::selector::full, policy>);
static_assert(pqkv::selector_for<pqkv::selector::streaming, policy>);
static_assert(pqkv::selector_for<pqkv::selector::oracle, policy>);
static_assert(pqkv::selector_for<pqkv::selector::snapkv, policy> && pqkv::selects_by_spans<pqkv::selector::snapkv, policy>);
static_assert(pqkv::selector_for<pqkv::selector::h2o, policy> && !pqkv::selects_by_spans<pqkv::selector::oracle, policy>);
static_assert(pqkv::selector_for<pqkv::selector::sparq, policy>);
static_assert(!pqkv::selector_for<not_a_selector, policy>);

using cache_type = pqkv::pqcache<pqkv::dense_rows<float>, every_other>;
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
  model.commit();
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
  CHECK(cache.selection().slots == std::vector<std::size_t>{1});
  CHECK(cache.selection().queries == 4);
}

TEST_CASE("selector: hears of prompts, of every token that leaves the window, of cuts, forks, resets and maintenance") {
  cache_type cache(cache_params<cache_type>(2, 1, 1, 8, 100, 4, 10, 5));
  const every_other& heard = cache.selection();
  const policy cpu;
  const prompt given(1, 30, 8, 1);
  prefill(cpu, cache, 0, given);
  CHECK(heard.told(0).learned == 30);
  CHECK(heard.told(0).ranked == 20);
  CHECK(heard.first_element == given.keys.view()(0, 0, 0));
  for (std::uint32_t i = 0; i < 7; ++i) {
    append_random(cpu, cache, i, {1, 0});
    CHECK(heard.told(0).prepared == i + 1);
    CHECK(heard.told(0).committed == i + 1);
    CHECK(heard.told(0).ranked == 21 + i);
  }
  CHECK(heard.told(0).gaps == 0);
  CHECK(heard.told(1).ranked == 0);
  for (std::uint64_t i = 0; i < 14; ++i) append_random(cpu, cache, i, {0, 1});
  CHECK(heard.told(1).prepared == 0);  // sinks and window are not full before, and nothing is learned
  cache.fork(cpu, 0, 1);
  CHECK(heard.told(1).ranked == 27);
  CHECK(heard.told(1).committed == 7);
  cache.maintain(cpu);
  CHECK(heard.told(0).maintained == 1);
  // Five tokens less: those that stand in the window again are forgotten, the last first.
  cache.truncate(cpu, 1, 32);
  CHECK(heard.told(1).ranked == 22);
  CHECK(heard.told(1).forgotten == 5);
  CHECK(heard.told(0).forgotten == 0);
  append_random(cpu, cache, 3);
  CHECK(heard.told(1).ranked == 23);
  CHECK(heard.told(0).gaps + heard.told(1).gaps == 0);
  cache.reset(0);
  CHECK(heard.told(0).learned == 0);
  cache.maintain(cpu);
  CHECK(heard.told(0).maintained == 0);  // an empty slot needs none
  CHECK(heard.told(1).maintained == 2);
}

TEST_CASE("selector: a slot that began with single tokens is learned by maintain() once there are enough") {
  cache_type cache(cache_params<cache_type>(1, 1, 1, 8, 100, 4, 10, 5));
  const policy cpu;
  for (std::uint32_t n = 1; n < 20; ++n) {
    append_random(cpu, cache, n);
    cache.maintain(cpu);
    CHECK(cache.selection().told(0).learned == (n < 9 ? 0 : 9));  // 4 sinks and 5 rows
    CHECK(cache.at(0).learned == (n < 9 ? 0 : 1));
  }
  CHECK(cache.selection().told(0).committed == 5);  // tokens 4 to 8
}

TEST_CASE("selector: one that keeps nothing has select() alone to write") {
  using cache_of_newest = pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>, newest>;
  cache_of_newest cache(cache_params<cache_of_newest>(2, 2, 4, 16, 200, 3, 10, 20));
  CHECK(cache_of_newest::plan(cache.parameters()).index_bytes == 0);
  const policy cpu;
  prefill(cpu, cache, 0, prompt(2, 60, 16, 1));
  prefill(cpu, cache, 1, prompt(2, 20, 16, 2));
  append_random(cpu, cache, 3);
  const reply r = ask(cpu, cache, random_query(cache, 2));
  std::vector<std::int32_t> last(20);
  for (std::int32_t i = 0; i < 20; ++i) last[static_cast<std::size_t>(i)] = 31 + i;
  CHECK(r.list(0) == last);
  CHECK(r.list(1) == last);
  CHECK(r.list(2).size() == 8);  // the whole middle, which the cache lists itself
  cache.fork(cpu, 0, 1);
  cache.truncate(cpu, 1, 50);
  CHECK(ask(cpu, cache, random_query(cache, 2)).list(2).back() == 39);
}

TEST_CASE("selector: its own checks and sizes take part in construction and plan") {
  auto p = cache_params<cache_type>(3, 1, 1, 8, 100, 4, 10, 5);
  CHECK(cache_type::plan(p).index_bytes == 3 * sizeof(hearsay));
  p.selector.phase = 2;
  CHECK_FALSE(cache_type::can_construct(p).ok());
  CHECK(unless_refused<pqkv::value_error>([&] { cache_type cache(p); }, "pqcache: selector.phase", 1, 2) == "");
}
