// SPDX-License-Identifier: Apache-2.0
// The k largest of n scores. Share of reading the row once, from the cache or the memory that it fits in; its inverse is the number
// of such readings that selection takes.
#include "data.hpp"
#include "main.hpp"

#include <cmath>

namespace {

struct axes {
  std::size_t n;
  bool exponentials;
  bool operator==(const axes&) const = default;
};

struct row {
  explicit row(const axes& a) : scores(bench::normal_numbers<float>(a.n, 31)) {
    for (float& x : scores) x = a.exponentials ? std::exp(3.0f * x) : x;
  }
  pqkv::buffer<float> scores;
};

void run(benchmark::State& state, const axes& a, std::size_t k) {
  const row& data = bench::kept<row>(a);
  const pqkv::buffer<std::int32_t> indices(k);
  const pqkv::exec::host<> cpu;
  const auto bytes = static_cast<double>(a.n * sizeof(float));
  bench::timed(state, "of_row_read", bytes, bench::machine().read_bytes(bytes), [&] {
    pqkv::top_k(cpu, pqkv::as_const(pqkv::make_view(data.scores.data(), 1, a.n)), pqkv::make_view(indices.data(), 1, k));
  });
  bench::count_tokens(state, a.n);
}

void add_all() {
  for (const std::size_t n : {131072u, 1048576u})
    for (const std::size_t k : {2048u, 16384u})
      for (const char* shape : {"normal", "exponential"}) {
        const axes a{n, shape[0] == 'e'};
        bench::add(bench::named("top_k", {{"n", n}, {"k", k}}, {{"scores", shape}}), [a, k](benchmark::State& state) { run(state, a, k); });
      }
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run(argc, argv, add_all, "scores: x normal, or exp(3 x), which spreads them over many powers of two as probabilities are");
}
