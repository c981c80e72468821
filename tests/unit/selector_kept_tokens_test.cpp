// SPDX-License-Identifier: Apache-2.0
// What snapkv and h2o share: which tokens are kept at a length, how decisions are made and taken back, and what a query asks.
#include <doctest/doctest.h>

#include <vector>

#include <pqkv/selector/kept_tokens.hpp>

namespace {
using pqkv::selector::kept_query;
using pqkv::selector::kept_tokens_view;

/// Two slots of two heads, 20 tokens each. The score of a token falls with its distance to `best`.
struct two_slots {
  pqkv::buffer<std::byte> memory;
  kept_tokens_view kept;

  two_slots() {
    pqkv::arena count;
    kept_tokens_view::place(count, 2, 2, 20);
    memory = pqkv::buffer<std::byte>(count.used_bytes());
    pqkv::arena carve(memory);
    kept = kept_tokens_view::place(carve, 2, 2, 20);
    for (std::size_t slot = 0; slot < 2; ++slot) kept.keep(slot, 0, 20), kept.slots(slot).decides = 1;
  }
  std::vector<std::uint32_t> decide(const kept_query& asked, std::size_t head, double best) const {
    std::vector<std::uint32_t> tokens(20);
    const auto count = kept.kept(asked, head, tokens.data());
    tokens.resize(kept.decide(asked, head, tokens.data(), count,
                              [=](std::uint32_t t) { return -(static_cast<double>(t) - best) * (static_cast<double>(t) - best); }));
    return tokens;
  }
};
using list = std::vector<std::uint32_t>;
}  // namespace

TEST_CASE("selector kept tokens: the best are kept, equal scores go to the lower token, what is dropped stays dropped") {
  const two_slots all;
  const kept_query at_12{1, 2, 9, 12, 3, true};
  CHECK(all.decide(at_12, 0, 5.5) == list{4, 5, 6});  // 4 and 7 are as far
  CHECK(all.decide(at_12, 1, 8) == list{6, 7, 8});
  all.kept.slots(1).decided = 12;
  CHECK(all.decide(at_12, 0, 2) == list{4, 5, 6});
  CHECK(all.decide({1, 2, 11, 14, 4, true}, 0, 2) == list{4, 5, 6, 9});  // two came, and none returns
  all.kept.slots(1).decided = 14;
  CHECK(all.decide(at_12, 0, 2) == list{4, 5, 6});                 // as it was at 12
  CHECK(all.decide({1, 2, 10, 13, 2, true}, 0, 2) == list{4, 5});  // a length that was passed over: answered, but nothing is dropped
  CHECK(all.decide({1, 2, 11, 14, 4, true}, 0, 2) == list{4, 5, 6, 9});
  CHECK(all.decide({1, 2, 11, 15, 0, false}, 0, 2).empty());
  CHECK(all.decide({0, 2, 9, 12, 7, true}, 0, 2) == list{2, 3, 4, 5, 6, 7, 8});  // another slot
}

TEST_CASE("selector kept tokens: a cut finds again what was dropped later, and tokens that come anew are kept") {
  const two_slots all;
  pqkv::selector::kept_slot& slot = all.kept.slots(0);
  slot = {1, 12, 11, 5};
  all.decide({0, 2, 9, 12, 3, true}, 0, 5);
  slot.decided = 15;
  CHECK(all.decide({0, 2, 12, 15, 1, true}, 0, 6) == list{6});
  pqkv::sequence after;
  after.n = 13;
  all.kept.forget({0, 10, 12}, after);
  CHECK(slot.decided == 13);
  CHECK(slot.first_recent == 11);
  CHECK(all.decide({0, 2, 10, 13, 5, true}, 0, 5) == list{4, 5, 6, 9});
  all.kept.commit({0, 10, 12});
  CHECK(all.decide({0, 2, 12, 15, 9, true}, 0, 5) == list{4, 5, 6, 9, 10, 11});
  after.n = 10;
  all.kept.forget({0, 7, 12}, after);
  CHECK(slot.first_recent == 10);
  CHECK(all.decide({0, 2, 7, 10, 9, true}, 0, 5) == list{2, 3, 4, 5, 6});  // before anything was dropped
  after.n = 0;
  all.kept.forget({0, 2, 7}, after);
  CHECK(slot.decides == 0);
  CHECK(slot.observed == 0);
}

TEST_CASE("selector kept tokens: queries as the cache plans them") {
  const two_slots all;
  const std::vector<pqkv::token_span> spans = {{4, 15, 20}, {4, 15, 20}, {9, 0, 0},  {9, 0, 0},
                                               {0, 0, 0},   {0, 0, 0},   {3, 8, 12}, {3, 8, 12}};
  const std::vector<pqkv::middle_range> ranges = {{4, 15, 6}, {4, 15, 6}, {}, {}, {}, {}, {}, {}};
  const std::vector<std::uint32_t> slots = {1, 0, 0, 1};
  const pqkv::head_map<> map{pqkv::make_view(slots.data(), 4), 2};
  const auto query = [&](std::size_t row) {
    return all.kept.query_of(map, pqkv::make_view(spans.data(), 8), pqkv::make_view(ranges.data(), 8), row);
  };
  const auto same = [](const kept_query& a, const kept_query& b) {
    return a.slot == b.slot && a.begin == b.begin && a.end == b.end && a.length == b.length && a.retrieve == b.retrieve &&
           a.listed == b.listed;
  };
  CHECK(same(query(0), {1, 4, 15, 20, 6, true}));
  CHECK(same(query(1), {0, 9, 9, 9, 0, false}));   // everything
  CHECK(query(2).length == 0);                     // nobody asks
  CHECK(same(query(3), {1, 3, 8, 12, 0, false}));  // k = 0
  all.kept.slots(1).decides = 0;
  CHECK(query(0).length == 0);
}
