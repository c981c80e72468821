// SPDX-License-Identifier: Apache-2.0
// Exact selection on a GPU: scores against the host's for every reduction, storage type and head size, with ranges that are empty or end
// behind the scores' columns, keys and queries that are not finite or very large; lists of the best against a plain selection, with many
// equal scores; and a cache that selects by exact scores against the host's, whose logits are whole numbers, so that the lists are the
// same. Ends with 77 where there is no GPU.
//
//   oracle [ROUNDS]              5 unless given
//   oracle --seconds S           small problems while the time lasts, for compute-sanitizer
#include "on_device.cuh"

#include <pqkv/device_pqcache.cuh>

#include <algorithm>
#include <cmath>

#include "cases/inputs.hpp"
#include "cases/plain_search.hpp"
#include "paged_store.cuh"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::middle_range;

const pqkv::exec::host<> cpu;
constexpr group_reduction every_reduction[] = {group_reduction::probability_sum, group_reduction::probability_max,
                                               group_reduction::logit_sum, group_reduction::logit_max, group_reduction::none};

std::vector<middle_range> random_ranges(random_source& random, std::size_t h, std::size_t n) {
  std::vector<middle_range> ranges(h);
  for (middle_range& r : ranges) {
    r.begin = static_cast<std::uint32_t>(random.below(1 + n / 3));
    r.end = random.below(6) == 0 ? r.begin : r.begin + static_cast<std::uint32_t>(random.below(1 + n - r.begin));
    r.retrieve = random.below(5) == 0 ? 0 : random.below(4) == 0 ? r.size() : static_cast<std::uint32_t>(random.below(1 + r.size()));
  }
  return ranges;
}

/// Lists on the device against a plain selection from scores [lists, n].
void compare_with_plain(const std::vector<float>& scores, std::size_t n, const std::vector<middle_range>& ranges, std::size_t room,
                        const std::vector<std::int32_t>& indices, const std::vector<std::uint32_t>& counts, verdict& all) {
  const std::size_t lists = counts.size(), per_head = lists / ranges.size();
  for (std::size_t list = 0; list < lists; ++list) {
    const middle_range range = ranges[list / per_head];
    const auto first = scores.begin() + static_cast<std::ptrdiff_t>(list * n);
    std::vector<std::int32_t> wanted = plain_top_k({first, first + range.size()}, range.selected());
    for (std::int32_t& t : wanted) t += static_cast<std::int32_t>(range.begin);
    wanted.resize(room, -1);
    const auto own = indices.begin() + static_cast<std::ptrdiff_t>(list * room);
    all.check(counts[list] == range.selected() && std::equal(wanted.begin(), wanted.end(), own),
              "list %zu of %zu: the best %u of %u (n %zu)", list, lists, range.selected(), range.size(), n);
  }
}

/// The largest sum, over the tokens of a range, of the absolute products that the logits of query heads are made of.
template <class Store>
float largest_terms(const Store& keys, std::size_t head, const middle_range& range, pqkv::view<const float, 2> queries) {
  float largest = 0;
  for (std::size_t t = range.begin; t < range.end; ++t) {
    float terms = 0;
    for (std::size_t row = 0; row < queries.extent(0); ++row)
      for (std::size_t i = 0; i < keys.head_dim(); ++i) terms += std::abs(queries(row, i) * static_cast<float>(keys.key(head, t).data[i]));
    if (std::isfinite(terms)) largest = std::max(largest, terms);
  }
  return largest;
}

/// What compare_scores() is called with besides keys and ranges.
struct scoring_case {
  std::size_t g = 1;
  float magnitude = 1;  // of the queries; the softmax's scale is divided by it
};

template <class HostStore, class DeviceStore>
void compare_scores(const HostStore& here, const DeviceStore& there, const scoring_case& how, random_source& random, verdict& all,
                    verdict& selected) {
  const std::size_t h = here.heads(), g = how.g, hq = h * g, d = here.head_dim(), n = here.tokens(), room = n + 3;
  const float scale = random.below(2) == 0 && how.magnitude == 1 ? 0.0f : (0.01f + 0.2f * random.uniform()) / how.magnitude;
  std::vector<float> query(hq * d);
  for (float& x : query) x = 2 * random.gaussian() * how.magnitude;
  if (random.below(4) == 0) query[random.below(query.size())] = NAN;
  if (random.below(4) == 0) query[random.below(query.size())] = -INFINITY;
  const auto ranges = random_ranges(random, h, n);
  const pqkv::view<const float, 2> q = pqkv::make_view(std::as_const(query).data(), hq, d);
  const on_device query_there(q);
  const on_device ranges_there(pqkv::make_view(ranges.data(), h));
  const device_scratch scratch(device_bytes<pqkv::op::exact_scores>({.query_heads = hq, .tokens = n}));
  for (const group_reduction reduction : every_reduction) {
    const std::size_t lists = pqkv::score_lists(reduction, h, hq);
    std::vector<float> wanted(lists * n, 77.0f), given = wanted;
    const on_device scores_there(pqkv::make_view(given.data(), lists, n));
    pqkv::exact_scores(cpu, q, here, pqkv::make_view(ranges.data(), h), reduction, pqkv::make_view(wanted.data(), lists, n), scale);
    pqkv::exact_scores(scratch.policy(), query_there.view(), there, ranges_there.view(), reduction, scores_there.view(), scale);
    given = scores_there.bytes();
    for (std::size_t list = 0; list < lists; ++list) {
      const float* a = wanted.data() + list * n;
      const float* b = given.data() + list * n;
      float largest = 0, error = 0;
      const std::size_t count = ranges[list / (lists / h)].size();
      for (std::size_t i = 0; i < count; ++i)
        if (std::isfinite(a[i])) largest = std::max(largest, std::abs(a[i]));
      for (std::size_t i = 0; i < count; ++i)
        error = std::max(error, std::isfinite(a[i]) ? std::abs(a[i] - b[i]) : a[i] == b[i] ? 0.0f : HUGE_VALF);
      for (std::size_t i = count; i < n; ++i) error = b[i] == 77.0f ? error : HUGE_VALF;  // columns behind the range stay
      // A logit near 0 may be what is left of large products. These are only added up where they are needed.
      const std::size_t rows = hq / lists;
      const bool is_close =
          error <= 4e-5f * largest ||
          (reduction != group_reduction::probability_sum && reduction != group_reduction::probability_max &&
           error <= 1e-6f * largest_terms(here, list / (lists / h), ranges[list / (lists / h)], q.slice(0, list * rows, rows)));
      all.check(is_close, "reduction %d, h %zu g %zu n %zu d %zu, magnitude %g: list %zu differs by %g of %g",
                static_cast<int>(reduction), h, g, n, d, static_cast<double>(how.magnitude), list, static_cast<double>(error),
                static_cast<double>(largest));
    }
    std::vector<std::int32_t> indices(lists * room, 77);
    std::vector<std::uint32_t> counts(lists, 77);
    const on_device indices_there(pqkv::make_view(indices.data(), lists, room));
    const on_device counts_there(pqkv::make_view(counts.data(), lists));
    pqkv::detail::run_operation<pqkv::op::list_best>(scratch.policy(), pqkv::as_const(scores_there.view()), ranges_there.view(),
                                                     indices_there.view(), counts_there.view());
    compare_with_plain(given, n, ranges, room, indices_there.bytes(), counts_there.bytes(), selected);
  }
}

template <class T>
void compare_rows(std::size_t h, std::size_t n, std::size_t d, layout where, const scoring_case& how, random_source& random, verdict& all,
                  verdict& selected) {
  rows<T> keys = make_rows<T>(content::gaussian, h, n, d, random.bits(), where);
  for (const float broken : {INFINITY, -INFINITY, NAN})
    if (random.below(3) == 0) keys.view()(random.below(h), random.below(n), random.below(d)) = static_cast<T>(broken);
  const on_device keys_there(pqkv::as_const(keys.view()));
  compare_scores(pqkv::strided_store<T>{keys.view(), keys.view()}, pqkv::strided_store<T, device>{keys_there.view(), keys_there.view()},
                 how, random, all, selected);
}

/// Keys in pages of the engine's, every other row of whose memory is a value.
template <class T>
void compare_pages(std::size_t h, std::size_t n, std::size_t d, const scoring_case& how, random_source& random, verdict& all,
                   verdict& selected) {
  const std::size_t count = (n + 15) / 16;
  rows<T> memory = make_rows<T>(content::gaussian, count * 16 * h, 2, d, random.bits());
  const std::vector<std::uint32_t> pages = shuffled_pages(count);
  const on_device memory_there(memory.view());
  const on_device pages_there(pqkv::make_view(pages.data(), count));
  compare_scores(paged_store<T, pqkv::space::host>{memory.view().data, pages.data(), h, n, d},
                 paged_store<T, device>{memory_there.view().data, pages_there.view().data, h, n, d}, how, random, all, selected);
}

void compare_lists(std::size_t h, std::size_t per_head, std::size_t n, random_source& random, verdict& all) {
  const std::size_t lists = h * per_head, room = std::max<std::size_t>(1, n);
  std::vector<float> scores(lists * n);
  const std::uint32_t kinds = random.below(2) == 0 ? 7 : 1u << 20;  // few: many equal scores
  for (float& x : scores) x = static_cast<float>(random.below(kinds)) - 3;
  const auto ranges = random_ranges(random, h, n);
  std::vector<std::int32_t> indices(lists * room, 77);
  std::vector<std::uint32_t> counts(lists, 77);
  const on_device scores_there(pqkv::make_view(std::as_const(scores).data(), lists, n));
  const on_device ranges_there(pqkv::make_view(ranges.data(), h));
  const on_device indices_there(pqkv::make_view(indices.data(), lists, room));
  const on_device counts_there(pqkv::make_view(counts.data(), lists));
  pqkv::detail::run_operation<pqkv::op::list_best>(pqkv::exec::cuda{}, scores_there.view(), ranges_there.view(), indices_there.view(),
                                                   counts_there.view());
  compare_with_plain(scores, n, ranges, room, indices_there.bytes(), counts_there.bytes(), all);
}

/// Keys and queries are whole numbers, so that logits are exact, and the sums of a group's. Rows of integers have 127 first, so that their
/// scale is 1.
template <class Rows, class DeviceRows>
void compare_caches(std::size_t d, random_source& random, verdict& all) {
  using host_cache = pqkv::pqcache<Rows, pqkv::selector::oracle>;
  using device_cache = pqkv::pqcache<DeviceRows, pqkv::selector::basic_oracle<device>>;
  typename host_cache::params p;
  p.batch = 2, p.kv_heads = 2, p.query_heads = 6, p.head_dim = d, p.capacity = 900;
  p.selector.reduction = group_reduction::logit_sum;
  typename device_cache::params there;
  static_cast<pqkv::cache_shape&>(there) = p;
  there.budget = p.budget, there.selector.reduction = p.selector.reduction;
  const pqkv::exec::cuda gpu;
  host_cache own(p);
  device_cache other(gpu, there);
  const auto whole = [&](std::size_t size) {
    std::vector<float> x(size);
    for (float& element : x) element = static_cast<float>(random.below(7)) - 3;
    if constexpr (std::is_same_v<Rows, pqkv::quantized_rows<>>)
      for (std::size_t row = 0; row < size; row += d) x[row] = 127;
    return x;
  };
  const auto shown = [](std::vector<float>& x, std::size_t a, std::size_t b, std::size_t c) { return pqkv::make_view(x.data(), a, b, c); };
  for (std::size_t slot = 0; slot < 2; ++slot) {
    const std::size_t n = 300 + 250 * slot;
    std::vector<float> keys = whole(2 * n * d), values = whole(2 * n * d);
    const on_device k(shown(keys, 2, n, d)), v(shown(values, 2, n, d));
    own.prefill(cpu, slot, shown(keys, 2, n, d), shown(values, 2, n, d));
    other.prefill(gpu, slot, k.view(), v.view());
    pqkv::sync(gpu);
  }
  for (int step = 0; step < 20; ++step) {
    std::vector<float> key = whole(2 * 2 * d), value = whole(2 * 2 * d), query = whole(2 * 6 * d), out(2 * 6 * d), out_there = out;
    std::vector<std::int32_t> list(2 * 2 * 900), list_there = list;
    std::vector<std::uint32_t> count(2 * 2), count_there = count;
    const on_device k(shown(key, 2, 2, d)), v(shown(value, 2, 2, d)), q(shown(query, 2, 6, d)), o(shown(out_there, 2, 6, d));
    const on_device l(pqkv::make_view(list_there.data(), 2, 2, 900));
    const on_device c(pqkv::make_view(count_there.data(), 2, 2));
    own.append(cpu, shown(key, 2, 2, d), shown(value, 2, 2, d));
    other.append(gpu, k.view(), v.view());
    own.retrieve(cpu, shown(query, 2, 6, d), pqkv::make_view(list.data(), 2, 2, 900), pqkv::make_view(count.data(), 2, 2));
    other.retrieve(gpu, q.view(), l.view(), c.view());
    own.attend(cpu, shown(query, 2, 6, d), shown(out, 2, 6, d));
    other.attend(gpu, q.view(), o.view());
    pqkv::sync(gpu);
    out_there = o.bytes(), list_there = l.bytes(), count_there = c.bytes();
    all.check(count == count_there && list == list_there && count[0] > 10, "step %d: the lists differ", step);
    float error = 0;
    for (std::size_t i = 0; i < out.size(); ++i) error = std::max(error, std::abs(out[i] - out_there[i]));
    all.check(error < 1e-3f, "step %d: attention differs by %g", step, static_cast<double>(error));
  }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  workload work(argc, argv, 5);
  random_source random(0x0e4ac1e);
  verdict scores("exact_scores"), selected("list_best of exact_scores"), lists("list_best"), caches("caches that select by exact scores");
  work.part(1);
  for (std::size_t round = 0; round < work.rounds(); ++round) {
    const std::size_t tokens[] = {1, 33, 700, work.small() ? 300u : 9000u}, dims[] = {8, 20, 37, 64, 100, 128, 200, 256},
                      groups[] = {1, 3, 4, 7, 8, 11};
    const float magnitudes[] = {1, 1, 1e30f, 1e-30f};
    for (const std::size_t n : tokens)
      for (const std::size_t d : dims) {
        if (!work.another()) continue;
        const std::size_t h = 1 + random.below(3);
        const auto any_case = [&] { return scoring_case{groups[random.below(6)], magnitudes[random.below(4)]}; };
        const auto any_layout = [&] { return random.below(2) == 0 ? layout::dense : layout::transposed; };
        const std::size_t only = n > 700 ? random.below(4) : 4;  // long ranges take the host some time: one kind of keys
        if (only == 4 || only == 0) compare_rows<float>(h, n, d, layout::padded, any_case(), random, scores, selected);
        if (only == 4 || only == 1) compare_rows<pqkv::bfloat16>(h, n, d, any_layout(), any_case(), random, scores, selected);
        if (only == 4 || only == 2) compare_rows<pqkv::half>(h, n, d, any_layout(), any_case(), random, scores, selected);
        if (only == 4 || only == 3) compare_pages<pqkv::bfloat16>(h, n, d, any_case(), random, scores, selected);
        compare_lists(h, groups[random.below(4)], n, random, lists);
      }
    if (work.small()) continue;
    compare_lists(3, 2, 100000, random, lists);  // shared by clusters
    compare_lists(3, 2, 300000, random, lists);
    compare_rows<pqkv::bfloat16>(3, 100000, 64, layout::dense, {4}, random, scores, selected);
    if (round == 0) compare_rows<pqkv::half>(1, 300000, 8, layout::dense, {3}, random, scores, selected);
  }
  compare_caches<pqkv::dense_rows<float>, pqkv::dense_rows<float, device>>(64, random, caches);
  compare_caches<pqkv::dense_rows<pqkv::bfloat16>, pqkv::dense_rows<pqkv::bfloat16, device>>(128, random, caches);
  compare_caches<pqkv::quantized_rows<>, pqkv::quantized_rows<device>>(64, random, caches);
  bool passed = scores.passed();
  passed &= selected.passed();
  passed &= lists.passed();
  passed &= caches.passed(100);
  return passed ? 0 : 1;
}
