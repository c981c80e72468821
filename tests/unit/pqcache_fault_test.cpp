// SPDX-License-Identifier: Apache-2.0
// All or nothing: in every verb of a host cache every allocation and every call of the runner is made to fail once. Then every slot stands
// where it stood, counts what it counted and answers as it did; the same call succeeds when it is made again; and 30 steps later
// the cache still gives the answers of one to which nothing happened.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/sanitized.hpp"
#include "cases/faults.hpp"
#include "cases/inputs.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::search_path;

constexpr std::size_t batch = 4, h = 2, hq = 4, d = 16, capacity = 320, page_tokens = 16, pages = capacity / page_tokens;

template <class Rows>
inline constexpr bool is_paged = requires {
  typename Rows::params;
  requires requires(typename Rows::params p) { p.page_tokens; };
};

/// Rows by seed, made once.
const rows<float>& rows_of(content what, std::size_t a, std::size_t b, std::uint64_t seed) {
  static std::map<std::tuple<content, std::size_t, std::size_t, std::uint64_t>, rows<float>> all;
  auto found = all.find({what, a, b, seed});
  if (found != all.end()) return found->second;
  rows<float>& made = all.emplace(std::tuple{what, a, b, seed}, make_rows<float>(what, a, b, d, seed)).first->second;
  if (what == content::clustered && a * b > 8) made(a / 2, b / 2, 3) = std::numeric_limits<float>::infinity();  // it is counted, once
  return made;
}

/// A cache, and an engine's pages where the rows are there.
template <class Rows, class Selector>
class subject {
 public:
  using cache_type = pqkv::pqcache<Rows, Selector>;
  using params = typename cache_type::params;
  using T = typename Rows::value_type;

  explicit subject(params p) : pool_(is_paged<Rows> ? 2 * batch * pages * page_tokens * h * d : 0), table_(batch * pages) {
    static_cast<pqkv::cache_shape&>(p) = {
        .batch = batch, .kv_heads = h, .query_heads = hq, .head_dim = d, .capacity = capacity, .step_queries = 3};
    for (std::size_t i = 0; i < table_.size(); ++i)
      table_[i] = static_cast<std::uint32_t>((i * 29 + 7) % table_.size());  // 29 and 80: coprime
    if constexpr (is_paged<Rows>)
      p.rows = {pool_.data(),
                pool_.data() + pool_.size() / 2,
                batch * pages,
                page_tokens,
                pqkv::page_strides::nhd(page_tokens, h, d),
                pqkv::make_view(static_cast<const std::uint32_t*>(table_.data()), batch, pages)};
    cache_.emplace_back(cpu(), p);
  }
  cache_type& cache() { return cache_.front(); }
  failing_host cpu() { return {{&plan_}, {}}; }
  fault_plan& plan() { return plan_; }

  void prefill(std::size_t slot, std::size_t n, pqkv::chunk which, std::uint64_t seed) {
    const auto &keys = rows_of(content::clustered, h, n, seed), &values = rows_of(content::gaussian, h, n, seed + 1);
    cache().prefill(cpu(), slot, keys.view(), values.view(), which);
  }
  void append(const std::vector<std::uint32_t>& slots, const std::vector<std::uint32_t>& counts, std::uint64_t seed) {
    std::size_t tokens = 0;
    for (const std::uint32_t count : counts) tokens += count;
    const auto &keys = rows_of(content::clustered, tokens, h, seed), &values = rows_of(content::gaussian, tokens, h, seed + 1);
    cache().append(cpu(), keys.view(), values.view(), step(slots, counts));
  }
  /// Slot `to` gets a copy of the pages of `from`, as an engine does whose forks share nothing.
  void copy_pages(std::size_t from, std::size_t to) {
    const std::size_t page = page_tokens * h * d, half = pool_.size() / 2;
    for (std::size_t i = 0; i < pages && !pool_.empty(); ++i)
      for (const std::size_t first : {std::size_t{0}, half})
        std::copy_n(&pool_[first + table_[from * pages + i] * page], page, &pool_[first + table_[to * pages + i] * page]);
  }

  static pqkv::basic_step<> step(const std::vector<std::uint32_t>& slots, const std::vector<std::uint32_t>& counts) {
    return {pqkv::make_view(slots.data(), slots.size()), pqkv::make_view(counts.data(), counts.size())};
  }

 private:
  std::vector<T> pool_;
  std::vector<std::uint32_t> table_;
  fault_plan plan_;
  std::vector<cache_type> cache_;
};

/// Queries of a step and all that comes back.
struct question {
  std::vector<std::uint32_t> slots, counts;
  std::vector<float> query, out, lse;
  std::vector<std::int32_t> indices;
  std::vector<std::uint32_t> listed;

  question(std::vector<std::uint32_t> of_slots, std::vector<std::uint32_t> of_counts, std::uint64_t seed)
      : slots(std::move(of_slots)), counts(std::move(of_counts)) {
    random_source random(seed);
    for (const std::uint32_t count : counts) tokens += count;
    query.resize(tokens * hq * d);
    for (float& x : query) x = 2 * random.gaussian();
    if (tokens != 0) query[d + 3] = std::numeric_limits<float>::infinity();  // it is counted
    out.assign(query.size(), 0.0f), lse.assign(tokens * hq, 0.0f);
    indices.assign(tokens * h * capacity, 0), listed.assign(tokens * h, 0);
  }
  template <class Subject>
  void attend(Subject& of) {
    of.cache().attend(of.cpu(), pqkv::make_view(std::as_const(query).data(), tokens, hq, d), pqkv::make_view(out.data(), tokens, hq, d),
                      pqkv::make_view(lse.data(), tokens, hq), of.step(slots, counts));
  }
  template <class Subject>
  void retrieve(Subject& of) {
    of.cache().retrieve(of.cpu(), pqkv::make_view(std::as_const(query).data(), tokens, hq, d),
                        pqkv::make_view(indices.data(), tokens, h, capacity), pqkv::make_view(listed.data(), tokens, h),
                        of.step(slots, counts));
  }
  std::size_t tokens = 0;
};

/// What can be seen of a cache. Floats as bits, since a NaN is an answer too.
struct picture {
  std::vector<unsigned char> standing, counted, answers;
  bool operator==(const picture&) const = default;
};
template <class T>
void add_bytes(std::vector<unsigned char>& to, const T* from, std::size_t count) {
  const auto* const bytes = reinterpret_cast<const unsigned char*>(from);
  to.insert(to.end(), bytes, bytes + count * sizeof(T));
}
/// Asking is counted, so a picture is of the counters before it.
template <class Subject>
picture look(Subject& of) {
  picture all;
  std::vector<std::uint32_t> slots, counts;
  for (std::uint32_t slot = 0; slot < batch; ++slot) {
    const pqkv::sequence at = of.cache().at(slot);
    const pqkv::slot_statistics counted = of.cache().statistics(slot);
    add_bytes(all.standing, &at, 1), add_bytes(all.counted, &counted, 1);
    if (at.prefilling == 0) slots.push_back(slot), counts.push_back(at.n < 2 ? at.n : 2);
  }
  question ask(slots, counts, 5);
  ask.attend(of), ask.retrieve(of);
  add_bytes(all.answers, ask.out.data(), ask.out.size()), add_bytes(all.answers, ask.lse.data(), ask.lse.size());
  add_bytes(all.answers, ask.indices.data(), ask.indices.size()), add_bytes(all.answers, ask.listed.data(), ask.listed.size());
  return all;
}

/// Under a sanitizer every 13th failure of a verb is injected: each takes two caches and their answers. In a quick run 12 steps follow
/// there: the last are those after a maintain(). Without a sanitizer it is every failure, and 30 steps.
constexpr std::size_t fault_step = pqkv_cases::under_sanitizers ? 13 : 1, maintain_step = pqkv_cases::under_sanitizers ? 5 : 1;
constexpr std::uint64_t later_steps = quick_step == 1 ? 30 : 12;

/// What comes after a verb: steps of some of the slots, and what is seen in between.
template <class Subject>
std::vector<picture> later(Subject& of) {
  std::vector<picture> seen;
  for (std::uint64_t step = 0; step < later_steps; ++step) {
    std::vector<std::uint32_t> slots, counts;
    for (std::uint32_t i = 0; i < batch; ++i) {
      const auto slot = static_cast<std::uint32_t>((i + step) % batch);
      if (of.cache().at(slot).prefilling != 0 || (step + slot) % 3 == 0) continue;
      slots.push_back(slot), counts.push_back(1 + (step + slot) % 2);
    }
    of.append(slots, counts, 1000 + 2 * step);
    if (step % 8 == 7) of.cache().maintain(of.cpu());
    if (step % 6 == 5) seen.push_back(look(of));
  }
  return seen;
}

/// A verb, and what must have happened before it.
template <class Subject>
struct verb {
  const char* name;
  std::function<void(Subject&)> prepare, call;
};

/// Slot 0 long, slot 1 of two chunks, slot 2 empty, slot 3 with an index that waits for tokens.
template <class Subject>
void begin(Subject& of) {
  of.prefill(0, 150, pqkv::chunk::last, 1);
  of.prefill(1, 30, pqkv::chunk::more, 3);
  of.prefill(1, 40, pqkv::chunk::last, 5);
  of.prefill(3, 6, pqkv::chunk::last, 7);
}

template <class Subject>
std::vector<verb<Subject>> every_verb() {
  const auto nothing = [](Subject&) {};
  const auto grown = [](Subject& s) { s.append({0, 1, 3}, {40, 20, 30}, 50); };
  const auto asked = std::make_shared<question>(std::vector<std::uint32_t>{1, 0}, std::vector<std::uint32_t>{3, 5}, 60);
  const auto cut = std::make_shared<std::vector<std::uint32_t>>(std::vector<std::uint32_t>{1, 0, 40, 70});
  return {
      {"prefill of a whole prompt", nothing, [](Subject& s) { s.prefill(2, 100, pqkv::chunk::last, 20); }},
      {"prefill of a first chunk", nothing, [](Subject& s) { s.prefill(2, 100, pqkv::chunk::more, 20); }},
      {"prefill of the last chunk", [](Subject& s) { s.prefill(2, 50, pqkv::chunk::more, 22); },
       [](Subject& s) { s.prefill(2, 60, pqkv::chunk::last, 24); }},
      {"append of one token", nothing,
       [](Subject& s) {
         s.append({3, 1, 0}, {1, 1, 1}, 30);
       }},
      {"append of several tokens",
       [](Subject& s) {
         s.append({0, 1}, {20, 20}, 31);
       },
       [](Subject& s) {
         s.append({1, 2, 0}, {7, 0, 24}, 32);
       }},
      {"attend", grown, [asked](Subject& s) { asked->attend(s); }},
      {"retrieve", grown, [asked](Subject& s) { asked->retrieve(s); }},
      {"truncate", grown, [](Subject& s) { s.cache().truncate(s.cpu(), 0, 90); }},
      {"truncate of several slots", grown,
       [cut](Subject& s) {
         const std::uint32_t* const numbers = cut->data();
         s.cache().truncate(s.cpu(), pqkv::make_view(numbers + 2, 2), pqkv::make_view(numbers, 2));
       }},
      {"fork to an empty slot", [grown](Subject& s) { grown(s), s.copy_pages(0, 2); }, [](Subject& s) { s.cache().fork(s.cpu(), 0, 2); }},
      {"fork over a sequence", [grown](Subject& s) { grown(s), s.copy_pages(0, 1); }, [](Subject& s) { s.cache().fork(s.cpu(), 0, 1); }},
      {"maintain", grown, [](Subject& s) { s.cache().maintain(s.cpu()); }},
      {"reset", grown, [](Subject& s) { s.cache().reset(s.cpu(), 0); }},
  };
}

/// @return failures that were injected
template <class Rows, class Selector>
std::size_t check_faults(typename pqkv::pqcache<Rows, Selector>::params p) {
  using subject_type = subject<Rows, Selector>;
  std::size_t injected = 0;
  for (const verb<subject_type>& one : every_verb<subject_type>()) {
    CAPTURE(std::string(one.name));
    subject_type twin(p);
    begin(twin), one.prepare(twin);
    look(twin), look(twin);  // as often as the other one is looked at
    one.call(twin);
    const std::vector<picture> wanted = later(twin);
    for (const fault what : every_fault) {
      CAPTURE(static_cast<int>(what));
      bool failed = true;
      for (std::size_t k = 1; failed; k += fault_step) {
        CAPTURE(k);
        subject_type hurt(p);
        begin(hurt), one.prepare(hurt);
        picture before = look(hurt);
        for (std::size_t slot = 0; slot < batch; ++slot) {
          const pqkv::slot_statistics counted = hurt.cache().statistics(slot);
          std::memcpy(before.counted.data() + slot * sizeof counted, &counted, sizeof counted);
        }
        failed = fails(hurt.plan(), what, k, [&] { one.call(hurt); });
        if (!failed) break;
        ++injected;
        const picture after = look(hurt);
        REQUIRE(after.standing == before.standing);
        REQUIRE(after.counted == before.counted);
        REQUIRE(after.answers == before.answers);
        one.call(hurt);
        const std::vector<picture> got = later(hurt);
        for (std::size_t step = 0; step < got.size(); ++step) {
          CAPTURE(step);
          REQUIRE(got[step].standing == wanted[step].standing);
          REQUIRE(got[step].counted == wanted[step].counted);
          REQUIRE(got[step].answers == wanted[step].answers);
        }
      }
    }
  }
  return injected;
}

/// Upkeep goes slot by slot: where two of them wait for a codebook, one may have it when the other's training fails. A slot that was to be
/// trained again may be left without an index, and attends to everything until the call that makes it good. That call trains it anew, which
/// is another codebook than a renewal would have left.
template <class Rows>
std::size_t check_maintain(const typename pqkv::pqcache<Rows>::params& p) {
  using subject_type = subject<Rows, pqkv::selector::basic_pq<>>;
  const auto prepare = [](subject_type& s) {
    begin(s);
    s.append({0, 1, 2, 3}, {40, 20, 35, 30}, 50);  // slots 2 and 3 have enough keys now, slot 0 has outgrown its codebook
  };
  const auto standing = [](subject_type& s) {
    std::vector<pqkv::sequence> all;
    for (std::size_t slot = 0; slot < batch; ++slot) all.push_back(s.cache().at(slot));
    return all;
  };
  const auto same = [](const pqkv::sequence& a, const pqkv::sequence& b) { return std::memcmp(&a, &b, sizeof a) == 0; };
  const auto without_index = [](pqkv::sequence s) {
    s.learned = s.learn_again = 0;
    return s;
  };
  subject_type twin(p);
  prepare(twin);
  const auto before = standing(twin);
  twin.cache().maintain(twin.cpu());
  const auto done = standing(twin);
  REQUIRE((before[2].learned == 0 && before[3].learned == 0 && done[2].learned == 1 && done[3].learned == 1));
  REQUIRE((before[0].learned == 1 && done[0].learn_again > before[0].learn_again));
  const std::vector<picture> wanted = later(twin);
  const bool renews = p.selector.refresh_iterations != 0;
  std::map<std::size_t, std::vector<picture>> wanted_anew;  // by the slots that lost their index, a bit each
  std::size_t injected = 0, between = 0, without = 0;
  for (const fault what : every_fault)
    for (std::size_t k = 1;; k += maintain_step, ++injected) {
      CAPTURE(static_cast<int>(what));
      CAPTURE(k);
      subject_type hurt(p);
      prepare(hurt);
      if (!fails(hurt.plan(), what, k, [&] { hurt.cache().maintain(hurt.cpu()); })) break;
      const auto now = standing(hurt);
      for (std::size_t slot = 0; slot < batch; ++slot)
        REQUIRE((same(now[slot], before[slot]) || same(now[slot], done[slot]) ||
                 (before[slot].learned != 0 && same(now[slot], without_index(before[slot])))));
      std::size_t lost = 0;
      for (std::size_t slot = 0; slot < batch; ++slot)
        if (before[slot].learned != 0 && same(now[slot], without_index(before[slot]))) lost |= std::size_t{1} << slot;
      without += lost != 0 ? 1 : 0;
      between += same(now[2], done[2]) && same(now[3], before[3]) ? 1 : 0;
      hurt.cache().maintain(hurt.cpu());
      const std::vector<picture> got = later(hurt);
      if (!renews || lost == 0)
        REQUIRE(got == wanted);
      else
        REQUIRE(got == wanted_anew.try_emplace(lost, got).first->second);
    }
  CHECK(between > 0);
  CHECK(without > 0);
  for (const auto& [slots, anew] : wanted_anew) CHECK(anew != wanted);
  CHECK(wanted_anew.empty() == !renews);
  return injected;
}

template <class Cache>
typename Cache::params base() {
  typename Cache::params p;
  p.budget.sinks = 4, p.budget.window = 12, p.budget.retrieve = 10;
  return p;
}
template <class Rows>
typename pqkv::pqcache<Rows>::params pq(search_path path, std::size_t fine = 0) {
  auto p = base<pqkv::pqcache<Rows>>();
  p.selector.subspaces = 2, p.selector.bits = 4, p.selector.train.iterations = 2, p.selector.tail_tokens = 20, p.selector.path = path;
  p.selector.refresh = 0;
  if (fine != 0) p.selector.residual = {.subspaces = fine, .bits = 4, .shortlist = 3};
  return p;
}
template <class Rows>
void check_pq() {
  using selector = pqkv::selector::basic_pq<>;
  CHECK(check_faults<Rows, selector>(pq<Rows>(search_path::scan)) > 60 / fault_step);
  CHECK(check_faults<Rows, selector>(pq<Rows>(search_path::joint)) > 60 / fault_step);
  CHECK(check_faults<Rows, selector>(pq<Rows>(search_path::joint, 4)) > 60 / fault_step);
}
template <class Selector>
void check_rows() {
  CHECK(check_faults<pqkv::dense_rows<float>, Selector>(base<pqkv::pqcache<pqkv::dense_rows<float>, Selector>>()) > 10 / fault_step);
  CHECK(check_faults<pqkv::dense_rows<pqkv::bfloat16>, Selector>(base<pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>, Selector>>()) >
        10 / fault_step);
  CHECK(check_faults<pqkv::paged_rows<float>, Selector>(base<pqkv::pqcache<pqkv::paged_rows<float>, Selector>>()) > 10 / fault_step);
}
}  // namespace

TEST_CASE("pqcache faults: product quantization, rows of its own, float") { check_pq<pqkv::dense_rows<float>>(); }
TEST_CASE("pqcache faults: product quantization, rows of its own, bfloat16") {
  using rows_type = pqkv::dense_rows<pqkv::bfloat16>;
  CHECK(check_faults<rows_type, pqkv::selector::pq>(pq<rows_type>(search_path::automatic)) > 60 / fault_step);
}
TEST_CASE("pqcache faults: product quantization, an engine's pages") { check_pq<pqkv::paged_rows<float>>(); }
TEST_CASE("pqcache faults: upkeep that trains anew, renews over all keys, and over new keys") {
  auto p = pq<pqkv::dense_rows<float>>(search_path::joint);
  p.selector.refresh = 1.1, p.selector.refresh_iterations = 0;
  CHECK(check_maintain<pqkv::dense_rows<float>>(p) > 60 / maintain_step);
  p.selector.refresh_iterations = 1, p.selector.renewal = pqkv::selector::renewal_scope::all_keys;
  CHECK(check_maintain<pqkv::dense_rows<float>>(p) > 60 / maintain_step);
  auto paged = pq<pqkv::paged_rows<float>>(search_path::joint);
  paged.selector.refresh = 1.1, paged.selector.renewal = pqkv::selector::renewal_scope::new_keys;
  CHECK(check_maintain<pqkv::paged_rows<float>>(paged) > 60 / maintain_step);
}
TEST_CASE("pqcache faults: dense attention") { check_rows<pqkv::selector::full>(); }
TEST_CASE("pqcache faults: sinks and window alone") { check_rows<pqkv::selector::streaming>(); }
TEST_CASE("pqcache faults: exact scores") { check_rows<pqkv::selector::oracle>(); }
