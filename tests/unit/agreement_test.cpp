// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "cases/rank_lives.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
const pqkv::exec::host<> cpu;

/// Every rank makes one call; `refuses` is the rank that throws in it, `other` the rank whose call is another.
std::vector<std::string> call(std::size_t refuses, std::size_t other) {
  in_process_group group(3);
  return run_ranks(3, [&](std::size_t rank) {
    in_process all(group, rank);
    vote votes[3];
    agreement agreed("test");
    agreed.same_number(rank == other ? 2 : 1);
    agreed.attempt([&] {
      if (rank == refuses) throw pqkv::capacity_error("no room");
    });
    bool went_on = false;
    agreed.attempt([&] { went_on = true; });
    CHECK(went_on == (rank != refuses));
    agreed.commit(cpu, all, votes);
  });
}
}  // namespace

TEST_CASE("agreement: one refusal is everybody's, and the one who refused says why") {
  CHECK(call(9, 9) == std::vector<std::string>{"", "", ""});
  CHECK(call(1, 9) == std::vector<std::string>{"pqkv::test: rank 1 refused", "no room", "pqkv::test: rank 1 refused"});
}

TEST_CASE("agreement: calls that differ are refused on every rank") {
  const auto thrown = call(9, 2);
  CHECK(thrown[0] == "pqkv::test: the call must be the same on all ranks, that of rank 2 differs from that of rank 0");
  CHECK(thrown[1] == thrown[0]);
  CHECK(thrown[2] == thrown[0]);
}

TEST_CASE("mailbox: bodies arrive in the order of ranks, and a refusal inside a reduction names its rank") {
  in_process_group group(2);
  std::vector<std::uint64_t> got(2);
  const auto thrown = run_ranks(2, [&](std::size_t rank) {
    in_process all(group, rank);
    std::uint64_t own[4] = {}, others[8] = {};
    const mailbox mail{own, others, 4};
    agreement agreed("test");
    mail.body()[0] = 5 + rank, mail.body()[1] = 7;
    mail.exchange(cpu, all, agreed, 2);
    got[rank] = mail.body_of(0, 2)[0] * 100 + mail.body_of(1, 2)[0] * 10 + mail.body_of(1, 2)[1];
    mail.body()[0] = 1 + rank;
    mail.combine(cpu, all, agreed, 1, reduction::sum);
    got[rank] = got[rank] * 10 + mail.body()[0];
    agreed.attempt([&] {
      if (rank == 1) throw pqkv::value_error("mine");
    });
    mail.combine(cpu, all, agreed, 1, reduction::maximum);
  });
  CHECK(got == std::vector<std::uint64_t>{5673, 5673});
  CHECK(thrown == std::vector<std::string>{"pqkv::test: rank 1 refused", "mine"});
}
