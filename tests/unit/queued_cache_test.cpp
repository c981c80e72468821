// SPDX-License-Identifier: Apache-2.0
// What is particular to a cache in device memory, on the backend that queues: what the host knows of its slots, what its checks refuse and
// what a step refuses, lists longer than the room for them, slots saved on one side and loaded on the other.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "cases/inputs.hpp"
#include "cases/queued_backend.hpp"

namespace {
using namespace pqkv_cases;
using device_cache = pqkv::device_pqcache<float>;
using host_cache = pqkv::pqcache<>;
constexpr std::size_t h = 2, hq = 4, d = 16;

template <class Cache>
typename Cache::params small() {
  typename Cache::params p;
  p.batch = 3, p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = 300;
  p.budget.sinks = 4, p.budget.window = 12, p.budget.retrieve = 20;
  p.selector.bits = 4, p.selector.train.iterations = 2, p.selector.tail_tokens = 16;
  p.selector.axes = pqkv::axis_order::contiguous;  // training on ordered copies of the keys waits for them; here waits are counted
  return p;
}

/// A queue, a cache in it, and rows for prompts.
struct subject {
  queue work;
  queued_policy dev{&work};
  device_cache cache{dev, small<device_cache>()};
  rows<float> given = make_rows<float>(content::clustered, h, 300, d, 3);
  queued_array<float> placed{dev, std::vector<float>(given.view().data, given.view().data + h * 300 * d)};

  auto prompt(std::size_t first, std::size_t n) const { return placed.const_view(h, 300, d).slice(1, first, n); }
  void prefill(std::size_t slot, std::size_t first, std::size_t n, pqkv::chunk which = pqkv::chunk::last) {
    cache.prefill(dev, slot, prompt(first, n), prompt(first, n), which);
  }
  bool takes_prompt(std::size_t slot) const { return cache.can_prefill(slot, prompt(0, 10), prompt(0, 10)).ok(); }
};
}  // namespace

TEST_CASE("queued cache: the host knows which slots are taken; a prompt's first chunk alone asks the device") {
  subject s;
  const std::size_t asked = s.work.syncs();
  s.prefill(0, 0, 100);
  CHECK_FALSE(s.takes_prompt(0));
  CHECK(s.takes_prompt(1));
  s.cache.fork(s.dev, 0, 1);
  CHECK_FALSE(s.takes_prompt(1));
  s.cache.reset(s.dev, 0);
  CHECK(s.takes_prompt(0));
  s.cache.truncate(s.dev, 1, 0);
  CHECK(s.takes_prompt(1));
  s.prefill(2, 0, 50, pqkv::chunk::more);
  CHECK(s.takes_prompt(2));  // its next chunk
  s.cache.fork(s.dev, 2, 0);
  s.prefill(0, 50, 20);
  CHECK_FALSE(s.takes_prompt(0));
  CHECK(s.work.syncs() == asked + 2);  // the first chunks in slots 0 and 2
  CHECK(s.cache.size(s.dev, 0) == 70);
  // What a graph did the host learns in maintain().
  const queued_array<std::uint32_t> slots(s.dev, std::vector<std::uint32_t>{0}), lengths(s.dev, std::vector<std::uint32_t>{0});
  s.cache.truncate(s.dev, lengths.const_view(1), slots.const_view(1));
  CHECK_FALSE(s.takes_prompt(0));
  s.cache.maintain(s.dev);
  CHECK(s.takes_prompt(0));
}

TEST_CASE("queued cache: a prompt that is not whole cannot be cut, neither from the host nor in a step") {
  subject s;
  s.prefill(0, 0, 60, pqkv::chunk::more);
  CHECK_FALSE(s.cache.can_truncate(0, 30).ok());
  CHECK_THROWS_AS(s.cache.truncate(s.dev, 0, 30), pqkv::value_error);
  const queued_array<std::uint32_t> slots(s.dev, std::vector<std::uint32_t>{0}), lengths(s.dev, std::vector<std::uint32_t>{30});
  s.cache.truncate(s.dev, lengths.const_view(1), slots.const_view(1));
  CHECK(s.cache.size(s.dev, 0) == 60);
  CHECK(s.cache.statistics(s.dev, 0).refused == 1);
  s.prefill(0, 60, 40);
  CHECK(s.cache.size(s.dev, 0) == 100);
  CHECK(s.cache.at(s.dev, 0).prompt == 100);
  // A length that is above the slot's is refused and counted.
  s.cache.truncate(s.dev, 0, 101);
  CHECK(s.cache.size(s.dev, 0) == 100);
  CHECK(s.cache.statistics(s.dev, 0).refused == 2);
  CHECK_THROWS_AS(s.cache.truncate(s.dev, 0, (std::size_t{1} << 32) + 5), pqkv::value_error);
  CHECK(s.cache.size(s.dev, 0) == 100);
}

TEST_CASE("queued cache: a prompt goes into a slot that is empty on the device, whatever the host has not seen") {
  subject s;
  s.cache.truncate(s.dev, 0, 5);  // refused by the device: the slot is empty
  CHECK(s.cache.statistics(s.dev, 0).refused == 1);
  s.prefill(0, 0, 100);
  CHECK(s.cache.size(s.dev, 0) == 100);
  const queued_array<std::uint32_t> slots(s.dev, std::vector<std::uint32_t>{1}), nothing(s.dev, std::vector<std::uint32_t>{0});
  const auto token = s.placed.const_view(1, h, d);
  s.cache.append(s.dev, token, token, {.slots = slots.const_view(1)});
  CHECK_THROWS_AS(s.prefill(1, 0, 50), pqkv::value_error);  // one token is there
  CHECK(s.cache.size(s.dev, 1) == 1);
  s.cache.truncate(s.dev, nothing.const_view(1), slots.const_view(1));
  s.prefill(1, 0, 50);
  CHECK(s.cache.size(s.dev, 1) == 50);
}

TEST_CASE("queued cache: more query heads at once than a grid has rows are refused, and fewer at once are taken") {
  auto p = small<device_cache>();
  p.batch = 65535 / hq + 1;
  CHECK(std::string(device_cache::can_construct(p).parameter) == "step_queries");
  p.step_queries = 65535 / hq;
  CHECK(device_cache::can_construct(p).ok());
  auto on_host = small<host_cache>();
  on_host.batch = p.batch;
  CHECK(host_cache::can_construct(on_host).ok());
}

TEST_CASE("queued cache: lengths without memory are refused, and nothing is cut") {
  subject s;
  s.prefill(0, 0, 100);
  const pqkv::view<const std::uint32_t, 1, pqkv::space::device> nowhere{nullptr, {3}, {1}};
  CHECK_FALSE(s.cache.can_truncate(nowhere).ok());
  CHECK_THROWS_AS(s.cache.truncate(s.dev, nowhere), pqkv::value_error);
  CHECK(s.cache.size(s.dev, 0) == 100);
}

TEST_CASE("queued cache: queries after a step's last row have empty lists, whatever was there before") {
  subject s;
  s.prefill(0, 0, 200);
  const queued_array<std::uint32_t> slots(s.dev, std::vector<std::uint32_t>{0}), counts(s.dev, std::vector<std::uint32_t>{2});
  const queued_array<std::int32_t> lists(s.dev, std::vector<std::int32_t>(4 * h * 30, 7));
  const queued_array<std::uint32_t> listed(s.dev, std::vector<std::uint32_t>(4 * h, 7));
  s.cache.retrieve(s.dev, s.placed.const_view(4, hq, d), lists.view(4, h, 30), listed.view(4, h),
                   {slots.const_view(1), counts.const_view(1)});
  CHECK(listed.read() == std::vector<std::uint32_t>{20, 20, 20, 20, 0, 0, 0, 0});
  const auto all = lists.read();
  for (std::size_t i = 2 * h * 30; i < all.size(); ++i) REQUIRE(all[i] == -1);
}

TEST_CASE("queued cache: lists that are longer than the room for them are cut, and so are their counts") {
  subject s;
  s.prefill(0, 0, 200);
  s.prefill(1, 0, 14);  // no codebook: its whole middle is listed, which is empty under window 12
  const queued_array<std::uint32_t> slots(s.dev, std::vector<std::uint32_t>{0});
  const pqkv::basic_step<pqkv::space::device> step{.slots = slots.const_view(1)};
  const queued_array<std::int32_t> long_lists(s.dev, std::vector<std::int32_t>(h * 40, 7)),
      short_lists(s.dev, std::vector<std::int32_t>(h * 5, 7));
  const queued_array<std::uint32_t> counts(s.dev, h);
  const auto query = s.placed.const_view(1, hq, d);
  s.cache.retrieve(s.dev, query, long_lists.view(1, h, 40), counts.view(1, h), step);
  CHECK(counts.read() == std::vector<std::uint32_t>{20, 20});
  s.cache.retrieve(s.dev, query, short_lists.view(1, h, 5), counts.view(1, h), step);
  CHECK(counts.read() == std::vector<std::uint32_t>{5, 5});
  const auto all = long_lists.read(), few = short_lists.read();
  for (std::size_t head = 0; head < h; ++head)
    CHECK(std::equal(few.begin() + static_cast<std::ptrdiff_t>(head * 5), few.begin() + static_cast<std::ptrdiff_t>(head * 5 + 5),
                     all.begin() + static_cast<std::ptrdiff_t>(head * 40)));
  CHECK(all[20] == -1);
}

TEST_CASE("queued cache: a training that fails leaves the slot dense, and one that succeeds later is taken") {
  subject s;
  // Twelve finite keys are too few for 16 centroids.
  std::vector<float> few(h * 100 * d);
  random_source random(4);
  for (std::size_t i = 0; i < few.size(); ++i) few[i] = (i / d) % 100 < 12 ? random.gaussian() : nonfinite(i);
  const queued_array<float> same(s.dev, few);
  s.cache.prefill(s.dev, 0, same.const_view(h, 100, d), same.const_view(h, 100, d));
  CHECK(s.cache.at(s.dev, 0).learned == 0);
  CHECK(s.cache.at(s.dev, 0).learn_again == 102);
  const queued_array<std::uint32_t> slots(s.dev, std::vector<std::uint32_t>{0}), counts(s.dev, std::vector<std::uint32_t>{40});
  const auto more = s.placed.const_view(40, h, d);
  s.cache.append(s.dev, more, more, {slots.const_view(1), counts.const_view(1)});
  s.cache.maintain(s.dev);
  const bool learned = s.cache.at(s.dev, 0).learned == 1;
  // Both heads and subspaces have at least 16 finite rows by now.
  CHECK(learned);
}

TEST_CASE("queued cache: a slot saved on the device is loaded on the host, and the other way round") {
  subject s;
  s.prefill(0, 0, 150);
  const queued_array<std::uint32_t> slots(s.dev, std::vector<std::uint32_t>{0}), counts(s.dev, std::vector<std::uint32_t>{33});
  const auto more = s.placed.const_view(33, h, d);
  s.cache.append(s.dev, more, more, {slots.const_view(1), counts.const_view(1)});
  std::vector<std::byte> file;
  s.cache.save(s.dev, 0, [&](const std::byte* data, std::size_t bytes) { file.insert(file.end(), data, data + bytes); });
  const auto source = [&file](std::size_t& at) {
    return [&file, &at](std::byte* to, std::size_t bytes) {
      const std::size_t count = std::min(bytes, file.size() - at);
      std::memcpy(to, file.data() + at, count);
      at += count;
      return count;
    };
  };
  const pqkv::exec::host<> cpu;
  host_cache here(small<host_cache>());
  std::size_t at = 0;
  here.load(cpu, 2, source(at));
  CHECK(here.size(2) == 183);
  at = 0;
  s.cache.load(s.dev, 1, source(at));
  std::vector<std::byte> again;
  here.save(cpu, 2, [&](const std::byte* data, std::size_t bytes) { again.insert(again.end(), data, data + bytes); });
  CHECK(again == file);

  // The three answer alike, now and after ten more tokens.
  for (int round = 0; round < 2; ++round) {
    const std::uint32_t slot = 2;
    const auto query = pqkv::as_const(s.given.view()).slice(0, 0, 1).slice(1, 0, 4);
    const queued_array<std::uint32_t> both(s.dev, std::vector<std::uint32_t>{0, 1});
    std::vector<float> two(query.data, query.data + hq * d);
    two.insert(two.end(), query.data, query.data + hq * d);
    const queued_array<float> queries(s.dev, two), out(s.dev, 2 * hq * d);
    const queued_array<std::int32_t> lists(s.dev, 2 * h * 300);
    const queued_array<std::uint32_t> listed(s.dev, 2 * h);
    s.cache.retrieve(s.dev, queries.const_view(2, hq, d), lists.view(2, h, 300), listed.view(2, h), {.slots = both.const_view(2)});
    s.cache.attend(s.dev, queries.const_view(2, hq, d), out.view(2, hq, d), {}, {.slots = both.const_view(2)});
    std::vector<std::int32_t> here_lists(h * 300);
    std::vector<std::uint32_t> here_listed(h);
    std::vector<float> here_out(hq * d);
    here.retrieve(cpu, query, pqkv::make_view(here_lists.data(), 1, h, 300), pqkv::make_view(here_listed.data(), 1, h),
                  {.slots = pqkv::make_view(&slot, 1)});
    here.attend(cpu, query, pqkv::make_view(here_out.data(), 1, hq, d), {}, {.slots = pqkv::make_view(&slot, 1)});
    const auto there_lists = lists.read();
    const auto there_out = out.read();
    CHECK(listed.read() == std::vector<std::uint32_t>{20, 20, 20, 20});
    CHECK(here_listed == std::vector<std::uint32_t>{20, 20});
    CHECK(std::equal(here_lists.begin(), here_lists.end(), there_lists.begin()));
    CHECK(std::equal(here_lists.begin(), here_lists.end(), there_lists.begin() + h * 300));
    CHECK(std::equal(here_out.begin(), here_out.end(), there_out.begin()));
    CHECK(std::equal(here_out.begin(), here_out.end(), there_out.begin() + hq * d));
    const queued_array<std::uint32_t> tens(s.dev, std::vector<std::uint32_t>{10, 10});
    const std::uint32_t ten = 10;
    std::vector<float> tokens(s.given.view().data, s.given.view().data + 10 * h * d);
    const auto own = pqkv::make_view(std::as_const(tokens).data(), 10, h, d);
    here.append(cpu, own, own, {pqkv::make_view(&slot, 1), pqkv::make_view(&ten, 1)});
    tokens.insert(tokens.end(), s.given.view().data, s.given.view().data + 10 * h * d);
    const queued_array<float> twice(s.dev, tokens);
    s.cache.append(s.dev, twice.const_view(20, h, d), twice.const_view(20, h, d), {both.const_view(2), tens.const_view(2)});
    pqkv::sync(s.dev);
  }
}
