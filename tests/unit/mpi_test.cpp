// SPDX-License-Identifier: Apache-2.0
// A program for mpirun: context-parallel lives over processes. Every rank plays the same scripts to its share and to a pqcache that holds
// everything (in local mode to the plain oracle), and compares: its list must be the part of the whole list that is its own, its output the
// whole output within the rounding of merge(). Then refusals of every rank in turn, files that other numbers of ranks load, and the
// collectives' errors. Prints one line on rank 0; a rank that finds a fault says so and exits with 1.
//
//   mpirun -n RANKS pqkv_mpi_tests RANKS
#include <pqkv/adapt/mpi.hpp>

#include <cstdio>
#include <cstdlib>

#include "cases/local_player.hpp"
#include "cases/rank_refusals.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
const pqkv::exec::host<> cpu;
static_assert(communicator_for<mpi_ranks, pqkv::exec::host<>>);
bool transport_fails = false;
}  // namespace

/// In place of MPI's own, as MPI's profiling interface allows.
extern "C" int MPI_Test(MPI_Request* request, int* done, MPI_Status* status) {
  return transport_fails ? MPI_ERR_OTHER : PMPI_Test(request, done, status);
}

namespace {

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

const char* play_lives(const mpi_ranks& ranks, selection_mode mode, std::size_t& listed) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    random_source random(seed);
    rank_player<float, mpi_ranks>::cache_type::params p;
    p.batch = 2, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 300 + random.below(300);
    p.budget.ratio = 0.3, p.selector.subspaces = 2, p.selector.bits = 4, p.selector.refresh = 1.3, p.selector.refresh_iterations = 0;
    p.selector.reduction = static_cast<pqkv::group_reduction>(seed);
    p.block = 1 + random.below(20), p.run = random.below(2) * 50, p.selection_over_ranks = mode;
    p.agreement = static_cast<agreement_mode>(seed % 2), p.step_queries = random.below(3);
    const std::size_t lists = pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads);
    const life_script script{p.batch, p.kv_heads, p.query_heads, p.head_dim, lists, p.capacity, 25, content::clustered, random.bits()};
    whole_player<float>::cache_type::params all{p};
    all.budget = p.budget, all.selector = p.selector;
    whole_player<float> whole(all);
    rank_player<float, mpi_ranks> own(ranks, p);
    local_player<float> oracle(all, own.cache().layout());
    const answers expected = mode == selection_mode::local ? script.play<float>(oracle) : script.play<float>(whole);
    if (const char* fault = fault_of(script.play<float>(own), expected, own.cache().layout(), ranks.rank(), listed)) return fault;
  }
  return nullptr;
}

using player = rank_player<float, mpi_ranks>;
constexpr std::size_t h = 2, hq = 4, d = 16, n = 333;

template <class Params>
Params settings(std::size_t block) {
  Params p;
  p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = 400;
  p.budget.ratio = 0.2, p.selector.subspaces = 2, p.selector.bits = 4, p.selector.refresh_iterations = 0;
  if constexpr (requires { p.block; }) p.block = block;
  return p;
}
rows<float> drawn(std::size_t a, std::size_t b, std::uint64_t seed) {
  random_source random(seed);
  rows<float> made(a, b, d);
  fill(made.view(), content::clustered, random);
  return made;
}
void prefill(auto& one) {
  const auto keys = drawn(h, n, 1), values = drawn(h, n, 2);
  one.prefill(0, keys.view(), values.view(), pqkv::chunk::last);
}
answers asked(auto& one) {
  const auto query = drawn(1, hq, 3);
  return {ask(one, pqkv::as_const(query.view()), h, 400, {})};
}

/// What every rank in turn refuses, in every way of voting.
const char* refusals(const mpi_ranks& ranks) {
  struct way {
    agreement_mode agreement;
    selection_mode mode;
    std::size_t step_queries;  // 700: messages so long that ranks share the merging
  };
  static std::string fault;
  for (const way how :
       {way{agreement_mode::each_call, selection_mode::exact, 0}, way{agreement_mode::with_exchange, selection_mode::exact, 5},
        way{agreement_mode::with_exchange, selection_mode::local, 0}, way{agreement_mode::with_exchange, selection_mode::local, 700}}) {
    player one(ranks, refusal_params<player::cache_type::params>(how.agreement, how.mode, pqkv::group_reduction::probability_sum,
                                                                 how.step_queries));
    const auto keys = refusal_rows(refusal_shape::h, refusal_shape::prompt, refusal_shape::d, 1);
    one.prefill(0, keys.view(), keys.view(), pqkv::chunk::last);
    const refused_step right;
    const auto query = refusal_rows(1, refusal_shape::hq, refusal_shape::d, 6);
    const auto answered = [&] { return ask(one, pqkv::as_const(query.view()), refusal_shape::h, refusal_shape::most, right.step()); };
    const answer before = answered();
    for (std::size_t refuses = 0; refuses < ranks.size(); ++refuses) {
      const auto is_sent = [&](step_verb verb) {
        return how.agreement == agreement_mode::each_call || verb == step_verb::attend ||
               (verb == step_verb::retrieve && how.mode == selection_mode::exact);
      };
      fault = every_refusal(one, ranks.rank(), refuses, right, is_sent);
      if (fault.empty())
        fault = unless_all_refused(ended([&] { one.cache().truncate(cpu, 0, ranks.rank() == refuses ? 1000 : 5); }), ranks.rank(), refuses,
                                   "n must be at most");
      if (!fault.empty()) return fault.c_str();
    }
    const answer after = answered();
    if (one.cache().size(0) != refusal_shape::prompt || after.lists != before.lists || after.out != before.out)
      return "a refusal changed a slot";
  }
  return nullptr;
}

/// All ranks save; those with even and with odd numbers are then two groups, each of which loads all files into a cache of another layout.
const char* load_by_others(mpi_ranks ranks, MPI_Comm comm) {
  player one(ranks, settings<player::cache_type::params>(8));
  prefill(one);
  const std::vector<std::byte> file = saved(cpu, one.cache(), 0);
  std::uint64_t bytes = file.size();
  std::vector<std::uint64_t> sizes(ranks.size());
  ranks.all_gather(cpu, reinterpret_cast<const std::byte*>(&bytes), reinterpret_cast<std::byte*>(sizes.data()), sizeof bytes);
  const std::size_t room = *std::max_element(sizes.begin(), sizes.end());
  std::vector<std::byte> own(file), all(ranks.size() * room);
  own.resize(room);
  ranks.all_gather(cpu, own.data(), all.data(), room);
  std::vector<std::vector<std::byte>> files;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) files.emplace_back(&all[rank * room], &all[rank * room] + sizes[rank]);
  std::vector<file_source> sources;
  for (const auto& each : files) sources.push_back({each});

  MPI_Comm group;
  MPI_Comm_split(comm, static_cast<int>(ranks.rank() % 2), 0, &group);
  const mpi_ranks others(group);
  player other(others, settings<player::cache_type::params>(5));
  other.cache().load(cpu, 0, sources);
  whole_player<float> whole(settings<whole_player<float>::cache_type::params>(0));
  prefill(whole);
  std::size_t listed = 0;
  const char* const fault = fault_of(asked(other), asked(whole), other.cache().layout(), others.rank(), listed);
  MPI_Comm_free(&group);
  return fault == nullptr && listed == 0 ? "nothing was loaded" : fault;
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

/// Whether call() throws a communication_error with these words.
template <class Call>
bool cannot_end(const char* words, const Call& call) {
  try {
    call();
  } catch (const communication_error& error) {
    return std::strstr(error.what(), words) != nullptr;
  }
  return false;
}
void gather(const mpi_ranks& ranks) {
  const std::uint64_t own = 0;
  std::vector<std::uint64_t> all(ranks.size());
  ranks.all_gather(cpu, reinterpret_cast<const std::byte*>(&own), reinterpret_cast<std::byte*>(all.data()), 8);
}

/// Rank 0 stays away from a verb until the others have given up.
const char* time_limit(MPI_Comm comm) {
  if (mpi_ranks(comm).size() == 1) return nullptr;
  const mpi_ranks ranks(comm, std::chrono::milliseconds(200));
  player one(ranks, settings<player::cache_type::params>(8));
  const char* fault = nullptr;
  if (ranks.rank() != 0) {
    if (!cannot_end("a rank did not come within 200 ms", [&] { one.cache().reset(cpu, 0); })) fault = "no error where a rank stayed away";
    if (!cannot_end("an earlier call gave up", [&] { one.cache().reset(cpu, 0); })) fault = "no error after a call that gave up";
  }
  MPI_Barrier(MPI_COMM_WORLD);
  if (ranks.rank() == 0) gather(ranks);  // the others' part of it has begun: it can end
  return fault;
}

/// What MPI reports, and messages that are too long for it.
const char* errors(MPI_Comm comm) {
  const mpi_ranks ranks(comm);
  try {
    ranks.all_gather(cpu, nullptr, nullptr, std::size_t{1} << 31);
    return "no error of a message of 2 GiB";
  } catch (const pqkv::value_error&) {
  }
  transport_fails = true;
  const bool is_reported = cannot_end("mpi_ranks: MPI_Iallgather: ", [&] { gather(ranks); });
  transport_fails = false;
  if (!is_reported) return "no error of MPI's";
  return cannot_end("an earlier call gave up", [&] { gather(ranks); }) ? nullptr : "no error after one of MPI's";
}
}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm own, late, broken;
  MPI_Comm_dup(MPI_COMM_WORLD, &own);
  MPI_Comm_dup(MPI_COMM_WORLD, &late);
  MPI_Comm_dup(MPI_COMM_WORLD, &broken);
  const mpi_ranks ranks(own);
  std::size_t listed = 0;
  const char* fault = argc == 2 && std::strtoul(argv[1], nullptr, 10) == ranks.size() ? nullptr : "not as many ranks as the argument says";
  try {
    if (fault == nullptr) fault = play_lives(ranks, selection_mode::exact, listed);
    if (fault == nullptr) fault = play_lives(ranks, selection_mode::local, listed);
    if (fault == nullptr) fault = refusals(ranks);
    if (fault == nullptr) fault = load_by_others(ranks, own);
    if (fault == nullptr) fault = exchange_pieces(ranks);
    if (fault == nullptr) fault = time_limit(late);
    if (fault == nullptr) fault = errors(broken);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %zu: %s\n", ranks.rank(), error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  if (fault != nullptr) {
    std::fprintf(stderr, "rank %zu: %s\n", ranks.rank(), fault);
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  if (listed == 0) std::fprintf(stderr, "rank %zu: no tokens of its own were compared\n", ranks.rank());
  if (ranks.rank() == 0) std::printf("%zu ranks select as one, %zu tokens of rank 0 compared\n", ranks.size(), listed);
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
  return listed != 0 ? 0 : 1;
}
