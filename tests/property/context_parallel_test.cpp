// SPDX-License-Identifier: Apache-2.0
// Random lives of a cache over 1, 2, 3, 4 and 8 ranks against one pqcache that holds everything: under selection_mode::exact the ranks'
// lists together are its lists to the token, and the output is the same within the rounding of merge().
#include <doctest/doctest.h>

#include "cases/rank_lives.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;

template <class T>
using rank_params = typename rank_player<T>::cache_type::params;

template <class T>
rank_params<T> random_rank_params(random_source& random) {
  rank_params<T> p;
  const std::size_t groups[] = {1, 2, 4};
  p.batch = 1 + random.below(3);
  p.kv_heads = 1 + random.below(2);
  p.query_heads = p.kv_heads * groups[random.below(3)];
  p.head_dim = 16 * (1 + random.below(2));
  p.capacity = 150 + random.below(450);
  p.step_queries = random.below(3) == 0 ? 0 : 1 + random.below(9);
  p.selection = static_cast<pqkv::draft_selection>(random.below(4) == 0);
  p.softmax_scale = random.below(4) == 0 ? 0.5f : 0.0f;
  p.budget.sinks = random.below(9);
  p.budget.min_tokens = p.budget.sinks + 1 + random.below(60);
  p.budget.ratio = 0.05 * static_cast<double>(random.below(10));
  p.budget.window_share = 0.1 * static_cast<double>(random.below(6));
  if (random.below(4) == 0) p.budget.window = 1 + random.below(50);
  if (random.below(4) == 0) p.budget.retrieve = random.below(200);
  p.selector.bits = 4 + static_cast<unsigned>(random.below(3));
  p.selector.subspaces = std::size_t{1} << random.below(3);
  p.selector.train.iterations = 1 + random.below(3);
  p.selector.train.seed = random.bits();
  p.selector.train.rows_per_centroid = random.below(2) == 0 ? 256 : 2 + random.below(5);
  p.selector.tail_tokens = 1 + random.below(30);
  p.selector.reduction = static_cast<group_reduction>(random.below(5));
  p.selector.path =
      p.selector.subspaces * p.selector.bits <= 12 ? static_cast<pqkv::search_path>(random.below(3)) : pqkv::search_path::automatic;
  p.selector.metric = static_cast<pqkv::key_metric>(random.below(3) == 0);
  p.selector.axes = static_cast<pqkv::axis_order>(random.below(2));
  p.selector.refresh = 1.3;
  p.selector.refresh_iterations = 0;
  const std::size_t blocks[] = {1, 7, 16, 64};
  p.block = blocks[random.below(4)];
  p.run = random.below(2) == 0 ? 0 : 1 + random.below(100);
  p.agreement = static_cast<pqkv::scale::agreement_mode>(random.below(3) == 0);
  return p;
}

template <class T>
typename whole_player<T>::cache_type::params whole_params(const rank_params<T>& p) {
  typename whole_player<T>::cache_type::params whole{p};
  whole.budget = p.budget;
  whole.selector = p.selector;
  return whole;
}

template <class T>
void lives(std::uint64_t seed, std::size_t count) {
  random_source random(seed);
  std::size_t checked = 0, listed = 0;
  for (std::size_t i = 0; i < count; ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    const std::size_t every_size[] = {1, 2, 3, 4, 8}, ranks = every_size[i % 5];
    const auto p = random_rank_params<T>(random);
    const content what = every_content[random.below(4)];
    const std::size_t lists = pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads);
    const float bound = what == content::offset ? 1e-3f : 2e-5f;  // logits of offset keys are thousands: their last bits are what differs
    const life_script script{p.batch, p.kv_heads, p.query_heads, p.head_dim, lists, p.capacity, 25, what, random.bits()};
    whole_player<T> whole(whole_params<T>(p));
    const answers expected = script.template play<T>(whole);
    pqkv::scale::in_process_group group(ranks);
    std::vector<answers> parts(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      rank_player<T> player(pqkv::scale::in_process(group, rank), p);
      parts[rank] = script.template play<T>(player);
    });
    for (const std::string& what_thrown : thrown) REQUIRE(what_thrown == "");
    for (std::size_t step = 0; step < expected.size(); ++step) {
      CAPTURE(step);
      for (std::size_t list = 0; list < expected[step].lists.size(); ++list) {
        CAPTURE(list);
        REQUIRE(joined_list(parts, step, list) == expected[step].lists[list]);
        ++checked;
        listed += expected[step].lists[list].empty() ? 0 : 1;
      }
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        REQUIRE(parts[rank][step].out == parts[0][step].out);
        REQUIRE(distance(parts[rank][step].out, expected[step].out) < bound);
        REQUIRE(distance(parts[rank][step].lse, expected[step].lse) < bound);
      }
    }
  }
  MESSAGE("lists checked ", checked, ", not empty ", listed);
  CHECK(listed > checked / 4);
}
}  // namespace

TEST_CASE("context_parallel: random lives select what one cache selects, float") { lives<float>(21, 40 / looked_at_step); }
TEST_CASE("context_parallel: random lives select what one cache selects, bfloat16") { lives<pqkv::bfloat16>(22, 20 / looked_at_step); }
