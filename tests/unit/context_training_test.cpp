// SPDX-License-Identifier: Apache-2.0
// One codebook for all ranks: the sample that ranks gather, and the bits that they train, do not depend on how many ranks there are.
#include <doctest/doctest.h>

#include "cases/allocation_count.hpp"
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
      pqkv::scale::gather_sample(cpu, member, store, head, sample, first, layout, out.view(),
                                 pqkv::scale::gathered_pieces<float>(ranks, piece, h * d));
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
  for (const std::size_t ranks : std::initializer_list<std::size_t>{1, 2, 3, 4, 5, 8}) {
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

TEST_CASE("context_training: a rank without memory for training makes all refuse") {
  constexpr std::size_t ranks = 3, h = 2, d = 16, n = 400;
  player::cache_type::params p;
  p.kv_heads = h, p.query_heads = 2, p.head_dim = d, p.capacity = n;
  p.selector.subspaces = 2, p.selector.bits = 4, p.selector.train.iterations = 2, p.block = 8;
  random_source random(3);
  rows<pqkv::half> keys(h, n, d);
  fill(keys.view(), content::gaussian, random);
  std::size_t refusals = 0;
  for (std::size_t k = 1, failed = ranks; failed != 0; ++k) {
    std::vector<int> own(ranks, 0), others(ranks, 0);  // who had no memory, and who was told so
    pqkv::scale::in_process_group group(ranks, std::chrono::seconds(5));
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      const pqkv::scale::in_process member(group, rank);
      const auto meet = [&] { member.all_gather(cpu, "", nullptr, 0); };
      player::cache_type cache(cpu, member, p);
      const std::size_t held = cache.layout().held(rank, n);
      rows<pqkv::half> part(h, held, d);
      for (std::size_t head = 0; head < h; ++head)
        for (std::size_t i = 0; i < held; ++i)
          for (std::size_t e = 0; e < d; ++e) part(head, i, e) = keys(head, cache.layout().position(rank, i), e);
      const auto prefill = [&] { cache.prefill(cpu, 0, part.view(), part.view(), n); };
      meet();
      if (rank == 0) fail_allocation(k);
      meet();
      try {
        prefill();
      } catch (const std::bad_alloc&) {
        own[rank] = 1;
      } catch (const pqkv::scale::rank_error&) {
        others[rank] = 1;
      }
      meet();
      if (rank == 0) fail_allocation(0);
      meet();
      if (own[rank] + others[rank] == 0) return;
      CHECK(cache.size(0) == 0);
      prefill();
      CHECK(cache.at(0).learned != 0);
    });
    for (const std::string& what : thrown) REQUIRE(what == "");
    failed = static_cast<std::size_t>(std::count(own.begin(), own.end(), 1));
    CHECK(failed + static_cast<std::size_t>(std::count(others.begin(), others.end(), 1)) == (failed != 0 ? ranks : 0));
    refusals += failed;
  }
  CHECK(refusals >= 12);  // of each rank: the sample, two pieces and their sizes
}
