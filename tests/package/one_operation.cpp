// SPDX-License-Identifier: Apache-2.0
// The least a consumer can do with the library: one operation. Whether two units in one program agree is consumer.cpp's business.
#include <pqkv/pqkv.hpp>

int main() {
  const float scores[] = {1, 5, 3, 4};
  std::int32_t best[2] = {};
  pqkv::top_k(pqkv::exec::host<>{}, pqkv::view<const float, 2>(pqkv::make_view(scores, 1, 4)), pqkv::make_view(best, 1, 2));
  return best[0] == 1 && best[1] == 3 ? 0 : 1;
}
