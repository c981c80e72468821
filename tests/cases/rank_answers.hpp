// SPDX-License-Identifier: Apache-2.0
// Compares what the ranks of a life (rank_lives.hpp) were answered with what one cache with all tokens was.
#pragma once

#include <doctest/doctest.h>

#include <vector>

#include "rank_lives.hpp"

namespace pqkv_cases {

/// How many lists were compared.
struct compared_lists {
  std::size_t all = 0, not_empty = 0;
};

/// The ranks' lists together are the expected ones to the token; outputs are the same bits on every rank, and within `bound`.
inline void compare_answers(const std::vector<answers>& parts, const answers& expected, float bound, compared_lists& compared) {
  for (std::size_t step = 0; step < expected.size(); ++step) {
    CAPTURE(step);
    for (std::size_t list = 0; list < expected[step].lists.size(); ++list) {
      CAPTURE(list);
      REQUIRE(joined_list(parts, step, list) == expected[step].lists[list]);
      ++compared.all;
      compared.not_empty += expected[step].lists[list].empty() ? 0 : 1;
    }
    for (const answers& part : parts) {
      REQUIRE(part[step].out == parts[0][step].out);
      REQUIRE(distance(part[step].out, expected[step].out) < bound);
      REQUIRE(distance(part[step].lse, expected[step].lse) < bound);
    }
  }
}

}  // namespace pqkv_cases
