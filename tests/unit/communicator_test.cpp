// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "cases/counting_communicator.hpp"
#include <pqkv/exec/host.hpp>
#include <pqkv/scale/in_process.hpp>

namespace {
using host = pqkv::exec::host<>;
struct no_reduce {
  std::size_t rank() const { return 0; }
  std::size_t size() const { return 1; }
  void all_gather(const host&, const std::byte*, std::byte*, std::size_t) const {}
  void all_to_all(const host&, const std::byte*, std::byte*, std::size_t) const {}
};
static_assert(pqkv::scale::communicator_for<pqkv::scale::in_process, host>);
static_assert(pqkv::scale::communicator_for<pqkv_cases::counting_communicator<pqkv::scale::in_process>, host>);
static_assert(!pqkv::scale::communicator_for<no_reduce, host>);
static_assert(!pqkv::scale::communicator_for<int, host>);
}  // namespace

TEST_CASE("communicator: errors have types of their own, and say who and what") {
  CHECK_THROWS_WITH_AS(pqkv::scale::detail::raise_communication("mpi", "all_gather", "it took too long"),
                       "pqkv::mpi: all_gather: it took too long", pqkv::scale::communication_error);
  const pqkv::scale::rank_error error(3, "pqkv::attend: rank 3 refused");
  CHECK(error.rank == 3);
}
