// SPDX-License-Identifier: Apache-2.0
// The same for a function that takes several element types: its constraint fails and names both sides.
// expect: space::device
// expect: reachable_from
#include <pqkv/pqkv.hpp>

pqkv::half keys[16 * 8];
std::uint8_t bytes[2 * 16];
pqkv::codebook book;

int main() {
  pqkv::encode(pqkv::exec::host<>{}, pqkv::make_view<pqkv::space::device>(keys, 1, 16, 8), book.view(), pqkv::make_view(bytes, 1, 2, 16));
}
