// SPDX-License-Identifier: Apache-2.0
// The second stage of a selection of one KV head: the joint path alone, the shortlist by the joint path, its ranking by the codes of
// residuals, and both together; m 2, b 6 before m2 4, b2 8. Tables are not included; distance_table has them.
#include "data.hpp"
#include "main.hpp"

namespace {

constexpr std::size_t factor = 4;

/// A search case with a second stage.
struct two_stage_case {
  explicit two_stage_case(const bench::search_case::axes& a)
      : first(a), shape(pqkv::residual_shape(first.shape, 4, 8)), book(shape), codes(shape, a.n), table(a.g, shape) {
    const pqkv::exec::host<> cpu;
    const pqkv::buffer<std::uint8_t> outcome(4);
    pqkv::train_residual(cpu, first.key_view(), first.codes.view(), first.book.view(), book.mutable_view(),
                         pqkv::make_view(outcome.data(), 1, 4), {.iterations = 4, .seed = 1, .rows_per_centroid = 64});
    pqkv::encode_residual(cpu, first.key_view(), first.codes.view(), first.book.view(), book.view(), codes.mutable_view());
    pqkv::inner_product_table(cpu, first.query_view(), book.view(), table.mutable_view());
  }

  bench::search_case first;
  pqkv::pq_shape shape;
  pqkv::codebook book;
  pqkv::residual_codes codes;
  pqkv::distance_table table;
};

enum class part { one_stage, shortlist, rerank, both };

template <class Isa>
void run(benchmark::State& state, const bench::search_case::axes& a, std::size_t k, part what) {
  auto& data = bench::kept<two_stage_case>(a);
  const std::size_t listed = what == part::one_stage ? k : factor * k, c = data.first.shape.centroids();
  const pqkv::buffer<std::int32_t> shortlist(listed), indices(k);
  const pqkv::buffer<std::uint32_t> lengths(1), counts(1);
  const pqkv::middle_range range{0, static_cast<std::uint32_t>(a.n), static_cast<std::uint32_t>(k)};
  const pqkv::middle_range wide{0, static_cast<std::uint32_t>(a.n), static_cast<std::uint32_t>(listed)};
  pqkv::exec::host<Isa> cpu;
  const pqkv::buffer<std::byte> scratch(
      std::max(pqkv::scratch_bytes<pqkv::op::retrieve>(cpu, {1, a.g, a.m, c, a.n, data.first.shape.cells()}),
               pqkv::scratch_bytes<pqkv::op::rerank>(cpu, {1, a.g, a.m * c + 4 * 256, listed})));
  cpu.scratch = pqkv::arena(scratch);
  const auto make_list = [&] {
    pqkv::retrieve(cpu, data.first.table.view(), data.first.codes.view(), data.first.index.view(), pqkv::make_view(&wide, 1),
                   pqkv::make_view(shortlist.data(), 1, listed), pqkv::make_view(lengths.data(), 1),
                   {.head_dim = a.d, .path = pqkv::search_path::joint});
  };
  const auto rank = [&] {
    pqkv::rerank(cpu, {data.first.table.view(), data.table.view()}, {data.first.codes.view(), data.codes.view()},
                 pqkv::as_const(pqkv::make_view(shortlist.data(), 1, listed)), pqkv::as_const(pqkv::make_view(lengths.data(), 1)),
                 pqkv::make_view(&range, 1), pqkv::make_view(indices.data(), 1, k), pqkv::make_view(counts.data(), 1), {.head_dim = a.d});
  };
  make_list();
  bench::timed(state, nullptr, 0, 0, [&] {
    if (what != part::rerank) make_list();
    if (what == part::rerank || what == part::both) rank();
  });
  bench::count_tokens(state, a.n);
}

void add_all() {
  bench::for_each_isa([]<class Isa>(Isa, const char* isa) {
    for (const std::size_t n : {131072u, 1048576u}) {
      if (bench::is_scalar<Isa> && n != 131072) continue;
      for (const auto& [name, what] : {std::pair{"one_stage", part::one_stage}, std::pair{"shortlist", part::shortlist},
                                       std::pair{"rerank", part::rerank}, std::pair{"both", part::both}}) {
        const bench::search_case::axes a{.n = n, .m = 2, .b = 6};
        bench::add(bench::named("rerank", {{"m", 2}, {"b", 6}, {"m2", 4}, {"b2", 8}, {"g", a.g}, {"n", n}, {"k", 2048}},
                                {{"part", name}, {"isa", isa}}),
                   [a, measured = what](benchmark::State& state) { run<Isa>(state, a, 2048, measured); });
      }
    }
  });
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, add_all, bench::clustered_keys); }
