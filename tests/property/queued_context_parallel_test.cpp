// SPDX-License-Identifier: Apache-2.0
// Random lives of a cache over 1, 2, 3, 4 and 8 ranks with rows in device memory, run by the backend that queues, against one pqcache on
// the host that holds everything: the ranks' lists together are its lists to the token, and the output is the same within the rounding of
// merge(). The kernels are not run here (tests/cuda/ranks/context_parallel.cu does that), but all that the cache enqueues is.
#include <doctest/doctest.h>

#include "cases/device_rank_player.hpp"
#include "cases/queued_shares.hpp"
#include "cases/rank_answers.hpp"
#include "cases/rank_params.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using player = device_rank_player<float, queued_policy, queued_ranks>;

void lives(std::uint64_t seed, std::size_t count) {
  random_source random(seed);
  compared_lists compared;
  for (std::size_t i = 0; i < count; ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    const std::size_t every_size[] = {1, 2, 3, 4, 8}, ranks = every_size[i % 5];
    auto p = random_rank_params<player::cache_type>(random);
    p.selector.reduction = static_cast<pqkv::group_reduction>((i + i / 5) % 5);  // 25 lives have every reduction on every number of ranks
    const content what = every_content[random.below(4)];
    const std::size_t lists = pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads);
    const float bound = what == content::offset ? 1e-3f : 2e-5f;  // logits of offset keys are thousands: their last bits are what differs
    const life_script script{p.batch, p.kv_heads, p.query_heads, p.head_dim, lists, p.capacity, 20, what, random.bits()};
    whole_player<float> whole(whole_params<whole_player<float>::cache_type>(p));
    const answers expected = script.play<float>(whole);
    pqkv::scale::in_process_group group(ranks);
    std::vector<answers> parts(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      queue work;
      player one({&work, {}}, queued_ranks(group, rank), p);
      parts[rank] = script.play<float>(one);
    });
    for (const std::string& what_thrown : thrown) REQUIRE(what_thrown == "");
    compare_answers(parts, expected, bound, compared);
  }
  MESSAGE("lists compared ", compared.all, ", not empty ", compared.not_empty);
  CHECK(compared.not_empty > compared.all / 4);
}
}  // namespace

TEST_CASE("context_parallel in device memory: random lives select what one cache selects") { lives(31, 25 / looked_at_step); }
