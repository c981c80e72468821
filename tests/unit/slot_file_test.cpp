// SPDX-License-Identifier: Apache-2.0
// Saved slots: what comes back selects and attends as the original, with and without rows, with a second stage, untrained, empty; a file
// that is cut, altered in any byte, or of another cache is refused whole, and the slot stays as it was.
#include <doctest/doctest.h>

#include "cases/cache_driver.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/slot_bytes.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::slot_contents;
using cache_type = pqkv::pqcache<>;
const pqkv::exec::host<> cpu;

template <class Cache>
std::vector<std::byte> saved(const Cache& cache, std::size_t slot, slot_contents contents = slot_contents::index_and_rows) {
  return pqkv_cases::saved(cpu, cache, slot, contents);
}
template <class Cache>
void load(Cache& cache, std::size_t slot, const std::vector<std::byte>& file, slot_contents contents = slot_contents::index_and_rows,
          std::size_t most = 1u << 30) {
  pqkv_cases::load(cpu, cache, slot, file, contents, most);
}

cache_type::params params_of(std::size_t m = 2, unsigned bits = 4) { return pq_params(2, 2, 4, 32, 400, 4, 16, 20, m, bits); }

/// Slots 0 and 1 answer alike, now and while both grow.
template <class Cache>
void check_alike(Cache& cache) {
  const std::size_t half = cache.parameters().query_heads * cache.parameters().head_dim;
  for (std::uint64_t step = 0; step < 40; ++step) {
    std::vector<float> query = random_query(cache, step);
    std::copy_n(query.begin(), half, query.begin() + static_cast<std::ptrdiff_t>(half));
    const reply r = ask(cpu, cache, query);
    for (std::size_t list = 0; list < cache.lists(); ++list) REQUIRE(r.list(list) == r.list(cache.lists() + list));
    for (std::size_t i = 0; i < half; ++i) REQUIRE(r.out[i] == r.out[half + i]);
    auto keys = make_rows<float>(content::gaussian, 2, cache.parameters().kv_heads, cache.parameters().head_dim, step);
    for (std::size_t h = 0; h < cache.parameters().kv_heads; ++h)
      for (std::size_t i = 0; i < cache.parameters().head_dim; ++i) keys(1, h, i) = keys(0, h, i);
    cache.append(cpu, keys.view(), keys.view());
    if (step % 13 == 12) cache.maintain(cpu);
  }
}

void grow(cache_type& cache, std::size_t prompt_tokens) {
  prefill(cpu, cache, 0, prompt(2, prompt_tokens, 32, 5));
  for (std::uint64_t step = 0; step < 30; ++step) append_random(cpu, cache, step, {1, 0});
}
}  // namespace

TEST_CASE("slot file: a loaded slot goes on as the saved one") {
  for (const auto path : {pqkv::search_path::scan, pqkv::search_path::joint})
    for (const std::size_t stage : {0u, 4u})
      for (const std::size_t most : {std::size_t{1} << 30, std::size_t{7}}) {
        auto p = params_of();
        p.selector.path = path;
        p.selector.tail_tokens = 10;
        p.selector.metric = stage == 0 ? pqkv::key_metric::inner_product : pqkv::key_metric::squared_l2;
        p.selector.residual.subspaces = stage;
        p.selector.residual.bits = 4;
        cache_type cache(p);
        grow(cache, 250);
        load(cache, 1, saved(cache, 0), slot_contents::index_and_rows, most);
        CHECK(cache.size(1) == 280);
        CHECK(cache.at(1).learned == 1);
        CHECK(cache.statistics(1).steps == 0);
        check_alike(cache);
      }
}

TEST_CASE("slot file: after a cut the file has what is left") {
  cache_type cache(params_of());
  grow(cache, 250);
  cache.maintain(cpu);
  cache.truncate(cpu, 0, 200);
  load(cache, 1, saved(cache, 0));
  CHECK(cache.size(1) == 200);
  check_alike(cache);
}

TEST_CASE("slot file: a cache of another budget has another middle, and refuses; without a codebook there is none to differ") {
  cache_type cache(params_of());
  grow(cache, 250);
  prefill(cpu, cache, 1, prompt(2, 12, 32, 5));
  const auto trained = saved(cache, 0), untrained = saved(cache, 1);
  auto other = params_of();
  other.budget.window = 8;
  cache_type smaller(other);
  CHECK(unless_refused<pqkv::value_error>([&] { load(smaller, 0, trained); }, "load: file.middle_end", 272, 264) == "");
  CHECK(smaller.size(0) == 0);
  load(smaller, 0, untrained);
  CHECK(smaller.size(0) == 12);
  other = params_of();
  other.budget.sinks = 0;
  cache_type other_sinks(other);
  CHECK(unless_refused<pqkv::value_error>([&] { load(other_sinks, 0, trained); }, "load: file.middle_begin", 0, 4) == "");
}

TEST_CASE("slot file: an untrained, and an empty slot") {
  cache_type cache(params_of());
  prefill(cpu, cache, 0, prompt(2, 12, 32, 5));
  REQUIRE(cache.at(0).learned == 0);
  load(cache, 1, saved(cache, 0));
  check_alike(cache);
  cache_type empty(params_of());
  load(empty, 1, saved(empty, 0));
  CHECK(empty.size(1) == 0);
}

TEST_CASE("slot file: full attention has rows alone") {
  using full_cache = pqkv::pqcache<pqkv::dense_rows<pqkv::half>, pqkv::selector::full>;
  full_cache cache(cache_params<full_cache>(2, 2, 4, 32, 300, 4, 16, 20));
  prefill(cpu, cache, 0, prompt(2, 90, 32, 5));
  const auto file = saved(cache, 0);
  CHECK(file.size() == sizeof(pqkv::slot_file_header) + 2 * 90 * 2 * 32 * 2 + 4);
  load(cache, 1, file);
  check_alike(cache);
}

TEST_CASE("slot file: cut anywhere, or with any byte altered, it is refused and the slot stays empty") {
  cache_type cache(params_of());
  grow(cache, 150);
  const std::vector<std::byte> file = saved(cache, 0, slot_contents::index_and_rows);
  const reply before = ask(cpu, cache, random_query(cache, 3));
  const auto refused = [&](const std::vector<std::byte>& bad) {
    bool threw = false;
    try {
      load(cache, 1, bad);
    } catch (const std::logic_error&) {
      threw = true;
    }
    return threw && cache.size(1) == 0 && cache.at(1).learned == 0;
  };
  random_source random(11);
  for (std::size_t size = 0; size < file.size(); size += 1 + random.below(file.size() / 60)) {
    CAPTURE(size);
    REQUIRE(refused({file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size)}));
  }
  for (int round = 0; round < 300; ++round) {
    std::vector<std::byte> bad = file;
    const std::size_t at = round < 110 ? static_cast<std::size_t>(round) : random.below(file.size());
    bad[at] ^= std::byte{static_cast<unsigned char>(1u << random.below(8))};
    CAPTURE(at);
    REQUIRE(refused(bad));
  }
  CHECK((ask(cpu, cache, random_query(cache, 3)) == before));
  load(cache, 1, file);  // and the right one still comes in
  check_alike(cache);
}

TEST_CASE("slot file: what does not fit is named") {
  cache_type cache(params_of());
  grow(cache, 150);
  const auto file = saved(cache, 0);
  using pqkv::value_error;
  const auto says = [&](auto&& other, const std::string& where, double expected, double got) {
    return unless_refused<value_error>([&] { load(other, 0, file); }, "load: " + where, expected, got);
  };
  CHECK(says(cache_type(pq_params(1, 1, 4, 32, 400, 4, 16, 20)), "file.kv_heads", 1, 2) == "");
  CHECK(says(cache_type(pq_params(1, 2, 4, 64, 400, 4, 16, 20)), "file.head_dim", 64, 32) == "");
  CHECK(says(cache_type(pq_params(1, 2, 4, 32, 400, 4, 16, 20, 4, 4)), "file.selector.subspaces", 4, 2) == "");
  CHECK(says(cache_type(pq_params(1, 2, 4, 32, 400, 4, 16, 20, 2, 5)), "file.selector.bits", 5, 4) == "");
  using half_cache = pqkv::pqcache<pqkv::dense_rows<pqkv::half>>;
  half_cache::params half{};
  static_cast<pqkv::cache_shape&>(half) = params_of();
  half.selector = params_of().selector;
  CHECK(says(half_cache(half), "file.element", 1, 0) == "");
  cache_type small(pq_params(1, 2, 4, 32, 100, 4, 16, 20));
  CHECK(unless_refused<pqkv::capacity_error>([&] { load(small, 0, file); }, "load: file.at.n", 100, 180) == "");
  CHECK(unless_refused<value_error>([&] { load(cache, 0, file); }, "load: slot", 0, 1) == "");
  CHECK(unless_refused<value_error>([&] { load(cache, 1, saved(cache, 0, slot_contents::index)); }, "load: file.contents", 1, 0) == "");
  CHECK(unless_refused<value_error>([&] { load(cache, 2, file); }, "load: slot", 2, 2) == "");
  CHECK(unless_refused<value_error>([&] { saved(cache, 2); }, "save: slot", 2, 2) == "");
  cache.prefill(cpu, 1, prompt(2, 9, 32, 1).keys.view(), prompt(2, 9, 32, 1).values.view(), pqkv::chunk::more);
  CHECK(unless_refused<value_error>([&] { saved(cache, 1); }, "save: slot", 0, 1) == "");
}

TEST_CASE("slot file: a code that no codebook has is refused although the checksum is right") {
  auto p = params_of();
  cache_type cache(p);
  grow(cache, 150);
  std::vector<std::byte> file = saved(cache, 0, slot_contents::index);
  const std::size_t book = 2 * (2 * 16 * 16 + 32) * sizeof(float);  // h * (m * ds * c + d)
  file[sizeof(pqkv::slot_file_header) + book + 30] = std::byte{200};  // c is 16
  pqkv::crc32 sum;
  sum.add(file.data(), file.size() - 4);
  const std::uint32_t value = sum.value();
  std::memcpy(file.data() + file.size() - 4, &value, 4);
  CHECK(unless_refused<pqkv::value_error>([&] { load(cache, 1, file, slot_contents::index); }, "load: file.codes", 16, 200) == "");
  CHECK(cache.size(1) == 0);
}

TEST_CASE("slot file: a sink or a source that throws ends the call and changes nothing") {
  cache_type cache(params_of());
  grow(cache, 150);
  const auto file = saved(cache, 0);
  struct disk_full {};
  std::size_t left = 5000;
  CHECK_THROWS_AS(cache.save(cpu, 0,
                             [&](const std::byte*, std::size_t bytes) {
                               if (bytes > left) throw disk_full();
                               left -= bytes;
                             }),
                  disk_full);
  file_source source{file};
  CHECK_THROWS_AS(cache.load(cpu, 1,
                             [&](std::byte* data, std::size_t bytes) {
                               if (source.at > 9000) throw disk_full();
                               return source(data, bytes);
                             }),
                  disk_full);
  CHECK(cache.size(1) == 0);
  load(cache, 1, file);
  check_alike(cache);
}
