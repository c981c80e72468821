// SPDX-License-Identifier: Apache-2.0
// A guarantee that a function does not offer is a compile error that says what it offers.
// expect: pqkv: top_k offers ordering::ascending and ordering::unsorted
#include <pqkv/pqkv.hpp>

float scores[8];
std::int32_t indices[4];

int main() {
  pqkv::top_k(pqkv::exec::host<>{}, pqkv::make_view(scores, 1, 8), pqkv::make_view(indices, 1, 4),
              pqkv::require(pqkv::tie_break::lower_index, pqkv::ordering::by_score));
}
