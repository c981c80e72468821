// SPDX-License-Identifier: Apache-2.0
// Random lives of a cache over 1, 2, 3, 4 and 8 ranks against one pqcache that holds everything: under selection_mode::exact the ranks'
// lists together are its lists to the token, and the output is the same within the rounding of merge().
#include <doctest/doctest.h>

#include "cases/rank_answers.hpp"
#include "cases/rank_params.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;

template <class T>
void lives(std::uint64_t seed, std::size_t count) {
  random_source random(seed);
  compared_lists compared;
  for (std::size_t i = 0; i < count; ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    const std::size_t every_size[] = {1, 2, 3, 4, 8}, ranks = every_size[i % 5];
    auto p = random_rank_params<typename rank_player<T>::cache_type>(random);
    p.selector.reduction = static_cast<pqkv::group_reduction>((i + i / 5) % 5);  // 25 lives have every reduction on every number of ranks
    const content what = every_content[random.below(4)];
    const std::size_t lists = pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads);
    const float bound = what == content::offset ? 1e-3f : 2e-5f;  // logits of offset keys are thousands: their last bits are what differs
    const life_script script{p.batch, p.kv_heads, p.query_heads, p.head_dim, lists, p.capacity, 25, what, random.bits()};
    whole_player<T> whole(whole_params<typename whole_player<T>::cache_type>(p));
    const answers expected = script.template play<T>(whole);
    pqkv::scale::in_process_group group(ranks);
    std::vector<answers> parts(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      rank_player<T> player(pqkv::scale::in_process(group, rank), p);
      parts[rank] = script.template play<T>(player);
    });
    for (const std::string& what_thrown : thrown) REQUIRE(what_thrown == "");
    compare_answers(parts, expected, bound, compared);
  }
  MESSAGE("lists compared ", compared.all, ", not empty ", compared.not_empty);
  CHECK(compared.not_empty > compared.all / 4);
}
}  // namespace

TEST_CASE("context_parallel: random lives select what one cache selects, float") { lives<float>(21, 40 / looked_at_step); }
TEST_CASE("context_parallel: random lives select what one cache selects, bfloat16") { lives<pqkv::bfloat16>(22, 25 / looked_at_step); }
