// SPDX-License-Identifier: Apache-2.0
// Doors and memory of the frequency index: what is refused changes nothing; memory of the caller is enough at the stated size.
#include <doctest/doctest.h>

#include <algorithm>
#include <utility>

#include <pqkv/cache/frequency_index.hpp>

#include "cases/frequency_contents.hpp"
#include "cases/refusals.hpp"

namespace {
using namespace pqkv_cases;
using list = std::vector<std::int32_t>;
}  // namespace

TEST_CASE("frequency_index: in memory of the caller, and owners that move") {
  const std::size_t bytes = pqkv::frequency_index_view<>::required_bytes(100, 20);
  CHECK(pqkv::frequency_index<>(100, 20).size_bytes() == bytes);
  pqkv::buffer<std::byte> memory(2 * bytes);
  std::fill(memory.begin(), memory.end(), std::byte{0xa5});  // nobody promised zeros
  pqkv::arena arena(memory);
  const auto first = pqkv::frequency_index_view<>::place(arena, 100, 20), second = pqkv::frequency_index_view<>::place(arena, 100, 20);
  CHECK(arena.free_bytes() == 0);
  for (int step = 0; step < 50; ++step) {
    first.admit(read(list{step, step + 30}), {});
    second.admit(read(list{99 - step}), {});
  }
  CHECK(first.size() == 20);
  CHECK(first.statistics().admissions == 100);  // a key that comes again has left long before
  CHECK(held(second).front() == 50);
  CHECK(held(second).back() == 69);
  CHECK(unless_refused<pqkv::capacity_error>([&] { pqkv::frequency_index_view<>::place(arena, 100, 20); }, "frequency_index: memory",
                                             static_cast<double>(bytes), 0) == "");
  pqkv::arena counting;
  CHECK_THROWS_AS(pqkv::frequency_index_view<>::place(counting, 0, 0), pqkv::capacity_error);

  pqkv::frequency_index<> owner(10, 2), other;
  owner.mutable_view().admit(read(list{3}), {});
  other = std::move(owner);
  const pqkv::frequency_index<> moved(std::move(other));
  CHECK(other.mutable_view().size() == 0);
  CHECK(other.mutable_view().statistics().admissions == 0);
  pqkv::frequency_index<> none;
  none.mutable_view().age();
  none.mutable_view().clear();
  CHECK(none.mutable_view().lookup({}, {}).hits == 0);
  CHECK(none.mutable_view().admit({}, {}).offered == 0);
  CHECK(none.mutable_view().drop({}) == 0);
}

TEST_CASE("frequency_index: what is out of bounds is refused, asked or called, and changes nothing") {
  using pqkv::shape_error, pqkv::value_error;
  using view = pqkv::frequency_index_view<>;
  CHECK(unless_refused<value_error>([] { pqkv::frequency_index<std::int8_t>(128, 3); }, "frequency_index: keys", 127, 128) == "");
  CHECK(unless_refused<value_error>([] { pqkv::frequency_index<int, std::uint8_t>(9, 256); }, "frequency_index: capacity", 255, 256) == "");
  CHECK(unless_refused<value_error>([] { pqkv::frequency_index<>(9, 3, 1); }, "frequency_index: max_frequency", 2, 1) == "");
  CHECK(pqkv::can_frequency_index<std::int8_t>(127, 3).ok());
  CHECK_FALSE(pqkv::can_frequency_index<std::uint64_t>(std::size_t{1} << 32, 3).ok());

  pqkv::frequency_index<> owner(10, 3);
  const view index = owner.mutable_view();
  index.admit(read(list{1, 2, 2}), {});
  const frequency_contents before = contents_of(index);
  std::vector<std::int32_t> slots(3, 55);
  std::vector<view::admission_type> admitted(2);
  const std::vector<std::uint32_t> counts{1, 1, 1};
  const list good{4, 5, 6}, high{4, 10, 6}, low{4, 5, -2}, repeated{4, 5, 4};
  const auto refused = [&]<class Error>(Error*, const pqkv::status& asked, auto call, const char* where, double expected, double got) {
    CHECK_FALSE(asked.ok());
    CHECK(unless_refused<Error>(call, where, expected, got) == "");
    CHECK((contents_of(index) == before));
  };
  value_error* value = nullptr;
  shape_error* shape = nullptr;
  refused(
      value, index.can_lookup(read(high), write(slots)), [&] { index.lookup(read(high), write(slots)); }, "lookup: keys", 10, 10);
  refused(
      value, index.can_lookup(read(low), write(slots)), [&] { index.lookup(read(low), write(slots)); }, "lookup: keys", 10, -2);
  CHECK(slots == list{55, 55, 55});
  const auto two = pqkv::make_view(slots.data(), 2);
  refused(
      shape, index.can_lookup(read(good), two), [&] { index.lookup(read(good), two); }, "lookup: slots.extent(0)", 3, 2);
  const pqkv::view<const std::int32_t, 1> apart{good.data(), {2}, {2}};
  refused(
      shape, index.can_lookup(apart, two), [&] { index.lookup(apart, two); }, "lookup: keys.stride(0)", 1, 2);
  refused(
      value, index.can_admit(read(high), {}), [&] { index.admit(read(high), {}); }, "admit: keys", 10, 10);
  refused(
      shape, index.can_admit(apart, read(counts)), [&] { index.admit(apart, read(counts)); }, "admit: keys.stride(0)", 1, 2);
  const auto fewer = pqkv::make_view(counts.data(), 2);
  refused(
      shape, index.can_admit(read(good), fewer), [&] { index.admit(read(good), fewer); }, "admit: counts.extent(0)", 3, 2);
  const auto every = pqkv::every_block_final{};
  refused(
      shape, index.can_admit(read(good), {}, 3, write(admitted)), [&] { index.admit(read(good), {}, 3, every, write(admitted)); },
      "admit: admitted.extent(0)", 3, 2);
  CHECK(index.can_admit(read(good), {}, 2, write(admitted)).ok());
  refused(
      value, index.can_admit_ranked(read(repeated)), [&] { index.admit_ranked(read(repeated)); }, "admit_ranked: keys", 3, 2);
  refused(
      value, index.can_admit_ranked(read(low)), [&] { index.admit_ranked(read(low)); }, "admit_ranked: keys", 10, -2);
  refused(
      value, index.can_drop(read(low)), [&] { index.drop(read(low)); }, "drop: keys", 10, -2);
  CHECK(index.can_admit_ranked(read(good)).ok());
  index.admit(read(list{4}), {}, 1);  // the refused calls left no counts behind
  CHECK(held(index) == list{1, 2, 4});
}
