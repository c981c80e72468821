// SPDX-License-Identifier: Apache-2.0
// A whole decode step of one layer: append, attend, and maintain as an engine calls it between steps. One cache per policy, all
// over the same sequence, so that `full` is the dense step that the others are compared with. Share of streaming reads for `full`
// alone; the others are bound by several things at once.
#include "data.hpp"
#include "main.hpp"

#include <algorithm>

namespace {

struct axes {
  std::size_t n;
  double ratio;
  std::size_t m;
  unsigned b;
  bool operator==(const axes&) const = default;
};

constexpr std::size_t h = 8, g = 4, d = 128, hq = h * g, room = 4096;

using wide_rows = pqkv::dense_rows<pqkv::bfloat16>;
using compact_rows = pqkv::quantized_rows<>;

/// A cache with n tokens prefilled, in chunks, so that the prompt is never in memory twice. Compact rows are so many more attended to as
/// have the same bytes.
template <class Selector, class Rows>
struct sequence {
  using cache_type = pqkv::pqcache<Rows, Selector>;

  explicit sequence(const axes& a)
      : cache(params(a)), query(bench::normal_numbers<float>(hq * d, 51)), out(hq * d), key(h * d), value(h * d) {
    constexpr std::size_t most = 4096;
    const pqkv::exec::host<> cpu;
    for (std::size_t head = 0; head < h; ++head) sources.emplace_back(d, 52 + head);
    bench::normal_source normal(60);
    for (std::size_t first = 0; first < a.n; first += most) {
      const std::size_t count = std::min(most, a.n - first);
      const pqkv::buffer<pqkv::bfloat16> keys(h * count * d), values(h * count * d);
      for (std::size_t row = 0; row < h * count; ++row) sources[row / count].draw(keys.data() + row * d);
      for (pqkv::bfloat16& x : values) x = static_cast<pqkv::bfloat16>(normal());
      cache.prefill(cpu, 0, pqkv::make_view(keys.data(), h, count, d), pqkv::make_view(values.data(), h, count, d),
                    first + count < a.n ? pqkv::chunk::more : pqkv::chunk::last);
    }
    for (float& x : value) x = normal();
  }

  static typename cache_type::params params(const axes& a) {
    typename cache_type::params p{};
    p.batch = 1;
    p.kv_heads = h;
    p.query_heads = hq;
    p.head_dim = d;
    p.capacity = a.n + room;
    p.budget.ratio = a.ratio;
    if constexpr (std::is_same_v<Rows, compact_rows>) p.budget.ratio = Rows::equal_bytes_ratio(a.ratio, d);
    if constexpr (std::is_same_v<Selector, pqkv::selector::pq>) {
      p.selector.subspaces = a.m;
      p.selector.bits = a.b;
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

template <class Isa, class Selector, class Rows>
void run(benchmark::State& state, const axes& a) {
  auto& data = bench::kept<sequence<Selector, Rows>>(a);
  if (data.cache.size(0) + static_cast<std::size_t>(state.max_iterations) > a.n + room) {
    state.SkipWithError("no room for so many steps: fewer repetitions, please");
    return;
  }
  const pqkv::exec::host<Isa> cpu;
  const pqkv::slot_statistics before = data.cache.statistics(0);
  const bool dense = std::is_same_v<Selector, pqkv::selector::full>;
  const auto bytes = static_cast<double>(data.cache.size(0) * h * 2 * d * sizeof(pqkv::bfloat16));
  bench::timed(state, dense ? "of_streaming_read" : nullptr, bytes, bench::machine().read_bytes(bytes), [&] { data.step(cpu); });
  const pqkv::slot_statistics& after = data.cache.statistics(0);
  const auto steps = static_cast<double>(after.steps - before.steps);
  const auto per_step = [steps](std::uint64_t now, std::uint64_t then) { return static_cast<double>(now - then) / steps; };
  state.counters["tokens_attended"] = per_step(after.tokens_attended, before.tokens_attended);
  state.counters["bytes_read"] = per_step(after.attended_bytes + after.index_bytes + after.selector_bytes,
                                          before.attended_bytes + before.index_bytes + before.selector_bytes);
}

template <class Selector, class Rows>
std::string name_of(const char* policy, const axes& a, const char* isa) {
  const char* const type = std::is_same_v<Rows, compact_rows> ? "int8" : "bf16";
  const auto one_in = static_cast<std::size_t>(1 / a.ratio + 0.5);
  if constexpr (std::is_same_v<Selector, pqkv::selector::pq>)
    return bench::named("pqcache_step", {{"m", a.m}, {"b", a.b}, {"h", h}, {"g", g}, {"d", d}, {"n", a.n}, {"one_in", one_in}},
                        {{"policy", policy}, {"type", type}, {"isa", isa}});
  else
    return bench::named("pqcache_step", {{"h", h}, {"g", g}, {"d", d}, {"n", a.n}, {"one_in", one_in}},
                        {{"policy", policy}, {"type", type}, {"isa", isa}});
}

/// A fixed number of steps, since each makes the sequence longer.
template <class Selector, class Rows = wide_rows>
void add_policy(const char* policy, std::size_t steps, std::initializer_list<axes> all) {
  bench::for_each_isa([&]<class Isa>(Isa, const char* isa) {
    for (axes a : all) {
      if (bench::is_scalar<Isa>) a.n = 8192;
      bench::add(name_of<Selector, Rows>(policy, a, isa), [a](benchmark::State& state) {
        run<Isa, Selector, Rows>(state, a);
      })->Iterations(static_cast<benchmark::IterationCount>(steps));
    }
  });
}

void add_all() {
  add_policy<pqkv::selector::full>("full", 12, {{131072, 1, 0, 0}});
  add_policy<pqkv::selector::pq>("pq", 64, {{131072, 0.1, 2, 6}, {131072, 0.05, 2, 6}, {131072, 0.1, 4, 8}, {131072, 0.025, 4, 8}});
  add_policy<pqkv::selector::pq, compact_rows>("pq", 64, {{131072, 0.1, 4, 8}, {131072, 0.1, 8, 8}, {131072, 0.05, 8, 8}});
  add_policy<pqkv::selector::oracle>("oracle", 12, {{131072, 0.1, 0, 0}});
  add_policy<pqkv::selector::streaming>("streaming", 64, {{131072, 0.1, 0, 0}});
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
