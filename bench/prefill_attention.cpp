// SPDX-License-Identifier: Apache-2.0
// Causal attention of a block of queries: a whole prompt, and a chunk behind many tokens. The share of the multiply-add peak counts four
// operations per element of each visible pair of query and key; the softmax between both products is not counted. The rival,
// kind:queries, calls attention() for one query after the other.
#include "data.hpp"
#include "main.hpp"

namespace {

struct axes {
  std::size_t first, queries, g, d;
  bool operator==(const axes&) const = default;

  std::size_t keys() const { return first + queries; }
  double operations() const {
    const auto q = static_cast<double>(queries);
    return 4.0 * static_cast<double>(g * d) * (q * static_cast<double>(first) + q * (q + 1) / 2);
  }
};

/// One KV head, K and V of a token side by side.
template <class T>
struct prefill_case {
  explicit prefill_case(const axes& a)
      : rows(bench::normal_numbers<T>(a.keys() * 2 * a.d, 51)),
        query(bench::normal_numbers<float>(a.g * a.queries * a.d, 52)),
        out(a.g * a.queries * a.d),
        scratch(pqkv::scratch_bytes<pqkv::op::prefill_attention>(pqkv::exec::host<>{}, {1, a.g, a.queries, a.d})) {}
  pqkv::buffer<T> rows;
  pqkv::buffer<float> query, out;
  pqkv::buffer<std::byte> scratch;
};

template <class Isa, class T>
void run(benchmark::State& state, const axes& a) {
  auto& data = bench::kept<prefill_case<T>>(a);
  const auto store = pqkv::interleaved_kv(static_cast<const T*>(data.rows.data()), 1, a.keys(), a.d);
  const pqkv::exec::host<Isa> cpu{{}, pqkv::arena(data.scratch)};
  bench::timed(state, "of_fma_peak", a.operations(), bench::machine().flops<Isa>(), [&] {
    pqkv::prefill_attention(cpu, pqkv::as_const(pqkv::make_view(data.query.data(), a.g, a.queries, a.d)), store, a.first,
                            pqkv::make_view(data.out.data(), a.g, a.queries, a.d));
  });
  bench::count_tokens(state, a.queries);
}

template <class Isa, class T>
void run_queries(benchmark::State& state, const axes& a) {
  auto& data = bench::kept<prefill_case<T>>(a);
  const auto store = pqkv::interleaved_kv(static_cast<const T*>(data.rows.data()), 1, a.keys(), a.d);
  const pqkv::exec::host<Isa> cpu;
  bench::timed(state, "of_fma_peak", a.operations(), bench::machine().flops<Isa>(), [&] {
    for (std::size_t t = 0; t < a.queries; ++t) {
      const pqkv::token_span span{static_cast<std::uint32_t>(a.first + t + 1), 0, 0};
      pqkv::attention(cpu, pqkv::view<const float, 2>{data.query.data() + t * a.d, {a.g, a.d}, {a.queries * a.d, 1}}, store,
                      {pqkv::make_view(&span, 1), {}, {}},
                      pqkv::view<float, 2>{data.out.data() + t * a.d, {a.g, a.d}, {a.queries * a.d, 1}});
    }
  });
  bench::count_tokens(state, a.queries);
}

template <class T>
void add_type(const char* type) {
  bench::for_each_isa([&]<class Isa>(Isa, const char* isa) {
    const std::size_t n = bench::is_scalar<Isa> ? 1024 : 4096;
    for (const axes& a : {axes{0, n, 4, 128}, axes{0, n, 1, 128}, axes{0, n, 4, 64}, axes{7 * n, n / 16, 4, 128}}) {
      const auto name = [&](const char* kind) {
        return bench::named("prefill_attention", {{"g", a.g}, {"d", a.d}, {"n", a.keys()}, {"queries", a.queries}},
                            {{"kind", kind}, {"type", type}, {"isa", isa}});
      };
      bench::add(name("block"), [a](benchmark::State& state) { run<Isa, T>(state, a); });
      if (a.first != 0) bench::add(name("queries"), [a](benchmark::State& state) { run_queries<Isa, T>(state, a); });
    }
  });
}

void add_all() {
  add_type<pqkv::bfloat16>("bf16");
  add_type<pqkv::half>("f16");
  add_type<float>("f32");
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, "keys, values and queries normal"); }
