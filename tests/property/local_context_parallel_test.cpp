// SPDX-License-Identifier: Apache-2.0
// Random lives of a cache over 1, 2, 3, 4 and 8 ranks under selection_mode::local, in host memory and on devices (by the backend that
// queues), against the plain oracle (cases/local_player.hpp): the ranks' lists together are its lists to the token, and the output is plain
// attention to them.
#include <doctest/doctest.h>

#include "cases/device_rank_player.hpp"
#include "cases/local_player.hpp"
#include "cases/queued_shares.hpp"
#include "cases/rank_answers.hpp"
#include "cases/rank_params.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;

/// @param play  play(in_process, params, script) -> answers
template <class T, class Cache, class Play>
void lives(std::uint64_t seed, std::size_t count, const Play& play) {
  random_source random(seed);
  compared_lists compared;
  for (std::size_t i = 0; i < count; ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    const std::size_t every_size[] = {1, 2, 3, 4, 8}, ranks = every_size[i % 5];
    auto p = random_rank_params<Cache>(random);
    p.selection_over_ranks = selection_mode::local;
    p.selector.reduction = static_cast<pqkv::group_reduction>((i + i / 5) % 5);  // 25 lives have every reduction on every number of ranks
    p.capacity = 150 + p.capacity / 3;                                           // the oracle is slow
    const content what = every_content[random.below(4)];
    const std::size_t lists = pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads);
    const life_script script{p.batch, p.kv_heads, p.query_heads, p.head_dim, lists, p.capacity, 20, what, random.bits()};
    local_player<T> oracle(whole_params<typename whole_player<T>::cache_type>(p), {ranks, p.block, p.run});
    const answers expected = script.template play<T>(oracle);
    in_process_group group(ranks);
    std::vector<answers> parts(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) { parts[rank] = play(in_process(group, rank), p, script); });
    for (const std::string& what_thrown : thrown) REQUIRE(what_thrown == "");
    compare_answers(parts, expected, static_cast<float>(2 * oracle.tolerance), compared);
  }
  MESSAGE("lists compared ", compared.all, ", not empty ", compared.not_empty);
  CHECK(compared.not_empty > compared.all / 4);
}

template <class T>
void host_lives(std::uint64_t seed, std::size_t count) {
  lives<T, typename rank_player<T>::cache_type>(seed, count, [](const in_process& member, const auto& p, const life_script& script) {
    rank_player<T> one(member, p);
    return script.play<T>(one);
  });
}
}  // namespace

TEST_CASE("context_parallel, local mode: random lives answer as the plain oracle, float") { host_lives<float>(61, 25 / looked_at_step); }
TEST_CASE("context_parallel, local mode: random lives answer as the plain oracle, half") {
  host_lives<pqkv::half>(62, 25 / looked_at_step);
}
TEST_CASE("context_parallel, local mode, in device memory: random lives answer as the plain oracle") {
  using player = device_rank_player<float, queued_policy, queued_ranks>;
  lives<float, player::cache_type>(63, 25 / looked_at_step, [](const in_process& member, const auto& p, const life_script& script) {
    queue work;
    player one({&work, {}}, queued_ranks(member), p);
    return script.play<float>(one);
  });
}
