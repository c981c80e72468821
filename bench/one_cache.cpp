// SPDX-License-Identifier: Apache-2.0
// What a cache of several slots costs beyond the tokens that take part. A step of one slot among many (one_active) should cost what it
// costs alone, a fork (fork) should depend on the tokens copied and not on the capacity, and a step of slots of unequal lengths
// (ragged_batch_step) should spread over threads. Times are the clock's where a name has an axis `threads`.
#include "data.hpp"
#include "main.hpp"

#include <pqkv/adapt/eigen_thread_pool.hpp>

#include <algorithm>

namespace {

constexpr std::size_t g = 4, d = 128, room = 4096;

/// Slots of these lengths, each prefilled at once.
struct filled_cache {
  using cache_type = pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>, pqkv::selector::pq>;

  filled_cache(const std::vector<std::size_t>& lengths, std::size_t slots, std::size_t h, std::size_t capacity)
      : cache(params(slots, h, capacity)), query(bench::normal_numbers<float>(slots * h * g * d, 31)), out(query.size()) {
    const std::size_t longest = *std::max_element(lengths.begin(), lengths.end());
    const auto keys = bench::clustered_rows<pqkv::bfloat16>(h, longest, d, 32);
    const auto values = bench::normal_numbers<pqkv::bfloat16>(h * longest * d, 33);
    const auto rows = [&](const auto& from, std::size_t n) {
      return pqkv::as_const(pqkv::make_view(from.data(), h, longest, d)).slice(1, 0, n);
    };
    const pqkv::exec::host<> cpu;
    for (std::size_t slot = 0; slot < lengths.size(); ++slot)
      cache.prefill(cpu, slot, rows(keys, lengths[slot]), rows(values, lengths[slot]));
    key = bench::clustered_rows<float>(slots, h, d, 34);
    value = bench::normal_numbers<float>(slots * h * d, 35);
  }

  static cache_type::params params(std::size_t slots, std::size_t h, std::size_t capacity) {
    cache_type::params p{};
    p.batch = slots;
    p.kv_heads = h;
    p.query_heads = h * g;
    p.head_dim = d;
    p.capacity = capacity;
    p.budget.ratio = 0.1;
    p.selector.subspaces = 2, p.selector.bits = 6;
    p.selector.train = {.iterations = 4, .seed = 7, .rows_per_centroid = 64};
    return p;
  }

  /// One token for each row of the step.
  template <class P>
  void step(const P& policy, std::size_t rows, const pqkv::cache_step& of) {
    const std::size_t h = cache.parameters().kv_heads, hq = cache.parameters().query_heads;
    cache.append(policy, pqkv::make_view(key.data(), rows, h, d), pqkv::make_view(value.data(), rows, h, d), of);
    cache.attend(policy, pqkv::as_const(pqkv::make_view(query.data(), rows, hq, d)), pqkv::make_view(out.data(), rows, hq, d), {}, of);
    cache.maintain(policy);
  }
  /// Whether there is room for as many steps as a run has, and one before.
  bool has_room(benchmark::State& state) const {
    std::size_t longest = 0;
    for (std::size_t slot = 0; slot < cache.parameters().batch; ++slot) longest = std::max(longest, cache.size(slot));
    if (longest + static_cast<std::size_t>(state.max_iterations) + 1 <= cache.parameters().capacity) return true;
    state.SkipWithError("no room for so many steps: fewer repetitions, please");
    return false;
  }

  cache_type cache;
  pqkv::buffer<float> query, out, key, value;
};

struct slots_axis {
  std::size_t slots;
  bool operator==(const slots_axis&) const = default;
};

/// All slots hold n tokens; the middle one decodes.
struct one_active : filled_cache {
  static constexpr std::size_t h = 8, n = 4096;
  explicit one_active(const slots_axis& a) : filled_cache(std::vector<std::size_t>(a.slots, n), a.slots, h, n + room) {}
};

void run_one_active(benchmark::State& state, std::size_t slots) {
  auto& data = bench::kept<one_active>(slots_axis{slots});
  if (!data.has_room(state)) return;
  const auto slot = static_cast<std::uint32_t>(slots / 2);
  const pqkv::cache_step of{.slots = pqkv::make_view(&slot, 1)};
  const pqkv::exec::host<> cpu;
  data.step(cpu, 1, of);
  for (auto _ : state) data.step(cpu, 1, of);
}

struct capacity_axis {
  std::size_t capacity;
  bool operator==(const capacity_axis&) const = default;
};

struct forked : filled_cache {
  static constexpr std::size_t h = 2, n = 2000;
  explicit forked(const capacity_axis& a) : filled_cache({n}, 2, h, a.capacity) {}
};

void run_fork(benchmark::State& state, std::size_t capacity) {
  auto& data = bench::kept<forked>(capacity_axis{capacity});
  const pqkv::exec::host<> cpu;
  data.cache.fork(cpu, 0, 1);  // touches the pages
  for (auto _ : state) data.cache.fork(cpu, 0, 1);
}

/// Lengths from 256 to 8192, long and short ones in turn.
struct ragged : filled_cache {
  static constexpr std::size_t batch = 16, h = 8, shortest = 256, longest = 8192;
  explicit ragged(int) : filled_cache(lengths(), batch, h, longest + room) {}
  static std::vector<std::size_t> lengths() {
    std::vector<std::size_t> all(batch);
    for (std::size_t i = 0; i < batch; ++i) all[i] = shortest + i * 7 % batch * (longest - shortest) / (batch - 1);
    return all;
  }
};

void run_ragged(benchmark::State& state, std::size_t threads) {
  auto& data = bench::kept<ragged>(0);
  if (!data.has_room(state)) return;
  const auto steps = [&](const auto& policy) {
    data.step(policy, ragged::batch, {});  // wakes the threads
    for (auto _ : state) data.step(policy, ragged::batch, {});
  };
  if (threads == 1) return steps(pqkv::exec::host<>{});
  Eigen::ThreadPool pool(static_cast<int>(threads) - 1);
  steps(pqkv::exec::host<pqkv::isa::best, pqkv::eigen_pool_runner>{.runner = pqkv::eigen_pool_runner(pool), .scratch = {}});
}

/// A fixed number of steps, since each makes the sequences longer.
void add_all() {
  for (const std::size_t slots : {1u, 32u})
    bench::add(bench::named("one_active", {{"slots", slots}, {"h", one_active::h}, {"g", g}, {"d", d}, {"n", one_active::n}},
                            {{"policy", "pq"}, {"type", "bf16"}}),
               [slots](benchmark::State& state) { run_one_active(state, slots); })
        ->Iterations(256);
  for (const std::size_t capacity : {4096u, 65536u, 524288u})
    bench::add(
        bench::named("fork", {{"capacity", capacity}, {"n", forked::n}, {"h", forked::h}, {"d", d}}, {{"policy", "pq"}, {"type", "bf16"}}),
        [capacity](benchmark::State& state) { run_fork(state, capacity); });
  for (const std::size_t threads : {1u, 2u})
    bench::add(
        bench::named("ragged_batch_step",
                     {{"batch", ragged::batch}, {"threads", threads}, {"h", ragged::h}, {"g", g}, {"d", d}, {"longest", ragged::longest}},
                     {{"policy", "pq"}, {"type", "bf16"}}),
        [threads](benchmark::State& state) { run_ragged(state, threads); })
        ->Iterations(64)
        ->UseRealTime();
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
