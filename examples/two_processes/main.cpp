// SPDX-License-Identifier: Apache-2.0
// A context 1.8 times as long as either of two processes can hold: mpirun -n 2 example_two_processes. Each process limits its own memory,
// finds the longest context that one cache can hold then, and takes its half in a context-parallel one. Then a question is asked whose
// answer one process holds, and another whose answer the other holds: both processes get both answers.
//
// Open MPI as root wants OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 in the environment.
#include <pqkv/adapt/mpi.hpp>

#include <sys/resource.h>

#include <cstdio>
#include <fstream>
#include <new>
#include <random>
#include <string>
#include <vector>

#include <pqkv/pqkv.hpp>
#include <pqkv/scale/context_parallel.hpp>

namespace {
using rows = pqkv::dense_rows<float>;
using one_cache = pqkv::pqcache<rows>;
using shared_cache = pqkv::scale::context_parallel<rows, pqkv::scale::mpi_ranks>;

constexpr std::size_t h = 4, hq = 8, d = 64, n = 262144, chunk = 4096;
constexpr std::size_t facts[] = {80000, 200000};  // one in each half of the context
constexpr std::size_t memory_mib = 288;           // of each process: half of the context's rows take 256, and training and messages some

/// Allows this process so much more memory than it has.
bool limit_memory(std::size_t more_mib) {
  std::ifstream status("/proc/self/status");
  std::size_t used_kib = 0;
  for (std::string word; status >> word;)
    if (word == "VmData:") status >> used_kib;
  const rlimit limit{used_kib * 1024 + (more_mib << 20), used_kib * 1024 + (more_mib << 20)};
  return used_kib != 0 && setrlimit(RLIMIT_DATA, &limit) == 0;
}

/// The key of a token and head. A model's layer would make it; here a fact's key is four times as long as others, so that its query finds
/// nothing else.
void write_key(std::size_t head, std::size_t t, float* key) {
  std::minstd_rand random(static_cast<unsigned>(t * h + head + 1));
  random.discard(2);
  const bool is_fact = t == facts[0] || t == facts[1];
  for (std::size_t i = 0; i < d; ++i) key[i] = (static_cast<float>(random() % 2048) / 1024 - 1) * (is_fact ? 4.0f : 1.0f);
}
/// The value is 1 for the first fact, 2 for the second, 0 elsewhere.
float value_of(std::size_t t) { return t == facts[0] ? 1.0f : t == facts[1] ? 2.0f : 0.0f; }

template <class Params>
Params settings(std::size_t capacity) {
  Params p;
  p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = capacity;
  p.budget.tokens = 1024;
  p.selector.subspaces = 4, p.selector.bits = 6;
  p.selector.train.rows_per_centroid = 64;
  return p;
}

/// The longest context that one cache can hold in this process.
std::size_t longest() {
  std::size_t fits = 0, too_long = n + 1;
  while (too_long - fits > 1) {
    const std::size_t tokens = (fits + too_long) / 2;
    try {
      const one_cache all(settings<one_cache::params>(tokens));
      fits = tokens;
    } catch (const std::bad_alloc&) {
      too_long = tokens;
    }
  }
  return fits;
}

int run(const pqkv::scale::mpi_ranks& ranks) {
  const pqkv::exec::host<> cpu;
  std::vector<float> keys(h * chunk * d), values(h * chunk * d);
  if (!limit_memory(memory_mib)) return std::puts("the memory limit could not be set"), 1;
  const std::size_t alone = longest();
  if (ranks.rank() == 0) std::printf("one process with %zu MiB holds at most %zu tokens; the context has %zu\n", memory_mib, alone, n);
  if (alone * 18 > n * 10) return std::puts("more than 1 / 1.8 of the context fits one process: too little is shown"), 1;

  auto params = settings<shared_cache::params>(n);
  params.run = n / ranks.size();  // the first half of the context to the first process, the second to the other
  shared_cache cache(cpu, ranks, params);
  for (std::size_t first = 0; first < n; first += chunk) {
    const std::size_t before = cache.layout().held(ranks.rank(), first), own = cache.layout().held(ranks.rank(), first + chunk) - before;
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t i = 0; i < own; ++i) {
        const std::size_t t = cache.layout().position(ranks.rank(), before + i);
        write_key(head, t, &keys[(head * own + i) * d]);
        std::fill_n(&values[(head * own + i) * d], d, value_of(t));
      }
    cache.prefill(cpu, 0, pqkv::make_view(keys.data(), h, own, d), pqkv::make_view(values.data(), h, own, d), chunk,
                  first + chunk == n ? pqkv::chunk::last : pqkv::chunk::more);
  }
  std::size_t right = 0;
  for (const std::size_t fact : facts) {
    std::vector<float> query(hq * d), out(hq * d);
    for (std::size_t q = 0; q < hq; ++q) write_key(q / (hq / h), fact, &query[q * d]);
    cache.attend(cpu, pqkv::make_view(query.data(), 1, hq, d), pqkv::make_view(out.data(), 1, hq, d));
    bool is_found = true;
    for (const float x : out) is_found &= x > 0.9f * value_of(fact) && x < 1.1f * value_of(fact);
    right += is_found ? 1 : 0;
  }
  std::printf("process %zu of %zu: %zu tokens of its own, %zu of 2 questions answered\n", ranks.rank(), ranks.size(), cache.held(0), right);
  return right == 2 ? 0 : 1;
}
}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int result = 1;
  try {
    result = run(pqkv::scale::mpi_ranks(MPI_COMM_WORLD));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return result;
}
