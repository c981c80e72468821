// SPDX-License-Identifier: Apache-2.0
// The exchange of candidates where it is hard: all of the best tokens on one rank, equal scores everywhere, and how many bytes go round.
#include <doctest/doctest.h>

#include "cases/counting_communicator.hpp"
#include "cases/rank_lives.hpp"
#include "cases/step_bytes.hpp"

namespace {
using namespace pqkv_cases;
using counted = counting_communicator<pqkv::scale::in_process>;
using player = rank_player<float, counted>;
const pqkv::exec::host<> cpu;
constexpr std::size_t ranks = 4, h = 2, hq = 4, d = 32, n = 1200, sinks = 4, window = 36, k = 400;

player::cache_type::params settings(std::size_t run) {
  player::cache_type::params p;
  p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = n + 8;
  p.budget.sinks = sinks, p.budget.window = window, p.budget.retrieve = k;
  p.selector.subspaces = 4, p.selector.bits = 4, p.selector.refresh_iterations = 0;
  p.block = 16, p.run = run;
  return p;
}

/// Keys whose first `high` tokens are all better than the others for a query along the first axis.
rows<float> slanted_keys(std::size_t high) {
  random_source random(5);
  rows<float> keys(h, n, d);
  fill(keys.view(), content::gaussian, random);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t) keys(head, t, 0) = t < high ? 30.0f : -30.0f;
  return keys;
}

struct outcome {
  std::vector<std::vector<std::int32_t>> lists;
  std::vector<exchanged> counts;
};
/// Prefill and one retrieval, then one step of attention, of which the messages are counted.
outcome select(std::size_t run, const rows<float>& keys, const rows<float>& query) {
  auto p = settings(run);
  pqkv::scale::in_process_group group(ranks);
  std::vector<answers> parts(ranks);
  outcome all;
  all.counts.resize(ranks);
  const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
    player one(counted{{group, rank}, &all.counts[rank]}, p);
    one.prefill(0, keys.view(), keys.view(), pqkv::chunk::last);
    std::vector<std::int32_t> indices(h * n);
    std::vector<std::uint32_t> sizes(h);
    one.cache().retrieve(cpu, query.view(), pqkv::make_view(indices.data(), 1, h, n), pqkv::make_view(sizes.data(), 1, h));
    answer found;
    for (std::size_t list = 0; list < h; ++list) found.lists.emplace_back(&indices[list * n], &indices[list * n] + sizes[list]);
    parts[rank].push_back(found);
    all.counts[rank] = {};
    rows<float> out(1, hq, d);
    one.cache().attend(cpu, query.view(), out.view());
  });
  REQUIRE(thrown == std::vector<std::string>(ranks));
  for (std::size_t list = 0; list < h; ++list) all.lists.push_back(joined_list(parts, 0, list));
  return all;
}

std::vector<std::vector<std::int32_t>> select_whole(const rows<float>& keys, const rows<float>& query) {
  whole_player<float>::cache_type::params p{settings(0)};
  p.budget = settings(0).budget, p.selector = settings(0).selector;
  whole_player<float> one(p);
  one.prefill(0, keys.view(), keys.view(), pqkv::chunk::last);
  std::vector<std::int32_t> indices(h * n);
  std::vector<std::uint32_t> sizes(h);
  one.cache().retrieve(cpu, query.view(), pqkv::make_view(indices.data(), 1, h, n), pqkv::make_view(sizes.data(), 1, h));
  std::vector<std::vector<std::int32_t>> lists;
  for (std::size_t list = 0; list < h; ++list) lists.emplace_back(&indices[list * n], &indices[list * n] + sizes[list]);
  return lists;
}

rows<float> a_query() {
  random_source random(6);
  rows<float> query(1, hq, d);
  fill(query.view(), content::gaussian, random);
  for (std::size_t q = 0; q < hq; ++q) query(0, q, 0) = 1;
  return query;
}

/// Bytes of one rank's messages of one attend(), by the formulas of docs/scale.md: a vote; sums; the first candidates; partial outputs.
std::size_t gathered_on_paper(std::size_t candidates) { return 8 + 8 + 8 * h * (candidates + 1) + 8 + 4 * hq * (d + 1); }
constexpr std::size_t first = 2 * k / ranks + 64;
}  // namespace

TEST_CASE("exact_selection: candidates are ordered by score, then by position") {
  using pqkv::scale::candidate_of;
  CHECK(candidate_of(2, 9) < candidate_of(1, 3));
  CHECK(candidate_of(1, 3) < candidate_of(1, 4));
  CHECK(candidate_of(-0.0f, 3) < candidate_of(0.0f, 4));
  CHECK(candidate_of(0.0f, 3) < candidate_of(-0.0f, 4));
  CHECK(candidate_of(-1, 0) < candidate_of(NAN, 0));
  CHECK(pqkv::scale::first_candidates(400, 4) == 264);
  CHECK(pqkv::scale::first_candidates(100, 4) == 100);
  CHECK(pqkv::scale::first_candidates(400, 1) == 400);
}

TEST_CASE("exact_selection: tokens dealt in turn take one exchange of candidates, and as many bytes as on paper") {
  const auto keys = slanted_keys(n / 3), query = a_query();
  const outcome found = select(0, keys, query);
  CHECK(found.lists == select_whole(keys, query));
  for (const exchanged& one : found.counts) {
    CHECK(one.gathers == 3);
    CHECK(one.gather_bytes == gathered_on_paper(first));
    CHECK(one.reductions == 1);
    CHECK(one.reduced_bytes == 8 * (hq + 1));
    CHECK(one.all_to_alls == 0);
  }
}

TEST_CASE("exact_selection: where one rank has all of the best, the lists are sent again") {
  const auto keys = slanted_keys(n / 3), query = a_query();
  const outcome found = select(n / ranks, keys, query);
  CHECK(found.lists == select_whole(keys, query));
  for (const exchanged& one : found.counts) {
    CHECK(one.gathers > 3);
    CHECK(one.gather_bytes == gathered_on_paper(first) + (one.gathers - 3) * 8 + 8 * h * (k + 1));
  }
}

TEST_CASE("exact_selection: equal scores go to the lower positions, whoever holds them") {
  rows<float> keys(h, n, d);
  random_source random(7);
  fill(keys.view(), content::duplicates, random);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 100; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) keys(head, t, i) = 1;
  const auto query = a_query();
  for (const std::size_t run : {std::size_t{0}, n / ranks}) CHECK(select(run, keys, query).lists == select_whole(keys, query));
}

TEST_CASE("exact_selection: a step sends what the model on paper says, in both modes") {
  for (const step_bytes& of : every_step_bytes)
    for (const auto mode : {pqkv::scale::selection_mode::exact, pqkv::scale::selection_mode::local}) {
      random_source random(9);
      rows<float> all(of.h, step_bytes_tokens, of.d), asked(1, of.hq, of.d);
      fill(all.view(), content::gaussian, random), fill(asked.view(), content::gaussian, random);
      pqkv::scale::in_process_group group(of.ranks);
      const auto thrown = run_ranks(of.ranks, [&](std::size_t rank) {
        exchanged counts;
        player one(counted{{group, rank}, &counts}, params_of<player::cache_type::params>(of, mode));
        one.prefill(0, all.view(), all.view(), pqkv::chunk::last);
        counts = {};
        rows<float> out(1, of.hq, of.d);
        one.cache().attend(cpu, asked.view(), out.view());
        const sent_in_a_step expected = mode == pqkv::scale::selection_mode::exact ? of.host_exact : of.host_local;
        CHECK(counts.exchanges() == expected.exchanges);
        CHECK(counts.bytes() == expected.bytes);
      });
      CHECK(thrown == std::vector<std::string>(of.ranks));
    }
}

TEST_CASE("exact_selection: the message that carries the votes has room for all query tokens of a pass, in every mode") {
  constexpr std::size_t most = 5, room = most * hq;  // P query tokens
  const auto keys = slanted_keys(n / 3), query = a_query();
  using pqkv::group_reduction, pqkv::scale::selection_mode;
  struct expected {
    selection_mode mode;
    group_reduction reduction;
    std::size_t tokens;  // of the prompt
    std::size_t gathers, gather_bytes, reductions, reduced_bytes;
  };
  constexpr std::size_t short_prompt = 50, outputs = 8 + 4 * hq * (d + 1), candidates = 8 + 8 * h * (first + 1);
  const expected every[] = {
      {selection_mode::exact, group_reduction::probability_sum, n, 2, candidates + outputs, 1, 8 * (room + 3)},
      {selection_mode::exact, group_reduction::probability_max, short_prompt, 1, outputs, 1, 8 * (room + 3)},  // no list is ranked
      {selection_mode::exact, group_reduction::logit_sum, n, 3, 8 + candidates + outputs, 0, 0},
      {selection_mode::local, group_reduction::probability_sum, n, 1, 8 + 4 * room * (d + 1), 0, 0}};
  for (const expected& of : every) {
    CAPTURE(&of - every);
    pqkv::scale::in_process_group group(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      exchanged counts;
      auto p = settings(0);
      p.step_queries = most, p.agreement = pqkv::scale::agreement_mode::with_exchange;
      p.selection_over_ranks = of.mode, p.selector.reduction = of.reduction;
      player one(counted{{group, rank}, &counts}, p);
      one.prefill(0, keys.view().slice(1, 0, of.tokens), keys.view().slice(1, 0, of.tokens), pqkv::chunk::last);
      counts = {};
      one.cache().append(cpu, query.view().slice(1, 0, h), query.view().slice(1, 0, h));
      CHECK(counts.exchanges() == 0);
      rows<float> out(1, hq, d);
      one.cache().attend(cpu, query.view(), out.view());
      CHECK(counts.gathers == of.gathers);
      CHECK(counts.gather_bytes == of.gather_bytes);
      CHECK(counts.reductions == of.reductions);
      CHECK(counts.reduced_bytes == of.reduced_bytes);
      CHECK(counts.all_to_alls == 0);
    });
    CHECK(thrown == std::vector<std::string>(ranks));
  }
}

TEST_CASE("exact_selection: sums with too few bits take two reductions more") {
  random_source random(10);
  rows<float> query(1, hq, d);
  fill(query.view(), content::gaussian, random);
  for (std::size_t q = 0; q < hq; ++q)
    for (std::size_t i = 0; i < d; ++i) query(0, q, i) *= 30;  // products far below the table's maxima
  const auto keys = slanted_keys(n / 3);
  const outcome found = select(0, keys, query);
  CHECK(found.lists == select_whole(keys, query));
  for (const exchanged& one : found.counts) {
    CHECK(one.reductions == 3);
    CHECK(one.reduced_bytes == 3 * 8 * (hq + 1));
  }
}
