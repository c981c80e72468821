// SPDX-License-Identifier: Apache-2.0
// What the random lives (property/queued_context_parallel_test.cpp) do not do with a context_parallel in device memory: a captured step
// that is replayed, steps that neither wait nor allocate, the local mode, refusals, and steps in which the ranks' calls differ. Run by the
// backend that queues.
#include <doctest/doctest.h>

#include "cases/counting_communicator.hpp"
#include "cases/device_rank_player.hpp"
#include "cases/queued_shares.hpp"
#include "cases/step_bytes.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
using player = device_rank_player<float, queued_policy, queued_ranks>;
constexpr std::size_t ranks = 2, h = 1, hq = 2, d = 16, n = 300;

player::cache_type::params small() {
  player::cache_type::params p;
  p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = 340, p.block = 8;
  p.budget.retrieve = 40, p.budget.window = 20;
  p.selector.subspaces = 2, p.selector.bits = 4;
  return p;
}
rows<float> drawn(std::size_t a, std::size_t b, std::uint64_t seed) {
  random_source random(seed);
  rows<float> made(a, b, d);
  fill(made.view(), content::gaussian, random);
  return made;
}
std::vector<float> flat(const rows<float>& of, std::size_t count) { return {of.view().data, of.view().data + count * d}; }

/// Runs task(player, its queue, rank) on two ranks whose slot 0 holds n tokens.
template <class Task>
std::vector<std::string> on_ranks(const player::cache_type::params& p, const Task& task) {
  in_process_group group(ranks, std::chrono::seconds(5));
  const auto keys = drawn(h, n, 1), values = drawn(h, n, 2);
  return run_ranks(ranks, [&](std::size_t rank) {
    queue work;
    player one({&work, {}}, queued_ranks(group, rank), p);
    one.prefill(0, keys.view(), values.view(), pqkv::chunk::last);
    task(one, work, rank);
  });
}
/// The memory of a step's inputs and outputs.
struct step_memory {
  queued_array<float> k, v, q, out;
  explicit step_memory(const queued_policy& policy) : k(policy, h * d), v(policy, h * d), q(policy, hq * d), out(policy, hq * d) {}
  void enqueue(const queued_policy& policy, player::cache_type& cache) const {
    cache.append(policy, k.const_view(1, h, d), v.const_view(1, h, d));
    cache.attend(policy, q.const_view(1, hq, d), out.view(1, hq, d));
  }
};
}  // namespace

TEST_CASE("context_parallel in device memory: a captured step is replayed while the sequence grows, without a wait or an allocation") {
  auto p = small();
  p.agreement = agreement_mode::with_exchange;
  pqkv::pqcache<>::params whole_params{p};
  whole_params.budget = p.budget, whole_params.selector = p.selector;
  pqkv::pqcache<> whole(whole_params);
  const pqkv::exec::host<> cpu;
  whole.prefill(cpu, 0, drawn(h, n, 1).view(), drawn(h, n, 2).view());
  constexpr std::size_t steps = 30;
  std::vector<std::vector<float>> outputs[ranks];
  std::size_t lengths[ranks] = {};
  const auto thrown = on_ranks(p, [&](player& one, queue& work, std::size_t rank) {
    const queued_policy policy = one.policy();
    const step_memory memory(policy);
    const std::size_t syncs = work.syncs(), allocations = work.allocations();
    work.begin_capture();
    memory.enqueue(policy, one.device_cache());
    const work_list graph = work.end_capture();
    CHECK(work.syncs() == syncs);
    CHECK(work.allocations() == allocations);
    for (std::size_t step = 0; step < steps; ++step) {
      memory.k.write(flat(drawn(1, h, 10 + step), h)), memory.v.write(flat(drawn(1, h, 50 + step), h));
      memory.q.write(flat(drawn(1, hq, 90 + step), hq));
      work.launch(graph);
      outputs[rank].push_back(memory.out.read());
    }
    lengths[rank] = one.device_cache().size(policy, 0);
  });
  CHECK(thrown == std::vector<std::string>(ranks));
  for (std::size_t step = 0; step < steps; ++step) {
    rows<float> out(1, hq, d);
    whole.append(cpu, drawn(1, h, 10 + step).view(), drawn(1, h, 50 + step).view());
    whole.attend(cpu, drawn(1, hq, 90 + step).view(), out.view());
    for (const auto& of_rank : outputs) REQUIRE(distance(of_rank[step], flat(out, hq)) < 2e-5f);
  }
  for (const std::size_t length : lengths) CHECK(length == n + steps);
}

TEST_CASE("context_parallel in device memory: the local mode selects k on all ranks together") {
  auto p = small();
  p.selection_over_ranks = selection_mode::local;
  std::uint32_t selected[ranks] = {};
  const auto thrown = on_ranks(p, [&](player& one, queue&, std::size_t rank) {
    std::vector<std::int32_t> indices(n);
    const std::uint32_t slot = 0, count = 1;
    pqkv::cache_step step;
    step.slots = pqkv::make_view(&slot, 1), step.counts = pqkv::make_view(&count, 1);
    one.retrieve(one.policy(), drawn(1, hq, 3).view(), pqkv::make_view(indices.data(), 1, h, n), pqkv::make_view(&selected[rank], 1, h),
                 step);
  });
  CHECK(thrown == std::vector<std::string>(ranks));
  for (const std::uint32_t of_rank : selected) CHECK(of_rank == 20);
}

TEST_CASE("context_parallel in device memory: a call that one rank refuses changes nothing on any") {
  const auto thrown = on_ranks(small(), [&](player& one, queue&, std::size_t rank) {
    const auto refused = [&](auto call) {
      std::string what;
      try {
        call();
      } catch (const rank_error& error) {
        what = error.rank == 1 && rank != 1 ? "another" : "wrong";
      } catch (const std::invalid_argument&) {
        what = rank == 1 ? "own" : "wrong";
      }
      CHECK(what == (rank == 1 ? "own" : "another"));
    };
    const queued_policy policy = one.policy();
    player::cache_type& cache = one.device_cache();
    const queued_array<float> k(policy, 2 * h * d), q(policy, 2 * hq * d), out(policy, hq * d);
    refused([&] { cache.append(policy, k.const_view(1, rank == 1 ? 2 : 1, d), k.const_view(1, rank == 1 ? 2 : 1, d)); });
    refused([&] { cache.attend(policy, q.const_view(1, rank == 1 ? 2 * hq : hq, d), out.view(1, hq, d)); });
    refused([&] { cache.truncate(policy, 0, rank == 1 ? n + 1 : 5); });
    refused([&] { cache.fork(policy, 0, rank == 1 ? 7 : 0); });
    refused([&] { cache.reset(policy, rank == 1 ? 7 : 0); });
    CHECK(cache.size(policy, 0) == n);
    CHECK(cache.middle(policy, 0).end == n - 20);
  });
  CHECK(thrown == std::vector<std::string>(ranks));
}

TEST_CASE("context_parallel in device memory: a step over gathered messages sends what the model on paper says, in both modes") {
  using counted = device_rank_player<float, queued_policy, counting_communicator<queued_ranks>>;
  for (const step_bytes& of : every_step_bytes)
    for (const auto mode : {selection_mode::exact, selection_mode::local}) {
      random_source random(9);
      rows<float> all(of.h, step_bytes_tokens, of.d);
      fill(all.view(), content::gaussian, random);
      in_process_group group(of.ranks);
      const auto thrown = run_ranks(of.ranks, [&](std::size_t rank) {
        queue work;
        exchanged counts;
        counted one({&work, {}}, {{group, rank}, &counts}, params_of<counted::cache_type::params>(of, mode));
        one.prefill(0, all.view(), all.view(), pqkv::chunk::last);
        const queued_array<float> query(one.policy(), std::vector<float>(of.hq * of.d, 0.1f)), out(one.policy(), of.hq * of.d);
        counts = {};
        one.device_cache().attend(one.policy(), query.const_view(1, of.hq, of.d), out.view(1, of.hq, of.d));
        const sent_in_a_step expected = mode == selection_mode::exact ? of.nccl_exact : of.nccl_local;
        CHECK(counts.exchanges() == expected.exchanges);
        CHECK(counts.bytes() == expected.bytes);
        work.finish();
      });
      CHECK(thrown == std::vector<std::string>(of.ranks));
    }
}

TEST_CASE("context_parallel in device memory: messages that carry votes have room for all query tokens of a pass") {
  using counted = device_rank_player<float, queued_policy, counting_communicator<queued_ranks>>;
  constexpr std::size_t most = 5, lists = most * h, room = most * hq, k = 40;
  for (const auto agreement : {agreement_mode::each_call, agreement_mode::with_exchange}) {
    in_process_group group(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      queue work;
      exchanged counts;
      auto p = small();
      p.agreement = agreement, p.step_queries = most;
      counted one({&work, {}}, {{group, rank}, &counts}, counted::cache_type::params{p});
      const auto keys = drawn(h, n, 1);
      one.prefill(0, keys.view(), keys.view(), pqkv::chunk::last);
      const queued_array<float> query(one.policy(), std::vector<float>(hq * d, 0.1f)), out(one.policy(), hq * d);
      counts = {};
      one.device_cache().attend(one.policy(), query.const_view(1, hq, d), out.view(1, hq, d));
      CHECK(counts.bytes() == (agreement == agreement_mode::with_exchange
                                   ? (8 + 16 * room) + (8 + 8 * room) + (8 + 8 * lists * (k + 1)) + (8 + 4 * room * (d + 1))
                                   : 8 + (8 + 16 * hq) + (8 + 8 * hq) + (8 + 8 * h * (k + 1)) + (8 + 4 * hq * (d + 1))));
      work.finish();
    });
    CHECK(thrown == std::vector<std::string>(ranks));
  }
}

TEST_CASE("context_parallel in device memory: what waits for other ranks waits by the communicator's finish() alone") {
  auto p = small();
  p.batch = 2, p.agreement = agreement_mode::with_exchange, p.selector.refresh = 1.1;
  const auto thrown = on_ranks(p, [&](player& one, queue& work, std::size_t rank) {
    const queued_policy policy = one.policy();
    player::cache_type& cache = one.device_cache();
    const step_memory memory(policy);
    const std::uint32_t slot = 0, count = 1;
    const queued_array<std::uint32_t> slots(policy, std::vector<std::uint32_t>{slot}), counts(policy, std::vector<std::uint32_t>{count});
    const std::size_t before = work.waits_for_ranks();
    const auto verb = [&](auto call) {  // behind a step, whose messages are still to come
      cache.attend(policy, memory.q.const_view(1, hq, d), memory.out.view(1, hq, d), {}, {slots.const_view(1), counts.const_view(1)});
      call();
      CHECK(work.waits_for_ranks() == before);
      work.finish();
    };
    verb([&] { cache.maintain(policy); });
    for (int step = 0; step < 35; ++step)
      cache.append(policy, memory.k.const_view(1, h, d), memory.v.const_view(1, h, d), {slots.const_view(1), counts.const_view(1)});
    verb([&] { cache.maintain(policy); });  // trains
    std::vector<std::byte> file;
    verb([&] { file = saved(policy, cache, 0); });
    verb([&] {
      file_source own[] = {{file}};
      cache.load(policy, 1, own);
    });
    verb([&] { cache.truncate(policy, 1, 100); });
    verb([&] { CHECK(cache.size(policy, 1) == 100); });
    verb([&] { cache.reset(policy, 1); });
    verb([&] { cache.fork(policy, 0, 1); });
    verb([&] { cache.reset(policy, 1); });
    const std::size_t own = cache.layout().held(rank, 200);
    const queued_array<float> keys(policy, h * own * d);
    verb([&] { cache.prefill(policy, 1, keys.const_view(h, own, d), keys.const_view(h, own, d), 200); });
  });
  CHECK(thrown == std::vector<std::string>(ranks));
}

TEST_CASE("context_parallel in device memory: a rank without memory for training makes all refuse") {
  auto p = small();
  p.batch = 2;
  for (std::size_t k = 1, refusals = 0;; ++k) {
    std::size_t failed[ranks] = {};
    const auto thrown = on_ranks(p, [&](player& one, queue& work, std::size_t rank) {
      const queued_policy policy = one.policy();
      player::cache_type& cache = one.device_cache();
      const std::size_t own = cache.layout().held(rank, n);
      std::vector<float> part;
      const auto all = drawn(h, n, 1);
      for (std::size_t i = 0; i < own; ++i)
        for (std::size_t e = 0; e < d; ++e) part.push_back(all.view()(0, cache.layout().position(rank, i), e));
      const queued_array<float> keys(policy, part);
      const auto prefill = [&] { cache.prefill(policy, 1, keys.const_view(h, own, d), keys.const_view(h, own, d), n); };
      if (rank == 1) work.fail_allocation(k);
      try {
        prefill();
      } catch (const std::bad_alloc&) {
        failed[rank] = rank == 1 ? 1 : 2;
      } catch (const rank_error& error) {
        failed[rank] = rank == 0 && error.rank == 1 ? 1 : 2;
      }
      work.fail_allocation(0);
      if (failed[rank] == 0) return;
      CHECK(cache.size(policy, 1) == 0);
      prefill();
      CHECK(cache.middle(policy, 1).end == n - 20);
    });
    CHECK(thrown == std::vector<std::string>(ranks));
    CHECK(failed[0] == failed[1]);
    CHECK(failed[0] < 2);
    refusals += failed[0];
    if (failed[0] == 0) {
      CHECK(refusals == 1);  // all memory is taken at once, and before any rank waits for another
      break;
    }
  }
}

TEST_CASE("context_parallel in device memory: steps that differ are reported by the next call that waits") {
  in_process_group group(ranks, std::chrono::seconds(5));
  const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
    queue work;
    auto p = small();
    p.agreement = agreement_mode::with_exchange;
    p.selector.train.seed = rank;
    player one({&work, {}}, queued_ranks(group, rank), p);
    const step_memory memory(one.policy());
    memory.enqueue(one.policy(), one.device_cache());  // neither waits nor throws
    CHECK_THROWS_WITH_AS(saved(one.policy(), one.device_cache(), 0), doctest::Contains("calls must be the same on all ranks"),
                         pqkv::value_error);
    one.device_cache().maintain(one.policy());
  });
  for (const std::string& what : thrown) CHECK(what.find("pqkv::attend: calls must be the same on all ranks") == 0);
}
