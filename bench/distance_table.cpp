// SPDX-License-Identifier: Apache-2.0
// Distance tables of one group of queries, inner product and squared L2. Share of the multiply-add peak, by 2 g d c operations.
#include "data.hpp"
#include "main.hpp"

namespace {

enum class metric { inner_product, squared_l2 };

template <class Isa>
void run(benchmark::State& state, const bench::search_case::axes& a, metric wanted) {
  auto& data = bench::kept<bench::search_case>(a);
  const pqkv::exec::host<Isa> cpu;
  const double flops = 2.0 * static_cast<double>(a.g * a.d) * static_cast<double>(data.shape.centroids());
  bench::timed(state, "of_fma_peak", flops, bench::machine().flops<Isa>(), [&] {
    if (wanted == metric::inner_product)
      pqkv::inner_product_table(cpu, data.query_view(), data.book.view(), data.table.mutable_view());
    else
      pqkv::squared_l2_table(cpu, data.query_view(), data.book.view(), data.table.mutable_view());
  });
}

void add_all() {
  bench::for_each_isa([]<class Isa>(Isa, const char* isa) {
    const bench::search_case::axes all[] = {{.n = 20000, .m = 2, .b = 6}, {.n = 20000, .m = 4, .b = 8}, {.n = 20000, .m = 16, .b = 4}};
    for (const auto& a : all)
      for (const metric wanted : {metric::inner_product, metric::squared_l2})
        bench::add(bench::named("distance_table", {{"m", a.m}, {"b", a.b}, {"g", a.g}, {"d", a.d}},
                                {{"metric", wanted == metric::inner_product ? "ip" : "l2"}, {"isa", isa}}),
                   [a, wanted](benchmark::State& state) { run<Isa>(state, a, wanted); });
  });
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
