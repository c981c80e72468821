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
  CHECK(call(1, 9) == std::vector<std::string>{"pqkv::test: rank 1 refused: no room", "no room", "pqkv::test: rank 1 refused: no room"});
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
  CHECK(thrown == std::vector<std::string>{"pqkv::test: rank 1 refused: mine", "mine"});
}

TEST_CASE("mailbox: a first sum carries the votes, and says who refuses and whose call differs") {
  constexpr std::size_t ranks = 3, most = 4;
  const auto first_sum = [&](std::size_t refuses, std::size_t other, std::vector<std::uint64_t>& sums) {
    in_process_group group(ranks);
    sums.assign(ranks, 0);
    return run_ranks(ranks, [&](std::size_t rank) {
      in_process all(group, rank);
      std::vector<std::uint64_t> own(1 + most + vote_sums::count, 99), others(ranks * own.size());
      const mailbox mail{own.data(), others.data(), own.size()};
      agreement agreed("test");
      agreed.same_number(rank == other ? 2 : 1);
      agreed.attempt([&] {
        if (rank == refuses) throw pqkv::value_error("mine");
      });
      const std::size_t numbers = rank == refuses ? 0 : 2;  // a rank that refuses does not know how many there are
      for (std::size_t i = 0; i < numbers; ++i) mail.body()[i] = 10 * i + rank;
      mail.combine_first(cpu, all, agreed, numbers, most);
      sums[rank] = mail.body()[0] * 1000 + mail.body()[1] * 10 + mail.body()[2] + mail.body()[3];
    });
  };
  std::vector<std::uint64_t> sums;
  CHECK(first_sum(ranks, ranks, sums) == std::vector<std::string>(ranks));
  CHECK(sums == std::vector<std::uint64_t>(ranks, 3330));
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const std::string named = std::to_string(rank);
    std::vector<std::string> refused(ranks, "pqkv::test: rank " + named + " refused: mine");
    refused[rank] = "mine";
    CHECK(first_sum(rank, ranks, sums) == refused);
    const std::string differs = "pqkv::test: the call must be the same on all ranks, that of rank " + std::string(rank == 0 ? "1" : named);
    for (const std::string& what : first_sum(ranks, rank, sums)) CHECK(what.find(differs) == 0);
  }
}

TEST_CASE("vote_sums: only equal calls of ranks that do not refuse agree") {
  const auto agree = [](const std::vector<vote>& votes) {
    std::uint64_t sums[vote_sums::count] = {};
    for (const vote& one : votes) {
      std::uint64_t own[vote_sums::count];
      vote_sums::write(one, own);
      for (std::size_t i = 0; i < vote_sums::count; ++i) sums[i] += own[i];
    }
    return vote_sums::agree(sums, votes.size());
  };
  CHECK(agree({{0, 0, 7}}));
  CHECK(agree({{0, 0, 0xffffffffu}, {0, 0, 0xffffffffu}, {0, 0, 0xffffffffu}}));
  CHECK(!agree({{0, 0, 7}, {1, 0, 7}}));
  CHECK(!agree({{0, 0, 6}, {0, 0, 8}}));  // a mean that is a call of none
  CHECK(!agree({{0, 0, 6}, {0, 0, 7}, {0, 0, 8}}));
  CHECK(!agree({{0, 0, 0}, {0, 0, 1}}));
}

TEST_CASE("refusal_reason: a long text is cut") {
  CHECK(refusal_reason("why").text() == "why");
  CHECK(refusal_reason("").text() == "");
  const std::string text(500, 'x');
  CHECK(refusal_reason(text.c_str()).text() == text.substr(0, 8 * refusal_reason::count - 1));
}
