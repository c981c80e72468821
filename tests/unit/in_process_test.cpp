// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "cases/rank_lives.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::scale::in_process;
using pqkv::scale::in_process_group;
const pqkv::exec::host<> cpu;
}  // namespace

TEST_CASE("in_process: gathers, reduces and exchanges, again and again") {
  for (const std::size_t ranks : std::initializer_list<std::size_t>{1, 2, 5}) {
    in_process_group group(ranks);
    std::vector<std::size_t> wrong(ranks, 0);
    const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
      const in_process all(group, rank);
      for (std::size_t turn = 0; turn < 50; ++turn) {
        const std::size_t size = turn % 7;
        std::vector<std::uint64_t> own(size, rank * 100 + turn), gathered(ranks * size), to(ranks * size), from(ranks * size);
        for (std::size_t i = 0; i < to.size(); ++i) to[i] = rank * 1000 + i;
        all.all_gather(cpu, own.data(), gathered.data(), size * 8);
        all.all_to_all(cpu, to.data(), from.data(), size * 8);
        std::vector<std::uint64_t> sum = own, most = own;
        sum.resize(size), most.resize(size);
        all.all_reduce(cpu, sum.data(), size, pqkv::scale::reduction::sum);
        all.all_reduce(cpu, most.data(), size, pqkv::scale::reduction::maximum);
        for (std::size_t other = 0; other < ranks; ++other)
          for (std::size_t i = 0; i < size; ++i) {
            wrong[rank] += gathered[other * size + i] != other * 100 + turn;
            wrong[rank] += from[other * size + i] != other * 1000 + rank * size + i;
          }
        for (std::size_t i = 0; i < size; ++i) {
          wrong[rank] += sum[i] != ranks * (ranks - 1) / 2 * 100 + ranks * turn;
          wrong[rank] += most[i] != (ranks - 1) * 100 + turn;
        }
      }
    });
    CHECK(thrown == std::vector<std::string>(ranks));
    CHECK(wrong == std::vector<std::size_t>(ranks, 0));
  }
}

TEST_CASE("in_process: a rank that does not come ends the others' waiting, and all later calls") {
  in_process_group group(3, std::chrono::milliseconds(50));
  const auto thrown = run_ranks(3, [&](std::size_t rank) {
    const in_process all(group, rank);
    std::uint64_t own = rank, gathered[3];
    all.all_gather(cpu, &own, gathered, 8);
    if (rank != 1) all.all_gather(cpu, &own, gathered, 8);
  });
  CHECK(thrown[0] == "pqkv::in_process: all_gather: a rank did not come within 50 ms");
  CHECK(thrown[1] == "");
  CHECK(thrown[2] == thrown[0]);
  std::uint64_t number = 0;
  CHECK_THROWS_AS(in_process(group, 0).all_reduce(cpu, &number, 1, pqkv::scale::reduction::sum), pqkv::scale::communication_error);
}

TEST_CASE("in_process: ranks that make different calls are told so") {
  in_process_group group(2);
  const auto thrown = run_ranks(2, [&](std::size_t rank) {
    std::uint64_t own[2] = {rank, rank}, gathered[4];
    in_process(group, rank).all_gather(cpu, own, gathered, 8 + 8 * rank);
  });
  CHECK(thrown[0] == "pqkv::in_process: all_gather: the ranks make different calls");
  CHECK(thrown[1] == thrown[0]);
  CHECK_THROWS_AS(in_process_group(0), pqkv::value_error);
  CHECK_THROWS_AS(in_process(group, 2), pqkv::value_error);
}
