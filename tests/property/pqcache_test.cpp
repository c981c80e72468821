// SPDX-License-Identifier: Apache-2.0
// Random lives of a pqcache against the plain model: prompts whole and in chunks, steps of random active slots, forks, resets and
// maintenance in any order. After every change the retrieved lists equal the model's to the token, and attention the
// same in double to 1e-5 (more only for keys with offsets in the hundreds).
#include <doctest/doctest.h>

#include "cases/cache_model.hpp"
#include "cases/inputs.hpp"
#include "cases/policies.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

/// Product quantization that can be asked whether a slot has its codebook: it lives inside the cache.
struct watched_pq : pqkv::selector::pq {
  static inline const watched_pq* latest = nullptr;
  watched_pq(const pqkv::cache_shape& shape, const params& settings) : pq(shape, settings) { latest = this; }
};

template <class T, class Policy>
class life {
 public:
  using cache_type = pqkv::pqcache<T, watched_pq>;
  using params = typename cache_type::params;

  life(const Policy& policy, const params& p, content what, std::uint64_t seed)
      : policy_(policy), p_(p), cache_(p), selector_(watched_pq::latest), what_(what), random_(seed) {
    for (std::size_t slot = 0; slot < p.batch; ++slot) slots_.emplace_back(p.kv_heads, p.head_dim, p.budget);
  }

  void prefill(std::size_t slot, std::size_t n) {
    auto keys = draw_rows(what_, p_.kv_heads, n);
    auto values = draw_rows(content::gaussian, p_.kv_heads, n);
    for (std::size_t first = 0; first < n || n == 0;) {
      const std::size_t count = n == 0 || random_.below(2) == 0 ? n - first : 1 + random_.below(n - first);
      cache_.prefill(policy_, slot, keys.view().slice(1, first, count), values.view().slice(1, first, count),
                     first + count == n ? pqkv::chunk::last : pqkv::chunk::more);
      first += count;
      if (n == 0) break;
    }
    slots_[slot].add(keys.view(), values.view());
    slots_[slot].end_prompt();
    if (n == 0) return;
    slots_[slot].settle();
    slots_[slot].train(p_.selector);
  }

  void append(const std::vector<std::uint8_t>& active) {
    auto keys = draw_rows(what_, p_.batch, p_.kv_heads);
    auto values = draw_rows(content::gaussian, p_.batch, p_.kv_heads);
    cache_.append(policy_, keys.view(), values.view(), pqkv::make_view(active.data(), active.size()));
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      if (active[slot] == 0) continue;
      slots_[slot].add(one_token(keys.view()[slot]), one_token(values.view()[slot]));
      slots_[slot].settle();
    }
  }

  void maintain() {
    cache_.maintain(policy_);
    for (std::size_t slot = 0; slot < p_.batch; ++slot)
      if (!slots_[slot].trained() && selector_->covers(slot) == pqkv::selector::coverage::listed) slots_[slot].train(p_.selector);
  }

  void check(const std::vector<std::uint8_t>& active) {
    const std::size_t hq = p_.query_heads, d = p_.head_dim, lists = cache_.lists();
    std::vector<float> query(p_.batch * hq * d), out(query.size(), 77.0f), lse(p_.batch * hq, 77.0f);
    for (float& x : query) x = 2 * random_.gaussian();
    std::size_t k_max = 1;
    for (std::size_t slot = 0; slot < p_.batch; ++slot) k_max = std::max(k_max, cache_.retrieve_capacity(slot));
    std::vector<std::int32_t> indices(p_.batch * lists * k_max, -7);
    std::vector<std::uint32_t> counts(p_.batch * lists, 77);
    const auto mask = pqkv::make_view(active.data(), active.size());
    const auto queries = pqkv::as_const(pqkv::make_view(query.data(), p_.batch, hq, d));
    cache_.retrieve(policy_, queries, pqkv::make_view(indices.data(), p_.batch, lists, k_max),
                    pqkv::make_view(counts.data(), p_.batch, lists), mask);
    cache_.attend(policy_, queries, pqkv::make_view(out.data(), p_.batch, hq, d), pqkv::make_view(lse.data(), p_.batch, hq), mask);
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      const slot_model<T>& model = slots_[slot];
      REQUIRE(cache_.size(slot) == model.size());
      if (active[slot] == 0) {
        for (std::size_t i = 0; i < hq * d; ++i) REQUIRE(out[slot * hq * d + i] == 77.0f);
        for (std::size_t i = 0; i < lists; ++i) REQUIRE(counts[slot * lists + i] == 77);
        continue;
      }
      REQUIRE(cache_.middle(slot).begin == model.first());
      REQUIRE(cache_.middle(slot).end == model.window_begin());
      const std::vector<float> own(query.begin() + static_cast<std::ptrdiff_t>(slot * hq * d),
                                   query.begin() + static_cast<std::ptrdiff_t>((slot + 1) * hq * d));
      const auto wanted = model.lists(own, p_.selector);
      for (std::size_t list = 0; list < lists; ++list) {
        const auto row = indices.begin() + static_cast<std::ptrdiff_t>((slot * lists + list) * k_max);
        const std::size_t count = counts[slot * lists + list];
        REQUIRE(count <= k_max);
        REQUIRE(std::vector<std::int32_t>(row, row + static_cast<std::ptrdiff_t>(count)) == wanted[list]);
        for (std::size_t i = count; i < k_max; ++i) REQUIRE(indices[(slot * lists + list) * k_max + i] == -1);
      }
      for (std::size_t q = 0; q < hq; ++q) {
        const plain_result exact = model.attend(own, q, wanted[q * lists / hq]);
        REQUIRE(relative_error(out.data() + (slot * hq + q) * d, exact.out) < exact.tolerance());
        if (model.size() == 0)
          REQUIRE(lse[slot * hq + q] == -INFINITY);
        else
          REQUIRE(static_cast<double>(lse[slot * hq + q]) == doctest::Approx(exact.lse).epsilon(exact.tolerance()));
      }
      ++checked;
      listed += wanted[0].size() < model.middle_size() && !wanted[0].empty() ? 1 : 0;
    }
  }

  void run(std::size_t events) {
    for (std::size_t slot = 0; slot < p_.batch; ++slot) prefill(slot, random_.below(p_.capacity - 40));
    for (std::size_t event = 0; event < events; ++event) {
      std::vector<std::uint8_t> active(p_.batch);
      for (std::uint8_t& one : active) one = random_.below(4) != 0 ? 1 : 0;
      const std::size_t slot = random_.below(p_.batch), other = random_.below(p_.batch);
      switch (random_.below(16)) {
        case 0:
          cache_.reset(slot);
          slots_[slot] = slot_model<T>(p_.kv_heads, p_.head_dim, p_.budget);
          break;
        case 1:
          cache_.fork(policy_, slot, other);
          if (slot != other) slots_[other].copy_from(slots_[slot]);
          break;
        case 2:
          maintain();
          break;
        case 3:
        case 4:
          if (slots_[slot].size() == 0) prefill(slot, p_.capacity / 2 + random_.below(p_.capacity / 2 - 20));
          break;
        default:
          for (std::size_t s = 0; s < p_.batch; ++s) active[s] = slots_[s].size() < p_.capacity ? active[s] : 0;
          for (std::size_t step = 1 + random_.below(3); step-- > 0;) {
            append(active);
            for (std::size_t s = 0; s < p_.batch; ++s) active[s] = slots_[s].size() < p_.capacity ? active[s] : 0;
          }
      }
      check(active);
    }
  }

  std::size_t checked = 0, listed = 0;

 private:
  rows<T> draw_rows(content what, std::size_t h, std::size_t n) {
    const layout where = every_layout[random_.below(5)];
    return make_rows<T>(what, h, n, p_.head_dim, random_.bits(), where);
  }
  template <class U>
  static pqkv::view<U, 3> one_token(pqkv::view<U, 2> rows) {
    return {rows.data, {rows.extent(0), 1, rows.extent(1)}, {rows.stride(0), 0, rows.stride(1)}};
  }

  Policy policy_;
  params p_;
  cache_type cache_;
  const watched_pq* selector_;
  content what_;
  random_source random_;
  std::vector<slot_model<T>> slots_;
};

template <class T>
typename pqkv::pqcache<T, watched_pq>::params random_params(random_source& random) {
  typename pqkv::pqcache<T, watched_pq>::params p;
  const std::size_t groups[] = {1, 2, 4, 9};
  p.batch = 1 + random.below(3);
  p.kv_heads = 1 + random.below(3);
  p.query_heads = p.kv_heads * groups[random.below(4)];
  p.head_dim = 16 * (1 + random.below(3));
  p.capacity = 150 + random.below(250);
  p.selector.subspaces = std::size_t{1} << random.below(4);
  p.selector.bits = 4 + static_cast<unsigned>(random.below(2));
  p.selector.train.iterations = 2;
  p.selector.train.seed = random.bits();
  p.selector.tail_tokens = 1 + random.below(30);
  p.selector.reduction = static_cast<group_reduction>(random.below(5));
  p.selector.path = p.selector.subspaces * p.selector.bits <= 10 ? static_cast<search_path>(random.below(3)) : search_path::automatic;
  p.budget.sinks = random.below(9);
  p.budget.min_tokens = p.budget.sinks + 1 + random.below(30);
  p.budget.ratio = 0.03 * static_cast<double>(random.below(10));
  p.budget.window_share = 0.1 * static_cast<double>(random.below(6));
  p.budget.growth = static_cast<pqkv::budget_growth>(random.below(4) == 0);
  p.selector.metric = static_cast<pqkv::key_metric>(random.below(3) == 0);
  if (random.below(3) == 0) {
    p.selector.residual.subspaces = std::size_t{1} << random.below(4);
    p.selector.residual.bits = 4;
    p.selector.residual.shortlist = 1 + random.below(5);
  }
  if (random.below(4) == 0) p.budget.tokens = p.budget.sinks + 1 + random.below(60);
  if (random.below(4) == 0) p.budget.window = 1 + random.below(50);
  if (random.below(4) == 0) p.budget.retrieve = random.below(80);
  return p;
}

template <class T, class Policy>
void lives(const Policy& policy, std::uint64_t seed, std::size_t count) {
  random_source random(seed);
  std::size_t checked = 0, listed = 0;
  for (std::size_t i = 0; i < count; ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    const auto p = random_params<T>(random);  // one draw a statement: argument order is the compiler's choice
    const content what = every_content[random.below(4)];
    life<T, Policy> one(policy, p, what, random.bits());
    one.run(40);
    checked += one.checked;
    listed += one.listed;
  }
  MESSAGE("slots checked ", checked, ", with a ranked list ", listed);
  CHECK(listed > checked / 4);
}
}  // namespace

TEST_CASE("pqcache: random lives equal the plain model, float, best instruction set") { lives<float>(pqkv::exec::host<>{}, 11, 16); }
TEST_CASE("pqcache: random lives equal the plain model, float, scalar") { lives<float>(pqkv::exec::host<pqkv::isa::scalar>{}, 12, 8); }
TEST_CASE("pqcache: random lives equal the plain model, half, threads") {
  lives<pqkv::half>(pqkv::exec::host<pqkv::isa::best, threaded_runner>{}, 13, 4);
}
TEST_CASE("pqcache: random lives equal the plain model, bfloat16") { lives<pqkv::bfloat16>(pqkv::exec::host<>{}, 14, 8); }
