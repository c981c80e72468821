// SPDX-License-Identifier: Apache-2.0
// Copies of rows into a store, converting the type: what prefill and append do with keys and values. Share of streaming reads, by
// bytes read and written.
#include "data.hpp"
#include "main.hpp"

namespace {

struct axes {
  std::size_t h, n, d;
  bool operator==(const axes&) const = default;
};

template <class From>
struct source_rows {
  explicit source_rows(const axes& a) : numbers(bench::normal_numbers<From>(a.h * a.n * a.d, 61)) {}
  pqkv::buffer<From> numbers;
};

template <class To>
struct target_rows {
  explicit target_rows(const axes& a) : rows(pqkv::exec::host<>{}, {.kv_heads = a.h, .head_dim = a.d, .capacity = a.n}) {}
  pqkv::dense_rows<To> rows;
};

template <class Isa, class From, class To>
void run(benchmark::State& state, const axes& a) {
  auto& from = bench::kept<source_rows<From>>(a);
  auto& to = bench::kept<target_rows<To>>(a);
  const pqkv::buffer<std::uint32_t> nonfinite(a.h);
  const pqkv::exec::host<Isa> cpu;
  const auto bytes = static_cast<double>(a.h * a.n * a.d * (sizeof(From) + sizeof(To)));
  bench::timed(state, "of_streaming_read", bytes, bench::machine().streaming_read_bytes, [&] {
    pqkv::store_rows(cpu, pqkv::make_view(from.numbers.data(), a.h, a.n, a.d), to.rows.view().keys, pqkv::make_view(nonfinite.data(), a.h));
  });
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes) * state.iterations());
}

template <class From, class To>
void add_types(const char* from, const char* to) {
  bench::for_each_isa([&]<class Isa>(Isa, const char* isa) {
    const axes a{8, 16384, 128};
    bench::add(bench::named("store_rows", {{"h", a.h}, {"n", a.n}, {"d", a.d}}, {{"from", from}, {"to", to}, {"isa", isa}}),
               [a](benchmark::State& state) { run<Isa, From, To>(state, a); });
  });
}

void add_all() {
  add_types<float, float>("f32", "f32");
  add_types<float, pqkv::bfloat16>("f32", "bf16");
  add_types<float, pqkv::half>("f32", "f16");
  add_types<pqkv::bfloat16, pqkv::bfloat16>("bf16", "bf16");
  add_types<pqkv::half, pqkv::bfloat16>("f16", "bf16");
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, "rows normal"); }
