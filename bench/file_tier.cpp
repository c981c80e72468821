// SPDX-License-Identifier: Apache-2.0
// A decode step whose selected rows are all on the disk: before each step the system is told to forget the file's pages. Attention touches
// the rows, or the system is asked for all of them first. Beside it what the disk gives at most: the pages that the step brought into
// memory, forgotten again and read in random order: one after the other; all asked for before the first is read; and past the system's
// memory (O_DIRECT) by 64 threads at once, which is the disk's ceiling. No blocks are kept in memory.
//
// Times are the clock's, the step's is the benchmark's. best_ is the fastest of the iterations: where other programs run, the thread that
// asks waits for a processor, and the 64 threads get more of it. in_memory_ms is the same step once more, with its pages in memory: what it
// computes, and so the most that attending to hits could hide while misses come from the disk; least_in_memory_ms is the least of the
// iterations. BENCH_FOLDER in the environment is where the file goes, /tmp unless given; in a folder that is memory nothing is forgotten,
// and the benchmark says so.
#include "data.hpp"
#include "main.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>

namespace {

constexpr std::size_t h = 8, g = 4, d = 128, hq = h * g, n = 16384, room = 1024, page_bytes = 4096, direct_threads = 64;

struct axes {
  pqkv::missing_rows missing;
  bool operator==(const axes&) const = default;
};

double seconds_of(auto&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct cache_on_disk {
  using cache_type = pqkv::pqcache<pqkv::tiered_rows<pqkv::file_rows<pqkv::bfloat16>>>;

  explicit cache_on_disk(const axes& a) : cache(params(a)), query(hq * d), out(hq * d), row(bench::normal_numbers<float>(h * d, 53)) {
    const auto keys = bench::clustered_rows<pqkv::bfloat16>(h, n, d, 52);
    const auto values = bench::normal_numbers<pqkv::bfloat16>(h * n * d, 60);
    cache.prefill(pqkv::exec::host<>{}, 0, pqkv::make_view(keys.data(), h, n, d), pqkv::make_view(values.data(), h, n, d));
    step();  // sinks and window go to memory
  }
  static cache_type::params params(const axes& a) {
    cache_type::params p{};
    p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = n + room;
    p.budget.sinks = 32, p.budget.window = 480, p.budget.retrieve = 256;
    p.selector.train = {.iterations = 4, .seed = 7, .rows_per_centroid = 64};
    const char* const folder = std::getenv("BENCH_FOLDER");
    p.rows.slow.folder = folder != nullptr ? folder : "/tmp";
    p.rows.cache_tokens = 0, p.rows.missing = a.missing;
    return p;
  }
  const pqkv::mapped_file& file() const { return cache.rows().slow().file(); }
  void forget() const {
    ::msync(file().data(), file().size(), MS_SYNC);
    ::madvise(file().data(), file().size(), MADV_DONTNEED);
    ::posix_fadvise(file().descriptor(), 0, 0, POSIX_FADV_DONTNEED);
  }
  /// Numbers of the file's pages that the system has in memory.
  std::vector<std::size_t> pages() const {
    std::vector<unsigned char> in_memory((file().size() + page_bytes - 1) / page_bytes);
    ::mincore(file().data(), file().size(), in_memory.data());
    std::vector<std::size_t> found;
    for (std::size_t i = 0; i < in_memory.size(); ++i)
      if ((in_memory[i] & 1) != 0) found.push_back(i);
    return found;
  }
  void step() {
    for (float& x : query) x = normal();
    step_again();
  }
  void step_again() {
    const pqkv::exec::host<> cpu;
    cache.attend(cpu, pqkv::as_const(pqkv::make_view(query.data(), 1, hq, d)), pqkv::make_view(out.data(), 1, hq, d));
  }
  /// Reads pages in this order. @return a sum, so that they are read
  double read(const std::vector<std::size_t>& order) const {
    int sum = 0;
    const double seconds = seconds_of([&] {
      for (const std::size_t page : order) sum += std::to_integer<int>(file().data()[page * page_bytes]);
    });
    benchmark::DoNotOptimize(sum);
    return seconds;
  }

  /// Reads pages in this order, past the system's memory, by many threads. @return seconds; 0 where the file cannot be read so
  double read_directly(const std::vector<std::size_t>& order) const {
    const int direct = ::open(("/proc/self/fd/" + std::to_string(file().descriptor())).c_str(), O_RDONLY | O_DIRECT);
    if (direct < 0) return 0;
    std::atomic<std::size_t> next{0};
    std::atomic<bool> all_read{true};
    const double seconds = seconds_of([&] {
      std::vector<std::thread> threads;
      for (std::size_t t = 0; t < direct_threads; ++t)
        threads.emplace_back([&] {
          alignas(page_bytes) std::byte page[page_bytes];
          for (std::size_t i; (i = next.fetch_add(1)) < order.size();)
            if (::pread(direct, page, page_bytes, static_cast<off_t>(order[i] * page_bytes)) <= 0) all_read = false;
        });
      for (std::thread& thread : threads) thread.join();
    });
    ::close(direct);
    return all_read ? seconds : 0;
  }

  cache_type cache;
  pqkv::buffer<float> query, out, row;
  bench::normal_source normal{61};
};

void run(benchmark::State& state, const axes& a) {
  auto& data = bench::kept<cache_on_disk>(a);
  std::mt19937_64 random(5);
  double steps = 0, touched = 0, asked = 0, direct = 0, rows = 0, read_pages = 0, best_asked = 0, best_direct = 0, best_step = 0;
  double in_memory = 0, least_in_memory = 1e9;
  for (auto _ : state) {
    data.forget();
    if (!data.pages().empty()) {
      state.SkipWithError("the system does not forget the file: BENCH_FOLDER must be on a disk");
      return;
    }
    const std::uint64_t before = data.cache.rows().statistics(0).slow_bytes;
    const double seconds = seconds_of([&] { data.step(); });
    state.SetIterationTime(seconds);
    steps += seconds, rows += static_cast<double>(data.cache.rows().statistics(0).slow_bytes - before);
    std::vector<std::size_t> order = data.pages();
    const double again = seconds_of([&] { data.step_again(); });
    in_memory += again;
    least_in_memory = std::min(least_in_memory, again);
    read_pages += static_cast<double>(order.size());
    std::shuffle(order.begin(), order.end(), random);
    ::madvise(data.file().data(), data.file().size(), MADV_RANDOM);  // each page by itself
    data.forget();
    touched += data.read(order);
    data.forget();
    double one = seconds_of([&] {
      for (const std::size_t page : order) data.file().read_ahead(data.file().data() + page * page_bytes, page_bytes);
    });
    one += data.read(order);
    asked += one;
    const double bytes = static_cast<double>(order.size() * page_bytes), past = data.read_directly(order);
    direct += past;
    best_step = std::max(best_step, bytes / seconds);
    best_asked = std::max(best_asked, bytes / one);
    if (past > 0) best_direct = std::max(best_direct, bytes / past);
    ::madvise(data.file().data(), data.file().size(), MADV_NORMAL);
  }
  const auto count = static_cast<double>(state.iterations());
  state.counters["rows_mb_per_s"] = rows / steps / 1e6;
  state.counters["pages_mb_per_s"] = read_pages * page_bytes / steps / 1e6;
  state.counters["pages_mb_a_step"] = read_pages * page_bytes / count / 1e6;
  state.counters["disk_one_by_one_mb_per_s"] = read_pages * page_bytes / touched / 1e6;
  state.counters["disk_all_asked_mb_per_s"] = read_pages * page_bytes / asked / 1e6;
  state.counters["disk_direct_mb_per_s"] = direct > 0 ? read_pages * page_bytes / direct / 1e6 : 0;
  state.counters["in_memory_ms"] = in_memory / count * 1e3;
  state.counters["least_in_memory_ms"] = least_in_memory * 1e3;
  state.counters["best_pages_mb_per_s"] = best_step / 1e6;
  state.counters["best_disk_all_asked_mb_per_s"] = best_asked / 1e6;
  state.counters["best_disk_direct_mb_per_s"] = best_direct / 1e6;
}

void add_all() {
  constexpr std::pair<pqkv::missing_rows, const char*> ways[] = {{pqkv::missing_rows::touched, "touched"},
                                                                 {pqkv::missing_rows::asked_for, "asked_for"}};
  for (const auto& [missing, name] : ways)
    bench::add(bench::named("file_tier", {{"h", h}, {"g", g}, {"d", d}, {"n", n}, {"k", 256}}, {{"missing", name}, {"type", "bf16"}}),
               [a = axes{missing}](benchmark::State& state) { run(state, a); })
        ->UseManualTime()
        ->Iterations(20);
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
