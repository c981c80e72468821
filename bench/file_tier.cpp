// SPDX-License-Identifier: Apache-2.0
// A decode step whose selected rows are all on the disk: before each step the system is told to forget the file's pages. Attention touches
// the rows, or the system is asked for all of them first. Beside it what the disk gives at most: the pages that the step brought into
// memory, forgotten again and read in random order: one after the other; all asked for before the first is read; and past the system's
// memory (O_DIRECT) by 64 threads at once, which is the disk's ceiling. Without blocks in memory, and with 4096 tokens in blocks.
//
// file_ways compares, in turns over the same selected rows, what could be done with rows that are not in memory: ask, wait for all and
// attend (missing_rows::waited_for); ask and attend, which waits for each page as it comes to it (asked_for); ask, attend to the rows in
// memory, then to the others, and merge; and, in place of asking, read them with io_uring, through the system's memory or past it. Medians,
// and medians of the ratios of one turn. ask_in_memory_ms: to ask for them where all are in memory; check_in_memory_ms: to find that out
// first, by mincore().
//
// Times are the clock's, the step's is the benchmark's. best_ is the fastest of the iterations: where other programs run, the thread that
// asks waits for a processor, and the 64 threads get more of it. in_memory_ms is the same step once more, with its pages in memory: what it
// computes; least_in_memory_ms is the least of the iterations. append_ms is append() with only the newest rows' pages in memory.
// BENCH_FOLDER in the environment is where the file goes, /tmp unless given; in a folder that is memory nothing is forgotten, and the
// benchmark says so.
#include "data.hpp"
#include "io_ring.hpp"
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
#include <vector>

namespace {

constexpr std::size_t h = 8, g = 4, d = 128, hq = h * g, n = 16384, room = 1024, page_bytes = 4096, direct_threads = 64;

struct axes {
  pqkv::missing_rows missing;
  std::size_t cache_tokens;
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
    p.rows.cache_tokens = a.cache_tokens, p.rows.missing = a.missing;
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
  /// Appends a token. The pages that it is written to are in memory, as those of the newest tokens are while a sequence grows; no others.
  double append() {
    forget();
    ::madvise(file().data(), file().size(), MADV_RANDOM);
    int sum = 0;
    for (std::size_t head = 0; head < h; ++head)
      sum += std::to_integer<int>(*reinterpret_cast<const std::byte*>(cache.rows().tiers().slow.key(head, cache.size(0)).data));
    benchmark::DoNotOptimize(sum);
    ::madvise(file().data(), file().size(), MADV_NORMAL);
    const auto token = pqkv::as_const(pqkv::make_view(row.data(), 1, h, d));
    return seconds_of([&] { cache.append(pqkv::exec::host<>{}, token, token); });
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
  double in_memory = 0, least_in_memory = 1e9, appending = 0, appended_pages = 0;
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
    appending += data.append();
    appended_pages += static_cast<double>(data.pages().size());
    data.step();  // copies the new rows
  }
  const auto count = static_cast<double>(state.iterations());
  state.counters["rows_mb_per_s"] = rows / steps / 1e6;
  state.counters["pages_mb_per_s"] = read_pages * page_bytes / steps / 1e6;
  state.counters["pages_mb_a_step"] = read_pages * page_bytes / count / 1e6;
  state.counters["disk_one_by_one_mb_per_s"] = read_pages * page_bytes / touched / 1e6;
  state.counters["disk_all_asked_mb_per_s"] = read_pages * page_bytes / asked / 1e6;
  state.counters["disk_direct_mb_per_s"] = direct > 0 ? read_pages * page_bytes / direct / 1e6 : 0;
  state.counters["append_ms"] = appending / count * 1e3;
  state.counters["append_mb_of_pages"] = appended_pages * page_bytes / count / 1e6;
  state.counters["in_memory_ms"] = in_memory / count * 1e3;
  state.counters["least_in_memory_ms"] = least_in_memory * 1e3;
  state.counters["best_pages_mb_per_s"] = best_step / 1e6;
  state.counters["best_disk_all_asked_mb_per_s"] = best_asked / 1e6;
  state.counters["best_disk_direct_mb_per_s"] = best_direct / 1e6;
}

/// The rows that one step selects, and ways to get those that are not in memory.
class selected_rows {
 public:
  using store = std::remove_cvref_t<decltype(std::declval<cache_on_disk&>().cache.rows().tiers())>;
  static constexpr std::size_t row_bytes = 2 * d * sizeof(pqkv::bfloat16);

  explicit selected_rows(cache_on_disk& data)
      : data_(data), rows_(data.cache.rows().tiers()), fast_(h * k), slow_(h * k), out_(hq * d), other_(hq * d), lse_(hq), other_lse_(hq),
        read_(h * k * row_bytes + page_bytes) {
    for (std::size_t head = 0; head < h; ++head) spans_[head] = {32, n - 480, n};
  }
  void select() {
    for (float& x : data_.query) x = data_.normal();
    std::vector<std::int32_t> found(h * k);
    std::vector<std::uint32_t> counts(h);
    const auto asked = pqkv::as_const(pqkv::make_view(data_.query.data(), 1, hq, d));
    data_.cache.retrieve(cpu_, asked, pqkv::make_view(found.data(), 1, h, k), pqkv::make_view(counts.data(), 1, h));
    offsets_.clear();
    for (std::size_t head = 0; head < h; ++head) {
      fast_counts_[head] = slow_counts_[head] = 0;
      for (std::size_t i = 0; i < counts[head]; ++i) {
        const std::int32_t token = found[head * k + i];
        const bool has_copy = rows_.has_copy(head, static_cast<std::size_t>(token));
        if (has_copy)
          fast_[head * k + fast_counts_[head]++] = token;
        else
          slow_[head * k + slow_counts_[head]++] = token, offsets_.push_back(offset(head, static_cast<std::size_t>(token)));
      }
      all_counts_[head] = counts[head];
    }
    all_ = found;
  }
  void ask() const {
    for (const std::size_t at : offsets_) data_.file().read_ahead(data_.file().data() + at, row_bytes);
  }
  /// Finds out whether the pages are in memory. @return how many are
  std::size_t count_in_memory() const {
    std::size_t count = 0;
    for (const std::size_t at : offsets_) {
      unsigned char page = 0;
      ::mincore(data_.file().data() + at / page_bytes * page_bytes, page_bytes, &page);
      count += page & 1u;
    }
    return count;
  }
  void wait() const {
    for (const std::size_t at : offsets_) data_.file().wait_for(data_.file().data() + at, row_bytes);
  }
  void attend() { attend_to(all_.data(), all_counts_, spans_, out_, lse_); }
  void attend_and_merge() {
    const pqkv::token_span none[h]{};
    attend_to(fast_.data(), fast_counts_, spans_, out_, lse_);
    attend_to(slow_.data(), slow_counts_, none, other_, other_lse_);
    pqkv::merge(cpu_, pqkv::make_view(out_.data(), hq, d), pqkv::make_view(lse_.data(), hq),
                pqkv::as_const(pqkv::make_view(other_.data(), hq, d)), pqkv::as_const(pqkv::make_view(other_lse_.data(), hq)));
  }
  /// With io_uring: through the system's memory, or past it. @return whether all rows were read
  bool read(int file) {
    std::byte* const to = read_.data() + (page_bytes - reinterpret_cast<std::uintptr_t>(read_.data()) % page_bytes);
    return ring_.is_open() && ring_.read(file, offsets_, row_bytes, to);
  }
  std::size_t missing() const { return offsets_.size(); }
  const pqkv::buffer<float>& out() const { return out_; }

 private:
  static constexpr std::size_t k = 256;

  std::size_t offset(std::size_t head, std::size_t token) const {
    return static_cast<std::size_t>(reinterpret_cast<const std::byte*>(rows_.slow.key(head, token).data) - data_.file().data());
  }
  void attend_to(const std::int32_t* indices, const std::uint32_t* counts, const pqkv::token_span* spans, pqkv::buffer<float>& out,
                 pqkv::buffer<float>& lse) const {
    const pqkv::token_set<> tokens{pqkv::make_view(spans, h), pqkv::make_view(indices, h, k), pqkv::make_view(counts, h)};
    pqkv::attention(cpu_, pqkv::as_const(pqkv::make_view(data_.query.data(), hq, d)), rows_, tokens, pqkv::make_view(out.data(), hq, d),
                    pqkv::make_view(lse.data(), hq));
  }

  const pqkv::exec::host<> cpu_;
  cache_on_disk& data_;
  const store& rows_;
  std::vector<std::int32_t> all_, fast_, slow_;
  std::uint32_t all_counts_[h]{}, fast_counts_[h]{}, slow_counts_[h]{};
  pqkv::token_span spans_[h];
  std::vector<std::size_t> offsets_;
  pqkv::buffer<float> out_, other_, lse_, other_lse_;
  pqkv::buffer<std::byte> read_;
  bench::io_ring ring_{1024};
};

double median(std::vector<double> of) {
  if (of.empty()) return 0;
  std::nth_element(of.begin(), of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2), of.end());
  return of[of.size() / 2];
}

void run_ways(benchmark::State& state, const axes& a) {
  auto& data = bench::kept<cache_on_disk>(a);
  selected_rows rows(data);
  const std::string path = "/proc/self/fd/" + std::to_string(data.file().descriptor());
  const int through = ::open(path.c_str(), O_RDONLY), past = ::open(path.c_str(), O_RDONLY | O_DIRECT);
  ::posix_fadvise(through, 0, 0, POSIX_FADV_RANDOM);
  enum way { waited, in_order, merged, ring, ring_direct, ways };
  std::vector<double> whole[ways], reading[ways], attending, to_waited[ways], to_asked[ways], checking, asking;
  double difference = 0;
  std::size_t turn = 0, missing = 0;
  for (auto _ : state) {
    rows.select();
    missing += rows.missing();
    double seconds[ways]{}, read[ways]{};
    pqkv::buffer<float> wanted(hq * d);
    for (std::size_t i = 0; i < ways; ++i) {
      const auto which = static_cast<way>((turn + i) % ways);
      data.forget();
      bool all = true;
      if (which >= ring) {
        read[which] = seconds_of([&] { all = rows.read(which == ring ? through : past); });
        if (!all) read[which] = 0;
        continue;
      }
      read[which] = seconds_of([&] {
        rows.ask();
        if (which == waited) rows.wait();
      });
      seconds[which] = read[which] + seconds_of([&] { which == merged ? rows.attend_and_merge() : rows.attend(); });
      if (which == merged)
        for (std::size_t x = 0; x < hq * d; ++x) wanted.data()[x] = rows.out().data()[x];
    }
    ++turn;
    rows.attend();
    const auto check = [&] { benchmark::DoNotOptimize(rows.count_in_memory()); };
    const auto ask = [&] { rows.ask(); };
    if (turn % 2 == 0) checking.push_back(seconds_of(check));
    asking.push_back(seconds_of(ask));
    if (turn % 2 != 0) checking.push_back(seconds_of(check));
    for (std::size_t x = 0; x < hq * d; ++x) difference = std::max(difference, std::abs(double{wanted.data()[x]} - rows.out().data()[x]));
    state.SetIterationTime(seconds[waited]);
    attending.push_back(seconds[waited] - read[waited]);
    for (std::size_t i = 0; i < ways; ++i) {
      if (i < ring) whole[i].push_back(seconds[i]), to_waited[i].push_back(seconds[i] / seconds[waited]);
      if (read[i] > 0) reading[i].push_back(read[i]), to_asked[i].push_back(read[i] / read[waited]);
    }
  }
  ::close(through);
  ::close(past);
  state.counters["missing_rows"] = static_cast<double>(missing) / static_cast<double>(turn);
  state.counters["waited_ms"] = median(whole[waited]) * 1e3;
  state.counters["in_order_ms"] = median(whole[in_order]) * 1e3;
  state.counters["merged_ms"] = median(whole[merged]) * 1e3;
  state.counters["attention_ms"] = median(attending) * 1e3;
  state.counters["in_order_to_waited"] = median(to_waited[in_order]);
  state.counters["merged_to_waited"] = median(to_waited[merged]);
  state.counters["read_asked_ms"] = median(reading[waited]) * 1e3;
  state.counters["read_ring_ms"] = median(reading[ring]) * 1e3;
  state.counters["read_ring_direct_ms"] = median(reading[ring_direct]) * 1e3;
  state.counters["ring_to_asked"] = median(to_asked[ring]);
  state.counters["ring_direct_to_asked"] = median(to_asked[ring_direct]);
  state.counters["check_in_memory_ms"] = median(checking) * 1e3;
  state.counters["ask_in_memory_ms"] = median(asking) * 1e3;
  state.counters["merged_difference"] = difference;
}

void add_all() {
  constexpr std::pair<pqkv::missing_rows, const char*> ways[] = {{pqkv::missing_rows::touched, "touched"},
                                                                 {pqkv::missing_rows::asked_for, "asked_for"},
                                                                 {pqkv::missing_rows::waited_for, "waited_for"}};
  for (const std::size_t cache_tokens : {std::size_t{0}, std::size_t{4096}})
    for (const auto& [missing, name] : ways)
      bench::add(bench::named("file_tier", {{"h", h}, {"g", g}, {"d", d}, {"n", n}, {"k", 256}, {"cache", cache_tokens}},
                              {{"missing", name}, {"type", "bf16"}}),
                 [a = axes{missing, cache_tokens}](benchmark::State& state) { run(state, a); })
          ->UseManualTime()
          ->Iterations(20);
  bench::add(bench::named("file_ways", {{"h", h}, {"g", g}, {"d", d}, {"n", n}, {"k", 256}}, {{"type", "bf16"}}),
             [](benchmark::State& state) { run_ways(state, {pqkv::missing_rows::asked_for, 0}); })
      ->UseManualTime()
      ->Iterations(40);
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
