// SPDX-License-Identifier: Apache-2.0
// What a visitor sees first: one long context with facts in it, prefilled once, and ten questions under one policy after the other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "interview.hpp"

namespace minillama {

struct demonstration_settings {
  std::size_t length = 16384;  // tokens of the context; less where the model's positions would leave no room for a question
  std::size_t questions = 10;
  std::uint64_t seed = 0;  // of context, questions and codebooks
  pqkv::search_path path = pqkv::search_path::automatic;
};

/// Prints answers as they come and a table at the end, on stdout; what it is doing on stderr.
void demonstrate(engine& computing, const model_config& config, const examiner& examining, pool_runner& runner, const std::string& text,
                 const demonstration_settings& settings);

}  // namespace minillama
