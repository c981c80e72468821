// SPDX-License-Identifier: Apache-2.0
// From a distance table to the k best tokens of one KV head, by cells and by tokens: the same tokens, at costs that grow with the
// number of cells and with n. The table is not included; distance_table has it.
#include "data.hpp"
#include "main.hpp"

namespace {

template <class Isa>
void run(benchmark::State& state, const bench::search_case::axes& a, std::size_t k, pqkv::search_path path) {
  auto& data = bench::kept<bench::search_case>(a);
  const pqkv::buffer<std::int32_t> indices(k);
  const pqkv::buffer<std::uint32_t> counts(1);
  const pqkv::middle_range range{0, static_cast<std::uint32_t>(a.n), static_cast<std::uint32_t>(k)};
  const bool joint = path == pqkv::search_path::joint;
  const pqkv::cell_index_view<> index = joint ? data.index.view() : pqkv::cell_index_view<>{};
  const std::size_t cells = joint ? data.shape.cells() : 0;
  pqkv::exec::host<Isa> cpu;
  const pqkv::buffer<std::byte> scratch(pqkv::scratch_bytes<pqkv::op::retrieve>(cpu, {1, a.g, a.m, data.shape.centroids(), a.n, cells}));
  cpu.scratch = pqkv::arena(scratch);
  bench::timed(state, nullptr, 0, 0, [&] {
    pqkv::retrieve(cpu, data.table.view(), data.codes.view(), index, pqkv::make_view(&range, 1), pqkv::make_view(indices.data(), 1, k),
                   pqkv::make_view(counts.data(), 1), {.head_dim = a.d, .path = path});
  });
  bench::count_tokens(state, a.n);
}

/// The scan path under logit_sum, which filters by integers first, or scan() and top_k(), which don't.
template <class Isa>
void run_logits(benchmark::State& state, const bench::search_case::axes& a, std::size_t k, bool filtered) {
  auto& data = bench::kept<bench::search_case>(a);
  const pqkv::buffer<std::int32_t> indices(k);
  const pqkv::buffer<std::uint32_t> counts(1);
  const pqkv::buffer<float> scores(a.n);
  const pqkv::middle_range range{0, static_cast<std::uint32_t>(a.n), static_cast<std::uint32_t>(k)};
  constexpr auto reduction = pqkv::group_reduction::logit_sum;
  pqkv::exec::host<Isa> cpu;
  const pqkv::buffer<std::byte> scratch(
      pqkv::scratch_bytes<pqkv::op::retrieve>(cpu, {1, a.g, a.m, data.shape.centroids(), a.n, 0, reduction}));
  cpu.scratch = pqkv::arena(scratch);
  const auto row = pqkv::make_view(scores.data(), 1, a.n);
  bench::timed(state, nullptr, 0, 0, [&] {
    if (filtered) {
      pqkv::retrieve(cpu, data.table.view(), data.codes.view(), {}, pqkv::make_view(&range, 1), pqkv::make_view(indices.data(), 1, k),
                     pqkv::make_view(counts.data(), 1), {.head_dim = a.d, .reduction = reduction, .path = pqkv::search_path::scan});
    } else {
      pqkv::scan(cpu, data.table.view(), data.codes.view(), row, reduction, a.d);
      pqkv::top_k(cpu, pqkv::as_const(row), pqkv::make_view(indices.data(), 1, k));
    }
  });
  bench::count_tokens(state, a.n);
}

void add_all() {
  bench::for_each_isa([]<class Isa>(Isa, const char* isa) {
    const auto add = [&](const bench::search_case::axes& a, std::size_t k, pqkv::search_path path) {
      bench::add(bench::named("retrieve", {{"m", a.m}, {"b", a.b}, {"g", a.g}, {"n", a.n}, {"k", k}},
                              {{"path", path == pqkv::search_path::joint ? "joint" : "scan"}, {"isa", isa}}),
                 [a, k, path](benchmark::State& state) { run<Isa>(state, a, k, path); });
    };
    using enum pqkv::search_path;
    for (const std::size_t n : {131072u, 1048576u})
      for (const std::size_t k : {2048u, 16384u})
        for (const auto path : {joint, scan})
          if (!bench::is_scalar<Isa> || n == 131072) add({.n = n, .m = 2, .b = 6}, k, path);
    for (const auto path : {joint, scan}) add({.n = 131072, .m = 2, .b = 8}, 2048, path);
    add({.n = 131072, .m = 4, .b = 8}, 2048, scan);
    add({.n = 131072, .m = 8, .b = 8}, 13107, scan);
    for (const std::size_t k : {2048u, 13107u})  // what the filter of logits is worth
      for (const bool filtered : {true, false})
        for (const auto& [m, b] : {std::pair{2u, 6u}, {4u, 8u}}) {
          const bench::search_case::axes a{.n = 131072, .m = m, .b = b};
          bench::add(bench::named("retrieve_logit_sum", {{"m", a.m}, {"b", a.b}, {"g", a.g}, {"n", a.n}, {"k", k}},
                                  {{"by", filtered ? "retrieve" : "scan_and_top_k"}, {"isa", isa}}),
                     [a, k, filtered](benchmark::State& state) { run_logits<Isa>(state, a, k, filtered); });
        }
    // What search_path::automatic chooses by: tokens a cell, a tenth of them retrieved. Clustered keys leave most cells empty.
    for (const unsigned b : {6u, 8u})
      for (const bool clustered : {true, false})
        for (const std::size_t tokens_a_cell : {1u, 2u, 4u, 8u})
          for (const auto path : {joint, scan}) {
            const bench::search_case::axes a{.n = tokens_a_cell << 2 * b, .m = 2, .b = b, .clustered = clustered};
            bench::add(
                bench::named("retrieve_tokens_a_cell", {{"m", a.m}, {"b", a.b}, {"g", a.g}, {"n", a.n}, {"k", a.n / 10}},
                             {{"keys", clustered ? "clustered" : "normal"}, {"path", path == joint ? "joint" : "scan"}, {"isa", isa}}),
                [a, path](benchmark::State& state) { run<Isa>(state, a, a.n / 10, path); });
          }
  });
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
