// SPDX-License-Identifier: Apache-2.0
// Both ways to merge all ranks' partial outputs give the same bits, on every rank: those of merging them one after the other.
#include <doctest/doctest.h>

#include "cases/counting_communicator.hpp"
#include "cases/rank_lives.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
const pqkv::exec::host<> cpu;
}  // namespace

TEST_CASE("partial_outputs: merged on every rank as one after the other, gathered or shared") {
  random_source random(4);
  std::size_t shared = 0;
  for (int i = 0; i < 16; ++i) {
    const std::size_t every_size[] = {1, 2, 3, 8}, ranks = every_size[i % 4],
                      heads = i < 8 ? 1 + random.below(40) : 300 + random.below(400);
    const partial_outputs partial{heads, 64, ranks};
    CAPTURE(ranks);
    CAPTURE(heads);
    std::vector<std::vector<float>> lse(ranks), out(ranks);
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      for (std::size_t q = 0; q < heads; ++q) lse[rank].push_back(random.below(5) == 0 ? -INFINITY : 10 * random.gaussian());
      for (std::size_t e = 0; e < heads * 64; ++e) out[rank].push_back(random.gaussian());
    }
    std::vector<float> expected_lse = lse[0], expected = out[0];
    for (std::size_t rank = 1; rank < ranks; ++rank)
      pqkv::merge(cpu, pqkv::make_view(expected.data(), heads, 64), pqkv::make_view(expected_lse),
                  pqkv::make_view(std::as_const(out[rank]), heads, 64), pqkv::make_view(std::as_const(lse[rank])));
    std::vector<int> right(ranks, 0);
    std::vector<exchanged> counts(ranks);
    in_process_group group(ranks);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      counting_communicator<in_process> all{{group, rank}, &counts[rank]};
      std::vector<std::uint64_t> own(partial.room()), received(ranks * partial.room());
      const mailbox mail{own.data(), received.data(), partial.room()};
      agreement agreed("test");
      const auto mine = partial.own(mail);
      std::copy(lse[rank].begin(), lse[rank].end(), mine.lse.data);
      std::copy(out[rank].begin(), out[rank].end(), mine.out.data);
      std::vector<float> merged(heads * 64), sums(heads);
      partial.merge_all(cpu, all, agreed, mail, {pqkv::make_view(sums), pqkv::make_view(merged, heads, 64)});
      right[rank] = merged == expected && sums == expected_lse ? 1 : 0;
    });
    CHECK(thrown == std::vector<std::string>(ranks));
    CHECK(right == std::vector<int>(ranks, 1));
    for (const exchanged& one : counts) CHECK(one.all_to_alls == (partial.shares_merging() ? 1 : 0));
    shared += partial.shares_merging() ? 1 : 0;
  }
  CHECK(shared > 3);
  CHECK(shared < 12);
}
