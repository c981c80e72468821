// SPDX-License-Identifier: Apache-2.0
// The frequency index against a plain model of the rules and against the textbook's LFU, over random and adversarial traces: the same
// keys, frequencies, victims and statistics after every step; no allocation.
#include <doctest/doctest.h>

#include <list>
#include <stdexcept>

#include <pqkv/cache/frequency_index.hpp>

#include "cases/allocation_count.hpp"
#include "cases/frequency_contents.hpp"
#include "cases/inputs.hpp"
#include "cases/plain_frequency_cache.hpp"

namespace {
using namespace pqkv_cases;

using key_list = std::vector<std::int32_t>;

/// What a trace asks for in its steps.
enum class trace { uniform, skewed, cycle, same, phases };
constexpr trace every_trace[] = {trace::uniform, trace::skewed, trace::cycle, trace::same, trace::phases};

/// The keys of one step, with repeats now and then.
std::vector<std::size_t> step_keys(trace what, std::size_t keys, std::size_t step, random_source& random) {
  std::vector<std::size_t> list(random.below(3) == 0 ? random.below(40) : random.below(12));
  for (std::size_t i = 0; i < list.size(); ++i) switch (what) {
      case trace::uniform:
        list[i] = random.below(keys);
        break;
      case trace::skewed:
        list[i] = random.below(1 + random.below(1 + random.below(keys)));
        break;
      case trace::cycle:  // what LFU is worst at
        list[i] = (step * 7 + i) % keys;
        break;
      case trace::same:
        list[i] = i % keys;
        break;
      case trace::phases:  // what was hot before never comes again
        list[i] = (step / 40 * 11 + random.below(9)) % keys;
        break;
    }
  return list;
}

/// An index and the model side by side.
template <class Key, class Slot>
class pair {
 public:
  pair(std::size_t keys, std::size_t capacity, std::uint32_t max_frequency)
      : owner_(keys, capacity, max_frequency), view_(owner_.mutable_view()), model_(capacity, max_frequency) {}

  void lookup(const std::vector<std::size_t>& keys) {
    std::vector<Slot> slots(keys.size());
    const auto before = view_.statistics();
    const pqkv::lookup_outcome outcome = view_.lookup(read(typed(keys)), write(slots));
    const std::vector<bool> found = model_.lookup(keys);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      REQUIRE((slots[i] != view_.no_slot) == found[i]);
      if (found[i]) REQUIRE(view_.key_of()(slots[i]) == static_cast<Key>(keys[i]));
    }
    REQUIRE(outcome.hits == view_.statistics().hits - before.hits);
    REQUIRE(outcome.misses == view_.statistics().misses - before.misses);
  }

  template <class Final>
  void admit(const std::vector<std::size_t>& keys, const std::vector<std::uint32_t>& counts, std::size_t limit, Final is_final) {
    std::vector<pqkv::admission<Key, Slot>> admitted(std::min(keys.size(), limit));
    const auto outcome = view_.admit(read(typed(keys)), read(counts), limit, is_final, write(admitted));
    agree(outcome, admitted, model_.admit(keys, counts, limit, is_final));
  }
  void admit_ranked(const std::vector<std::size_t>& keys) {
    std::vector<pqkv::admission<Key, Slot>> admitted(keys.size());
    const auto outcome = view_.admit_ranked(read(typed(keys)), pqkv::every_block_final{}, write(admitted));
    agree(outcome, admitted, model_.offer(keys, pqkv::every_block_final{}));
  }
  void age() {
    view_.age();
    model_.age();
  }
  void drop(const std::vector<std::size_t>& keys) { REQUIRE(view_.drop(read(typed(keys))) == model_.drop(keys)); }
  void clear() {
    view_.clear();
    model_.blocks.clear();
  }

  /// The same keys, each in one slot, with the same frequencies; the same statistics.
  void check() const {
    REQUIRE(view_.size() == model_.blocks.size());
    std::size_t held = 0;
    for (std::size_t slot = 0; slot < view_.capacity(); ++slot) {
      const Key key = view_.key_of()(slot);
      if (key == view_.no_key) continue;
      REQUIRE(view_.slot_of()(key) == static_cast<Slot>(slot));
      ++held;
    }
    REQUIRE(held == view_.size());
    for (std::size_t key = 0; key < view_.keys(); ++key) {
      const auto found = model_.blocks.find(key);
      REQUIRE((view_.slot_of()(key) != view_.no_slot) == (found != model_.blocks.end()));
      REQUIRE(view_.frequency(static_cast<Key>(key)) == (found == model_.blocks.end() ? 0 : found->second.frequency));
    }
    const pqkv::frequency_statistics s = view_.statistics();
    REQUIRE(s.hits == model_.counted.hits);
    REQUIRE(s.misses == model_.counted.misses);
    REQUIRE(s.admissions == model_.counted.admissions);
    REQUIRE(s.evictions == model_.counted.evictions);
  }
  const pqkv::frequency_index_view<Key, Slot>& view() const { return view_; }

 private:
  static std::vector<Key> typed(const std::vector<std::size_t>& keys) {
    std::vector<Key> list;
    for (const std::size_t key : keys) list.push_back(static_cast<Key>(key));
    return list;
  }
  void agree(const pqkv::admit_outcome& outcome, const std::vector<pqkv::admission<Key, Slot>>& admitted,
             const std::vector<plain_frequency_cache::entered>& expected) {
    REQUIRE(outcome.admitted == expected.size());
    std::size_t evicted = 0;
    std::vector<bool> given(view_.capacity());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const auto& one = admitted[i];
      REQUIRE(one.key == static_cast<Key>(expected[i].key));
      REQUIRE(one.evicted == (expected[i].evicts ? static_cast<Key>(expected[i].evicted) : view_.no_key));
      REQUIRE(view_.slot_of()(one.key) == one.slot);
      REQUIRE_FALSE(given[static_cast<std::size_t>(one.slot)]);  // a slot is given away once a step
      given[static_cast<std::size_t>(one.slot)] = true;
      evicted += expected[i].evicts ? 1 : 0;
    }
    REQUIRE(outcome.evicted == evicted);
  }

  pqkv::frequency_index<Key, Slot> owner_;
  pqkv::frequency_index_view<Key, Slot> view_;
  plain_frequency_cache model_;
};

template <class Key, class Slot>
void run_trace(trace what, std::size_t keys, std::size_t capacity, std::size_t limit, std::uint32_t max_frequency, random_source& random) {
  CAPTURE(static_cast<int>(what));
  CAPTURE(keys);
  CAPTURE(capacity);
  CAPTURE(limit);
  CAPTURE(max_frequency);
  pair<Key, Slot> both(keys, capacity, max_frequency);
  std::size_t final_end = random.below(2) == 0 ? keys : random.below(keys);
  for (std::size_t step = 0; step < 160; ++step) {
    const std::vector<std::size_t> list = step_keys(what, keys, step, random);
    std::vector<std::uint32_t> counts(list.size(), 5);  // all equal, mostly ties, or any
    if (step % 3 != 0)
      for (std::uint32_t& count : counts) count = static_cast<std::uint32_t>(random.below(step % 3 == 1 ? 4 : 1000));
    both.lookup(list);
    if (step % 5 == 4) {
      std::vector<std::size_t> ranked;
      for (const std::size_t key : list)
        if (std::find(ranked.begin(), ranked.end(), key) == ranked.end()) ranked.push_back(key);
      both.admit_ranked(ranked);
    } else {
      both.admit(list, counts, limit, pqkv::final_blocks_end{final_end});
    }
    if (random.below(20) == 0) both.age();
    if (random.below(25) == 0) both.drop({random.below(keys), random.below(keys), random.below(keys)});
    if (random.below(150) == 0) both.clear();
    if (random.below(10) == 0) final_end = std::min(keys, final_end + 3);
    both.check();
  }
}

}  // namespace

TEST_CASE("frequency_index: the plain model's keys, frequencies, victims and statistics over every kind of trace") {
  random_source random(0x1f0);
  for (const trace what : every_trace)
    for (const std::size_t keys : {1u, 7u, 40u, 200u})
      for (const std::size_t capacity : {std::size_t{0}, std::size_t{1}, std::size_t{2}, keys / 4, keys, keys + 9}) {
        const std::size_t limits[] = {0, 1, 3, 32, 1000};
        const std::uint32_t highest[] = {2, 3, 6, pqkv::highest_frequency};
        run_trace<std::int32_t, std::int32_t>(what, keys, capacity, limits[random.below(5)], highest[random.below(4)], random);
        run_trace<std::uint64_t, std::uint8_t>(what, keys, capacity, limits[random.below(5)], highest[random.below(4)], random);
        run_trace<std::int16_t, std::int64_t>(what, keys, capacity, limits[random.below(5)], highest[random.below(4)], random);
      }
}

TEST_CASE("frequency_index: with one offer a step it is the textbook's LFU") {
  random_source random(0x1f1);
  for (const std::size_t capacity : {1u, 5u, 30u}) {
    pqkv::frequency_index<> owner(100, capacity);
    const auto index = owner.mutable_view();
    std::map<std::uint32_t, std::list<std::int32_t>> buckets;  // by frequency; the least recently used first
    std::map<std::int32_t, std::uint32_t> frequency;
    for (int step = 0; step < 3000; ++step) {
      const key_list one{static_cast<std::int32_t>(random.below(1 + random.below(100)))};
      const auto found = frequency.find(one[0]);
      if (found != frequency.end()) {
        buckets[found->second].remove(one[0]);
        if (buckets[found->second].empty()) buckets.erase(found->second);
        buckets[++found->second].push_back(one[0]);
      } else {
        if (frequency.size() == capacity) {
          const std::int32_t victim = buckets.begin()->second.front();
          buckets.begin()->second.pop_front();
          if (buckets.begin()->second.empty()) buckets.erase(buckets.begin());
          frequency.erase(victim);
        }
        frequency[one[0]] = 1;
        buckets[1].push_back(one[0]);
      }
      index.admit(read(one), {});
      REQUIRE(index.size() == frequency.size());
      for (const auto& [key, f] : frequency) REQUIRE(index.frequency(key) == f);
    }
  }
}

TEST_CASE("frequency_index: a step worked out by hand") {
  pqkv::frequency_index<> owner(10, 3);
  const auto index = owner.mutable_view();
  using admission = pqkv::frequency_index_view<>::admission_type;
  std::vector<admission> admitted(4);
  // Selected tokens: two of block 4, two of 1, one of 7, one of 2; limit 3: 1 and 4 tie and the lower is first, then 2 before 7.
  auto outcome = index.admit(read(key_list{7, 4, 1, 2, 1, 4}), {}, 3, pqkv::every_block_final{}, write(admitted));
  CHECK(outcome.offered == 3);
  CHECK(outcome.admitted == 3);
  CHECK(outcome.evicted == 0);
  CHECK(held(index) == key_list{1, 2, 4});
  CHECK((admitted[0].key == 1 && admitted[0].slot == 0 && admitted[0].evicted == -1));
  CHECK((admitted[1].key == 4 && admitted[1].slot == 1));
  CHECK((admitted[2].key == 2 && admitted[2].slot == 2));
  // 2 rises; 8 enters: 1 and 4 have frequency 1 of one step, 4 ranked behind 1 there and leaves.
  index.admit(read(key_list{8, 2, 9}), read(std::vector<std::uint32_t>{3, 1, 0}), 3, pqkv::every_block_final{}, write(admitted));
  CHECK((admitted[0].key == 8 && admitted[0].slot == 1 && admitted[0].evicted == 4));
  CHECK(held(index) == key_list{1, 2, 8});  // 9 had no token
  CHECK(index.frequency(2) == 2);
  // A lookup finds 1 and makes it no more recent: it goes before 8, whose latest offer is newer.
  std::vector<std::int32_t> slots(4);
  const pqkv::lookup_outcome found = index.lookup(read(key_list{1, 1, 5, 8}), write(slots));
  CHECK(slots == key_list{0, 0, -1, 1});
  CHECK(found.hits == 3);
  CHECK(found.misses == 1);
  index.admit(read(key_list{5}), {}, 3, pqkv::every_block_final{}, write(admitted));
  CHECK((admitted[0].key == 5 && admitted[0].slot == 0 && admitted[0].evicted == 1));
  // Four new ones, three slots: the best three take all of them, and none of the step leaves for the fourth.
  outcome = index.admit(read(key_list{0, 3, 6, 9}), {}, 4, pqkv::every_block_final{}, write(admitted));
  CHECK(outcome.offered == 4);
  CHECK(outcome.admitted == 3);
  CHECK((admitted[0].evicted == 8 && admitted[1].evicted == 5 && admitted[2].evicted == 2));
  CHECK(held(index) == key_list{0, 3, 6});
  const pqkv::frequency_statistics s = index.statistics();
  CHECK(s.hits == 3);
  CHECK(s.misses == 1);
  CHECK(s.admissions == 8);
  CHECK(s.evictions == 5);
}

TEST_CASE("frequency_index: a half-filled block is offered and stays out until its tokens are final") {
  pqkv::frequency_index<> owner(6, 2);
  const auto index = owner.mutable_view();
  const key_list hot{3, 3, 3, 1};
  auto outcome = index.admit(read(hot), {}, 1, pqkv::final_blocks_end{3});
  CHECK(outcome.offered == 1);  // block 3 takes the only place, and 1 does not move up
  CHECK(outcome.admitted == 0);
  CHECK(index.size() == 0);
  index.admit(read(hot), {}, 2, pqkv::final_blocks_end{3});
  CHECK(held(index) == key_list{1});
  index.admit(read(hot), {}, 2, pqkv::final_blocks_end{4});
  CHECK(held(index) == key_list{1, 3});
  CHECK(index.frequency(3) == 1);
  CHECK(index.frequency(1) == 2);
  // Any predicate, asked once an offer of a key that is not there, and free to throw: nothing has changed then.
  key_list asked;
  index.admit(read(key_list{5, 5, 3, 4, 0}), {}, 3, [&](std::int32_t key) { return asked.push_back(key), false; });
  CHECK(asked == key_list{5, 0});
  const frequency_contents before = contents_of(index);
  CHECK_THROWS_AS(
      index.admit(read(key_list{3, 3, 2}), {}, 3, [](std::int32_t key) { return key == 2 ? throw std::runtime_error("engine") : true; }),
      std::runtime_error);
  CHECK((contents_of(index) == before));
}

TEST_CASE("frequency_index: counts of repeated keys add up and stop at the highest number") {
  pqkv::frequency_index<> owner(6, 1);
  const auto index = owner.mutable_view();
  index.admit(read(key_list{4, 5, 4}), read(std::vector<std::uint32_t>{2, 3, 2}), 1);
  CHECK(held(index) == key_list{4});
  index.clear();
  index.admit(read(key_list{2, 1, 2}), read(std::vector<std::uint32_t>{0xfffffff0u, 0xfffffffeu, 0x20u}), 1);
  CHECK(held(index) == key_list{2});
}

TEST_CASE("frequency_index: frequencies stop rising at the highest one, and recency decides there") {
  pqkv::frequency_index<> owner(10, 3, 4);
  const auto index = owner.mutable_view();
  for (int step = 0; step < 20; ++step) index.admit(read(key_list{0, 1, 2}), {});
  CHECK(index.frequency(0) == 4);
  index.admit(read(key_list{2}), {});
  index.admit(read(key_list{0}), {});
  CHECK(index.frequency(2) == 4);
  index.admit(read(key_list{7}), {});  // 1 was offered the longest ago
  CHECK(held(index) == key_list{0, 2, 7});
  index.age();
  CHECK(index.frequency(0) == 2);
  CHECK(index.frequency(7) == 1);
}

TEST_CASE("frequency_index: nothing allocates after construction") {
  random_source random(0x1f2);
  pqkv::frequency_index<> owner(500, 60);
  const auto index = owner.mutable_view();
  std::vector<std::int32_t> keys(300), slots(300);
  std::vector<std::uint32_t> counts(300);
  std::vector<pqkv::frequency_index_view<>::admission_type> admitted(40);
  const std::size_t before = allocations();
  for (int step = 0; step < 300; ++step) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] = static_cast<std::int32_t>(random.below(1 + random.below(500)));
      counts[i] = static_cast<std::uint32_t>(random.below(100));
    }
    index.lookup(read(keys), write(slots));
    index.admit(read(keys), read(counts), 40, pqkv::final_blocks_end{450}, write(admitted));
    if (step % 50 == 0) index.age();
    if (step % 30 == 0) index.drop(read(keys));
  }
  CHECK(allocations() == before);
  CHECK(index.statistics().evictions > 100);
}
