// SPDX-License-Identifier: Apache-2.0
// A device view handed to a host policy fails at the call, and the message names both spaces.
// expect: space::device
// expect: space::host | host<>::space_type
#include <pqkv/pqkv.hpp>

float scores[8];
std::int32_t indices[4];

int main() {
  pqkv::top_k(pqkv::exec::host<>{}, pqkv::make_view<pqkv::space::device>(scores, 1, 8), pqkv::make_view(indices, 1, 4));
}
