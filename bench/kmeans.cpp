// SPDX-License-Identifier: Apache-2.0
// k-means: ten iterations of assignment and update, in all rows, of one subspace and of the sixteen of a layer; and an assignment alone,
// rows rounded before. Share of the multiply-add peak, by 2 n c ds operations an iteration: the subtraction in a distance is not counted.
#include "data.hpp"
#include "main.hpp"

namespace {

constexpr std::size_t iterations = 10;

struct axes {
  std::size_t n, ds, c, problems = 1;
  bool operator==(const axes&) const = default;
};

template <class T>
struct points {
  explicit points(const axes& a)
      : rows(bench::clustered_rows<T>(a.problems, a.n, a.ds, 21)),
        offset(a.problems * a.ds),
        centroids(a.problems * a.ds * a.c),
        outcome(a.problems) {}
  void train(const auto& cpu, const axes& a) const {
    pqkv::kmeans(cpu, pqkv::make_view(rows.data(), a.problems, 1, a.n, a.ds),
                 pqkv::as_const(pqkv::make_view(offset.data(), a.problems, 1, a.ds)),
                 pqkv::make_view(centroids.data(), a.problems, 1, a.ds, a.c), pqkv::make_view(outcome.data(), a.problems, 1),
                 {.iterations = iterations, .seed = 3, .rows_per_centroid = 0});
  }
  pqkv::buffer<T> rows;
  pqkv::buffer<float> offset, centroids;
  pqkv::buffer<std::uint8_t> outcome;
};

template <class Isa, class T>
void run(benchmark::State& state, const axes& a) {
  const points<T>& p = bench::kept<points<T>>(a);
  const pqkv::exec::host<Isa> cpu;
  const double flops = 2.0 * static_cast<double>(iterations * a.problems * a.n * a.c * a.ds);
  bench::timed(state, "of_fma_peak", flops, bench::machine().flops<Isa>(), [&] { p.train(cpu, a); });
  bench::count_tokens(state, a.problems * a.n * iterations);
}

/// What an iteration does in which no row moves.
template <class Isa>
void run_assignment(benchmark::State& state, const axes& a) {
  using kernels = pqkv::detail::simd_kernels<Isa>;
  using search = pqkv::detail::nearest_search<kernels>;
  constexpr std::size_t block_rows = search::block_rows;
  const points<float>& p = bench::kept<points<float>>(a);
  p.train(pqkv::exec::host<Isa>{}, a);

  float squared_norm = 0;
  for (std::size_t i = 0; i < a.n; ++i) {
    float sum = 0;
    for (std::size_t e = 0; e < a.ds; ++e) sum += p.rows.data()[i * a.ds + e] * p.rows.data()[i * a.ds + e];
    squared_norm = std::max(squared_norm, sum);
  }
  const float norm = pqkv::detail::norm_bound(1.0001f * squared_norm), scale = pqkv::detail::shortlist_reach / norm;
  const std::size_t block_size = (a.ds + 1) / 2 * block_rows, blocks = a.n / block_rows;
  const pqkv::buffer<std::int32_t> block(blocks * block_size);
  for (std::size_t i = 0; i < blocks; ++i)
    kernels::write_block(p.rows.data() + i * block_rows * a.ds, a.ds, a.ds, scale, block.data() + i * block_size);

  const pqkv::buffer<std::uint8_t> owner(a.n);
  bench::timed(state, "of_fma_peak", 2.0 * static_cast<double>(a.n * a.c * a.ds), bench::machine().flops<Isa>(), [&] {
    search nearest(p.centroids.data(), a.c, a.ds, a.n);
    for (std::size_t i = 0; i < blocks; ++i) {
      std::uint8_t* const found = owner.data() + i * block_rows;
      for (std::uint32_t open = nearest.find(block.data() + i * block_size, scale, norm, found); open != 0; open &= open - 1) {
        const auto r = static_cast<std::size_t>(__builtin_ctz(open));
        found[r] = static_cast<std::uint8_t>(nearest.decide(p.rows.data() + (i * block_rows + r) * a.ds));
      }
    }
    benchmark::DoNotOptimize(owner.data());
  });
  bench::count_tokens(state, a.n);
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
    const axes layer{4096, 64, 64, 16};
    bench::add(
        bench::named("kmeans_layer", {{"problems", layer.problems}, {"n", layer.n}, {"ds", layer.ds}, {"c", layer.c}, {"L", iterations}},
                     {{"type", type}, {"isa", isa}}),
        [layer](benchmark::State& state) { run<Isa, T>(state, layer); });
  });
}

void add_all() {
  add_type<float>("f32");
  add_type<pqkv::bfloat16>("bf16");
  bench::for_each_isa([]<class Isa>(Isa, const char* isa) {
    for (const std::size_t n : {16384u, 131072u})
      bench::add(bench::named("kmeans_assignment", {{"n", n}, {"ds", 64}, {"c", 64}}, {{"type", "f32"}, {"isa", isa}}),
                 [n](benchmark::State& state) {
                   run_assignment<Isa>(state, {n, 64, 64});
                 });
  });
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
