// SPDX-License-Identifier: Apache-2.0
// k-means of one subspace: ten iterations of assignment and update, in all rows. Share of the multiply-add peak, by 2 n c ds
// operations an iteration: the subtraction in a distance is not counted.
#include "data.hpp"
#include "main.hpp"

namespace {

constexpr std::size_t iterations = 10;

struct axes {
  std::size_t n, ds, c;
  bool operator==(const axes&) const = default;
};

template <class T>
struct points {
  explicit points(const axes& a) : rows(bench::clustered_rows<T>(1, a.n, a.ds, 21)), offset(a.ds), centroids(a.ds * a.c), outcome(1) {}
  pqkv::buffer<T> rows;
  pqkv::buffer<float> offset, centroids;
  pqkv::buffer<std::uint8_t> outcome;
};

template <class Isa, class T>
void run(benchmark::State& state, const axes& a) {
  points<T>& p = bench::kept<points<T>>(a);
  const pqkv::exec::host<Isa> cpu;
  const double flops = 2.0 * static_cast<double>(iterations * a.n * a.c * a.ds);
  bench::timed(state, "of_fma_peak", flops, bench::machine().flops<Isa>(), [&] {
    pqkv::kmeans(cpu, pqkv::make_view(p.rows.data(), 1, 1, a.n, a.ds), pqkv::as_const(pqkv::make_view(p.offset.data(), 1, 1, a.ds)),
                 pqkv::make_view(p.centroids.data(), 1, 1, a.ds, a.c), pqkv::make_view(p.outcome.data(), 1, 1),
                 {.iterations = iterations, .seed = 3, .rows_per_centroid = 0});
  });
  bench::count_tokens(state, a.n * iterations);
}

template <class T>
void add_type(const char* type) {
  bench::for_each_isa([&]<class Isa>(Isa, const char* isa) {
    const axes large[] = {{131072, 64, 64}, {16384, 64, 64}, {65536, 32, 256}}, small[] = {{4096, 64, 64}};
    const auto add = [&](const axes& a) {
      bench::add(bench::named("kmeans", {{"n", a.n}, {"ds", a.ds}, {"c", a.c}, {"L", iterations}}, {{"type", type}, {"isa", isa}}),
                 [a](benchmark::State& state) { run<Isa, T>(state, a); });
    };
    if constexpr (bench::is_scalar<Isa>)
      for (const axes& a : small) add(a);
    else
      for (const axes& a : large) add(a);
  });
}

void add_all() {
  add_type<float>("f32");
  add_type<pqkv::bfloat16>("bf16");
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
