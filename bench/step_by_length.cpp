// SPDX-License-Identifier: Apache-2.0
// A decode step of one layer, append, attend and maintain, by context length: dense, a tenth of the tokens, and 2048 tokens at any
// length, with the default codes and with the smaller ones of 2 x 6 bits; on one and on two threads. Times are the clock's. The longest
// sequence has 4 GiB of keys and values. And dense attention of a ragged batch, one long sequence among short ones: what a runner has to
// spread.
#include "data.hpp"
#include "main.hpp"

#include <pqkv/adapt/eigen_thread_pool.hpp>

#include <algorithm>
#include <memory>

namespace {

constexpr std::size_t h = 8, g = 4, d = 128, hq = h * g, room = 4096, fixed_tokens = 2048;

enum class attends { all, tenth, fixed };
enum class codes { defaults, two_by_six };
struct axes {
  std::size_t n;
  attends to;
  codes by;
  bool operator==(const axes&) const = default;
};

/// A cache with n tokens prefilled, in chunks. Training sees few rows and iterations: a step's time does not depend on it.
template <class Selector>
struct sequence {
  using cache_type = pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>, Selector>;

  explicit sequence(const axes& a)
      : cache(params(a)), query(bench::normal_numbers<float>(hq * d, 81)), out(hq * d), key(h * d), value(h * d) {
    constexpr std::size_t most = 4096;
    const pqkv::exec::host<> cpu;
    for (std::size_t head = 0; head < h; ++head) sources.emplace_back(d, 82 + head);
    const pqkv::buffer<pqkv::bfloat16> values = bench::normal_numbers<pqkv::bfloat16>(h * most * d, 90);
    const pqkv::buffer<pqkv::bfloat16> keys(h * most * d);
    for (std::size_t first = 0; first < a.n; first += most) {
      const std::size_t count = std::min(most, a.n - first);
      for (std::size_t row = 0; row < h * count; ++row) sources[row / count].draw(keys.data() + row * d);
      cache.prefill(cpu, 0, pqkv::make_view(keys.data(), h, count, d), pqkv::make_view(values.data(), h, count, d),
                    first + count < a.n ? pqkv::chunk::more : pqkv::chunk::last);
    }
    cache.maintain(cpu);
    bench::normal_source normal(91);
    for (float& x : value) x = normal();
  }

  static typename cache_type::params params(const axes& a) {
    typename cache_type::params p{};
    p.batch = 1;
    p.kv_heads = h;
    p.query_heads = hq;
    p.head_dim = d;
    p.capacity = a.n + room;
    if (a.to == attends::fixed) p.budget.tokens = fixed_tokens;
    if constexpr (std::is_same_v<Selector, pqkv::selector::pq>) {
      if (a.by == codes::two_by_six) p.selector.subspaces = 2, p.selector.bits = 6;
      p.selector.train = {.iterations = 4, .seed = 7, .rows_per_centroid = 64};
    }
    return p;
  }

  template <class P>
  void step(const P& policy) {
    for (std::size_t head = 0; head < h; ++head) sources[head].draw(key.data() + head * d);
    cache.append(policy, pqkv::make_view(key.data(), 1, h, d), pqkv::make_view(value.data(), 1, h, d));
    cache.attend(policy, pqkv::as_const(pqkv::make_view(query.data(), 1, hq, d)), pqkv::make_view(out.data(), 1, hq, d));
    cache.maintain(policy);
  }

  cache_type cache;
  std::vector<bench::key_source> sources;
  pqkv::buffer<float> query, out, key, value;
};

/// One sequence in memory at a time, whatever its policy.
struct either {
  explicit either(const axes& a) {
    if (a.to == attends::all)
      full = std::make_unique<sequence<pqkv::selector::full>>(a);
    else
      pq = std::make_unique<sequence<pqkv::selector::pq>>(a);
  }
  template <class P>
  void step(const P& policy) {
    if (full)
      full->step(policy);
    else
      pq->step(policy);
  }
  std::size_t size() const { return full ? full->cache.size(0) : pq->cache.size(0); }
  std::unique_ptr<sequence<pqkv::selector::full>> full;
  std::unique_ptr<sequence<pqkv::selector::pq>> pq;
};

void run(benchmark::State& state, const axes& a, int threads) {
  auto& data = bench::kept<either>(a);
  if (data.size() + static_cast<std::size_t>(state.max_iterations) + 2 > a.n + room) {
    state.SkipWithError("no room for so many steps: fewer repetitions, please");
    return;
  }
  const auto steps = [&](const auto& policy) {
    data.step(policy);  // wakes the threads, touches the pages
    for (auto _ : state) data.step(policy);
  };
  if (threads == 1) return steps(pqkv::exec::host<>{});
  Eigen::ThreadPool pool(threads - 1);
  steps(pqkv::exec::host<pqkv::isa::best, pqkv::eigen_pool_runner>{.runner = pqkv::eigen_pool_runner(pool), .scratch = {}});
}

/// One layer's KV of sequences of unequal lengths, each in a slot of its own, and one attention() for all of them.
struct ragged_batch {
  static constexpr std::size_t batch = 7, heads = 2, longest = 65536;

  explicit ragged_batch(int)
      : rows(bench::normal_numbers<pqkv::bfloat16>(batch * heads * longest * 2 * d, 95)),
        query(bench::normal_numbers<float>(batch * heads * g * d, 96)),
        out(batch * heads * g * d),
        spans(batch * heads) {
    for (std::size_t list = 0; list < batch * heads; ++list)
      spans.data()[list] = {static_cast<std::uint32_t>(list < heads ? longest : longest >> (4 + list / heads)), 0, 0};
  }
  template <class P>
  void attend(const P& policy) const {
    pqkv::attention(policy, pqkv::as_const(pqkv::make_view(query.data(), batch * heads * g, d)),
                    pqkv::interleaved_kv(static_cast<const pqkv::bfloat16*>(rows.data()), batch * heads, longest, d),
                    {pqkv::as_const(pqkv::make_view(spans.data(), batch * heads)), {}, {}},
                    pqkv::make_view(out.data(), batch * heads * g, d));
  }
  pqkv::buffer<pqkv::bfloat16> rows;
  pqkv::buffer<float> query, out;
  pqkv::buffer<pqkv::token_span> spans;
};

void run_ragged(benchmark::State& state, std::size_t threads) {
  const auto& data = bench::kept<ragged_batch>(0);
  const auto attend = [&](const auto& policy) {
    data.attend(policy);
    for (auto _ : state) data.attend(policy);
  };
  if (threads == 1) return attend(pqkv::exec::host<>{});
  Eigen::ThreadPool pool(static_cast<int>(threads) - 1);
  attend(pqkv::exec::host<pqkv::isa::best, pqkv::eigen_pool_runner>{.runner = pqkv::eigen_pool_runner(pool), .scratch = {}});
}

/// A fixed number of steps, since each makes the sequence longer: as many as read about 4 GiB.
void add_all() {
  for (const std::size_t threads : {1u, 2u})
    bench::add(bench::named("ragged_batch",
                            {{"batch", ragged_batch::batch},
                             {"h", ragged_batch::heads},
                             {"g", g},
                             {"d", d},
                             {"longest", ragged_batch::longest},
                             {"threads", threads}},
                            {{"type", "bf16"}}),
               [threads](benchmark::State& state) { run_ragged(state, threads); })
        ->UseRealTime();
  constexpr struct {
    attends to;
    codes by;
    const char* name;
  } policies[] = {{attends::all, codes::defaults, "full"},
                  {attends::tenth, codes::defaults, "pq_tenth"},
                  {attends::fixed, codes::defaults, "pq_2048"},
                  {attends::tenth, codes::two_by_six, "pq_2x6_tenth"},
                  {attends::fixed, codes::two_by_six, "pq_2x6_2048"}};
  for (std::size_t n = 1024; n <= 1048576; n *= 2)
    for (const auto& [to, by, policy] : policies)
      for (const std::size_t threads : {1u, 2u}) {
        const std::size_t rows = to == attends::all ? n : to == attends::tenth ? n / 10 : std::min(n, fixed_tokens);
        const std::size_t steps = std::clamp<std::size_t>((std::size_t{1} << 20) / rows, 6, 128);
        const axes a{n, to, by};
        bench::add(bench::named("step_by_length", {{"h", h}, {"g", g}, {"d", d}, {"n", n}, {"threads", threads}},
                                {{"policy", policy}, {"type", "bf16"}}),
                   [a, threads](benchmark::State& state) { run(state, a, static_cast<int>(threads)); })
            ->Iterations(static_cast<benchmark::IterationCount>(steps));
      }
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
