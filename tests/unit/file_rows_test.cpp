// SPDX-License-Identifier: Apache-2.0
// A cache whose rows are a file, alone and as the slow memory of tiers: laid out as in memory; a context of four times the memory that the
// process may have; a file that was shortened is an error of every verb that touches rows, and changes nothing.
#include <doctest/doctest.h>

#include <sys/resource.h>
#include <sys/wait.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/refusals.hpp"
#include "cases/sanitized.hpp"

namespace {
using namespace pqkv_cases;
const pqkv::exec::host<> cpu;
using tiers = pqkv::tiered_rows<pqkv::file_rows<float>>;
using tiered_cache = pqkv::pqcache<tiers, pqkv::selector::pq>;
using dense_cache = pqkv::pqcache<pqkv::dense_rows<float>, pqkv::selector::pq>;

template <class Cache>
typename Cache::params shape(std::size_t batch, std::size_t d, std::size_t capacity) {
  typename Cache::params p;
  p.batch = batch, p.kv_heads = 2, p.query_heads = 4, p.head_dim = d, p.capacity = capacity;
  p.budget.sinks = 4, p.budget.window = 32, p.budget.retrieve = 64;
  p.selector.bits = 4, p.selector.train.iterations = 2;
  return p;
}

/// One step of slot 0 with numbers that follow from its position, and what came out.
template <class Cache>
std::vector<float> step(Cache& cache, std::size_t position) {
  const std::size_t d = cache.parameters().head_dim;
  random_source random(1000 + position);
  std::vector<float> row(2 * d), query(4 * d), out(query.size());
  for (float& x : row) x = random.gaussian();
  for (float& x : query) x = random.gaussian();
  const std::uint32_t slot = 0;
  const pqkv::cache_step which{pqkv::make_view(&slot, 1)};
  const auto rows = pqkv::make_view(std::as_const(row).data(), 1, 2, d);
  cache.append(cpu, rows, rows, which);
  cache.attend(cpu, pqkv::make_view(std::as_const(query).data(), 1, 4, d), pqkv::make_view(out.data(), 1, 4, d), {}, which);
  return out;
}
template <class Cache>
void prefill(Cache& cache, std::size_t n) {
  constexpr std::size_t piece = 1024;
  const std::size_t d = cache.parameters().head_dim;
  for (std::size_t first = 0; first < n; first += piece) {
    const std::size_t count = std::min(piece, n - first);
    const auto rows = make_rows<float>(content::gaussian, 2, count, d, first);
    cache.prefill(cpu, 0, rows.view(), rows.view(), first + count == n ? pqkv::chunk::last : pqkv::chunk::more);
  }
}

/// An open file with a name.
struct named_file {
  std::string path = (std::filesystem::temp_directory_path() / "pqkv_file_rows.XXXXXX").string();
  int descriptor = ::mkstemp(path.data());
  named_file() { REQUIRE(descriptor >= 0); }
  ~named_file() {
    ::close(descriptor);
    std::filesystem::remove(path);
  }
};

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const pqkv::storage_error& error) {
    return error.what();
  }
  return "";
}

#if !defined(PQKV_TEST_SANITIZED)
std::size_t private_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == "VmData:") {
      std::size_t kib = 0;
      status >> kib;
      return kib * 1024;
    }
  return 0;
}
#endif
}  // namespace

TEST_CASE("file_rows: laid out as in memory, and read by attention where they are") {
  auto p = shape<pqkv::pqcache<pqkv::file_rows<float>, pqkv::selector::pq>>(2, 24, 300);
  const auto folder = std::filesystem::temp_directory_path().string();
  p.rows.folder = folder.c_str();
  pqkv::pqcache<pqkv::file_rows<float>, pqkv::selector::pq> cache(p);
  dense_cache dense(shape<dense_cache>(2, 24, 300));
  CHECK(cache.rows().file().size() == dense.rows().size_bytes());
  CHECK(cache.rows().size_bytes() == 0);
  CHECK(cache.rows().view().keys.strides[0] == dense.rows().view().keys.strides[0]);
  CHECK(cache.rows().view().keys.strides[1] == dense.rows().view().keys.strides[1]);
  prefill(cache, 200);
  prefill(dense, 200);
  for (std::size_t i = 0; i < 50; ++i) REQUIRE(step(cache, i) == step(dense, i));
  CHECK(std::memcmp(cache.rows().file().data(), dense.rows().view().keys.data, 250 * dense.rows().view().keys.stride(1) * sizeof(float)) ==
        0);
  p.rows.folder = nullptr;
  CHECK(pqkv::pqcache<pqkv::file_rows<float>, pqkv::selector::pq>::can_construct(p).message() ==
        "pqkv::pqcache: rows.folder must be a folder for the file, or rows.file an open one");
}

TEST_CASE("file_rows: the system is asked for the rows of a step that are in the file alone, and for no others") {
  const auto folder = std::filesystem::temp_directory_path().string();
  const auto fetched = [&](pqkv::missing_rows missing) {
    pqkv::cache_shape shape;
    shape.kv_heads = 2, shape.query_heads = 2, shape.head_dim = 128, shape.capacity = 8192;  // a row is 1 KiB
    tiers::params p;
    p.slow.folder = folder.c_str();
    p.sink_tokens = 0, p.recent_tokens = 1, p.cache_tokens = 0, p.missing = missing;
    const tiers rows(cpu, shape, p);
    const pqkv::mapped_file& file = rows.slow().file();
    std::memset(file.data(), 1, file.size());
    // Pages that have reached the disk are forgotten; a folder that is memory forgets none.
    REQUIRE(::madvise(file.data(), file.size(), MADV_RANDOM) == 0);  // what is touched brings nothing beside it
    REQUIRE(::msync(file.data(), file.size(), MS_SYNC) == 0);
    REQUIRE(::madvise(file.data(), file.size(), MADV_DONTNEED) == 0);
    REQUIRE(::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED) == 0);
    const auto resident = [&](std::size_t head, std::size_t token) {
      unsigned char in_memory = 0;
      const auto at = reinterpret_cast<std::uintptr_t>(rows.view().key(head, token).data);
      REQUIRE(::mincore(reinterpret_cast<void*>(at - at % 4096), 4096, &in_memory) == 0);
      return (in_memory & 1) != 0;
    };
    const bool forgets = !resident(0, 3000);
    std::uint32_t slot = 0, counts[] = {2, 1};
    pqkv::token_span spans[] = {{0, 8191, 8192}, {0, 8191, 8192}};
    const std::int32_t indices[] = {1000, 3000, 5000, -1};
    pqkv::fetched_tokens<pqkv::space::host> wanted{};
    wanted.plan.slots = pqkv::make_view(&slot, 1), wanted.plan.counts = pqkv::make_view(counts, 2),
    wanted.plan.spans = pqkv::make_view(spans, 2);
    wanted.indices = pqkv::make_view(indices, 2, 2);
    rows.fetch(cpu, wanted);
    const auto all = [&] { return resident(0, 1000) && resident(0, 3000) && resident(1, 5000); };
    for (int wait = 0; missing == pqkv::missing_rows::asked_for && wait < 500 && !all(); ++wait) ::usleep(10000);
    const bool others = resident(0, 5000) || resident(1, 1000) || resident(1, 3000);
    return std::array{forgets, all(), others};
  };
  const auto asked = fetched(pqkv::missing_rows::asked_for);
  CHECK(asked[1]);
  if (asked[0]) CHECK(!asked[2]);
  const auto touched = fetched(pqkv::missing_rows::touched);
  if (touched[0]) CHECK(!touched[1]);
}

TEST_CASE("file_rows: a shortened file is an error of every verb that touches rows, and of nothing else") {
  const named_file file;
  auto p = shape<tiered_cache>(2, 16, 300);
  p.rows.slow.file = file.descriptor;
  tiered_cache cache(p);
  prefill(cache, 200);
  step(cache, 0);
  std::vector<std::byte> saved;
  cache.save(cpu, 0, [&](const std::byte* bytes, std::size_t count) { saved.insert(saved.end(), bytes, bytes + count); });
  const std::size_t size = cache.rows().slow().file().size();
  REQUIRE(::ftruncate(file.descriptor, 4096) == 0);
  const auto rows = make_rows<float>(content::gaussian, 2, 2, 16, 1);
  const auto k = rows.view();
  std::vector<float> out(2 * 4 * 16);
  std::vector<std::int32_t> indices(2 * 2 * 300);
  std::vector<std::uint32_t> counts(4);
  const auto query = pqkv::make_view(std::as_const(out).data(), 2, 4, 16);
  const auto says = [&](const char* verb) {
    return "pqkv::" + std::string(verb) + ": the file must have " + std::to_string(size) + " bytes, got 4096: somebody has shortened it";
  };
  CHECK(message_of([&] { cache.prefill(cpu, 1, k, k); }) == says("prefill"));
  CHECK(message_of([&] { cache.append(cpu, k, k); }) == says("append"));
  CHECK(message_of([&] { cache.attend(cpu, query, pqkv::make_view(out.data(), 2, 4, 16)); }) == says("attend"));
  CHECK(message_of([&] { cache.retrieve(cpu, query, pqkv::make_view(indices.data(), 2, 2, 300), pqkv::make_view(counts.data(), 2, 2)); }) ==
        says("retrieve"));
  CHECK(message_of([&] { cache.fork(cpu, 0, 1); }) == says("fork"));
  CHECK(message_of([&] { cache.maintain(cpu); }) == says("maintain"));
  CHECK(message_of([&] { cache.save(cpu, 0, [](const std::byte*, std::size_t) {}); }) == says("save"));
  CHECK(message_of([&] { cache.load(cpu, 1, [](std::byte*, std::size_t) { return std::size_t{0}; }); }) == says("load"));
  CHECK(cache.size(0) == 201);
  CHECK(cache.size(1) == 0);
  // Cutting and emptying touch no row.
  cache.truncate(cpu, 0, 150);
  cache.reset(0);
  // With a file of that size again an empty slot is as good as new.
  REQUIRE(::ftruncate(file.descriptor, static_cast<off_t>(size)) == 0);
  std::size_t at = 0;
  cache.load(cpu, 0, [&](std::byte* bytes, std::size_t count) {
    std::memcpy(bytes, saved.data() + at, count);
    at += count;
    return count;
  });
  dense_cache dense(shape<dense_cache>(2, 16, 300));
  prefill(dense, 200);
  step(dense, 0);
  for (std::size_t i = 1; i < 50; ++i) REQUIRE(step(cache, i) == step(dense, i));
  std::filesystem::remove(file.path);  // the name goes, the rows stay
  for (std::size_t i = 50; i < 90; ++i) REQUIRE(step(cache, i) == step(dense, i));
  CHECK(cache.rows().statistics(0).hits > 1000);
}

#if !defined(PQKV_TEST_SANITIZED)  // sanitizers map more than any limit
TEST_CASE("file_rows: a context whose rows are four times the memory that the process may have") {
  constexpr std::size_t n = 32000, steps = 12, d = 128, limit = std::size_t{16} << 20;  // 64 MiB of rows
  std::vector<std::vector<float>> wanted;
  {
    dense_cache dense(shape<dense_cache>(1, d, 32768));
    CHECK(dense.rows().size_bytes() == 4 * limit);
    prefill(dense, n);
    for (std::size_t i = 0; i < steps; ++i) wanted.push_back(step(dense, i));
  }
  const auto folder = std::filesystem::temp_directory_path().string();
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit bound{private_bytes() + limit, private_bytes() + limit};
    if (::setrlimit(RLIMIT_DATA, &bound) != 0) ::_exit(2);
    try {
      dense_cache dense(shape<dense_cache>(1, d, 32768));
      ::_exit(3);  // no limit: this test would say nothing
    } catch (const std::bad_alloc&) {
    }
    auto p = shape<tiered_cache>(1, d, 32768);
    p.rows.slow.folder = folder.c_str();
    p.rows.cache_tokens = 2048;
    bool same = true;
    try {
      tiered_cache cache(p);
      prefill(cache, n);
      for (std::size_t i = 0; i < steps; ++i) same = same && step(cache, i) == wanted[i];
      same = same && cache.rows().statistics(0).hits != 0;
    } catch (const std::exception&) {
      ::_exit(4);
    }
    ::_exit(same ? 0 : 1);
  }
  int how = 0;
  ::waitpid(child, &how, 0);
  CHECK(WIFEXITED(how));
  CHECK(WEXITSTATUS(how) == 0);
}
#endif
