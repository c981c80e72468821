// SPDX-License-Identifier: Apache-2.0
// What changes sequences, each operation by itself, with a store and an index that write down what they are told: rows go where their
// sequence ends, every token is encoded before it is committed, what fails commits nothing, what cannot be is refused and counted. What is
// counted and written of answers is step_answers_test.cpp's.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include <pqkv/detail/host/sequence_steps.hpp>
#include <pqkv/selector/concept.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/step_table.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv_cases::step_table;
using pqkv::float_bits;
using pqkv::exec::host;
template <class Op>
using on_host = pqkv::kernel<Op, pqkv::backend::host>;

/// Writes down what it is told of tokens that leave; may be told to fail.
struct notebook {
  struct entry {
    char what;  // e: encode, c: commit, f: forget
    std::uint32_t slot, first, last;
    bool operator==(const entry&) const = default;
  };
  std::vector<entry>* entries;
  bool fails = false;

  template <class P, class Rows>
  void encode(const P&, const Rows&, pqkv::view<const leaving_tokens, 1> leaving) const {
    if (fails) throw std::runtime_error("no");
    for (std::size_t i = 0; i < leaving.extent(0); ++i)
      if (leaving(i).size() != 0) entries->push_back({'e', leaving(i).slot, leaving(i).first, leaving(i).last});
  }
  void commit(const leaving_tokens& t) const {
    if (t.size() != 0) entries->push_back({'c', t.slot, t.first, t.last});
  }
  void forget(const leaving_tokens& t, const sequence&) const {
    if (t.size() != 0) entries->push_back({'f', t.slot, t.first, t.last});
  }
};
using entries = std::vector<notebook::entry>;

bool same(const sequence& a, const sequence& b) { return std::memcmp(&a, &b, sizeof a) == 0; }
bool same(const table& a, const table& b) {
  bool all = true;
  for (std::size_t slot = 0; slot < batch; ++slot)
    all = all && same(a.sequences[slot], b.sequences[slot]) &&
          std::memcmp(&a.statistics[slot], &b.statistics[slot], sizeof a.statistics[slot]) == 0;
  return all;
}

/// Does all tasks but the last, then fails.
struct broken_runner {
  template <class F>
  void run(std::size_t count, F&& f) const {
    for (std::size_t i = 0; i + 1 < count; ++i) f(i);
    throw std::runtime_error("no");
  }
};
}  // namespace

TEST_CASE("append: rows stand behind their sequences, in the order of the step's tokens, and nowhere else") {
  table t;
  t.sequences = {prompt_of(10, true), prompt_of(0, false), prompt_of(20, false), prompt_of(55, true)};
  const std::vector<std::uint32_t> slots = {3, 1, 0}, counts = {4, 0, 3};
  const auto keys = make_rows<pqkv::half>(content::gaussian, 7, h, d, 1, layout::padded),
             values = make_rows<pqkv::half>(content::gaussian, 7, h, d, 2, layout::transposed);
  entries told;
  on_host<pqkv::op::append_tokens>::run(host<pqkv::isa::best, threaded_runner>{}, t.store(), notebook{&told},
                                        {t.slots(), step_of(slots, counts), 7, capacity}, keys.view(), values.view());
  CHECK(t.sequences[3].n == 59);
  CHECK(t.sequences[0].n == 13);
  CHECK(t.sequences[1].n == 0);
  CHECK(t.sequences[2].n == 20);
  // Windows of five: tokens 50 to 53 of slot 3 leave, and 5 to 7 of slot 0; all are encoded before any is committed.
  CHECK(told == entries{{'e', 3, 50, 54}, {'e', 0, 5, 8}, {'c', 3, 50, 54}, {'c', 0, 5, 8}});
  std::size_t written = 0, wrong = 0, token = 0;
  for (std::size_t row = 0; row < 3; ++row)
    for (std::uint32_t i = 0; i < counts[row]; ++i, ++token)
      for (std::size_t head = 0; head < h; ++head)
        for (std::size_t e = 0; e < d; ++e) {
          const std::size_t at = (slots[row] == 3 ? 55 : 10) + i;
          wrong += t.keys(slots[row] * h + head, at, e) != float(keys.view()(token, head, e)) ? 1 : 0;
          wrong += t.values(slots[row] * h + head, at, e) != float(values.view()(token, head, e)) ? 1 : 0;
        }
  for (std::size_t head = 0; head < batch * h; ++head)
    for (std::size_t at = 0; at < capacity; ++at) written += std::isnan(t.keys(head, at, 0)) ? 0 : 1;
  CHECK(wrong == 0);
  CHECK(written == 7 * h);
}

TEST_CASE("append: tokens of a slot without an index leave nothing behind, rows that are in the store already are not written") {
  table t;
  t.sequences = {prompt_of(30, false), prompt_of(30, true), {}, {}};
  entries told;
  const std::vector<std::uint32_t> slots = {0, 1}, counts = {2, 2};
  const auto none = pqkv::make_view(static_cast<const float*>(nullptr), 4, h, d);
  on_host<pqkv::op::append_tokens>::run(host<>{}, t.store(), notebook{&told}, {t.slots(), step_of(slots, counts), 4, capacity}, none, none);
  CHECK(told == entries{{'e', 1, 25, 27}, {'c', 1, 25, 27}});
  CHECK(t.sequences[0].n == 32);
  CHECK(t.sequences[1].n == 32);
  CHECK(std::isnan(t.keys(0, 30, 0)));
  CHECK(t.statistics[0].nonfinite_keys == 0);
}

TEST_CASE("append: one after the other or all at once is the same, and each token leaves once") {
  random_source random(0xa99);
  for (int round = 0; round < 100; ++round) {
    table once, singly;
    once.rule = singly.rule = {.ratio = 0.3, .min_tokens = 6, .sinks = random.below(4), .window_share = 0.4};
    std::vector<std::uint32_t> slots = {0, 1, 2, 3}, counts;
    std::size_t tokens = 0;
    for (std::size_t slot = 0; slot < batch; ++slot) {
      once.sequences[slot] = singly.sequences[slot] = prompt_of(static_cast<std::uint32_t>(random.below(40)), true);
      counts.push_back(static_cast<std::uint32_t>(random.below(9)));
      tokens += counts.back();
    }
    const auto keys = make_rows<float>(content::gaussian, tokens, h, d, random.bits());
    entries told_once, told_singly;
    on_host<pqkv::op::append_tokens>::run(host<>{}, once.store(), notebook{&told_once},
                                          {once.slots(), step_of(slots, counts), tokens, capacity}, keys.view(), keys.view());
    std::size_t first = 0;
    for (std::size_t slot = 0; slot < batch; ++slot)
      for (std::uint32_t i = 0; i < counts[slot]; ++i, ++first) {
        const std::vector<std::uint32_t> one = {static_cast<std::uint32_t>(slot)}, count = {1};
        on_host<pqkv::op::append_tokens>::run(host<>{}, singly.store(), notebook{&told_singly},
                                              {singly.slots(), step_of(one, count), 1, capacity}, keys.view().slice(0, first, 1),
                                              keys.view().slice(0, first, 1));
      }
    REQUIRE(same(once, singly));
    const auto ranked = [](const entries& told) {
      std::vector<std::pair<std::uint32_t, std::uint32_t>> all;
      for (const notebook::entry& one : told)
        for (std::uint32_t t = one.first; one.what == 'c' && t < one.last; ++t) all.emplace_back(one.slot, t);
      std::sort(all.begin(), all.end());
      return all;
    };
    const auto left = ranked(told_once);
    REQUIRE(left == ranked(told_singly));
    REQUIRE(std::adjacent_find(left.begin(), left.end()) == left.end());
    std::size_t wrong = 0;
    for (std::size_t head = 0; head < batch * h; ++head)
      for (std::size_t at = 0; at < capacity; ++at)
        wrong += float_bits(once.keys(head, at, 3)) != float_bits(singly.keys(head, at, 3)) ? 1 : 0;
    REQUIRE(wrong == 0);
  }
}

TEST_CASE("append: rows that are not finite are counted once each in their slots") {
  table t;
  t.sequences = {prompt_of(3, true), prompt_of(3, true), prompt_of(3, true), prompt_of(3, true)};
  auto keys = make_rows<float>(content::gaussian, 6, h, d, 1), values = make_rows<float>(content::gaussian, 6, h, d, 2);
  keys(0, 1, 3) = nonfinite(0), keys(0, 1, 4) = nonfinite(1);  // one row of slot 2
  keys(3, 0, 0) = nonfinite(2), keys(4, 1, 7) = nonfinite(1);  // two of slot 0
  values(5, 0, 0) = nonfinite(1);                              // slot 0
  entries told;
  const std::vector<std::uint32_t> slots = {2, 0}, counts = {3, 3};
  on_host<pqkv::op::append_tokens>::run(host<pqkv::isa::best, threaded_runner>{}, t.store(), notebook{&told},
                                        {t.slots(), step_of(slots, counts), 6, capacity}, keys.view(), values.view());
  CHECK(t.statistics[2].nonfinite_keys == 1);
  CHECK(t.statistics[2].nonfinite_values == 0);
  CHECK(t.statistics[0].nonfinite_keys == 2);
  CHECK(t.statistics[0].nonfinite_values == 1);
  CHECK(t.statistics[1].nonfinite_keys == 0);
}

TEST_CASE("append: an index that cannot encode, and a runner that fails, commit nothing") {
  table t;
  t.sequences = {prompt_of(30, true), prompt_of(31, true), prompt_of(32, true), prompt_of(33, true)};
  const table before = t;
  const auto keys = make_rows<float>(content::gaussian, batch, h, d, 1);
  entries told;
  const pqkv::appended_tokens<pqkv::space::host> call{t.slots(), {}, batch, capacity};
  const auto append = [&](const auto& policy, const notebook& index) {
    on_host<pqkv::op::append_tokens>::run(policy, t.store(), index, call, keys.view(), keys.view());
  };
  CHECK_THROWS_AS(append(host<>{}, notebook{&told, true}), std::runtime_error);
  CHECK(told.empty());
  CHECK(same(t, before));
  CHECK_THROWS_AS(append(host<pqkv::isa::best, broken_runner>{}, notebook{&told}), std::runtime_error);
  CHECK(told.empty());
  CHECK(same(t, before));
  append(host<>{}, notebook{&told});
  CHECK(told.size() == 2 * batch);
  CHECK(t.sequences[3].n == 34);
}

TEST_CASE("store: a prompt's rows of several runs of tokens stand where they should, and are counted") {
  const std::size_t n = 1100;  // more than two runs of tasks
  rows<pqkv::half> keys(5, n + 20, d), values(5, n + 20, d);
  auto from = make_rows<float>(content::gaussian, 2, n, d, 5, layout::token_major), other = make_rows<float>(content::gaussian, 2, n, d, 6);
  from(0, 0, 0) = nonfinite(0), from(1, 511, 2) = nonfinite(1), from(1, 512, 2) = nonfinite(2), from(0, n - 1, 7) = 70000.0f;
  other(1, n - 1, 1) = nonfinite(0);
  std::vector<std::uint32_t> bad = {10, 20};
  const pqkv::strided_rows<pqkv::half> store{keys.view(), values.view()};
  on_host<pqkv::op::store_tokens>::run(host<pqkv::isa::best, threaded_runner>{}, store, {3, 7, pqkv::make_view(bad.data(), 2)}, from.view(),
                                       other.view());
  CHECK(bad == std::vector<std::uint32_t>{14, 21});  // raised, also by what is infinite in half alone
  std::size_t wrong = 0, untouched = 0;
  for (std::size_t t = 0; t < n; ++t)
    for (std::size_t head = 0; head < 2; ++head)
      for (std::size_t e = 0; e < d; ++e) {
        const pqkv::half wanted(from.view()(head, t, e));
        wrong += wanted.bits != keys(3 + head, 7 + t, e).bits && !std::isnan(float(wanted)) ? 1 : 0;
        wrong += std::isfinite(other(head, t, e)) && float(values(3 + head, 7 + t, e)) != float(pqkv::half(other(head, t, e))) ? 1 : 0;
      }
  for (std::size_t head = 0; head < 5; ++head)
    for (std::size_t t = 0; t < n + 20; ++t)
      if (head < 3 || t < 7 || t >= 7 + n) untouched += std::isnan(float(values(head, t, 0))) ? 1 : 0;
  CHECK(wrong == 0);
  CHECK(untouched == 3 * (n + 20) + 2 * 20);
}

TEST_CASE("store: every half is stored as the half of its float, signalling NaNs too, and counted if it is not finite") {
  const std::size_t n = 65536 / d;
  rows<pqkv::half> keys(1, n, d), values(1, n, d);
  rows<pqkv::half> from(1, n, d, layout::transposed), dense(1, n, d);  // of one row, elements are apart and side by side
  std::size_t not_finite = 0;
  for (std::size_t t = 0; t < n; ++t) {
    bool finite = true;
    for (std::size_t e = 0; e < d; ++e) {
      from(0, t, e).bits = dense(0, t, e).bits = static_cast<std::uint16_t>(t * d + e);
      finite = finite && std::isfinite(float(dense(0, t, e)));
    }
    not_finite += finite ? 0 : 1;
  }
  std::vector<std::uint32_t> bad(2);
  const pqkv::strided_rows<pqkv::half> store{keys.view(), values.view()};
  on_host<pqkv::op::store_tokens>::run(host<>{}, store, {0, 0, pqkv::make_view(bad.data(), 2)}, from.view(), dense.view());
  CHECK(not_finite == 2 * 1024 / d);  // the largest exponent, with either sign
  CHECK(bad == std::vector<std::uint32_t>(2, static_cast<std::uint32_t>(not_finite)));
  std::size_t wrong = 0;
  for (std::size_t t = 0; t < n; ++t)
    for (std::size_t e = 0; e < d; ++e) {
      const std::uint16_t wanted = pqkv::half(float(dense(0, t, e))).bits;
      wrong += keys(0, t, e).bits != wanted || values(0, t, e).bits != wanted ? 1 : 0;
    }
  CHECK(wrong == 0);
}

TEST_CASE("commit: a prompt stands as it is said to, learned where every outcome is a success, and what it brought is counted") {
  table t;
  t.statistics[1].nonfinite_keys = 5;
  std::vector<std::uint32_t> bad = {2, 3};
  std::vector<std::uint8_t> outcomes(4, 0);
  const auto commit = [&](bool tried, bool learned) {
    sequence after = prompt_of(100, learned);
    on_host<pqkv::op::commit_prompt>::run(
        host<>{}, t.slots(),
        {1, after, tried, pqkv::as_const(pqkv::make_view(outcomes.data(), 2, 2)), pqkv::make_view(bad.data(), 2), 150});
  };
  commit(true, false);
  CHECK(t.sequences[1].n == 100);
  CHECK(t.sequences[1].learned == 1);
  CHECK(t.sequences[1].learn_again == 150);
  CHECK(t.statistics[1].trainings == 1);
  CHECK(t.statistics[1].nonfinite_keys == 7);
  CHECK(t.statistics[1].nonfinite_values == 3);
  CHECK(bad == std::vector<std::uint32_t>{0, 0});  // for the next prompt
  outcomes[3] = 1;
  commit(true, false);
  CHECK(t.sequences[1].learned == 0);
  CHECK(t.sequences[1].learn_again == 100 + 100 / 64 + 1);
  commit(false, true);
  CHECK(t.sequences[1].learned == 1);
  commit(false, false);
  CHECK(t.sequences[1].learned == 0);
  CHECK(t.sequences[1].learn_again == 0);                                                              // nothing was tried
  on_host<pqkv::op::commit_prompt>::run(host<>{}, t.slots(), {2, prompt_of(7, false), true, {}, {}});  // no outcome to ask: it did
  CHECK(t.sequences[2].learned == 1);
  CHECK(t.statistics[1].trainings == 1);
  CHECK(same(t.sequences[0], sequence{}));
}

TEST_CASE("truncate: what stands in the window again is forgotten; what cannot be is refused and counted") {
  table t;
  t.sequences = {prompt_of(30, true).grown(10), prompt_of(20, true), prompt_of(40, false), prompt_of(9, true)};
  t.sequences[3].prefilling = 1;
  const table before = t;
  entries told;
  const auto cut = [&](std::vector<std::uint32_t> slots, std::vector<std::uint32_t> lengths) {
    on_host<pqkv::op::truncate_tokens>::run(host<>{}, notebook{&told},
                                            {t.slots(), pqkv::make_view(std::as_const(slots).data(), slots.size()),
                                             pqkv::make_view(std::as_const(lengths).data(), lengths.size())});
  };
  cut({0, 2}, {38, 12});
  CHECK(told == entries{{'f', 0, 33, 35}});  // slot 2 has no index
  CHECK(t.sequences[0].n == 38);
  CHECK(t.sequences[0].longest == 40);
  CHECK(t.sequences[2].n == 12);
  CHECK(t.sequences[2].prompt == 12);
  told.clear();
  cut({1, 3}, {21, 3});  // more than there are; a prompt that is not complete
  CHECK(told.empty());
  CHECK(same(t.sequences[1], before.sequences[1]));
  CHECK(same(t.sequences[3], before.sequences[3]));
  CHECK(t.statistics[1].refused == 1);
  CHECK(t.statistics[3].refused == 1);
  CHECK(t.statistics[0].refused == 0);
  cut({1}, {20});  // as it is
  CHECK(told.empty());
  CHECK(t.statistics[1].refused == 1);
  // One slot by number; to nothing it is a fresh one.
  on_host<pqkv::op::truncate_tokens>::run(host<>{}, notebook{&told}, {t.slots(), {}, {}, 0, 0});
  CHECK(told == entries{{'f', 0, 2, 33}});  // never the sinks
  CHECK(same(t.sequences[0], sequence{}));
  // Every slot in order, without slots given.
  told.clear();
  const std::vector<std::uint32_t> lengths = {0, 5, 6, 0};
  on_host<pqkv::op::truncate_tokens>::run(host<>{}, notebook{&told}, {t.slots(), {}, pqkv::make_view(lengths.data(), 4)});
  CHECK(t.sequences[1].n == 5);
  CHECK(t.sequences[2].n == 6);
  CHECK(t.sequences[3].n == 9);
  CHECK(t.statistics[3].refused == 2);
}

TEST_CASE("copy: a slot becomes the other, as far as that ever reached, and of a runner that fails an empty one stays empty") {
  table t;
  t.sequences = {prompt_of(20, true).grown(10).truncated(25), {}, prompt_of(3, false), {}};
  t.statistics[0].steps = 9;
  for (std::size_t head = 0; head < batch * h; ++head)
    for (std::size_t at = 0; at < capacity; ++at)
      for (std::size_t e = 0; e < d; ++e) t.keys(head, at, e) = static_cast<float>(head * 1000 + at);
  pqkv::slot_parts parts;
  parts.add_tokens(t.keys.view().data, h, capacity, d);
  on_host<pqkv::op::copy_slot>::run(host<pqkv::isa::best, threaded_runner>{}, parts, t.slots(), 0, 1);
  on_host<pqkv::op::copy_slot>::run(host<>{}, parts, t.slots(), 0, 2);
  for (const std::size_t slot : {1u, 2u}) {
    CHECK(same(t.sequences[slot], t.sequences[0]));
    CHECK(t.statistics[slot].steps == 9);
    for (std::size_t head = 0; head < h; ++head) {
      CHECK(t.keys(slot * h + head, 0, 3) == t.keys(head, 0, 3));
      CHECK(t.keys(slot * h + head, 29, d - 1) == t.keys(head, 29, d - 1));  // lists of ids may reach as far as the sequence ever did
      CHECK(t.keys(slot * h + head, 30, 0) == static_cast<float>((slot * h + head) * 1000 + 30));
    }
  }
  CHECK_THROWS_AS(on_host<pqkv::op::copy_slot>::run(host<pqkv::isa::best, broken_runner>{}, parts, t.slots(), 0, 3), std::runtime_error);
  CHECK(t.sequences[3].n == 0);
  // Over a sequence it must not fail, and does not ask the runner.
  CHECK_NOTHROW(on_host<pqkv::op::copy_slot>::run(host<pqkv::isa::best, broken_runner>{}, parts, t.slots(), 1, 2));
}
