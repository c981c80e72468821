// SPDX-License-Identifier: Apache-2.0
// One codebook for all ranks: the sample that ranks gather, and the bits that they train, do not depend on how many ranks there are.
#include <doctest/doctest.h>

#include "cases/rank_lives.hpp"

namespace {
using namespace pqkv_cases;
using player = rank_player<pqkv::half>;
const pqkv::exec::host<> cpu;
}  // namespace

TEST_CASE("context_training: the gathered sample is that of all rows, on every rank") {
  random_source random(1);
  for (const std::size_t ranks : std::initializer_list<std::size_t>{1, 3, 4}) {
    const std::size_t h = 2, d = 8, n = 300, first = 5, head = 3;
    rows<float> all(head + h, n, d);
    fill(all.view(), content::gaussian, random);
    const pqkv::scale::token_layout layout{ranks, 1 + random.below(9), random.below(2) * 40};
    const std::size_t count = 20 + random.below(200), piece = 1 + random.below(40);
    const pqkv::stratified_sample sample{n - first, count, {7, 0}};
    std::vector<int> wrong(ranks, 0);
    pqkv::scale::in_process_group group(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      rows<float> own(head + h, layout.held(rank, n), d);
      for (std::size_t i = 0; i < head + h; ++i)
        for (std::size_t place = 0; place < layout.held(rank, n); ++place)
          for (std::size_t e = 0; e < d; ++e) own(i, place, e) = all(i, layout.position(rank, place), e);
      rows<float> out(h, count, d);
      pqkv::scale::in_process member(group, rank);
      const auto store = pqkv::strided_kv(own.view(), own.view());
      pqkv::scale::gather_sample(cpu, member, store, head, sample, first, layout, out.view(), piece);
      for (std::size_t i = 0; i < h; ++i)
        for (std::size_t t = 0; t < count; ++t)
          for (std::size_t e = 0; e < d; ++e) wrong[rank] += out(i, t, e) != all(head + i, first + sample(t), e);
    });
    CHECK(thrown == std::vector<std::string>(ranks));
    CHECK(wrong == std::vector<int>(ranks, 0));
  }
}

TEST_CASE("context_training: any number of ranks trains the same bits") {
  random_source random(2);
  rows<pqkv::half> keys(2, 700, 16);
  fill(keys.view(), content::offset, random);
  player::cache_type::params p;
  p.batch = 2, p.kv_heads = 2, p.query_heads = 2, p.head_dim = 16, p.capacity = 800;
  p.selector.subspaces = 2, p.selector.bits = 5, p.selector.train.rows_per_centroid = 9, p.block = 10;
  std::vector<float> first;
  for (const std::size_t ranks : std::initializer_list<std::size_t>{1, 2, 5}) {
    pqkv::scale::in_process_group group(ranks);
    std::vector<std::vector<float>> books(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      player one(pqkv::scale::in_process(group, rank), p);
      const pqkv::view<const pqkv::half, 3> all = keys.view();
      one.prefill(1, all, all, pqkv::chunk::last);
      const auto book = one.cache().index().view().sequence(1).book;
      books[rank].assign(book.centroids.data, book.centroids.data + book.centroids.size());
      books[rank].insert(books[rank].end(), book.mean.data, book.mean.data + book.mean.size());
    });
    REQUIRE(thrown == std::vector<std::string>(ranks));
    if (first.empty()) first = books[0];
    for (const auto& book : books) CHECK(book == first);
  }
  CHECK(first.size() == 2 * 16 * 32 + 2 * 16);
}
