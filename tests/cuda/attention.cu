// SPDX-License-Identifier: Apache-2.0
// attention on a GPU against a softmax in double: storage types, layouts, group sizes, lists and ranges of every length, an engine's
// own store, partial results merged, non-finite rows. Ends with 77 where there is no GPU.
//
//   attention [lengths]    of rows, the shortest so many of 7; 5 is enough under compute-sanitizer
#include "on_device.cuh"

#include <algorithm>
#include <cstdlib>

#include <pqkv/cache/quantized_rows.hpp>

#include "cases/inputs.hpp"
#include "cases/plain_attention.hpp"
#include "paged_store.cuh"

namespace {
using namespace pqkv_cases;

/// Lists over n tokens: a leading range, every other token or so in between, a window.
struct lists_of_tokens {
  std::vector<pqkv::token_span> spans;
  std::vector<std::int32_t> indices;
  std::vector<std::uint32_t> counts;
  std::size_t k_max;

  lists_of_tokens(std::size_t lists, std::size_t n, random_source& random) : spans(lists), counts(lists), k_max(n + 1) {
    indices.assign(lists * k_max, -1);
    for (std::size_t list = 0; list < lists; ++list) {
      const std::size_t what = random.below(5);
      const auto leading = static_cast<std::uint32_t>(what == 0   ? 0
                                                      : what == 1 ? n
                                                                  : random.below(n / 3 + 1)),
                 begin = static_cast<std::uint32_t>(what == 2 ? n : leading + random.below(n - leading + 1));
      spans[list] = {leading, begin, static_cast<std::uint32_t>(n)};
      if (what == 3) spans[list] = {0, 0, 0};  // the list alone, perhaps nothing
      for (std::size_t t = leading; t < begin && what != 4; t += 1 + random.below(3))
        indices[list * k_max + counts[list]++] = static_cast<std::int32_t>(t);
    }
  }
  std::vector<std::size_t> tokens(std::size_t list) const {
    std::vector<std::size_t> all;
    for (std::size_t t = 0; t < spans[list].leading; ++t) all.push_back(t);
    for (std::uint32_t i = 0; i < counts[list]; ++i) all.push_back(static_cast<std::size_t>(indices[list * k_max + i]));
    for (std::size_t t = spans[list].window_begin; t < spans[list].window_end; ++t) all.push_back(t);
    return all;
  }
};

/// @param host, there  the same rows in both memories
template <class Host, class There>
void compare(const Host& host, const There& there, std::size_t g, bool own_lists, random_source& random, verdict& all) {
  const std::size_t h = host.heads(), d = host.head_dim(), hq = h * g, lists = own_lists ? hq : h;
  lists_of_tokens chosen(lists, host.tokens(), random);
  std::vector<float> query(hq * d), out(hq * (d + 3), -7.0f), lse(hq, -7.0f);
  for (float& x : query) x = random.gaussian();
  const on_device query_there(pqkv::make_view(query.data(), hq, d));
  const on_device out_there(pqkv::view<float, 2>{out.data(), {hq, d}, {d + 3, 1}});
  const on_device lse_there(pqkv::make_view(lse.data(), hq));
  const on_device spans(pqkv::as_const(pqkv::make_view(chosen.spans.data(), lists)));
  const on_device indices(pqkv::as_const(pqkv::make_view(chosen.indices.data(), lists, chosen.k_max)));
  const on_device counts(pqkv::as_const(pqkv::make_view(chosen.counts.data(), lists)));
  const device_scratch scratch(device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}));
  pqkv::attention(scratch.policy(), query_there.view(), there, pqkv::token_set<device>{spans.view(), indices.view(), counts.view()},
                  out_there.view(), lse_there.view());
  out = out_there.bytes();
  lse = lse_there.bytes();
  for (std::size_t q = 0; q < hq; ++q) {
    const plain_result wanted = plain_attention(&query[q * d], host, q / g, chosen.tokens(own_lists ? q : q / g));
    const bool empty = chosen.tokens(own_lists ? q : q / g).empty();
    const double error = relative_error(&out[q * (d + 3)], wanted.out);
    const bool lse_right =
        empty ? lse[q] == -HUGE_VALF
              : std::fabs(static_cast<double>(lse[q]) - wanted.lse) <= wanted.tolerance() * 4 + 1e-5 * std::fabs(wanted.lse);
    bool gaps = true;
    for (std::size_t i = d; i < d + 3 && q + 1 < hq; ++i) gaps = gaps && out[q * (d + 3) + i] == -7.0f;
    all.check(error <= wanted.tolerance() * 2 && lse_right && gaps, "h %zu g %zu n %zu d %zu bytes %zu query %zu: error %g, lse %g for %g",
              h, g, host.tokens(), d, sizeof(typename Host::value_type), q, error, static_cast<double>(lse[q]), wanted.lse);
  }
}

template <class T>
void compare_layouts(std::size_t most_lengths, random_source& random, verdict& all) {
  const std::size_t dims[] = {7, 8, 40, 64, 96, 128, 130, 200, 256}, lengths[] = {0, 1, 15, 16, 17, 130, 1500},
                    groups[] = {1, 2, 3, 4, 5, 8, 12};
  for (const layout where : every_layout)
    for (const content what : {content::gaussian, content::duplicates, content::offset})
      for (const std::size_t g : groups) {
        const std::size_t h = 1 + random.below(3), n = lengths[random.below(most_lengths)], d = dims[random.below(std::size(dims))];
        rows<T> keys = make_rows<T>(what, h, n, d, random.bits(), where),
                values = make_rows<T>(content::gaussian, h, n, d, random.bits(), where);
        const on_device keys_there(keys.view()), values_there(values.view());
        compare(pqkv::strided_kv(keys.view(), values.view()), pqkv::strided_kv(keys_there.view(), values_there.view()), g,
                random.below(4) == 0, random, all);
      }
}

template <class T>
void compare_pages(random_source& random, verdict& all) {
  using host_store = paged_store<T, pqkv::space::host>;
  for (const std::size_t n : {16u, 100u, 1000u}) {
    const std::size_t h = 2, d = 64, count = (n + 15) / 16;
    rows<T> memory = make_rows<T>(content::gaussian, count * 16 * h, 2, d, random.bits());
    const std::vector<std::uint32_t> pages = shuffled_pages(count);
    const on_device memory_there(memory.view());
    const on_device pages_there(pqkv::make_view(pages.data(), count));
    compare(host_store{memory.view().data, pages.data(), h, n, d},
            paged_store<T, device>{memory_there.view().data, pages_there.view().data, h, n, d}, 4, false, random, all);
  }
}

/// Rows of 8-bit integers, stored by the host.
void compare_quantized(std::size_t most_lengths, random_source& random, verdict& all) {
  const std::size_t dims[] = {8, 40, 64, 96, 128, 200, 256}, lengths[] = {1, 15, 16, 17, 79, 130, 1500};
  for (const std::size_t d : dims)
    for (const std::size_t g : {1u, 2u, 3u, 4u, 5u, 8u, 12u})
      for (const float magnitude : {1.0f, 3e4f, 1e-6f}) {
        const std::size_t h = 1 + random.below(3), n = lengths[random.below(most_lengths)];
        const pqkv::cache_shape shape{.batch = 1, .kv_heads = h, .query_heads = h, .head_dim = d, .capacity = n};
        const pqkv::quantized_rows<> rows(pqkv::exec::host<>{}, shape);
        const pqkv::quantized_store<> host = rows.view();
        for (std::size_t head = 0; head < h; ++head)
          for (std::size_t t = 0; t < n; ++t) {
            const auto key = host.key_slot(head, t), value = host.value_slot(head, t);
            for (std::size_t i = 0; i < d; ++i) {
              key.data[i] = static_cast<std::int8_t>(static_cast<int>(random.below(255)) - 127);
              value.data[i] = static_cast<std::int8_t>(static_cast<int>(random.below(255)) - 127);
            }
            *key.scale = 0.01f * (1 + static_cast<float>(random.below(100)) / 100), *value.scale = *key.scale * magnitude;
          }
        const on_device bytes(pqkv::make_view(host.data, rows.size_bytes()));
        compare(host, pqkv::quantized_store<device>{bytes.view().data, h, n, d}, g, random.below(4) == 0, random, all);
      }
}

/// Lists long enough to have more parts than the device attends to at a time, and short ones beside them.
template <class T>
void compare_long(random_source& random, verdict& all) {
  constexpr std::size_t h = 7, g = 32, n = 14400, d = 16, splits = pqkv::detail::attention_device_splits(h * g);
  static_assert(splits > pqkv::detail::attention_device_short_splits(h * g) && n > splits * pqkv::detail::least_part);
  rows<T> keys = make_rows<T>(content::gaussian, h, n, d, random.bits()), values = make_rows<T>(content::gaussian, h, n, d, random.bits());
  const on_device keys_there(keys.view()), values_there(values.view());
  for (unsigned round = 0; round < 3; ++round)
    compare(pqkv::strided_kv(keys.view(), values.view()), pqkv::strided_kv(keys_there.view(), values_there.view()), g, false, random, all);
}

/// A non-finite row spoils the query heads that attend to it and no other.
void compare_nonfinite(random_source& random, verdict& all) {
  for (const bool in_keys : {true, false}) {
    const std::size_t h = 2, g = 4, n = 300, d = 64, hq = h * g;
    rows<float> keys = make_rows(content::gaussian, h, n, d, 5), values = make_rows(content::gaussian, h, n, d, 6);
    (in_keys ? keys : values)(1, 120, 3) = nonfinite(random.below(3));
    const on_device keys_there(keys.view()), values_there(values.view());
    std::vector<float> query(hq * d), out(hq * d);
    for (float& x : query) x = random.gaussian();
    const on_device query_there(pqkv::make_view(query.data(), hq, d));
    const on_device out_there(pqkv::make_view(out.data(), hq, d));
    std::vector<pqkv::token_span> whole(h, {static_cast<std::uint32_t>(n), 0, 0});
    const on_device spans(pqkv::as_const(pqkv::make_view(whole.data(), h)));
    const device_scratch scratch(device_bytes<pqkv::op::attention>({.query_heads = hq, .head_dim = d}));
    pqkv::attention(scratch.policy(), query_there.view(), pqkv::strided_kv(keys_there.view(), values_there.view()),
                    pqkv::token_set<device>{spans.view(), {}, {}}, out_there.view());
    out = out_there.bytes();
    for (std::size_t q = 0; q < hq; ++q)
      all.check(std::isfinite(out[q * d + 3]) == (q < g), "in keys %d query %zu: %g", in_keys ? 1 : 0, q,
                static_cast<double>(out[q * d + 3]));
  }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  const std::size_t lengths = argc > 1 ? std::min<std::size_t>(static_cast<std::size_t>(std::atoi(argv[1])), 7) : 7;
  random_source random(3);
  verdict layouts("attention"), parts("attention, long lists"), integers("attention, 8-bit rows"), pages("attention, pages"),
      broken("attention, non-finite rows");
  compare_layouts<float>(lengths, random, layouts);
  compare_layouts<pqkv::half>(lengths, random, layouts);
  compare_layouts<pqkv::bfloat16>(lengths, random, layouts);
  compare_long<float>(random, parts);
  compare_long<pqkv::bfloat16>(random, parts);
  compare_quantized(lengths, random, integers);
  compare_pages<pqkv::bfloat16>(random, pages);
  compare_pages<float>(random, pages);
  compare_nonfinite(random, broken);
  bool passed = layouts.passed(1000);
  passed &= parts.passed(1000);
  passed &= integers.passed(500);
  passed &= pages.passed(40);
  passed &= broken.passed(16);
  return passed ? 0 : 1;
}
