// SPDX-License-Identifier: Apache-2.0
// Softmax sums of attended tokens on a GPU against the host's, to the bit. The same under fast math. Ends with 77 where there is no GPU.
#include "device_search.cuh"

#include <algorithm>
#include <cmath>

namespace {
using namespace pqkv_cases;

const pqkv::exec::host<> cpu;

/// The sums of a launch whose clusters have several lists side by side, and some of them several times, as in the ranking launch.
template <class Store>
std::vector<pqkv::attended_sum> divided_sums(pqkv::view<const float, 2, device> query, const Store& store,
                                             pqkv::view<const pqkv::token_span, 1, device> spans,
                                             pqkv::view<const pqkv::middle_range, 1, device> ranges, float scale, random_source& random,
                                             verdict& all) {
  using namespace pqkv::detail;
  const unsigned hq = static_cast<unsigned>(query.extent(0)), lists = static_cast<unsigned>(spans.extent(0)),
                 d = static_cast<unsigned>(query.extent(1));
  const auto kernel = sum_attended_kernel<Store, given_spans>;
  const launcher launch(pqkv::exec::cuda{}, "test");
  const auto up_to = [&](unsigned most) { return 1 + static_cast<unsigned>(random.below(most)); };
  attended_shape shape = attended_shape::of<typename Store::value_type>(launch.is_built_for_hopper(kernel) ? up_to(8) : 1, hq / lists, d);
  shape.tiles_at_once = up_to(attended_shape::most_tiles), shape.side_by_side = up_to(shape.ctas);
  all.check(shape.fit(launch.shared_limit(kernel)), "d %u: no room", d);
  const unsigned clusters = up_to((lists + shape.side_by_side - 1) / shape.side_by_side);
  std::vector<pqkv::attended_sum> sums(hq, {7, 7});
  std::vector<std::uint32_t> summed(lists, 0);
  const on_device<pqkv::attended_sum, 1> sums_there(pqkv::make_view(sums.data(), hq));
  const on_device<std::uint32_t, 1> summed_there(pqkv::make_view(summed.data(), lists));
  launch(
      "sum_attended_kernel", kernel,
      {.grid = dim3(shape.ctas, clusters), .threads = attended_shape::threads, .shared_bytes = shape.shared_bytes(), .cluster = shape.ctas},
      attended_call<Store, given_spans>{query, store, given_spans{spans, ranges, static_cast<unsigned>(lists / store.heads())}, shape,
                                        pqkv::canonical::softmax_scale::of(d, scale), sums_there.view(), summed_there.view().data, lists});
  for (const std::uint32_t count : summed_there.bytes()) all.check(count == shape.g, "a list counts %u of %u query heads", count, shape.g);
  return sums_there.bytes();
}

/// Sums over spans of random tokens, to the bit: any strides, one span a KV head or a query head, heads that rank nothing, keys and queries
/// that are not finite.
template <class T>
void compare_sums(std::size_t d, std::size_t n, random_source& random, verdict& all) {
  const std::size_t h = 1 + random.below(3), g = 1 + random.below(9), hq = h * g, stride = d + random.below(3),
                    column = 1 + random.below(2);
  std::vector<T> rows(h * n * stride * column);
  for (T& x : rows) x = static_cast<T>(random.gaussian());
  if (random.below(3) == 0) rows[random.below(rows.size())] = static_cast<T>(INFINITY);
  const pqkv::view<const T, 3> keys{rows.data(), {h, n, d}, {n * stride * column, stride * column, column}};
  std::vector<float> query(hq * d);
  for (float& x : query) x = (random.below(2) == 0 ? 0.1f : 3.0f) * random.gaussian();
  if (random.below(4) == 0) query[random.below(query.size())] = NAN;
  std::vector<pqkv::token_span> spans(random.below(2) == 0 ? h : hq);
  const auto below = [&](std::size_t most) { return static_cast<std::uint32_t>(random.below(most)); };
  for (pqkv::token_span& span : spans) {
    span.leading = below(4) == 0 ? below(n + 1) : below(std::min<std::size_t>(n, 70));
    span.window_begin = below(n), span.window_end = below(5) == 0 ? 0 : span.window_begin + below(n - span.window_begin + 1);
  }
  std::vector<pqkv::middle_range> ranges(h);
  for (pqkv::middle_range& range : ranges) range = {0, below(3), 1};
  const float scale = random_scale(random);
  std::vector<pqkv::attended_sum> sums(hq, {7, 7});
  const auto asked = pqkv::as_const(pqkv::make_view(query.data(), hq, d));
  const auto of = pqkv::as_const(pqkv::make_view(spans.data(), spans.size()));
  const auto ranked = pqkv::as_const(pqkv::make_view(ranges.data(), random.below(2) == 0 ? h : 0));
  const on_device query_there(asked);
  const on_device spans_there(of);
  const on_device ranges_there(ranked);
  const on_device keys_there(keys);
  const on_device<pqkv::attended_sum, 1> sums_there(pqkv::make_view(sums.data(), hq));
  pqkv::sum_attended(cpu, asked, pqkv::strided_kv(keys, keys), of, pqkv::make_view(sums.data(), hq), scale,
                     ranked.size() == 0 ? pqkv::view<const pqkv::middle_range, 1>{} : ranked);
  pqkv::sum_attended(pqkv::exec::cuda{}, query_there.view(), pqkv::strided_kv(keys_there.view(), keys_there.view()), spans_there.view(),
                     sums_there.view(), scale, ranges_there.view());
  const auto compare = [&](const std::vector<pqkv::attended_sum>& found, const char* how) {
    for (std::size_t q = 0; q < hq; ++q)
      all.check(found[q].top == sums[q].top && found[q].weight == sums[q].weight,
                "%s: d %zu n %zu h %zu query head %zu: %g and %llu of 2^40, expected %g and %llu", how, d, n, h, q,
                static_cast<double>(found[q].top), static_cast<unsigned long long>(found[q].weight), static_cast<double>(sums[q].top),
                static_cast<unsigned long long>(sums[q].weight));
  };
  compare(sums_there.bytes(), "a launch");
  compare(divided_sums(query_there.view(), pqkv::strided_kv(keys_there.view(), keys_there.view()), spans_there.view(), ranges_there.view(),
                       scale, random, all),
          "divided");
}
void compare_all_sums(random_source& random, verdict& all) {
  for (const std::size_t d : {1u, 6u, 64u, 72u, 128u, 256u})
    for (const std::size_t n : {1u, 63u, 300u, 9000u})
      for (std::size_t round = 0; round < 4; ++round) {
        compare_sums<float>(d, n, random, all);
        compare_sums<pqkv::half>(d, n, random, all);
        compare_sums<pqkv::bfloat16>(d, n, random, all);
      }
}
}  // namespace

int main() {
  if (!has_device()) return 77;
  random_source random(0x5a7);
  verdict sums("sum_attended");
  compare_all_sums(random, sums);
  return sums.passed(1000) ? 0 : 1;
}
