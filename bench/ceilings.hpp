// SPDX-License-Identifier: Apache-2.0
// What one core of this machine can do at most, measured at the start of every benchmark so that results are read as shares: the
// multiply-add peak of each ISA, products of 16-bit integers and of bfloat16, streaming reads from memory and from a near cache, and rows
// of 512 bytes with prefetch, in random and in ascending order. Each is the median of several short runs. Other load on the machine lowers
// them: compare shares within one run only.
#pragma once

#include <benchmark/benchmark.h>

#include <pqkv/pqkv.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <type_traits>
#include <vector>

namespace bench {

/// Per second. A multiply-add counts as two operations.
struct ceilings {
  double scalar_flops = 0;  // std::fma as this build compiles it, which is what the scalar kernel calls
  double avx2_flops = 0;    // 0 where the CPU lacks it
  double avx512_flops = 0;
  double integer_products = 0;      // exact products of 16-bit integers, added up in 32 bits, as the k-means shortlist makes them: AVX-512
  double bfloat16_products = 0;     // by vdpbf16ps: AVX-512 with BF16
  double streaming_read_bytes = 0;  // of streaming_bytes, from memory
  double cached_read_bytes = 0;     // of cached_bytes, over and over
  double random_row_bytes = 0;      // rows of row_bytes in random order, prefetched row_lead rows ahead
  double sparse_row_bytes = 0;      // the same in ascending order, one row in sparse_density
  double dense_row_bytes = 0;       // one in dense_density

  static constexpr std::size_t streaming_bytes = std::size_t{256} << 20, cached_bytes = std::size_t{256} << 10;
  static constexpr std::size_t row_bytes = 512, sparse_density = 32, dense_density = 10;
  // What ascending rows are spread over, as K and V of 131072 tokens are. A large last-level cache may hold a part of it.
  static constexpr std::size_t row_area_bytes = std::size_t{64} << 20;
  // The loops below with other leads, one Zen 5 core: 8 rows ahead 27 to 29 GB/s, 12 30 to 34, 16 33 to 36, 24 31 to 34, 32 29 to 31
  static constexpr std::size_t row_lead = 16;

  template <class Isa>
  double flops() const {
    return std::is_same_v<Isa, pqkv::isa::scalar> ? scalar_flops : std::is_same_v<Isa, pqkv::isa::avx2> ? avx2_flops : avx512_flops;
  }
  /// What binds a repeated read of so many bytes.
  double read_bytes(double working_set) const {
    return working_set <= 2.0 * static_cast<double>(cached_bytes) ? cached_read_bytes : streaming_read_bytes;
  }
};

/// Time that this process, which has one thread, was running: other load takes cores away from it without being counted.
class stopwatch {
 public:
  double seconds() const { return static_cast<double>(std::clock() - start_) / CLOCKS_PER_SEC; }

 private:
  std::clock_t start_ = std::clock();
};

/// Amount per second: the median of seven runs of `body`, which says how much it did.
template <class Body>
double median_rate(Body body) {
  double rates[7];
  body();  // warm
  for (double& rate : rates) {
    const stopwatch watch;
    const double amount = body();
    rate = amount / watch.seconds();
  }
  std::nth_element(rates, rates + 3, rates + 7);
  return rates[3];
}

namespace measure {

using float_lanes [[gnu::vector_size(32)]] = float;
using wide_float_lanes [[gnu::vector_size(64)]] = float;
using word_lanes [[gnu::vector_size(32)]] = std::uint64_t;

/// Twelve chains: more than latency times throughput of any core, fewer than AVX2's registers.
inline constexpr std::size_t chains = 12, scalar_chains = 16;

template <class Lanes>
PQKV_INLINE float multiply_adds(std::size_t rounds, float start) {
  constexpr std::size_t lane_count = sizeof(Lanes) / sizeof(float);
  Lanes acc[chains], factor, term;
  for (std::size_t lane = 0; lane < lane_count; ++lane) {
    factor[lane] = 0.999f;
    term[lane] = 0.001f;
    for (std::size_t i = 0; i < chains; ++i) acc[i][lane] = start + static_cast<float>(i + lane);
  }
  for (std::size_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (std::size_t i = 0; i < chains; ++i) acc[i] = acc[i] * factor + term;
  float total = 0;
  for (std::size_t i = 0; i < chains; ++i)
    for (std::size_t lane = 0; lane < lane_count; ++lane) total += acc[i][lane];
  return total;
}
PQKV_TARGET_AVX2 inline float avx2_multiply_adds(std::size_t rounds, float start) { return multiply_adds<float_lanes>(rounds, start); }
PQKV_TARGET_AVX512 inline float avx512_multiply_adds(std::size_t rounds, float start) {
  return multiply_adds<wide_float_lanes>(rounds, start);
}

#if defined(__x86_64__)
PQKV_TARGET_AVX512 inline int avx512_integer_products(std::size_t rounds, int start) {
  __m512i acc[chains];
  const __m512i factor = _mm512_set1_epi16(static_cast<short>(start));
  for (std::size_t i = 0; i < chains; ++i) acc[i] = _mm512_set1_epi32(start + static_cast<int>(i));
  for (std::size_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (std::size_t i = 0; i < chains; ++i) acc[i] = _mm512_add_epi32(acc[i], _mm512_madd_epi16(acc[i], factor));
  __m512i total = _mm512_setzero_si512();
  for (std::size_t i = 0; i < chains; ++i) total = _mm512_xor_si512(total, acc[i]);
  return _mm512_cvtsi512_si32(total);
}
PQKV_TARGET_BF16 inline float avx512_bfloat16_products(std::size_t rounds, float start) {
  __m512 acc[chains];
  const __m512i bits = _mm512_set1_epi32(static_cast<int>(__builtin_bit_cast(std::uint32_t, start)));
  const auto factor = __builtin_bit_cast(__m512bh, bits);
  for (std::size_t i = 0; i < chains; ++i) acc[i] = _mm512_set1_ps(start);
  for (std::size_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (std::size_t i = 0; i < chains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], factor, factor);
  __m512 total = acc[0];
  for (std::size_t i = 1; i < chains; ++i) total = _mm512_mask_add_ps(total, 0xffff, total, acc[i]);
  return _mm512_cvtss_f32(total);
}
#endif

inline float scalar_multiply_adds(std::size_t rounds, float start) {
  float acc[scalar_chains] = {}, a[64], b[64];
  for (std::size_t i = 0; i < 64; ++i) {
    a[i] = start + static_cast<float>(i);
    b[i] = 1.0f / a[i];
  }
  for (std::size_t round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < scalar_chains; ++i) acc[i] = std::fma(a[(round + i) % 64], b[(round + i) % 64], acc[i]);
  float total = 0;
  for (const float x : acc) total += x;
  return total;
}

/// Folds `bytes`, a multiple of 256, into one word.
PQKV_INLINE std::uint64_t fold(const std::byte* bytes, std::size_t count) {
  word_lanes acc[4] = {};
  for (std::size_t at = 0; at < count; at += sizeof acc)
    for (std::size_t i = 0; i < 4; ++i) acc[i] ^= *reinterpret_cast<const word_lanes*>(bytes + at + i * sizeof(word_lanes));
  const word_lanes all = (acc[0] ^ acc[1]) ^ (acc[2] ^ acc[3]);
  return all[0] ^ all[1] ^ all[2] ^ all[3];
}
PQKV_INLINE std::uint64_t fold_rows(const std::byte* bytes, const std::vector<std::uint32_t>& rows) {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::byte* next = bytes + rows[std::min(i + ceilings::row_lead, rows.size() - 1)] * ceilings::row_bytes;
    for (std::size_t line = 0; line < ceilings::row_bytes; line += pqkv::cache_line_bytes) __builtin_prefetch(next + line);
    total ^= fold(bytes + rows[i] * ceilings::row_bytes, ceilings::row_bytes);
  }
  return total;
}

inline std::uint64_t read(const std::byte* bytes, std::size_t count) { return fold(bytes, count); }
PQKV_TARGET_AVX2 inline std::uint64_t read_avx2(const std::byte* bytes, std::size_t count) { return fold(bytes, count); }
inline std::uint64_t read_rows(const std::byte* bytes, const std::vector<std::uint32_t>& rows) { return fold_rows(bytes, rows); }
PQKV_TARGET_AVX2 inline std::uint64_t read_rows_avx2(const std::byte* bytes, const std::vector<std::uint32_t>& rows) {
  return fold_rows(bytes, rows);
}

inline ceilings all() {
  const bool avx2 = pqkv::isa::detected() >= pqkv::isa::level::avx2;
  ceilings found;
  const auto unknown = [] {  // to the compiler, so that no loop is computed before it runs, or once for all
    float start = 0.5f;
    benchmark::DoNotOptimize(start);
    return start;
  };
  found.scalar_flops = median_rate([&] {
    constexpr std::size_t rounds = 1u << 17;
    benchmark::DoNotOptimize(scalar_multiply_adds(rounds, unknown()));
    return 2.0 * scalar_chains * rounds;
  });
  if (avx2)
    found.avx2_flops = median_rate([&] {
      constexpr std::size_t rounds = 1u << 21;
      benchmark::DoNotOptimize(avx2_multiply_adds(rounds, unknown()));
      return 2.0 * chains * 8 * rounds;
    });
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512)
    found.avx512_flops = median_rate([&] {
      constexpr std::size_t rounds = 1u << 21;
      benchmark::DoNotOptimize(avx512_multiply_adds(rounds, unknown()));
      return 2.0 * chains * 16 * rounds;
    });

#if defined(__x86_64__)
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512)
    found.integer_products = median_rate([&] {
      constexpr std::size_t rounds = 1u << 21;
      benchmark::DoNotOptimize(avx512_integer_products(rounds, static_cast<int>(4 * unknown())));
      return 2.0 * chains * 32 * rounds;
    });
  if (pqkv::isa::detected() >= pqkv::isa::level::avx512_bf16)
    found.bfloat16_products = median_rate([&] {
      constexpr std::size_t rounds = 1u << 21;
      benchmark::DoNotOptimize(avx512_bfloat16_products(rounds, unknown()));
      return 2.0 * chains * 32 * rounds;
    });
#endif

  const pqkv::buffer<std::byte> memory(ceilings::streaming_bytes);
  auto* words = reinterpret_cast<std::uint64_t*>(memory.data());
  std::uint64_t word = 1;
  for (std::size_t i = 0; i < ceilings::streaming_bytes / sizeof word; ++i)
    words[i] = word = word * 6364136223846793005u + 1442695040888963407u;
  const auto read_once = [&](std::size_t bytes) {
    benchmark::DoNotOptimize(avx2 ? read_avx2(memory.data(), bytes) : read(memory.data(), bytes));
  };
  found.streaming_read_bytes = median_rate([&] {
    read_once(ceilings::streaming_bytes);
    return static_cast<double>(ceilings::streaming_bytes);
  });
  found.cached_read_bytes = median_rate([&] {
    constexpr std::size_t times = 256;
    for (std::size_t i = 0; i < times; ++i) read_once(ceilings::cached_bytes);
    return static_cast<double>(times * ceilings::cached_bytes);
  });
  const pqkv::random_stream draws{1, 2};
  // Runs of a median read lists of their own: what the run before left in a cache would pass for speed of the memory.
  const auto rate_of_rows = [&](const std::vector<std::vector<std::uint32_t>>& lists) {
    std::size_t turn = 0;
    return median_rate([&] {
      const std::vector<std::uint32_t>& list = lists[turn++ % lists.size()];
      benchmark::DoNotOptimize(avx2 ? read_rows_avx2(memory.data(), list) : read_rows(memory.data(), list));
      return static_cast<double>(list.size() * ceilings::row_bytes);
    });
  };
  std::vector<std::vector<std::uint32_t>> random_lists(8);  // as many as median_rate() calls
  constexpr std::size_t random_rows = 1u << 16;
  for (std::size_t turn = 0; turn < random_lists.size(); ++turn)
    for (std::size_t i = 0; i < random_rows; ++i)
      random_lists[turn].push_back(
          draws.below(turn * random_rows + i, static_cast<std::uint32_t>(ceilings::streaming_bytes / ceilings::row_bytes)));
  found.random_row_bytes = rate_of_rows(random_lists);
  const auto ascending = [&](std::size_t density) {  // lists that share no row and cover the area
    std::vector<std::vector<std::uint32_t>> lists(density);
    for (std::size_t turn = 0; turn < density; ++turn)
      for (std::size_t i = 0; i < ceilings::row_area_bytes / ceilings::row_bytes / density; ++i)
        lists[turn].push_back(
            static_cast<std::uint32_t>(i * density + (draws.below(i, static_cast<std::uint32_t>(density)) + turn) % density));
    return rate_of_rows(lists);
  };
  found.sparse_row_bytes = ascending(ceilings::sparse_density);
  found.dense_row_bytes = ascending(ceilings::dense_density);
  return found;
}

}  // namespace measure

/// This machine's, measured by bench::run(); zeros before.
inline ceilings& machine() {
  static ceilings found;
  return found;
}

}  // namespace bench
