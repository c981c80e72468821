// SPDX-License-Identifier: Apache-2.0
// A context twice as long as either of two processes can hold: mpirun -n 2 example_two_processes. Each process limits its own memory,
// shows that one cache of the whole context does not fit, and takes its share of a context-parallel one. Then a question is asked whose
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

constexpr std::size_t h = 4, hq = 8, d = 64, n = 65536, chunk = 8192;
constexpr std::size_t facts[] = {20000, 50000};  // one in each half of the context

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
Params settings() {
  Params p;
  p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = n;
  p.budget.tokens = 1024;
  p.selector.subspaces = 4, p.selector.bits = 6;
  p.selector.train.rows_per_centroid = 64;
  return p;
}

int run(const pqkv::scale::mpi_ranks& ranks) {
  const pqkv::exec::host<> cpu;
  if (!limit_memory(120)) return std::puts("the memory limit could not be set"), 1;
  const auto whole = one_cache::plan(settings<one_cache::params>());
  try {
    const one_cache all(settings<one_cache::params>());
    return std::puts("the whole context fits one process: nothing is shown"), 1;
  } catch (const std::bad_alloc&) {
    if (ranks.rank() == 0)
      std::printf("one process with 120 MiB: no room for %zu tokens, which take %zu MiB\n", n, whole.total_bytes() >> 20);
  }

  auto params = settings<shared_cache::params>();
  params.run = n / ranks.size();  // the first half of the context to the first process, the second to the other
  shared_cache cache(cpu, ranks, params);
  std::vector<float> keys(h * chunk * d), values(h * chunk * d);
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
