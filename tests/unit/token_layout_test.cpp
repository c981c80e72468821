// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <vector>

#include "cases/inputs.hpp"
#include <pqkv/scale/token_layout.hpp>

TEST_CASE("token_layout: counts and positions equal those of a list of all tokens") {
  pqkv_cases::random_source random(3);
  for (int i = 0; i < 60; ++i) {
    const pqkv::scale::token_layout layout{1 + random.below(9), 1 + random.below(20), random.below(2) == 0 ? 0 : random.below(50)};
    const std::size_t n = random.below(700);
    CAPTURE(layout.ranks);
    CAPTURE(layout.block);
    CAPTURE(layout.run);
    CAPTURE(n);
    std::vector<std::vector<std::size_t>> shares(layout.ranks);
    bool right = true;
    for (std::size_t t = 0; t < n; ++t) {
      std::size_t owner = 0;  // by dealing: each rank's run, then blocks in turn
      if (t < layout.ranks * layout.run)
        while ((owner + 1) * layout.run <= t) ++owner;
      else
        for (std::size_t dealt = t - layout.ranks * layout.run; dealt >= layout.block; dealt -= layout.block)
          owner = (owner + 1) % layout.ranks;
      right &= layout.owner(t) == owner;
      for (std::size_t rank = 0; rank < layout.ranks; ++rank) right &= layout.held(rank, t) == shares[rank].size();
      right &= layout.position(owner, shares[owner].size()) == t;
      shares[owner].push_back(t);
    }
    for (std::size_t rank = 0; rank < layout.ranks; ++rank) right &= layout.held(rank, n) == shares[rank].size();
    REQUIRE(right);
  }
}

TEST_CASE("token_layout: a layout without ranks or blocks is refused") {
  CHECK(pqkv::scale::can_lay_out({3, 128, 0}, "test").ok());
  CHECK(!pqkv::scale::can_lay_out({0, 128, 0}, "test").ok());
  CHECK(pqkv::scale::can_lay_out({3, 0, 0}, "test").message() == "pqkv::test: layout.block must be at least 1 (tokens), got 0");
}
