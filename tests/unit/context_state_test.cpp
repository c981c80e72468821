// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "cases/rank_lives.hpp"

namespace {
using namespace pqkv_cases;
using cache = rank_player<float>::cache_type;

cache::params small() {
  cache::params p;
  p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 100;
  p.selector.subspaces = 2, p.selector.bits = 4;
  return p;
}
}  // namespace

TEST_CASE("context_state: what several ranks cannot do is refused by name") {
  const auto message = [](cache::params p, std::size_t ranks = 2, std::size_t rank = 0) {
    return cache::can_construct(p, ranks, rank).message();
  };
  CHECK(cache::can_construct(small(), 2, 1).ok());
  CHECK(message(small(), 2, 2) == "pqkv::context_parallel: ranks.rank() must be below 2 (ranks.size()), got 2");
  auto p = small();
  p.block = 0;
  CHECK(message(p) == "pqkv::context_parallel: layout.block must be at least 1 (tokens), got 0");
  p = small(), p.selector.residual.subspaces = 2;
  CHECK(message(p).find("no second stage") != std::string::npos);
  p = small(), p.selector.axes = pqkv::axis_order::weighted_pairs;
  CHECK(message(p).find("selector.axes") != std::string::npos);
  p = small(), p.selector.over = pqkv::selector::normalisation::attended;
  CHECK(message(p).find("selector.over") != std::string::npos);
  p = small(), p.selector.overlap = pqkv::overlap_model{1, 1, 1, 1, 1};
  CHECK(message(p).find("selector.overlap") != std::string::npos);
  p = small(), p.head_dim = 12;
  CHECK(!cache::can_construct(p, 2, 0).ok());
}

TEST_CASE("context_state: a rank takes memory for its share") {
  auto p = small();
  p.capacity = 4000, p.block = 10;
  pqkv::scale::in_process_group group(4);
  const cache one(pqkv::exec::host<>{}, pqkv::scale::in_process(group, 3), p);
  CHECK(one.rows().room(0) == 1000);
  CHECK(one.parameters().selector.refresh_iterations == 0);
  CHECK(one.layout() == pqkv::scale::token_layout{4, 10, 0});
  CHECK(one.size(0) == 0);
  CHECK(one.held(0) == 0);
}
