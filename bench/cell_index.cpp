// SPDX-License-Identifier: Apache-2.0
// The joint-code index of one KV head: counting tokens into cells, all at once and one by one, and merging the tail into the lists.
#include "data.hpp"
#include "main.hpp"

namespace {

/// As after construction.
void clear(pqkv::mutable_cell_index_view<> index) {
  for (std::size_t cell = 0; cell < index.cells(); ++cell) index.counts(0, cell) = 0;
  index.first(0) = index.merged(0) = index.last(0) = 0;
}

void run_count(benchmark::State& state, const bench::search_case::axes& a, std::size_t step) {
  auto& data = bench::kept<bench::search_case>(a);
  pqkv::cell_index index(data.shape, a.n);
  const auto view = index.mutable_view();
  const pqkv::exec::host<> cpu;
  bench::timed(state, nullptr, 0, 0, [&] {
    clear(view);
    for (std::size_t t = 0; t < a.n; t += step) pqkv::count_cells(cpu, data.codes.view(), t, t + step, view);
  });
  bench::count_tokens(state, a.n);
}

void run_merge(benchmark::State& state, const bench::search_case::axes& a) {
  auto& data = bench::kept<bench::search_case>(a);
  pqkv::cell_index index(data.shape, a.n);
  const auto view = index.mutable_view();
  const pqkv::exec::host<> cpu;
  pqkv::count_cells(cpu, data.codes.view(), 0, a.n, view);
  bench::timed(state, nullptr, 0, 0, [&] {
    view.merged(0) = static_cast<std::uint32_t>(a.n - 1);  // a tail of one token is merged like any: the lists are made anew
    pqkv::merge_tails(cpu, data.codes.view(), view);
  });
  bench::count_tokens(state, a.n);
}

void add_all() {
  const bench::search_case::axes all[] = {{.n = 131072, .m = 2, .b = 6}, {.n = 131072, .m = 2, .b = 8}, {.n = 131072, .m = 4, .b = 4}};
  for (const auto& a : all) {
    const auto name = [&](const char* operation) {
      return bench::named("cell_index", {{"m", a.m}, {"b", a.b}, {"n", a.n}}, {{"op", operation}});
    };
    bench::add(name("count"), [a](benchmark::State& state) { run_count(state, a, a.n); });
    bench::add(name("count_singly"), [a](benchmark::State& state) { run_count(state, a, 1); });
    bench::add(name("merge"), [a](benchmark::State& state) { run_merge(state, a); });
  }
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
