// SPDX-License-Identifier: Apache-2.0
// The k largest of n scores. `of_row_read` is the share of reading the row once from where it lies, timed beside it; `readings`, its
// inverse, the number of such readings that selection takes.
#include "data.hpp"
#include "main.hpp"

#include <cmath>
#include <cstring>

namespace {

enum class shape { normal, exponential, drifting };
constexpr std::pair<shape, const char*> every_shape[] = {
    {shape::normal, "normal"}, {shape::exponential, "exponential"}, {shape::drifting, "drifting"}};

struct axes {
  std::size_t n;
  shape what;
  bool operator==(const axes&) const = default;
};

/// Scores, and the same in 16 bits.
struct row {
  explicit row(const axes& a) : scores(bench::normal_numbers<float>(a.n, 31)), keys(a.n) {
    for (std::size_t i = 0; i < a.n; ++i) {
      float& x = scores[i];
      if (a.what == shape::exponential) x = std::exp(3.0f * x);
      if (a.what == shape::drifting) x += 3.0f * std::sin(static_cast<float>(i) * 1e-4f);
      const float y = a.what == shape::exponential ? std::log(x) : x;
      keys[i] = static_cast<std::uint16_t>(32768.0f + 3000.0f * y);
    }
  }
  template <class T>
  const T* data() const {
    if constexpr (std::is_same_v<T, float>)
      return scores.data();
    else
      return keys.data();
  }
  pqkv::buffer<float> scores;
  pqkv::buffer<std::uint16_t> keys;
};

template <class Isa, class T>
void run(benchmark::State& state, const axes& a, std::size_t k) {
  const row& data = bench::kept<row>(a);
  const pqkv::buffer<std::int32_t> indices(k);
  const pqkv::exec::host<Isa> cpu;
  const bool avx2 = pqkv::isa::detected() >= pqkv::isa::level::avx2;
  const auto* bytes = reinterpret_cast<const std::byte*>(data.data<T>());
  const double rows_read = bench::median_rate([&] {
    constexpr std::size_t times = 64;
    for (std::size_t i = 0; i < times; ++i)
      benchmark::DoNotOptimize(avx2 ? bench::measure::read_avx2(bytes, a.n * sizeof(T)) : bench::measure::read(bytes, a.n * sizeof(T)));
    return static_cast<double>(times);
  });
  bench::timed(state, "of_row_read", 1, rows_read,
               [&] { pqkv::top_k(cpu, pqkv::as_const(pqkv::make_view(data.data<T>(), 1, a.n)), pqkv::make_view(indices.data(), 1, k)); });
  state.counters["readings"] = 1 / state.counters["of_row_read"];
  bench::count_tokens(state, a.n);
}

void add_all() {
  bench::for_each_isa([]<class Isa>(Isa, const char* isa) {
    for (const std::size_t n : {131072u, 1048576u})
      for (const std::size_t k : {2048u, 16384u})
        for (const auto& [what, text] : every_shape) {
          const axes a{n, what};
          const auto name = [&, shape_text = text](const char* type) {
            return bench::named("top_k", {{"n", n}, {"k", k}}, {{"scores", shape_text}, {"type", type}, {"isa", isa}});
          };
          bench::add(name("float"), [a, k](benchmark::State& state) { run<Isa, float>(state, a, k); });
          bench::add(name("uint16"), [a, k](benchmark::State& state) { run<Isa, std::uint16_t>(state, a, k); });
        }
  });
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run(argc, argv, add_all,
                    "scores: x normal, exp(3 x), which spreads them over many powers of two as probabilities are, or x with a slow drift");
}
