// SPDX-License-Identifier: Apache-2.0
// A saved slot. Its checksum is made right first: against altered files it is enough, against forged ones every number is checked.
#include <cstring>
#include <pqkv/pqkv.hpp>
#include <vector>

#include "cases/slot_bytes.hpp"
#include "fuzz_input.hpp"

namespace pqkv_fuzz {

using slot_cache = pqkv::pqcache<>;
constexpr std::size_t slot_dim = 8, slot_capacity = 64;

inline slot_cache make_slot_cache() {
  slot_cache::params params;
  params.kv_heads = 1, params.query_heads = 2, params.head_dim = slot_dim, params.capacity = slot_capacity;
  params.budget = {.min_tokens = 16, .sinks = 2, .window = 4};
  params.selector.subspaces = 2, params.selector.bits = 4, params.selector.axes = pqkv::axis_order::rotary_halves;  // the corpus's
  return slot_cache(params);
}

/// Appends a token, attends, and trains what is due.
inline void use_slot(slot_cache& cache) {
  const pqkv::exec::host<> cpu;
  std::vector<float> row(slot_dim, 0.5f), query(2 * slot_dim, 1.0f), out(2 * slot_dim);
  const auto key = pqkv::make_view(std::as_const(row).data(), 1, 1, slot_dim);
  for (int step = 0; step < 3 && cache.size(0) < slot_capacity; ++step) {
    row[static_cast<std::size_t>(step)] = -1;
    cache.append(cpu, key, key);
    cache.attend(cpu, pqkv::make_view(std::as_const(query).data(), 1, 2, slot_dim), pqkv::make_view(out.data(), 1, 2, slot_dim));
    cache.maintain(cpu);
  }
}

/// The seed of this target (make_corpus.py asks for it).
inline std::vector<std::byte> saved_slot() {
  const pqkv::exec::host<> cpu;
  slot_cache cache = make_slot_cache();
  const std::size_t n = 48;
  std::vector<float> rows(n * slot_dim);
  const pqkv::random_stream draws{7, 1};
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(draws(i)) * 0x1p-31f - 1.0f;
  const auto all = pqkv::make_view(std::as_const(rows).data(), 1, n, slot_dim);
  cache.prefill(cpu, 0, all, all);
  use_slot(cache);
  return pqkv_cases::saved(cpu, cache, 0);
}

}  // namespace pqkv_fuzz

extern "C" int PQKV_FUZZ_ENTRY(const std::uint8_t* data, std::size_t size) {
  if (size < sizeof(std::uint32_t)) return 0;
  std::vector<std::byte> file(size);
  std::memcpy(file.data(), data, size);
  pqkv::crc32 sum;
  sum.add(file.data(), size - sizeof(std::uint32_t));
  const std::uint32_t right = sum.value();
  std::memcpy(file.data() + size - sizeof right, &right, sizeof right);

  pqkv_fuzz::slot_cache cache = pqkv_fuzz::make_slot_cache();
  const pqkv::exec::host<> cpu;
  try {
    cache.load(cpu, 0, pqkv_cases::file_source{file});
  } catch (const std::logic_error&) {      // value_error, capacity_error
    if (cache.size(0) != 0) std::abort();  // refused whole
    return 0;
  }
  ++pqkv_fuzz::accepted;
  pqkv_fuzz::use_slot(cache);
  return 0;
}
