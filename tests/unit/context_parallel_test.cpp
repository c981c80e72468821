// SPDX-License-Identifier: Apache-2.0
// What the random lives (property/context_parallel_test.cpp) do not do: refusals, which leave every rank as it was; ranks that stay away;
// runners that fail in a call; the local mode; messages that are saved by agreement_mode::with_exchange; caches with a part of the heads
// each.
#include <doctest/doctest.h>

#include <functional>

#include "cases/counting_communicator.hpp"
#include "cases/faults.hpp"
#include "cases/plain_attention.hpp"
#include "cases/plain_search.hpp"
#include "cases/rank_lives.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
using counted = counting_communicator<in_process>;
using player = rank_player<float, counted>;
const pqkv::exec::host<> cpu;
constexpr std::size_t ranks = 3, h = 1, hq = 2, d = 16, n = 400;

player::cache_type::params small() {
  player::cache_type::params p;
  p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = 420, p.block = 8;
  p.budget.retrieve = 60, p.budget.window = 20;
  p.selector.subspaces = 2, p.selector.bits = 4;
  return p;
}
rows<float> drawn(std::size_t a, std::size_t b, std::uint64_t seed) {
  random_source random(seed);
  rows<float> made(a, b, d);
  fill(made.view(), content::gaussian, random);
  return made;
}

/// Runs task(player, rank, its exchanges) on three ranks whose slot 0 holds n tokens.
template <class Task>
std::vector<std::string> on_ranks(const player::cache_type::params& p, const Task& task,
                                  std::chrono::milliseconds limit = std::chrono::seconds(30)) {
  in_process_group group(ranks, limit);
  const auto keys = drawn(h, n, 1), values = drawn(h, n, 2);
  return run_ranks(ranks, [&](std::size_t rank) {
    exchanged counts;
    player one(counted{{group, rank}, &counts}, p);
    one.prefill(0, keys.view(), values.view(), pqkv::chunk::last);
    counts = {};
    task(one, rank, counts);
  });
}
/// What attend() answers now.
rows<float> attended(player& one) {
  const auto query = drawn(1, hq, 3);
  rows<float> out(1, hq, d);
  one.cache().attend(cpu, query.view(), out.view());
  return out;
}
bool same(const rows<float>& a, const rows<float>& b) {
  bool equal = true;
  for (std::size_t q = 0; q < hq; ++q)
    for (std::size_t i = 0; i < d; ++i) equal &= a.view()(0, q, i) == b.view()(0, q, i);
  return equal;
}
}  // namespace

TEST_CASE("context_parallel: a call that one rank refuses changes nothing on any") {
  std::vector<int> unchanged(ranks, 0);
  const auto thrown = on_ranks(small(), [&](player& one, std::size_t rank, exchanged&) {
    const rows<float> before = attended(one);
    const auto refused = [&](auto call) {
      std::string what;
      try {
        call();
      } catch (const rank_error& error) {
        what = error.rank == 1 && rank != 1 ? "another" : "wrong";
      } catch (const pqkv::shape_error&) {
        what = rank == 1 ? "own" : "wrong";
      } catch (const pqkv::value_error&) {
        what = rank == 1 ? "own" : "wrong";
      }
      CHECK(what == (rank == 1 ? "own" : "another"));
    };
    const auto key = drawn(1, h, 4), wide = drawn(1, h + 1, 4), query = drawn(1, hq, 5), more = drawn(1, hq + 1, 5);
    rows<float> out(1, hq, d);
    refused([&] { one.cache().append(cpu, (rank == 1 ? wide : key).view(), key.view()); });
    refused([&] { one.cache().attend(cpu, (rank == 1 ? more : query).view(), out.view()); });
    refused([&] { one.cache().truncate(cpu, 0, rank == 1 ? n + 1 : 5); });
    refused([&] { one.cache().fork(cpu, 0, rank == 1 ? 7 : 0); });
    refused([&] { one.cache().reset(cpu, rank == 1 ? 7 : 0); });
    unchanged[rank] = one.cache().size(0) == n && same(before, attended(one)) ? 1 : 0;
  });
  CHECK(thrown == std::vector<std::string>(ranks));
  CHECK(unchanged == std::vector<int>(ranks, 1));
}

TEST_CASE("context_parallel: ranks that make different calls are told so") {
  const auto thrown =
      on_ranks(small(), [&](player& one, std::size_t rank, exchanged&) { one.cache().truncate(cpu, 0, rank == 2 ? 99 : 100); });
  for (const std::string& what : thrown) CHECK(what.find("pqkv::truncate: the call must be the same on all ranks") == 0);
}

TEST_CASE("context_parallel: ranks with other parameters are told so by their first call") {
  in_process_group group(2);
  const auto thrown = run_ranks(2, [&](std::size_t rank) {
    exchanged counts;
    auto p = small();
    p.budget.retrieve = 60 + rank;
    player one(counted{{group, rank}, &counts}, p);
    one.cache().maintain(cpu);
  });
  for (const std::string& what : thrown) CHECK(what.find("pqkv::maintain: the call must be the same on all ranks") == 0);
}

TEST_CASE("context_parallel: a rank that stays away ends the others' waiting") {
  const auto thrown = on_ranks(
      small(),
      [&](player& one, std::size_t rank, exchanged&) {
        if (rank != 0) attended(one);
      },
      std::chrono::milliseconds(300));
  CHECK(thrown[0] == "");
  CHECK(thrown[1] == "pqkv::in_process: all_gather: a rank did not come within 300 ms");
  CHECK(thrown[2] == thrown[1]);
}

TEST_CASE("context_parallel: a rank whose runner fails in a call makes all refuse, and the call can be repeated") {
  using cache_type = context_parallel<pqkv::dense_rows<float>, in_process>;
  struct verb {
    std::string name;
    selection_mode mode;
    bool ends_alone;  // with work after the last message, which only this rank misses
    std::function<void(const failing_host&, cache_type&, std::size_t rank)> call;
  };
  constexpr std::size_t asked = 5;  // three passes of at most two queries
  const std::uint32_t slot = 0, one = 1, several = asked;
  pqkv::cache_step one_token, queries;
  one_token.slots = queries.slots = pqkv::make_view(&slot, 1);
  one_token.counts = pqkv::make_view(&one, 1), queries.counts = pqkv::make_view(&several, 1);
  const auto all_keys = drawn(h, n, 1), token = drawn(1, h, 4), query = drawn(asked, hq, 5);
  rows<pqkv::half> half_query(asked, hq, d);
  for (std::size_t i = 0; i < half_query.view().size(); ++i) half_query.view().data[i] = static_cast<pqkv::half>(query.view().data[i]);
  const auto prefill = [&](const failing_host& on, cache_type& cache, std::size_t rank, std::size_t to) {
    rows<float> part(h, cache.layout().held(rank, n), d);
    for (std::size_t i = 0; i < part.view().extent(1); ++i)
      for (std::size_t e = 0; e < d; ++e) part(0, i, e) = all_keys.view()(0, cache.layout().position(rank, i), e);
    cache.prefill(on, to, part.view(), part.view(), n);
  };
  const auto attend = [&](const failing_host& on, cache_type& cache, std::size_t) {
    rows<float> out(asked, hq, d);
    cache.attend(on, query.view(), out.view(), {}, queries);
  };
  const auto attend_halves = [&](const failing_host& on, cache_type& cache, std::size_t) {
    rows<pqkv::half> out(asked, hq, d);
    cache.attend(on, half_query.view(), out.view(), {}, queries);
  };
  const auto retrieve = [&](const failing_host& on, cache_type& cache, std::size_t) {
    std::vector<std::int32_t> indices(asked * h * n);
    std::vector<std::uint32_t> counts(asked * h);
    cache.retrieve(on, query.view(), pqkv::make_view(indices.data(), asked, h, n), pqkv::make_view(counts.data(), asked, h), queries);
  };
  const verb verbs[] = {
      {"prefill", selection_mode::exact, false,
       [&](const failing_host& on, cache_type& cache, std::size_t rank) { prefill(on, cache, rank, 1); }},
      {"append", selection_mode::exact, false,
       [&](const failing_host& on, cache_type& cache, std::size_t) { cache.append(on, token.view(), token.view(), one_token); }},
      {"attend", selection_mode::exact, true, attend},
      {"attend, local", selection_mode::local, true, attend},
      {"attend, float16", selection_mode::exact, true, attend_halves},
      {"retrieve", selection_mode::exact, false, retrieve},
      {"retrieve, local", selection_mode::local, true, retrieve},
      {"fork", selection_mode::exact, false, [&](const failing_host& on, cache_type& cache, std::size_t) { cache.fork(on, 0, 1); }},
      {"maintain", selection_mode::exact, false, [&](const failing_host& on, cache_type& cache, std::size_t) { cache.maintain(on); }}};
  const std::vector<std::string> all_refuse{"rank 1", "failed", "rank 1"}, one_fails{"", "failed", ""}, none_fails(ranks);
  for (const verb& of : verbs) {
    CAPTURE(of.name);
    std::size_t together = 0, alone = 0;
    for (std::size_t k = 1;; ++k) {
      CAPTURE(k);
      std::vector<std::string> ended(ranks);
      in_process_group group(ranks, std::chrono::seconds(10));
      const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
        fault_plan plan;
        const failing_host on{{&plan}};
        cache_type::params p = small();
        p.batch = 2, p.step_queries = 2, p.selection_over_ranks = of.mode, p.selector.refresh = 1.01;
        const in_process member(group, rank);
        cache_type cache(on, member, p);
        prefill(on, cache, rank, 0);
        for (std::size_t i = 0; i < 10; ++i) cache.append(on, token.view(), token.view(), one_token);
        if (rank == 1) plan = {fault::amid_tasks, k};
        try {
          of.call(on, cache, rank);
        } catch (const runner_failed&) {
          ended[rank] = "failed";
        } catch (const rank_error& error) {
          ended[rank] = "rank " + std::to_string(error.rank);
        }
        plan.until = 0;
        member.all_gather(cpu, "", nullptr, 0);
        if (ended[1].empty()) return;
        CHECK(cache.size(0) == n + 10);
        CHECK(cache.size(1) == 0);
        of.call(on, cache, rank);
      });
      REQUIRE(thrown == std::vector<std::string>(ranks));
      if (ended == none_fails) break;
      REQUIRE((ended == all_refuse || ended == one_fails));
      ++(ended == all_refuse ? together : alone);
    }
    CHECK(together + alone != 0);
    CHECK((alone != 0) == of.ends_alone);
  }
}

TEST_CASE("context_parallel: a slot that is full refuses on every rank, each with its own words") {
  const auto thrown = on_ranks(small(), [&](player& one, std::size_t, exchanged&) {
    const auto keys = drawn(21, h, 4);
    const std::uint32_t count = 21;
    pqkv::cache_step step;
    step.counts = pqkv::make_view(&count, 1);
    one.cache().append(cpu, keys.view(), keys.view(), step);
  });
  for (const std::string& what : thrown)
    CHECK(what == "pqkv::append: step must be at most 420 (tokens of the slot then, capacity), got 421");
}

TEST_CASE("context_parallel: the local mode selects k on all ranks together, without a word about it") {
  auto p = small();
  p.selection_over_ranks = selection_mode::local;
  std::vector<std::size_t> selected(ranks);
  const auto thrown = on_ranks(p, [&](player& one, std::size_t rank, exchanged& counts) {
    const auto query = drawn(1, hq, 3);
    std::vector<std::int32_t> indices(n);
    std::uint32_t size = 0;
    one.cache().retrieve(cpu, query.view(), pqkv::make_view(indices.data(), 1, h, n), pqkv::make_view(&size, 1, 1));
    selected[rank] = size;
    CHECK(counts.gathers == 1);  // the vote
    attended(one);
    CHECK(counts.gathers == 3);  // a vote, partial outputs
    CHECK(counts.reductions == 0);
    CHECK(counts.gather_bytes == 8 + 8 + 8 + 4 * hq * (d + 1));
  });
  CHECK(thrown == std::vector<std::string>(ranks));
  CHECK(selected == std::vector<std::size_t>(ranks, 20));
}

TEST_CASE(
    "context_parallel: the local mode's lists are the best of each share by plain scores, and its output is plain attention to them") {
  auto p = small();
  p.selection_over_ranks = selection_mode::local;
  p.budget.retrieve = 61;  // 20, 20 and 21
  p.selector.axes = pqkv::axis_order::contiguous;
  const auto query = drawn(1, hq, 3);
  std::vector<std::vector<std::size_t>> selected(ranks);
  std::vector<std::vector<float>> outputs(ranks);
  std::size_t sinks = 0, window = 0;
  const auto thrown = on_ranks(p, [&](player& one, std::size_t rank, exchanged&) {
    const auto own = one.cache().index().view().sequence(0);
    const pqkv::scale::token_layout& layout = one.cache().layout();
    const pqkv::middle_range middle = one.cache().middle(0);
    const std::size_t begin = layout.held(rank, middle.begin), end = layout.held(rank, middle.end), m = 2, c = 16, k = 61;
    std::vector<float> entries;
    for (std::size_t q = 0; q < hq; ++q)
      for (std::size_t j = 0; j < m; ++j)
        for (std::size_t x = 0; x < c; ++x) {
          float sum = 0;
          for (std::size_t i = 0; i < d / m; ++i) sum = std::fma(query.view()(0, q, j * (d / m) + i), own.book.centroids(0, j, i, x), sum);
          entries.push_back(sum);
        }
    const std::vector<float> bias(hq, 0.0f);
    plain_notes notes;
    const plain_list list{pqkv::make_view(std::as_const(entries).data(), hq, m, c),
                          pqkv::make_view(bias.data(), hq),
                          pqkv::as_const(own.codes)[0],
                          begin,
                          end,
                          d};
    std::vector<std::int32_t> wanted = plain_top_k(plain_scores(list, notes), k * (rank + 1) / ranks - k * rank / ranks);
    for (std::int32_t& t : wanted) t = static_cast<std::int32_t>(layout.position(rank, begin + static_cast<std::size_t>(t)));
    const answer found = ask(one, pqkv::as_const(query.view()), h, n, {});
    CHECK(found.lists[0] == wanted);
    selected[rank].assign(wanted.begin(), wanted.end());
    outputs[rank] = found.out;
    if (rank == 0) sinks = middle.begin, window = middle.end;
  });
  CHECK(thrown == std::vector<std::string>(ranks));
  std::vector<std::size_t> attended;
  for (std::size_t t = 0; t < n; ++t)
    if (t < sinks || t >= window) attended.push_back(t);
  for (const auto& of_rank : selected) attended.insert(attended.end(), of_rank.begin(), of_rank.end());
  CHECK(attended.size() == sinks + 20 + 61);
  const auto keys = drawn(h, n, 1), values = drawn(h, n, 2);
  for (std::size_t q = 0; q < hq; ++q) {
    const plain_result plain = plain_attention(&query.view()(0, q, 0), pqkv::strided_kv(keys.view(), values.view()), 0, attended);
    for (const auto& out : outputs) CHECK(relative_error(&out[q * d], plain.out) < 1e-5);
  }
}

TEST_CASE("context_parallel: agreement with the exchange saves the votes of a step") {
  auto p = small();
  p.agreement = agreement_mode::with_exchange;
  const auto thrown = on_ranks(p, [&](player& one, std::size_t, exchanged& counts) {
    const auto key = drawn(1, h, 4);
    one.cache().append(cpu, key.view(), key.view());
    CHECK(counts.gathers == 0);
    attended(one);
    CHECK(counts.gathers == 2);
    CHECK(counts.reductions == 1);
  });
  CHECK(thrown == std::vector<std::string>(ranks));
}

TEST_CASE(
    "context_parallel: agreement with the exchange: an append that one rank refused is found by the next step, until the slot is reset") {
  auto p = small();
  p.agreement = agreement_mode::with_exchange;
  std::vector<std::string> refused(ranks);
  const auto kind = [](auto call) -> std::string {
    try {
      call();
    } catch (const pqkv::shape_error&) {
      return "own";
    } catch (const pqkv::value_error&) {
      return "calls differ";
    }
    return "";
  };
  const auto thrown = on_ranks(p, [&](player& one, std::size_t rank, exchanged&) {
    const auto key = drawn(1, h, 4), wide = drawn(1, h + 1, 4), query = drawn(1, hq, 5);
    rows<float> out(1, hq, d);
    refused[rank] = kind([&] { one.cache().append(cpu, (rank == 1 ? wide : key).view(), key.view()); });
    refused[rank] += "; " + kind([&] { one.cache().attend(cpu, query.view(), out.view()); });
    one.cache().reset(cpu, 0);
    const auto keys = drawn(h, n, 1);
    one.prefill(0, keys.view(), keys.view(), pqkv::chunk::last);
    one.cache().attend(cpu, query.view(), out.view());
  });
  CHECK(thrown == std::vector<std::string>(ranks));
  CHECK(refused == std::vector<std::string>{"; calls differ", "own; calls differ", "; calls differ"});
}

TEST_CASE("head parallel: caches with a part of the heads each are one cache with all heads, to the bit") {
  constexpr std::size_t heads = 4, queries = 8, tokens = 300, steps = 5, m = 2, values_of_a_part = 12;
  random_source random(8);
  rows<float> pool(heads, values_of_a_part, d), keys(heads, tokens, d), values(heads, tokens, d);
  fill(pool.view(), content::gaussian, random), fill(values.view(), content::gaussian, random);
  // Fewer values than centroids: training takes them all, so that no codebook depends on the rows that are drawn first for a head's number.
  for (std::size_t head = 0; head < heads; ++head)
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t j = 0; j < m; ++j) {
        const std::size_t value = random.below(values_of_a_part);
        for (std::size_t i = j * d / m; i < (j + 1) * d / m; ++i) keys(head, t, i) = pool(head, value, i);
      }
  const auto settings = [&](std::size_t kv_heads) {
    whole_player<float>::cache_type::params p;
    p.kv_heads = kv_heads, p.query_heads = kv_heads * queries / heads, p.head_dim = d, p.capacity = tokens + steps;
    p.budget.retrieve = 60, p.budget.window = 20;
    p.selector.subspaces = m, p.selector.bits = 4, p.selector.axes = pqkv::axis_order::contiguous;
    return p;
  };
  whole_player<float> whole(settings(heads));
  whole.prefill(0, keys.view(), values.view(), pqkv::chunk::last);
  answers expected;
  const auto query_of = [](std::size_t step) { return drawn(1, queries, 100 + step); };
  const auto key_of = [&](std::size_t step) {
    rows<float> key(1, heads, d);
    for (std::size_t head = 0; head < heads; ++head)
      for (std::size_t i = 0; i < d; ++i) key(0, head, i) = pool(head, step, i);
    return key;
  };
  for (std::size_t step = 0; step < steps; ++step) {
    whole.cache().append(cpu, key_of(step).view(), key_of(step).view());
    expected.push_back(ask(whole, pqkv::as_const(query_of(step).view()), heads, tokens, {}));
    CHECK(expected.back().lists[heads - 1].size() == 60);
  }
  for (const std::size_t parts : std::initializer_list<std::size_t>{2, 4})
    for (std::size_t part = 0; part < parts; ++part) {
      const std::size_t own = heads / parts, first = part * own, hq_of_part = queries / parts;
      whole_player<float> one(settings(own));
      one.prefill(0, keys.view().slice(0, first, own), values.view().slice(0, first, own), pqkv::chunk::last);
      for (std::size_t step = 0; step < steps; ++step) {
        const auto key = key_of(step), query = query_of(step);
        one.cache().append(cpu, key.view().slice(1, first, own), key.view().slice(1, first, own));
        const answer got = ask(one, pqkv::as_const(query.view().slice(1, part * hq_of_part, hq_of_part)), own, tokens, {});
        for (std::size_t head = 0; head < own; ++head) CHECK(got.lists[head] == expected[step].lists[first + head]);
        const auto from = expected[step].out.begin() + static_cast<std::ptrdiff_t>(part * hq_of_part * d);
        CHECK(std::equal(got.out.begin(), got.out.end(), from));
      }
    }
}
