// SPDX-License-Identifier: Apache-2.0
// Step 6: keys and values where the engine has them. Here K is [n, h, d] in bfloat16 and V is stored transposed, [h, d, n]; views with
// strides cover both, and attention reads them in place. Partial results over two halves of the tokens merge into the whole.
#include <cmath>
#include <cstdio>
#include <pqkv/pqkv.hpp>

#include "example_data.hpp"

int main() {
  using pqkv::bfloat16;
  const std::size_t h = 2, hq = 8, n = 1000, d = 64;
  std::vector<bfloat16> k(n * h * d), v(h * d * n);
  const std::vector<float> numbers = clustered_rows(2 * n * h, d, 1), query = clustered_rows(hq, d, 2);
  for (std::size_t i = 0; i < k.size(); ++i) k[i] = bfloat16(numbers[i]), v[i] = bfloat16(numbers[k.size() + i]);

  const pqkv::view<const bfloat16, 3> keys{k.data(), {h, n, d}, {d, h * d, 1}};    // [n, h, d] seen as [h, n, d]
  const pqkv::view<const bfloat16, 3> values{v.data(), {h, n, d}, {d * n, 1, n}};  // [h, d, n] seen as [h, n, d]
  const auto store = pqkv::strided_kv(keys, values);

  const pqkv::exec::host<> cpu;
  const auto queries = pqkv::make_view(query.data(), hq, d);
  const auto attend = [&](pqkv::token_span span, std::vector<float>& out, std::vector<float>& lse) {
    const std::vector<pqkv::token_span> spans(h, span);
    pqkv::attention(cpu, queries, store, {pqkv::make_view(spans.data(), h), {}, {}}, pqkv::make_view(out.data(), hq, d),
                    pqkv::make_view(lse.data(), hq));
  };
  std::vector<float> whole(hq * d), left(hq * d), right(hq * d), lse(hq), left_lse(hq), right_lse(hq);
  attend({.leading = n}, whole, lse);
  attend({.leading = n / 3}, left, left_lse);
  attend({.leading = 0, .window_begin = n / 3, .window_end = n}, right, right_lse);

  float largest = 0;
  for (std::size_t q = 0; q < hq; ++q) {
    pqkv::merge(&left[q * d], left_lse[q], &right[q * d], right_lse[q], d);
    for (std::size_t i = 0; i < d; ++i) largest = std::max(largest, std::fabs(left[q * d + i] - whole[q * d + i]));
  }
  std::printf("a third merged with the rest differs from the whole by at most %.1e\n", static_cast<double>(largest));
  return largest < 1e-4f ? 0 : 1;
}
