// SPDX-License-Identifier: Apache-2.0
// The sequences of a small cache with their rows, as the operations of cache/sequence_steps.hpp take them, and short words for steps.
#pragma once

#include <vector>

#include <pqkv/cache/sequence_steps.hpp>

#include "inputs.hpp"

namespace pqkv_cases::step_table {

using pqkv::leaving_tokens;
using pqkv::sequence;

inline constexpr std::size_t batch = 4, h = 2, d = 8, capacity = 60;

/// The table of a cache, and its rows.
struct table {
  std::vector<sequence> sequences = std::vector<sequence>(batch);
  std::vector<pqkv::slot_statistics> statistics = std::vector<pqkv::slot_statistics>(batch);
  std::vector<std::uint32_t> tickets = std::vector<std::uint32_t>(batch), nonfinite = std::vector<std::uint32_t>(2 * batch);
  std::vector<leaving_tokens> leaving = std::vector<leaving_tokens>(batch);
  rows<float> keys{batch * h, capacity, d}, values{batch * h, capacity, d};
  pqkv::budget_rule rule{.sinks = 2, .window = 5, .retrieve = 3};

  pqkv::slot_table<pqkv::space::host> slots() {
    return {pqkv::make_view(sequences.data(), batch), pqkv::make_view(statistics.data(), batch),   pqkv::make_view(tickets.data(), batch),
            pqkv::make_view(leaving.data(), batch),   pqkv::make_view(nonfinite.data(), 2, batch), rule.flat()};
  }
  pqkv::strided_rows<float> store() { return {keys.view(), values.view()}; }
};

/// A complete prompt.
inline sequence prompt_of(std::uint32_t n, bool learned) {
  sequence s = sequence{}.grown(n);
  s.prompt = n;
  s.learned = learned ? 1 : 0;
  return s;
}

inline pqkv::cache_step step_of(const std::vector<std::uint32_t>& slots, const std::vector<std::uint32_t>& counts) {
  return {.slots = pqkv::make_view(slots.data(), slots.size()), .counts = pqkv::make_view(counts.data(), counts.size())};
}

}  // namespace pqkv_cases::step_table
