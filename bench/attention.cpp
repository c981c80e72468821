// SPDX-License-Identifier: Apache-2.0
// Decode attention of one group of queries over one KV head: dense over all tokens, and gathered over k of them, listed in ascending
// order. Gathering goes round through disjoint lists, so that rows come from memory as in decoding. Shares: of streaming reads for
// dense, of ascending 512-byte rows of like density for gathered. The rival, kind:plain, copies the listed rows as they come, without
// asking for any ahead, and attends to the copy densely.
#include "data.hpp"
#include "main.hpp"

#include <algorithm>

namespace {

struct axes {
  std::size_t n, g, d, k;  // k: 0 for dense
  bool operator==(const axes&) const = default;
};

/// K and V of a token side by side, and lists that share no token.
template <class T>
struct attention_case {
  explicit attention_case(const axes& a)
      : rows(bench::normal_numbers<T>(a.n * 2 * a.d, 41)), query(bench::normal_numbers<float>(a.g * a.d, 42)), out(a.g * a.d) {
    if (a.k == 0) return;
    lists = a.n / a.k;  // one token in each run of `lists` tokens
    indices = pqkv::buffer<std::int32_t>(lists * a.k);
    const pqkv::random_stream draws{43, 0};
    for (std::size_t list = 0; list < lists; ++list)
      for (std::size_t i = 0; i < a.k; ++i) indices[list * a.k + i] = static_cast<std::int32_t>(i * lists + (list + draws(i)) % lists);
  }
  pqkv::buffer<T> rows;
  pqkv::buffer<float> query, out;
  std::size_t lists = 1;
  pqkv::buffer<std::int32_t> indices;
};

template <class Isa, class T>
void run(benchmark::State& state, const axes& a) {
  auto& data = bench::kept<attention_case<T>>(a);
  const auto store = pqkv::interleaved_kv(static_cast<const T*>(data.rows.data()), 1, a.n, a.d);
  const pqkv::token_span span{static_cast<std::uint32_t>(a.k == 0 ? a.n : 0), 0, 0};
  const auto count = static_cast<std::uint32_t>(a.k);
  const pqkv::exec::host<Isa> cpu;
  const std::size_t tokens = a.k == 0 ? a.n : a.k;
  const double bytes = static_cast<double>(tokens * 2 * a.d * sizeof(T)), all_bytes = static_cast<double>(data.rows.size_bytes());
  std::size_t list = 0;
  const double ascending = a.n / std::max<std::size_t>(a.k, 1) > 20 ? bench::machine().sparse_row_bytes : bench::machine().dense_row_bytes;
  bench::timed(state, a.k == 0 ? "of_streaming_read" : "of_ascending_rows", bytes,
               a.k == 0 ? bench::machine().read_bytes(all_bytes) : ascending, [&] {
                 pqkv::token_set<> set{pqkv::make_view(&span, 1), {}, {}};
                 if (a.k != 0) {
                   set.indices = pqkv::as_const(pqkv::make_view(data.indices.data() + list * a.k, 1, a.k));
                   set.counts = pqkv::make_view(&count, 1);
                   list = (list + 1) % data.lists;
                 }
                 pqkv::attention(cpu, pqkv::as_const(pqkv::make_view(data.query.data(), a.g, a.d)), store, set,
                                 pqkv::make_view(data.out.data(), a.g, a.d));
               });
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * state.iterations());
  bench::count_tokens(state, tokens);
}

/// The rival: rows copied one after the other, then dense attention over the copy.
template <class Isa, class T>
void run_plain(benchmark::State& state, const axes& a) {
  auto& data = bench::kept<attention_case<T>>(a);
  const pqkv::buffer<T> copy(a.k * 2 * a.d);
  const auto store = pqkv::interleaved_kv(static_cast<const T*>(copy.data()), 1, a.k, a.d);
  const pqkv::token_span span{static_cast<std::uint32_t>(a.k), 0, 0};
  const pqkv::exec::host<Isa> cpu;
  std::size_t list = 0;
  bench::timed(state, nullptr, 0, 0, [&] {
    const std::int32_t* tokens = data.indices.data() + list * a.k;
    for (std::size_t i = 0; i < a.k; ++i)
      std::copy_n(data.rows.data() + static_cast<std::size_t>(tokens[i]) * 2 * a.d, 2 * a.d, copy.data() + i * 2 * a.d);
    list = (list + 1) % data.lists;
    pqkv::attention(cpu, pqkv::as_const(pqkv::make_view(data.query.data(), a.g, a.d)), store, {pqkv::make_view(&span, 1), {}, {}},
                    pqkv::make_view(data.out.data(), a.g, a.d));
  });
  bench::count_tokens(state, a.k);
}

template <class T>
void add_type(const char* type) {
  bench::for_each_isa([&]<class Isa>(Isa, const char* isa) {
    const std::size_t n = bench::is_scalar<Isa> ? 16384 : 131072;
    for (const axes& a : {axes{n, 4, 128, 0}, axes{n, 1, 128, 0}, axes{n, 4, 128, n / 32}, axes{n, 4, 128, n / 10}}) {
      const char* kind = a.k == 0 ? "dense" : "gathered";
      bench::add(bench::named("attention", {{"g", a.g}, {"d", a.d}, {"n", a.n}, {"k", a.k == 0 ? a.n : a.k}},
                              {{"kind", kind}, {"type", type}, {"isa", isa}}),
                 [a](benchmark::State& state) { run<Isa, T>(state, a); });
      if (a.k != 0)
        bench::add(
            bench::named("attention", {{"g", a.g}, {"d", a.d}, {"n", a.n}, {"k", a.k}}, {{"kind", "plain"}, {"type", type}, {"isa", isa}}),
            [a](benchmark::State& state) { run_plain<Isa, T>(state, a); });
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
