// SPDX-License-Identifier: Apache-2.0
// Codebooks that stay fresh: when upkeep renews a slot, that the codebook is then to the bit that of a plain formulation or, where it is
// trained anew, the one a prompt of the same tokens would have got, and that recall on keys that drift stays near a fresh codebook's.
#include <doctest/doctest.h>

#include <cstring>
#include <numbers>
#include <set>

#include "cases/cache_driver.hpp"
#include "cases/cache_model.hpp"
#include "cases/policies.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::search_path;
const pqkv::exec::host<> cpu;

pqkv::pqcache<>::params params_of(search_path path, double refresh, std::size_t iterations = 0) {
  auto p = pq_params(2, 2, 4, 32, 900, 4, 16, 40, 2, 4);
  p.selector.path = path;
  p.selector.refresh = refresh;
  p.selector.refresh_iterations = iterations;
  p.selector.renewal = pqkv::selector::renewal_scope::all_keys;  // what the plain formulation does
  return p;
}

/// Rows [2, n, 32] of a slot, appended in pieces of any size.
struct feeder {
  const rows<float>& keys;
  std::size_t given = 0;

  void append(pqkv::pqcache<>& cache, std::size_t until) {
    const std::uint32_t slot = 0, count = static_cast<std::uint32_t>(until - given);
    if (count == 0) return;
    pqkv::cache_step step;
    step.slots = pqkv::make_view(&slot, 1);
    step.counts = pqkv::make_view(&count, 1);
    const auto part = keys.view().slice(1, given, count);
    const pqkv::view<const float, 3> tokens{part.data, {count, 2, 32}, {32, part.stride(0), 1}};
    cache.append(cpu, tokens, tokens, step);
    given = until;
  }
};
}  // namespace

TEST_CASE("refresh: without iterations a slot is trained anew each time it has grown by the factor, as if all had been its prompt") {
  for (const search_path path : {search_path::joint, search_path::scan}) {
    const auto keys = make_rows<float>(content::clustered, 2, 800, 32, 3);
    pqkv::pqcache<> cache(params_of(path, 1.5));
    cache.prefill(cpu, 0, keys.view().slice(1, 0, 100), keys.view().slice(1, 0, 100));
    feeder tokens{keys, 100};
    std::size_t trainings = 1;
    for (const std::size_t length : {149u, 150u, 151u, 224u, 225u, 300u, 700u, 800u}) {
      CAPTURE(length);
      tokens.append(cache, length);
      cache.maintain(cpu);
      trainings += length == 150 || length == 225 || length == 700 ? 1 : 0;  // at 300 337 is not reached, at 800 1050 is not
      CHECK(cache.statistics(0).trainings == trainings);
      CHECK(cache.at(0).learned == 1);
      const bool renewed = length == 150 || length == 225 || length == 700;
      pqkv::pqcache<> whole(params_of(path, 1.5));
      whole.prefill(cpu, 0, keys.view().slice(1, 0, length), keys.view().slice(1, 0, length));
      std::size_t equal = 0;
      for (std::uint64_t seed = 0; seed < 10; ++seed) {
        const std::vector<float> query = random_query(cache, seed);
        equal += ask(cpu, cache, query) == ask(cpu, whole, query) ? 1 : 0;
      }
      if (renewed)
        CHECK(equal == 10);
      else
        CHECK(equal < 10);
    }
  }
}

TEST_CASE("refresh: a renewal has the bits of the plain formulation; a slot that has doubled is trained anew") {
  for (const auto metric : {pqkv::key_metric::squared_l2, pqkv::key_metric::inner_product})
    for (const auto axes : {pqkv::axis_order::contiguous, pqkv::axis_order::rotary_halves})
      for (const std::size_t iterations : {1u, 3u}) {
        CAPTURE(metric);
        CAPTURE(axes);
        CAPTURE(iterations);
        auto keys = make_rows<float>(content::clustered, 2, 800, 32, 3);
        for (std::size_t t = 100; t < 800; t += 3)  // many of the keys that could replace a centroid cannot
          const_cast<float&>(keys.view()(t % 2, t, t % 32)) = t % 6 == 1 ? INFINITY : NAN;
        auto p = params_of(search_path::automatic, 1.125, iterations);
        p.selector.metric = metric;
        p.selector.axes = axes;
        pqkv::pqcache<> cache(p);
        slot_model<float> plain(2, 32, p.budget);
        const auto prompt = keys.view().slice(1, 0, 100);
        cache.prefill(cpu, 0, prompt, prompt);
        plain.add(prompt, prompt), plain.end_prompt(), plain.commit(), plain.train(p.selector);
        feeder tokens{keys, 100};
        std::size_t trainings = 1, moved = 0;
        for (const std::size_t length : {113u, 120u, 128u, 200u, 224u, 260u, 521u, 800u}) {  // 260 -> 521: doubled
          CAPTURE(length);
          for (std::size_t t = tokens.given; t < length; ++t) {
            plain.add(keys.view().slice(1, t, 1), keys.view().slice(1, t, 1));
            plain.commit();
          }
          tokens.append(cache, length);
          const auto book = cache.selection().index().book.slice(0, 2);
          std::vector<float> before(book.centroids.data, book.centroids.data + book.centroids.size());
          cache.maintain(cpu);
          if (plain.outgrown(p.selector)) ++trainings, plain.refresh(p.selector);
          CHECK(cache.statistics(0).trainings == trainings);
          const auto same = [](const float* a, const float* b, std::size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; };
          CHECK(same(book.centroids.data, plain.book().centroids.data, before.size()));
          CHECK(same(book.mean.data, plain.book().mean.data, book.mean.size()));
          moved += same(book.centroids.data, before.data(), before.size()) ? 0 : 1;
          for (std::uint64_t seed = 0; seed < 3; ++seed) {
            const std::vector<float> query = random_query(cache, seed);
            const auto got = ask(cpu, cache, query);
            const auto wanted = plain.lists({query.begin(), query.begin() + 4 * 32}, p.selector);  // of slot 0
            for (std::size_t list = 0; list < wanted.size(); ++list) CHECK(got.list(list) == wanted[list]);
          }
        }
        CHECK(trainings == 7);
        CHECK(moved == 6);
      }
}

TEST_CASE("refresh: over new keys until a power of two is passed, then over all; statistics tell how many codes were written") {
  auto keys = make_rows<float>(content::clustered, 2, 800, 32, 3);
  const pqkv::strided_rows<float> rows{keys.view(), keys.view()};
  auto p = params_of(search_path::joint, 1.125, 1);
  p.selector.renewal = pqkv::selector::renewal_scope::new_keys;
  pqkv::pqcache<> cache(p);
  p.selector.path = search_path::scan;
  pqkv::pqcache<> scanning(p);
  for (pqkv::pqcache<>* one : {&cache, &scanning}) one->prefill(cpu, 0, keys.view().slice(1, 0, 100), keys.view().slice(1, 0, 100));
  pqkv::pq_index<> plain(cpu, {.kv_heads = 2, .head_dim = 32, .subspaces = 2, .bits = 4, .capacity = 800, .axes = p.selector.axes});
  std::vector<std::uint8_t> memory(2 * 2);
  const auto outcomes = pqkv::make_view(memory.data(), 2, 2);
  std::uint32_t first = 0, encoded = cache.middle(0).end;
  first = cache.middle(0).begin;
  plain.learn(cpu, 0, rows, first, encoded, 100, p.selector.train, outcomes);
  feeder tokens{keys, 100}, again{keys, 100};
  std::uint64_t codes = 2 * 2 * (encoded - first), trainings = 1, over_new_keys = 0;
  CHECK(cache.statistics(0).codes_trained == codes);
  std::size_t trained = 100;
  auto params = p.selector.train;
  params.iterations = 1;
  for (const std::size_t n : {113u, 120u, 128u, 144u, 170u, 200u, 260u, 521u, 600u}) {
    CAPTURE(n);
    tokens.append(cache, n), again.append(scanning, n);
    cache.maintain(cpu), scanning.maintain(cpu);
    const std::uint32_t ranked = cache.middle(0).end;
    const pqkv::leaving_tokens leaving{0, encoded, ranked};
    plain.view().encode(cpu, rows, pqkv::make_view(&leaving, 1));
    encoded = ranked;
    if (n != 120) {
      ++trainings;
      if (n == 521) {  // doubled
        plain.learn(cpu, 0, rows, first, ranked, n, p.selector.train, outcomes);
        codes += 2 * 2 * (ranked - first);
      } else if (n == 128 || n == 260) {
        plain.renew(cpu, 0, rows, first, ranked, trained, n, params, outcomes, pqkv::present_codes::nearest);
        codes += 2 * 2 * (ranked - first);
      } else {
        codes += plain.renew_replaced(cpu, 0, rows, first, ranked, trained, n, params);
        ++over_new_keys;
      }
      trained = n;
    }
    CHECK(cache.statistics(0).trainings == trainings);
    CHECK(cache.statistics(0).codes_trained == codes);
    const auto got = cache.selection().index(), wanted = plain.view();
    CHECK(std::memcmp(got.book.centroids.data, wanted.book.centroids.data, got.book.centroids.stride(0) * 2 * sizeof(float)) == 0);
    std::size_t differing = 0;
    for (std::size_t head = 0; head < 2; ++head)
      for (std::size_t j = 0; j < 2; ++j)
        for (std::uint32_t t = first; t < ranked; ++t) differing += got.codes(head, j, t) != wanted.codes(head, j, t) ? 1 : 0;
    CHECK(differing == 0);
    for (std::uint64_t seed = 0; seed < 3; ++seed) {  // id lists and counts of the joint path are those of the new codes
      const std::vector<float> query = random_query(cache, seed);
      CHECK(ask(cpu, cache, query) == ask(cpu, scanning, query));
    }
  }
  CHECK(over_new_keys == 5);
}

TEST_CASE("refresh: the length of the last renewal is known exactly, though 33 / 1.1 is less than 30") {
  const auto keys = make_rows<float>(content::clustered, 2, 33, 32, 3);
  const auto p = params_of(search_path::scan, 1.1, 1);
  pqkv::pqcache<> cache(p);
  slot_model<float> plain(2, 32, p.budget);
  const auto prompt = keys.view().slice(1, 0, 30);
  cache.prefill(cpu, 0, prompt, prompt);
  plain.add(prompt, prompt), plain.end_prompt(), plain.commit(), plain.train(p.selector);
  CHECK(cache.at(0).learn_again == 33);
  feeder{keys, 30}.append(cache, 33);
  for (std::size_t t = 30; t < 33; ++t) plain.add(keys.view().slice(1, t, 1), keys.view().slice(1, t, 1)), plain.commit();
  cache.maintain(cpu), plain.refresh(p.selector);
  CHECK(cache.statistics(0).trainings == 2);
  const auto book = cache.selection().index().book.slice(0, 2);
  CHECK(std::memcmp(book.centroids.data, plain.book().centroids.data, book.centroids.size() * sizeof(float)) == 0);
}

TEST_CASE("refresh: never, where the factor is 0; a factor of 1 or less, or one that is no number, is refused") {
  const auto keys = make_rows<float>(content::gaussian, 2, 800, 32, 3);
  pqkv::pqcache<> cache(params_of(search_path::joint, 0));
  cache.prefill(cpu, 0, keys.view().slice(1, 0, 100), keys.view().slice(1, 0, 100));
  feeder tokens{keys, 100};
  tokens.append(cache, 800);
  cache.maintain(cpu);
  CHECK(cache.statistics(0).trainings == 1);
  CHECK(cache.at(0).learn_again == 0);
  for (const double factor : {1.0, 0.5, -1.0, static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
    const auto p = params_of(search_path::joint, factor);
    CHECK_FALSE(pqkv::pqcache<>::can_construct(p).ok());
    CHECK(std::string(pqkv::pqcache<>::can_construct(p).parameter) == "selector.refresh");
  }
  CHECK(pqkv::pqcache<>::can_construct(params_of(search_path::joint, 1.01)).ok());
}

TEST_CASE("refresh: a fork, a file and a cut keep the length at which training is due") {
  const auto keys = make_rows<float>(content::gaussian, 2, 800, 32, 3);
  auto p = params_of(search_path::joint, 2);
  p.batch = 2;
  pqkv::pqcache<> cache(p);
  cache.prefill(cpu, 0, keys.view().slice(1, 0, 100), keys.view().slice(1, 0, 100));
  feeder tokens{keys, 100};
  tokens.append(cache, 190);
  cache.fork(cpu, 0, 1);
  CHECK(cache.at(1).learn_again == 200);
  cache.truncate(cpu, 0, 50);
  tokens.given = 50;
  tokens.append(cache, 199);
  cache.maintain(cpu);
  CHECK(cache.statistics(0).trainings == 1);
  tokens.append(cache, 200);
  cache.maintain(cpu);
  CHECK(cache.statistics(0).trainings == 2);
  CHECK(cache.at(0).learn_again == 400);
  CHECK(cache.at(1).learn_again == 200);
}

namespace {
/// Keys whose 24 directions turn by a right angle while the sequence grows, and queries along the directions of any time.
class drifting_keys {
 public:
  explicit drifting_keys(std::size_t most) : most_(most), random_(0xd21f7) {
    for (auto* part : {&from_, &to_})
      for (std::size_t i = 0; i < centres * d; ++i) part->push_back(random_.gaussian());
  }
  static constexpr std::size_t d = 32, centres = 24;

  std::vector<float> key(std::size_t t) { return row(t, 1.0f); }
  std::vector<float> query(std::size_t n) { return row(random_.below(n), 0.5f); }

 private:
  std::vector<float> row(std::size_t t, float noise) {
    const double angle = static_cast<double>(t) / static_cast<double>(most_) * std::numbers::pi / 2;
    const std::size_t centre = random_.below(centres);
    std::vector<float> out;
    for (std::size_t i = centre * d; i < (centre + 1) * d; ++i)
      out.push_back(static_cast<float>(3 * (std::cos(angle) * from_[i] + std::sin(angle) * to_[i])) + noise * random_.gaussian());
    return out;
  }
  std::size_t most_;
  random_source random_;
  std::vector<double> from_, to_;
};

float dot(const float* a, const float* b, std::size_t d) {
  float sum = 0;
  for (std::size_t i = 0; i < d; ++i) sum += a[i] * b[i];
  return sum;
}

/// Share of the exact best tokens of the middle that a cache lists, over 100 queries.
double recall_of(pqkv::pqcache<>& cache, const std::vector<float>& keys, drifting_keys source) {
  constexpr std::size_t d = drifting_keys::d;
  const pqkv::middle_range middle = cache.middle(0);
  std::size_t found = 0, wanted = 0;
  for (int i = 0; i < 100; ++i) {
    const std::vector<float> query = source.query(middle.end);
    const std::vector<std::int32_t> listed = ask(cpu, cache, query).list(0);
    std::vector<std::int32_t> best;
    for (std::uint32_t t = middle.begin; t < middle.end; ++t) best.push_back(static_cast<std::int32_t>(t));
    const auto better = [&](std::int32_t a, std::int32_t b) {
      return dot(query.data(), &keys[static_cast<std::size_t>(a) * d], d) > dot(query.data(), &keys[static_cast<std::size_t>(b) * d], d);
    };
    std::partial_sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(listed.size()), best.end(), better);
    const std::set<std::int32_t> exact(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(listed.size()));
    for (const std::int32_t t : listed) found += exact.count(t);
    wanted += listed.size();
  }
  return static_cast<double>(found) / static_cast<double>(wanted);
}
}  // namespace

TEST_CASE("refresh: recall on 20 000 tokens of drifting keys is within a tenth of a fresh codebook's; without it it is not" *
          doctest::skip(pqkv_cases::under_sanitizers)) {
  constexpr std::size_t d = drifting_keys::d, prompt = 2000, all = 22000;
  drifting_keys source(all);
  std::vector<float> keys;
  for (std::size_t t = 0; t < all; ++t)
    for (const float x : source.key(t)) keys.push_back(x);
  const auto view = [&](std::size_t first, std::size_t n) {
    return pqkv::view<const float, 3>{&keys[first * d], {1, n, d}, {all * d, d, 1}};
  };
  const auto grown = [&](pqkv::selector::pq_params how, std::size_t prompt_tokens) {
    auto p = pq_params(1, 1, 1, d, all, 4, 64, 500, 2, 6);
    p.selector.refresh = how.refresh;
    p.selector.refresh_iterations = how.refresh_iterations;
    p.selector.renewal = how.renewal;
    pqkv::pqcache<> cache(p);
    cache.prefill(cpu, 0, view(0, prompt_tokens), view(0, prompt_tokens));
    for (std::size_t t = prompt_tokens; t < all; ++t) {
      const pqkv::view<const float, 3> token{&keys[t * d], {1, 1, d}, {d, d, 1}};
      cache.append(cpu, token, token);
      if (t % 64 == 0) cache.maintain(cpu);
    }
    return recall_of(cache, keys, source);
  };
  const pqkv::selector::pq_params never{.refresh = 0}, over_new{}, anew{.refresh = 1.5, .refresh_iterations = 0};
  const pqkv::selector::pq_params renewing{.renewal = pqkv::selector::renewal_scope::all_keys};
  const double fresh = grown(never, all), stale = grown(never, prompt), renewed = grown(renewing, prompt), retrained = grown(anew, prompt);
  const double new_only = grown(over_new, prompt);
  MESSAGE("recall of 500 of 22000: fresh " << fresh << ", trained once at 2000 " << stale << ", renewed " << renewed << ", over new keys "
                                           << new_only << ", trained anew at growth 1.5 " << retrained);
  CHECK(renewed >= 0.9 * fresh);
  CHECK(new_only >= 0.9 * fresh);
  CHECK(retrained >= 0.9 * fresh);
  CHECK(stale < 0.8 * fresh);
}
