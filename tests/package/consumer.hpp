// SPDX-License-Identifier: Apache-2.0
// What the two units of the consumer share: sizes, data, and how they call each other.
#pragma once
#include <pqkv/pqkv.hpp>

#include <cstdint>
#include <vector>

inline constexpr std::uint32_t heads = 2, head_dim = 16, tokens = 600, sinks = 4, window = 32, retrieved = 48;

struct keys_and_query {
  std::vector<float> keys;   // [heads, tokens, head_dim]
  std::vector<float> query;  // [heads, head_dim]
};

inline keys_and_query make_data() {
  keys_and_query data{std::vector<float>(heads * tokens * head_dim), std::vector<float>(heads * head_dim)};
  std::uint32_t state = 1;
  const auto next = [&state] {
    state = state * 1664525u + 1013904223u;
    return (static_cast<float>(state >> 16) - 32768.0f) / 16384.0f;
  };
  for (float& x : data.keys) x = next();
  for (float& x : data.query) x = next();
  return data;
}

std::vector<std::int32_t> retrieve_by_pqcache(const keys_and_query& data);

using detect_function = pqkv::isa::level (*)() noexcept;
inline detect_function detected_isa_here() { return &pqkv::isa::detected; }
detect_function detected_isa_there();
