// SPDX-License-Identifier: Apache-2.0
// A program for mpirun: context-parallel lives over processes. Every rank plays the same scripts to its share and to a pqcache that holds
// everything, and compares: its list must be the part of the whole list that is its own, its output the whole output within the rounding
// of merge(). Then the collectives' errors. Prints one line on rank 0; a rank that finds a fault says so and exits with 1.
#include <pqkv/adapt/mpi.hpp>

#include <cstdio>

#include "cases/rank_lives.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
const pqkv::exec::host<> cpu;
static_assert(communicator_for<mpi_ranks, pqkv::exec::host<>>);

/// Compares a life's answers. Returns what is wrong, or null.
const char* fault_of(const answers& own, const answers& whole, const token_layout& layout, std::size_t rank, std::size_t& listed) {
  for (std::size_t step = 0; step < whole.size(); ++step) {
    for (std::size_t list = 0; list < whole[step].lists.size(); ++list) {
      std::vector<std::int32_t> mine;
      for (const std::int32_t t : whole[step].lists[list])
        if (layout.owner(static_cast<std::size_t>(t)) == rank) mine.push_back(t);
      if (own[step].lists[list] != mine) return "a list differs";
      listed += mine.size();
    }
    if (!(distance(own[step].out, whole[step].out) < 2e-5f)) return "an output differs";
    if (!(distance(own[step].lse, whole[step].lse) < 2e-5f)) return "a log-sum-exp differs";
  }
  return nullptr;
}

const char* play_lives(const mpi_ranks& ranks, std::size_t& listed) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    random_source random(seed);
    rank_player<float, mpi_ranks>::cache_type::params p;
    p.batch = 2, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 300 + random.below(300);
    p.budget.ratio = 0.3, p.selector.subspaces = 2, p.selector.bits = 4, p.selector.refresh = 1.3, p.selector.refresh_iterations = 0;
    p.selector.reduction = static_cast<pqkv::group_reduction>(seed);
    p.block = 1 + random.below(20), p.run = random.below(2) * 50;
    const std::size_t lists = pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads);
    const life_script script{p.batch, p.kv_heads, p.query_heads, p.head_dim, lists, p.capacity, 25, content::clustered, random.bits()};
    whole_player<float>::cache_type::params all{p};
    all.budget = p.budget, all.selector = p.selector;
    whole_player<float> whole(all);
    rank_player<float, mpi_ranks> own(ranks, p);
    const answers expected = script.play<float>(whole);
    if (const char* fault = fault_of(script.play<float>(own), expected, own.cache().layout(), ranks.rank(), listed)) return fault;
  }
  return nullptr;
}

const char* exchange_pieces(mpi_ranks ranks) {
  const std::size_t size = ranks.size();
  std::vector<std::uint64_t> to(size), from(size);
  for (std::size_t other = 0; other < size; ++other) to[other] = ranks.rank() * 100 + other;
  ranks.all_to_all(cpu, reinterpret_cast<const std::byte*>(to.data()), reinterpret_cast<std::byte*>(from.data()), 8);
  for (std::size_t other = 0; other < size; ++other)
    if (from[other] != other * 100 + ranks.rank()) return "all_to_all";
  std::uint64_t most = ranks.rank();
  ranks.all_reduce(cpu, &most, 1, reduction::maximum);
  return most == size - 1 ? nullptr : "all_reduce";
}

/// Rank 0 stays away from an exchange until the others have given up.
const char* time_limit(MPI_Comm comm) {
  const mpi_ranks ranks(comm, std::chrono::milliseconds(200));
  const std::uint64_t own = 0;
  std::vector<std::uint64_t> all(ranks.size());
  const auto gather = [&] { ranks.all_gather(cpu, reinterpret_cast<const std::byte*>(&own), reinterpret_cast<std::byte*>(all.data()), 8); };
  if (ranks.size() == 1) return nullptr;
  if (ranks.rank() != 0) try {
      gather();
      return "no error where a rank stayed away";
    } catch (const communication_error&) {
    }
  MPI_Barrier(MPI_COMM_WORLD);
  if (ranks.rank() == 0) gather();  // the others' part of it has begun: it can end
  return nullptr;
}
}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm own, late;
  MPI_Comm_dup(MPI_COMM_WORLD, &own);
  MPI_Comm_dup(MPI_COMM_WORLD, &late);
  const mpi_ranks ranks(own);
  std::size_t listed = 0;
  const char* fault = nullptr;
  try {
    fault = play_lives(ranks, listed);
    if (fault == nullptr) fault = exchange_pieces(ranks);
    if (fault == nullptr) fault = time_limit(late);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %zu: %s\n", ranks.rank(), error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  if (fault != nullptr) {
    std::fprintf(stderr, "rank %zu: %s\n", ranks.rank(), fault);
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  if (ranks.rank() == 0) std::printf("%zu ranks select as one, %zu tokens of rank 0 compared\n", ranks.size(), listed);
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
  return listed != 0 ? 0 : 1;
}
