// SPDX-License-Identifier: Apache-2.0
// Refusals of every rank in turn, in host memory and on devices (by the backend that queues), however the ranks vote: all ranks refuse with
// the rank and the reason, at once and not at the time limit, no slot changes, and the right call can be made next.
#include <doctest/doctest.h>

#include "cases/device_rank_player.hpp"
#include "cases/faults.hpp"
#include "cases/queued_shares.hpp"
#include "cases/rank_refusals.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
using pqkv::group_reduction;
using shape = refusal_shape;
const pqkv::exec::host<> cpu;
constexpr std::size_t ranks = 3;

/// How ranks vote, and how many query tokens a pass has.
struct way {
  agreement_mode agreement;
  selection_mode mode;
  group_reduction reduction;
  std::size_t step_queries;  // 700: messages so long that the ranks share the merging
};
constexpr way every_way[] = {{agreement_mode::each_call, selection_mode::exact, group_reduction::probability_sum, 0},
                             {agreement_mode::each_call, selection_mode::local, group_reduction::probability_sum, 0},
                             {agreement_mode::with_exchange, selection_mode::exact, group_reduction::probability_sum, 0},
                             {agreement_mode::with_exchange, selection_mode::exact, group_reduction::probability_max, 5},
                             {agreement_mode::with_exchange, selection_mode::exact, group_reduction::logit_max, 0},
                             {agreement_mode::with_exchange, selection_mode::local, group_reduction::probability_sum, 0},
                             {agreement_mode::with_exchange, selection_mode::local, group_reduction::none, 5},
                             {agreement_mode::with_exchange, selection_mode::local, group_reduction::probability_sum, 700}};

/// Runs task(rank, its communicator) in threads, none of which may wait for the time limit.
template <class Task>
void on_ranks(const Task& task) {
  in_process_group group(ranks, std::chrono::seconds(300));
  const auto begin = std::chrono::steady_clock::now();
  const auto thrown = run_ranks(ranks, [&](std::size_t rank) { task(rank, in_process(group, rank)); });
  CHECK(thrown == std::vector<std::string>(ranks));
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(100));
}
template <class Player>
void prefill(Player& one) {
  const auto keys = refusal_rows(shape::h, shape::prompt, shape::d, 1), values = refusal_rows(shape::h, shape::prompt, shape::d, 2);
  one.prefill(0, keys.view(), values.view(), pqkv::chunk::last);
}
answer asked(auto& one, std::size_t lists) {
  const refused_step right;
  return ask(one, pqkv::as_const(refusal_rows(1, shape::hq, shape::d, 6).view()), lists, shape::most, right.step());
}
bool same(const answer& a, const answer& b) { return a.lists == b.lists && a.out == b.out && a.lse == b.lse; }
}  // namespace

TEST_CASE("rank_refusals: a step that any rank refuses is refused by all, with the reason, and changes nothing") {
  for (const way& how : every_way) {
    CAPTURE(&how - every_way);
    for (std::size_t refuses = 0; refuses < ranks; ++refuses) {
      CAPTURE(refuses);
      on_ranks([&](std::size_t rank, const in_process& member) {
        rank_player<float> one(
            member, refusal_params<rank_player<float>::cache_type::params>(how.agreement, how.mode, how.reduction, how.step_queries));
        prefill(one);
        refused_step right;
        right.lists = one.cache().lists();
        const answer before = asked(one, right.lists);
        const bool votes = how.agreement == agreement_mode::each_call;
        const auto is_sent = [&](step_verb verb) {
          return votes || verb == step_verb::attend || (verb == step_verb::retrieve && how.mode == selection_mode::exact);
        };
        CHECK(every_refusal(one, rank, refuses, right, is_sent) == "");
        right.tokens = right.out_tokens = 7, right.counts = {7};  // several passes, where a pass has fewer
        CHECK(ended([&] { make_step(one, step_verb::attend, right); }) == "");
        refused_step wrong = right;
        wrong.heads += rank == refuses ? 1 : 0;
        CHECK(unless_all_refused(ended([&] { make_step(one, step_verb::attend, wrong); }), rank, refuses, "query.extent(1)") == "");
        CHECK(one.cache().size(0) == shape::prompt);
        CHECK(same(asked(one, right.lists), before));
      });
    }
  }
}

TEST_CASE("rank_refusals: verbs other than steps") {
  for (const auto agreement : {agreement_mode::each_call, agreement_mode::with_exchange})
    for (std::size_t refuses = 0; refuses < ranks; ++refuses) {
      CAPTURE(refuses);
      on_ranks([&](std::size_t rank, const in_process& member) {
        rank_player<float> one(member, refusal_params<rank_player<float>::cache_type::params>(agreement, selection_mode::exact,
                                                                                              group_reduction::probability_sum, 0));
        prefill(one);
        const answer before = asked(one, shape::h);
        const std::vector<std::byte> file = saved(cpu, one.cache(), 0);
        const bool wrong = rank == refuses;
        const auto refused = [&](const char* reason, const auto& call) {
          CHECK(unless_all_refused(ended(call), rank, refuses, reason) == "");
        };
        const std::size_t own = one.cache().layout().held(rank, 50);
        const auto keys = refusal_rows(shape::h, own + 1, shape::d, 3);
        refused("keys.extent(1)", [&] {
          const auto part = keys.view().slice(1, 0, own + (wrong ? 1 : 0));
          one.cache().prefill(cpu, 1, part, part, 50);
        });
        refused("slot", [&] {
          const auto part = keys.view().slice(1, 0, own);
          one.cache().prefill(cpu, wrong ? 9 : 1, part, part, 50);
        });
        refused("n must be at most", [&] { one.cache().truncate(cpu, 0, wrong ? shape::prompt + 1 : 5); });
        refused("from", [&] { one.cache().fork(cpu, wrong ? 9 : 0, 1); });
        refused("slot", [&] { one.cache().reset(cpu, wrong ? 9 : 0); });
        refused("sources", [&] {
          std::vector<file_source> sources;
          if (!wrong) sources.push_back({file});
          one.cache().load(cpu, 1, sources);
        });
        CHECK(one.cache().size(1) == 0);
        CHECK(same(asked(one, shape::h), before));
      });
    }
}

TEST_CASE("rank_refusals: ranks that take another number of queries, or have other sequences, are told so") {
  for (const way& how : every_way) {
    CAPTURE(&how - every_way);
    for (std::size_t other = 0; other < ranks; ++other)
      on_ranks([&](std::size_t rank, const in_process& member) {
        rank_player<float> one(
            member, refusal_params<rank_player<float>::cache_type::params>(how.agreement, how.mode, how.reduction, how.step_queries));
        prefill(one);
        refused_step step;
        const std::string differ = "pqkv::attend: the call must be the same on all ranks";
        for (const std::uint32_t tokens : {0u, 3u}) {
          step.tokens = step.out_tokens = rank == other ? tokens : 1, step.counts = {rank == other ? tokens : 1};
          CHECK(ended([&] { make_step(one, step_verb::attend, step); }).find(differ) == 0);
        }
        step.tokens = step.out_tokens = 0, step.counts = {0};
        CHECK(ended([&] { make_step(one, step_verb::attend, step); }) == "");
        if (how.agreement == agreement_mode::each_call) return;
        // A rank alone refuses an append: nobody waits then, and the next step says that sequences differ.
        refused_step token;
        token.heads += rank == other ? 1 : 0;
        CHECK(ended([&] { make_step(one, step_verb::append, token); }).empty() == (rank != other));
        CHECK(ended([&] { make_step(one, step_verb::attend, {}); }).find(differ) == 0);
        one.cache().reset(cpu, 0);
        prefill(one);
        CHECK(ended([&] { make_step(one, step_verb::attend, {}); }) == "");
      });
  }
}

TEST_CASE("rank_refusals: parameters that differ are found by the first step") {
  for (const way& how : every_way) {
    CAPTURE(&how - every_way);
    on_ranks([&](std::size_t rank, const in_process& member) {
      auto p = refusal_params<rank_player<float>::cache_type::params>(how.agreement, how.mode, how.reduction, how.step_queries);
      if (rank == 1) p.step_queries = 3;
      rank_player<float> one(member, p);
      refused_step none;
      none.tokens = none.out_tokens = 0, none.counts = {0};
      CHECK(ended([&] { make_step(one, step_verb::attend, none); }).find("pqkv::attend: the call must be the same on all ranks") == 0);
      CHECK(ended([&] { make_step(one, step_verb::append, none); }).find("pqkv::append: the call must be the same on all ranks") == 0);
    });
  }
}

TEST_CASE("rank_refusals: a runner that fails on any rank makes all refuse, at whatever message") {
  using cache_type = context_parallel<pqkv::dense_rows<float>, in_process>;
  refused_step step;
  step.tokens = 3, step.counts = {3};
  const auto query = refusal_rows(3, shape::hq, shape::d, 6);
  for (const way& how : every_way) {
    if (how.step_queries == 700) continue;
    CAPTURE(&how - every_way);
    for (std::size_t refuses = 0; refuses < ranks; ++refuses) {
      CAPTURE(refuses);
      for (std::size_t k = 1, together = 0;; ++k) {
        std::vector<std::string> ends(ranks);
        on_ranks([&](std::size_t rank, const in_process& member) {
          fault_plan plan;
          const failing_host on{{&plan}};
          auto p = refusal_params<cache_type::params>(how.agreement, how.mode, how.reduction, how.step_queries);
          p.selection = pqkv::draft_selection::first_query;
          cache_type cache(on, member, p);
          const std::size_t own = cache.layout().held(rank, shape::prompt);
          const auto keys = refusal_rows(shape::h, own, shape::d, 10 + rank);
          cache.prefill(on, 0, keys.view(), keys.view(), shape::prompt);
          rows<float> out(3, shape::hq, shape::d);
          const auto attend = [&] { cache.attend(on, query.view(), out.view(), {}, step.step()); };
          if (rank == refuses) plan = {fault::before_tasks, k};
          ends[rank] = ended(attend);
          plan.until = 0;
          attend();
        });
        bool none = true, all = true;
        for (std::size_t rank = 0; rank < ranks; ++rank) {
          none &= ends[rank].empty();
          all &= rank == refuses
                     ? ends[rank] == "the runner failed"
                     : ends[rank].find("rank " + std::to_string(refuses)) == 0 && ends[rank].find("the runner failed") != std::string::npos;
        }
        if (none) {
          CHECK(together > 2);
          break;
        }
        const bool is_last = ends[refuses] == "the runner failed" && ends[refuses == 0 ? 1 : 0].empty();  // after the last message
        REQUIRE((all || is_last));
        together += all ? 1 : 0;
      }
    }
  }
}

TEST_CASE("rank_refusals: on devices, a step that one rank refuses keeps no one waiting, and the next call that waits says why") {
  using player = device_rank_player<float, queued_policy, queued_ranks>;
  for (const way& how : every_way) {
    if (how.step_queries == 700) continue;
    CAPTURE(&how - every_way);
    const bool votes_first = how.agreement == agreement_mode::each_call;
    for (std::size_t refuses = 0; refuses < ranks; ++refuses) {
      CAPTURE(refuses);
      in_process_group group(ranks, std::chrono::seconds(300));
      const auto begin = std::chrono::steady_clock::now();
      const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
        queue work;
        player one({&work, {}}, queued_ranks(group, rank),
                   refusal_params<player::cache_type::params>(how.agreement, how.mode, how.reduction, how.step_queries));
        prefill(one);
        player::cache_type& cache = one.device_cache();
        const queued_policy policy = one.policy();
        const std::size_t lists = cache.lists();
        const answer before = asked(one, lists);
        const queued_array<std::uint32_t> slots(policy, std::vector<std::uint32_t>{0, 0, 0}),
            counts(policy, std::vector<std::uint32_t>{1, 0, 0}), several(policy, std::vector<std::uint32_t>{7});
        const queued_array<float> floats(policy, 64 * shape::hq * shape::d), out(policy, 64 * shape::hq * shape::d);
        const queued_array<std::int32_t> indices(policy, 64 * shape::hq * shape::most);
        const queued_array<std::uint32_t> sizes(policy, 64 * shape::hq);
        const auto attend = [&](std::size_t tokens, std::size_t heads, std::size_t out_tokens, std::size_t rows) {
          cache.attend(policy, floats.const_view(tokens, heads, shape::d), out.view(out_tokens, shape::hq, shape::d), {},
                       {slots.const_view(rows), counts.const_view(rows)});
        };
        const auto attend_several = [&](std::size_t tokens, std::size_t heads) {  // several passes, on the ranks that are right
          cache.attend(policy, floats.const_view(tokens, heads, shape::d), out.view(tokens, shape::hq, shape::d), {},
                       {slots.const_view(1), several.const_view(1)});
        };
        const auto retrieve = [&](std::size_t heads) {
          cache.retrieve(policy, floats.const_view(1, heads, shape::d), indices.view(1, lists, shape::most), sizes.view(1, lists),
                         {slots.const_view(1), counts.const_view(1)});
        };
        const auto append = [&](std::size_t heads) {
          cache.append(policy, floats.const_view(1, heads, shape::d), floats.const_view(1, heads, shape::d),
                       {slots.const_view(1), counts.const_view(1)});
        };
        const bool wrong = rank == refuses;
        const auto refused = [&](const char* reason, const auto& call) {
          CAPTURE(reason);
          const std::string end = ended(call);
          if (votes_first) {
            CHECK(unless_all_refused(end, rank, refuses, reason) == "");
          } else {
            CHECK(end.empty() != wrong);
            if (wrong) CHECK(end.find(reason) != std::string::npos);
            // A rank that refused refuses the next steps too, until all know.
            CHECK(ended([&] { attend(1, shape::hq, 1, 1); }).empty() != wrong);
            const std::string told = ended([&] { cache.maintain(policy); });
            CHECK(told.find("rank " + std::to_string(refuses) + ": pqkv::maintain: rank " + std::to_string(refuses) + " refused: pqkv::") ==
                  0);
            CHECK(told.find(reason) != std::string::npos);
          }
          CHECK(ended([&] { attend(1, shape::hq, 1, 1); }) == "");
          CHECK(ended([&] { cache.maintain(policy); }) == "");
        };
        refused("query.extent(1)", [&] { attend(1, shape::hq + (wrong ? 1 : 0), 1, 1); });
        refused("query.extent(1)", [&] { wrong ? attend(9, shape::hq + 1, 9, 1) : attend(1, shape::hq, 1, 1); });
        refused("query.extent(1)", [&] { wrong ? attend(0, shape::hq + 1, 0, 1) : attend(1, shape::hq, 1, 1); });
        refused("out.extent(0)", [&] { attend(1, shape::hq, wrong ? 2 : 1, 1); });
        refused("step.slots", [&] { attend(1, shape::hq, 1, wrong ? 3 : 1); });
        refused("query.extent(1)", [&] { attend_several(7, shape::hq + (wrong ? 1 : 0)); });
        refused("query.extent(1)", [&] { wrong ? attend_several(1, shape::hq + 1) : attend_several(7, shape::hq); });
        refused("query.extent(1)", [&] { retrieve(shape::hq + (wrong ? 1 : 0)); });
        if (votes_first) refused("keys.extent(1)", [&] { append(wrong ? shape::h + 1 : shape::h); });
        CHECK(cache.size(policy, 0) == shape::prompt);
        CHECK(same(asked(one, lists), before));
        // Lengths on the device have no vote. Here the others' are those that the slots have.
        const queued_array<std::uint32_t> lengths(policy, std::vector<std::uint32_t>{shape::prompt, 0, 0});
        CHECK(ended([&] { cache.truncate(policy, lengths.const_view(wrong ? 3 : 2)); }).empty() != wrong);
        const std::string cut = ended([&] { votes_first ? attend(1, shape::hq, 1, 1) : cache.maintain(policy); });
        if (votes_first && wrong) {
          CHECK(cut.find("this rank refused an earlier step") != std::string::npos);
        } else {
          CHECK(cut.find("rank " + std::to_string(refuses) + ": ") == 0);
          CHECK(cut.find("pqkv::truncate: lengths.extent(0)") != std::string::npos);
        }
        if (votes_first) return;
        CHECK(ended([&] { append(wrong ? shape::h + 1 : shape::h); }).empty() != wrong);  // nobody waits
        const std::string told = ended([&] { cache.maintain(policy); });
        CHECK(told.find("rank " + std::to_string(refuses) + ": ") == 0);
        CHECK(told.find("pqkv::append: keys.extent(1)") != std::string::npos);
        CHECK(ended([&] { cache.maintain(policy); }).find("pqkv::maintain: the call must be the same on all ranks") == 0);
        cache.reset(policy, 0);
        prefill(one);
        CHECK(same(asked(one, lists), before));
      });
      CHECK(thrown == std::vector<std::string>(ranks));
      CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(100));
    }
  }
}
