// SPDX-License-Identifier: Apache-2.0
// merge on a GPU against the formula in double and against the host: near and far weights, empty parts, NaNs, parts in pinned memory, and
// parts that attention() wrote against the whole. Ends with 77 where there is no GPU.
#include "on_device.cuh"

#include <cmath>
#include <cstdlib>

#include "cases/merge_cases.hpp"
#include "cases/plain_attention.hpp"

namespace {
using namespace pqkv_cases;

const pqkv::exec::cuda gpu;

/// Pinned host memory, for the length of a test.
class pinned_floats {
 public:
  explicit pinned_floats(const std::vector<float>& from) {
    pqkv::detail::check_cuda(cudaMallocHost(&data_, from.size() * sizeof(float)), "test", "cudaMallocHost");
    std::copy(from.begin(), from.end(), data_);
  }
  ~pinned_floats() { cudaFreeHost(data_); }
  pinned_floats(const pinned_floats&) = delete;
  pinned_floats& operator=(const pinned_floats&) = delete;
  const float* data() const { return data_; }

 private:
  float* data_ = nullptr;
};

void compare(partial_result a, partial_result b, bool pinned, verdict& all) {
  const std::size_t hq = a.hq, d = a.d;
  partial_result by_device = a, by_host = a;
  const on_device out(a.out_view()), other_out(b.out_view());
  const on_device lse(a.lse_view()), other_lse(b.lse_view());
  if (pinned) {
    const pinned_floats rows(b.out), sums(b.lse);
    pqkv::merge(gpu, out.view(), lse.view(), pqkv::view<const float, 2, pqkv::space::pinned>{rows.data(), {hq, d}, {b.stride, 1}},
                pqkv::make_view<pqkv::space::pinned>(sums.data(), hq));
    pqkv::sync(gpu);
  } else {
    pqkv::merge(gpu, out.view(), lse.view(), other_out.view(), other_lse.view());
  }
  const std::vector<float> rows = out.bytes();  // without the last row's gap
  std::copy(rows.begin(), rows.end(), by_device.out.begin());
  by_device.lse = lse.bytes();
  pqkv::merge(pqkv::exec::host<>{}, by_host.out_view(), by_host.lse_view(), b.out_view(), b.lse_view());
  const double error = merge_error(a, b, by_device), of_host = merge_error(a, b, by_host);
  all.check(error < 1e-6 && of_host < 1e-6, "hq %zu d %zu pinned %d: error %g, the host's %g", hq, d, pinned ? 1 : 0, error, of_host);
}

/// Every third token in each of three parts, and nothing in a fourth, against attention to all of them at once.
void compare_attention_in_parts(random_source& random, verdict& all) {
  const std::size_t h = 2, g = 4, hq = h * g, n = 900, d = 128, parts = 4;
  const rows<pqkv::bfloat16> keys = make_rows<pqkv::bfloat16>(content::gaussian, h, n, d, 3),
                             values = make_rows<pqkv::bfloat16>(content::clustered, h, n, d, 4);
  const on_device keys_there(keys.view()), values_there(values.view());
  std::vector<float> query(hq * d), out(hq * d), lse(hq);
  for (float& x : query) x = 2 * random.gaussian();
  const on_device query_there(pqkv::make_view(query.data(), hq, d));
  const device_scratch scratch(device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}));
  const on_device merged_out(pqkv::make_view(out.data(), hq, d)), part_out(pqkv::make_view(out.data(), hq, d));
  const on_device merged_lse(pqkv::make_view(lse.data(), hq)), part_lse(pqkv::make_view(lse.data(), hq));
  for (std::size_t part = 0; part < parts; ++part) {
    std::vector<pqkv::token_span> spans(h);
    std::vector<std::int32_t> indices(h * n);
    std::vector<std::uint32_t> counts(h);
    for (std::size_t list = 0; list < h; ++list)
      for (std::size_t t = part; t < n && part < 3; t += 3) indices[list * n + counts[list]++] = static_cast<std::int32_t>(t);
    const on_device spans_there(pqkv::as_const(pqkv::make_view(spans.data(), h)));
    const on_device indices_there(pqkv::as_const(pqkv::make_view(indices.data(), h, n)));
    const on_device counts_there(pqkv::as_const(pqkv::make_view(counts.data(), h)));
    const auto& out_there = part == 0 ? merged_out : part_out;
    const auto& lse_there = part == 0 ? merged_lse : part_lse;
    pqkv::attention(scratch.policy(), query_there.view(), pqkv::strided_kv(keys_there.view(), values_there.view()),
                    pqkv::token_set<device>{spans_there.view(), indices_there.view(), counts_there.view()}, out_there.view(),
                    lse_there.view());
    if (part > 0) pqkv::merge(gpu, merged_out.view(), merged_lse.view(), part_out.view(), part_lse.view());
    pqkv::sync(gpu);
  }
  out = merged_out.bytes();
  lse = merged_lse.bytes();
  std::vector<std::size_t> every(n);
  for (std::size_t t = 0; t < n; ++t) every[t] = t;
  for (std::size_t q = 0; q < hq; ++q) {
    const plain_result wanted = plain_attention(&query[q * d], pqkv::strided_kv(keys.view(), values.view()), q / g, every);
    const double error = relative_error(&out[q * d], wanted.out), of_lse = std::fabs(static_cast<double>(lse[q]) - wanted.lse);
    all.check(error <= 2 * wanted.tolerance() && of_lse <= 1e-5 * std::fabs(wanted.lse) + 4 * wanted.tolerance(),
              "query %zu: error %g, of lse %g", q, error, of_lse);
  }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  const std::size_t rounds = argc > 1 ? static_cast<std::size_t>(std::atoi(argv[1])) : 40;
  random_source random(31);
  verdict merges("merge"), parts("attention in parts, merged");
  for (const std::size_t hq : {1u, 8u, 130u})
    for (const std::size_t d : {1u, 40u, 128u, 256u})
      for (std::size_t round = 0; round < rounds; ++round)
        compare(make_partial(hq, d, random.below(3), random), make_partial(hq, d, random.below(3), random), round % 4 == 3, merges);
  compare_attention_in_parts(random, parts);
  bool passed = merges.passed(12);
  passed &= parts.passed(8);
  return passed ? 0 : 1;
}
