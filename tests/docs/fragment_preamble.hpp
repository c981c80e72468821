// SPDX-License-Identifier: Apache-2.0
// What the fragments of README.md and docs/ take as given: an engine's sizes, its memory and a few objects of this library. They are
// declared and never defined: fragments are compiled, not linked. Blocks that are whole files do not see this header.
#pragma once

#include <pqkv/pqkv.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace snippet {

// Sizes in the symbols of docs/notation.md.
inline constexpr std::size_t batch = 4, h = 8, hq = 32, d = 128, n = 4096, capacity = 8192, m = 2, k = 512;

// The engine's memory: keys and values of a prompt and of one step, queries, outputs.
extern pqkv::bfloat16 *key_memory, *value_memory;
extern pqkv::view<const pqkv::bfloat16, 3> keys, values;   // [h, n, d]
extern pqkv::view<const float, 3> step_keys, step_values;  // [batch, h, d]
extern pqkv::view<const float, 3> query;                   // [batch, hq, d]
extern pqkv::view<float, 3> out;                           // [batch, hq, d]
inline constexpr std::size_t pages = 4096;
extern const std::uint32_t* block_table;                   // [batch, pages of a slot]

// Objects made earlier on the page.
extern const pqkv::exec::host<> cpu;
extern pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>> cache;
extern pqkv::pqcache<pqkv::dense_rows<pqkv::bfloat16>>::params params;
extern pqkv::codebook book;
extern pqkv::codes codes;
extern pqkv::distance_table table;

// The engine itself.
void report(const char* message);
void use(std::span<const std::int32_t> tokens);
void choose_dense_attention();

}  // namespace snippet
