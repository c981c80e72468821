// SPDX-License-Identifier: Apache-2.0
// A decode step of one layer with all rows in a file and copies of some in memory, beside the same step with all rows in memory. Queries
// drift: each is the one before, a little turned. Both caches are asked the same and must answer the same bits. The file's pages are in the
// system's memory, so this is what tiers cost where nothing comes from the disk; hit rates and bytes say how much would.
//
// The time is the tiered step's. BENCH_FOLDER in the environment is where the file goes, /tmp unless given.
#include "data.hpp"
#include "main.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace {

constexpr std::size_t h = 8, g = 4, d = 128, hq = h * g, n = 32768, room = 4096;

struct axes {
  std::size_t block_tokens, cache_tokens;
  bool operator==(const axes&) const = default;

  /// Offered in a step: 4096 tokens' worth, as the paper's 32 blocks of 128 are, 1024 blocks at most.
  std::size_t admit_blocks() const { return std::min<std::size_t>(4096 / block_tokens, 1024); }
};

template <class Eviction>
struct twins {
  using tiers = pqkv::tiered_rows<pqkv::file_rows<pqkv::bfloat16>, pqkv::space::host, Eviction>;
  using dense_cache = pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>>;
  using tiered_cache = pqkv::pqcache<tiers>;

  explicit twins(const axes& a)
      : dense(params<dense_cache>()),
        tiered(tiered_params(a)),
        query(bench::normal_numbers<float>(hq * d, 51)),
        out(hq * d),
        other(hq * d) {
    const auto keys = bench::clustered_rows<pqkv::bfloat16>(h, n, d, 52);
    const auto values = bench::normal_numbers<pqkv::bfloat16>(h * n * d, 60);
    const auto k = pqkv::make_view(keys.data(), h, n, d), v = pqkv::make_view(values.data(), h, n, d);
    dense.prefill(pqkv::exec::host<>{}, 0, k, v);
    tiered.prefill(pqkv::exec::host<>{}, 0, k, v);
  }
  template <class Cache>
  static typename Cache::params params() {
    typename Cache::params p{};
    p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = n + room;
    p.budget.sinks = 32, p.budget.window = 480, p.budget.retrieve = 1024;
    p.selector.train = {.iterations = 4, .seed = 7, .rows_per_centroid = 64};
    return p;
  }
  static typename tiered_cache::params tiered_params(const axes& a) {
    auto p = params<tiered_cache>();
    const char* const folder = std::getenv("BENCH_FOLDER");
    p.rows.slow.folder = folder != nullptr ? folder : "/tmp";
    p.rows.block_tokens = a.block_tokens, p.rows.cache_tokens = a.cache_tokens;
    p.rows.admit_blocks = a.admit_blocks();
    return p;
  }

  void turn() {
    for (float& x : query) x = 0.995f * x + 0.0999f * normal();  // variance stays 1
    for (float& x : row) x = normal();
  }
  template <class Cache>
  double step(Cache& cache, pqkv::buffer<float>& to) {
    const pqkv::exec::host<> cpu;
    const auto rows = pqkv::as_const(pqkv::make_view(row.data(), 1, h, d));
    const bench::stopwatch watch;
    cache.append(cpu, rows, rows);
    cache.attend(cpu, pqkv::as_const(pqkv::make_view(query.data(), 1, hq, d)), pqkv::make_view(to.data(), 1, hq, d));
    return watch.seconds();
  }

  dense_cache dense;
  tiered_cache tiered;
  pqkv::buffer<float> query, out, other, row{h * d};
  bench::normal_source normal{61};
  std::size_t steps = 0;
};

template <class Eviction>
void run(benchmark::State& state, const axes& a) {
  auto& data = bench::kept<twins<Eviction>>(a);
  double dense_seconds = 0, tiered_seconds = 0;
  const pqkv::tier_statistics before = data.tiered.rows().statistics(0);
  for (auto _ : state) {
    if (data.dense.size(0) == n + room) {
      data.dense.truncate(pqkv::exec::host<>{}, 0, n);
      data.tiered.truncate(pqkv::exec::host<>{}, 0, n);
    }
    data.turn();
    const bool dense_first = (++data.steps & 1) != 0;  // in turns: the second of two steps finds warmer caches
    if (dense_first) dense_seconds += data.step(data.dense, data.out);
    const double seconds = data.step(data.tiered, data.other);
    if (!dense_first) dense_seconds += data.step(data.dense, data.out);
    tiered_seconds += seconds;
    state.SetIterationTime(seconds);
    if (std::memcmp(data.out.data(), data.other.data(), hq * d * sizeof(float)) != 0) {
      state.SkipWithError("the two differ");
      return;
    }
  }
  const pqkv::tier_statistics after = data.tiered.rows().statistics(0);
  const auto steps = static_cast<double>(state.iterations());
  const auto hits = static_cast<double>(after.hits - before.hits), misses = static_cast<double>(after.misses - before.misses);
  state.counters["times_all_in_memory"] = tiered_seconds / dense_seconds;
  state.counters["hit_rate"] = hits / (hits + misses);
  state.counters["slow_kb_per_step"] = static_cast<double>(after.slow_bytes - before.slow_bytes) / steps / 1e3;
  state.counters["blocks_per_step"] = static_cast<double>(after.admissions - before.admissions) / steps;
}

template <class Eviction>
void add(const char* policy) {
  for (const std::size_t block_tokens : {1u, 16u, 128u})
    for (const std::size_t cache_tokens : {4096u, 16384u}) {
      const axes a{block_tokens, cache_tokens};
      bench::add(
          bench::named("tiered_rows", {{"B", block_tokens}, {"cache", cache_tokens}, {"h", h}, {"g", g}, {"d", d}, {"n", n}, {"k", 1024}},
                       {{"policy", policy}, {"type", "bf16"}}),
          [a](benchmark::State& state) { run<Eviction>(state, a); })
          ->UseManualTime();
    }
}
void add_all() {
  add<pqkv::eviction::lfu>("lfu");
  add<pqkv::eviction::lru>("lru");
  add<pqkv::eviction::tiny_lfu>("tiny_lfu");
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
