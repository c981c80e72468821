// SPDX-License-Identifier: Apache-2.0
// Scores of every token of one KV head, by each group reduction. Share of reading the codes once: a scan is bound by look-ups, not
// by that, so the share says how far it is from free.
#include "data.hpp"
#include "main.hpp"

namespace {

struct reduction {
  pqkv::group_reduction which;
  const char* name;
};
constexpr reduction reductions[] = {{pqkv::group_reduction::probability_sum, "probability_sum"},
                                    {pqkv::group_reduction::probability_max, "probability_max"},
                                    {pqkv::group_reduction::logit_sum, "logit_sum"},
                                    {pqkv::group_reduction::logit_max, "logit_max"},
                                    {pqkv::group_reduction::none, "none"}};

template <class Isa>
void run(benchmark::State& state, const bench::search_case::axes& a, pqkv::group_reduction which) {
  auto& data = bench::kept<bench::search_case>(a);
  const std::size_t lists = pqkv::score_lists(which, 1, a.g);
  const pqkv::buffer<float> scores(lists * a.n);
  pqkv::exec::host<Isa> cpu;
  const pqkv::buffer<std::byte> scratch(pqkv::scratch_bytes<pqkv::op::scan>(cpu, {a.g, a.m, data.shape.centroids()}));
  cpu.scratch = pqkv::arena(scratch);
  const auto bytes = static_cast<double>(a.m * a.n);
  bench::timed(state, "of_code_read", bytes, bench::machine().read_bytes(bytes),
               [&] { pqkv::scan(cpu, data.table.view(), data.codes.view(), pqkv::make_view(scores.data(), lists, a.n), which, a.d); });
  bench::count_tokens(state, a.n);
}

void add_all() {
  bench::for_each_isa([]<class Isa>(Isa, const char* isa) {
    const auto add = [&](const bench::search_case::axes& a, const reduction& r) {
      bench::add(bench::named("scan", {{"m", a.m}, {"b", a.b}, {"g", a.g}, {"n", a.n}}, {{"reduction", r.name}, {"isa", isa}}),
                 [a, r](benchmark::State& state) { run<Isa>(state, a, r.which); });
    };
    for (const reduction& r : reductions) add({.n = 131072, .m = 2, .b = 6}, r);
    for (const unsigned b : {4u, 5u, 7u, 8u}) add({.n = 131072, .m = 2, .b = b}, reductions[0]);
    add({.n = 131072, .m = 4, .b = 4}, reductions[0]);
    add({.n = 131072, .m = 4, .b = 8}, reductions[0]);
    add({.n = 131072, .m = 8, .b = 8}, reductions[0]);
  });
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
