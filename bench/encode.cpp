// SPDX-License-Identifier: Apache-2.0
// Encoding of bfloat16 keys with a trained codebook. Share of the multiply-add peak, by 2 n c d operations.
#include "data.hpp"
#include "main.hpp"

namespace {

template <class Isa>
void run(benchmark::State& state, const bench::search_case::axes& a) {
  auto& data = bench::kept<bench::search_case>(a);
  const pqkv::exec::host<Isa> cpu;
  const double flops = 2.0 * static_cast<double>(a.n * a.d) * static_cast<double>(data.shape.centroids());
  bench::timed(state, "of_fma_peak", flops, bench::machine().flops<Isa>(),
               [&] { pqkv::encode(cpu, data.key_view(), data.book.view(), data.codes.mutable_view()); });
  bench::count_tokens(state, a.n);
}

void add_all() {
  bench::for_each_isa([]<class Isa>(Isa, const char* isa) {
    const std::size_t n = bench::is_scalar<Isa> ? 2048 : 32768;
    const bench::search_case::axes all[] = {{.n = n, .m = 2, .b = 6}, {.n = n, .m = 4, .b = 8}, {.n = n, .m = 8, .b = 8}};
    for (const auto& a : all)
      bench::add(bench::named("encode", {{"m", a.m}, {"b", a.b}, {"d", a.d}, {"n", a.n}}, {{"type", "bf16"}, {"isa", isa}}),
                 [a](benchmark::State& state) { run<Isa>(state, a); });
  });
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
