// SPDX-License-Identifier: Apache-2.0
// Tables, codes, training and the copy of rows on a GPU against the host, to the bit: every storage type, layout and content of the
// host's tests, both metrics, non-finite rows. The same under fast math. Ends with 77 where there is no GPU.
//
//   quantize [rounds]       random problems of each kind, 3 unless given
//   quantize --seconds S    a small problem of each kind while the time lasts, for compute-sanitizer
#include "on_device.cuh"

#include "cases/inputs.hpp"

namespace {
using namespace pqkv_cases;

const pqkv::exec::host<> cpu;
const pqkv::exec::cuda gpu;

struct verdicts {
  verdict table{"inner_product_table"}, negative{"squared_l2_table"}, encode{"encode"}, mean{"train: mean"}, train{"train: centroids"},
      store{"store_rows"};
};

/// Owner of tables with odd strides, filled with a number that none has.
struct table_memory {
  std::vector<float> entries, bias;
  std::size_t hq, m, c;

  table_memory(std::size_t heads, std::size_t subspaces, std::size_t size)
      : entries(heads * (subspaces * (size + 3) + 1), -7.0f), bias(heads, -7.0f), hq(heads), m(subspaces), c(size) {}
  pqkv::mutable_distance_table_view<> view() {
    return {{entries.data(), {hq, m, c}, {m * (c + 3) + 1, c + 3, 1}}, pqkv::make_view(bias.data(), hq)};
  }
};

void compare_tables(const pqkv::pq_shape& shape, std::size_t g, random_source& random, verdicts& all) {
  pqkv::codebook book = make_book(shape, random.bits());
  const std::size_t hq = shape.kv_heads * g;
  rows<float> query = make_rows(content::gaussian, 1, hq, shape.head_dim, random.bits());
  if (random.below(4) == 0) plant_nonfinite(query.view(), 1, random);
  const book_on_device book_there(book.mutable_view());
  const pqkv::view<const float, 2> query_here = pqkv::as_const(query.view()[0]);
  const on_device query_there(query_here);
  const auto test = [&](verdict& of, auto build) {
    table_memory host(hq, shape.subspaces, shape.centroids());
    const on_device entries(host.view().entries);
    const on_device bias(host.view().bias);
    build(cpu, query_here, book.view(), host.view());
    build(gpu, query_there.view(), pqkv::codebook_view<device>(book_there.view()),
          pqkv::mutable_distance_table_view<device>{entries.view(), bias.view()});
    std::vector<float> from_device = entries.bytes(), from_host = host.entries;
    from_host.resize(from_device.size());
    from_device.insert(from_device.end(), host.bias.size(), 0.0f);
    const std::vector<float> bias_from_device = bias.bytes();
    std::copy(bias_from_device.begin(), bias_from_device.end(), from_device.end() - static_cast<std::ptrdiff_t>(hq));
    from_host.insert(from_host.end(), host.bias.begin(), host.bias.end());
    bool equal = from_host.size() == from_device.size();
    for (std::size_t i = 0; i < from_host.size() && equal; ++i)  // a NaN is any NaN: only that it is one decides anything
      equal = pqkv::float_bits(from_host[i]) == pqkv::float_bits(from_device[i]) ||
              (from_host[i] != from_host[i] && from_device[i] != from_device[i]);
    of.check(equal, "h %zu g %zu d %zu m %zu b %u", shape.kv_heads, g, shape.head_dim, shape.subspaces, shape.bits);
  };
  test(all.table, [](const auto&... a) { pqkv::inner_product_table(a...); });
  if (shape.metric == pqkv::key_metric::squared_l2) test(all.negative, [](const auto&... a) { pqkv::squared_l2_table(a...); });
}

template <class T>
void compare_encode(const pqkv::pq_shape& shape, std::size_t n, content what, layout where, random_source& random, verdicts& all) {
  pqkv::codebook book = make_book(shape, random.bits(), what);
  rows<T> keys = make_rows<T>(what, shape.kv_heads, n, shape.head_dim, random.bits(), where);
  if (n > 0 && random.below(2) == 0) plant_nonfinite(keys.view(), 1 + n / 50, random);
  if (n > 0 && random.below(3) == 0) keys(0, n / 2, 1) = T(3e38f);  // finite, and its square is not
  const book_on_device book_there(book.mutable_view());
  const on_device keys_there(keys.view());
  const std::size_t plane = n + 5;
  std::vector<std::uint8_t> codes(shape.kv_heads * shape.subspaces * plane + 1, 0xee);
  const pqkv::mutable_codes_view<> here{codes.data(), {shape.kv_heads, shape.subspaces, n}, {shape.subspaces * plane, plane, 1}};
  const on_device there(here);
  pqkv::encode(cpu, keys.view(), book.view(), here);
  pqkv::encode(gpu, keys_there.view(), book_there.view(), there.view());
  const std::vector<std::uint8_t> from_device = there.bytes();
  codes.resize(from_device.size());
  all.encode.check(same(codes, from_device), "h %zu n %zu d %zu m %zu b %u metric %d bytes %zu content %d layout %d", shape.kv_heads, n,
                   shape.head_dim, shape.subspaces, shape.bits, static_cast<int>(shape.metric), sizeof(T), static_cast<int>(what),
                   static_cast<int>(where));
}

/// What training meets beside the contents of the rows: any layout, sizes that half the range of floats apart, rows that are all equal, and
/// centroids to begin from that are far from all rows.
struct variety {
  layout where = layout::dense;
  float size = 1, centroid_size = 1;
  bool is_constant = false;

  template <class T>
  static variety of(random_source& random) {
    constexpr bool is_half = std::is_same_v<T, pqkv::half>;
    const float sizes[] = {
        0x1p-12f, 8.0f, is_half ? 1.0f : 0x1p-70f, is_half ? 1.0f : 0x1p-35f, is_half ? 1.0f : 0x1p40f, is_half ? 1.0f : 0x1p63f};
    return {random.below(2) == 0 ? layout::dense : every_layout[random.below(5)], random.below(2) == 0 ? 1.0f : sizes[random.below(6)],
            random.below(4) == 0 ? 0x1p20f : 1.0f, random.below(12) == 0};
  }
};

template <class T>
void compare_train(const pqkv::pq_shape& shape, std::size_t n, content what, const pqkv::kmeans_params& params, random_source& random,
                   verdicts& all, const variety& more = {}) {
  rows<T> keys = make_rows<T>(what, shape.kv_heads, n, shape.head_dim, random.bits(), more.where);
  for (std::size_t head = 0; head < shape.kv_heads; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t e = 0; e < shape.head_dim; ++e)
        keys(head, t, e) = T(more.size * static_cast<float>(keys(head, more.is_constant ? 0 : t, e)));
  if (n > 0 && random.below(2) == 0) plant_nonfinite(keys.view(), 1 + n / 50, random);
  pqkv::codebook book = make_book(shape, 1), untouched = make_book(shape, 1);
  for (const auto& centroids : {book.mutable_view().centroids, untouched.mutable_view().centroids})
    for (std::size_t i = 0; i < centroids.size(); ++i) centroids.data[i] *= more.centroid_size;
  const book_on_device there(untouched.mutable_view());
  const on_device keys_there(keys.view());
  const std::size_t problems = shape.kv_heads * shape.subspaces;
  std::vector<std::uint8_t> outcome(problems, 9), poison(problems, 9);
  const on_device outcome_there(pqkv::make_view(poison.data(), shape.kv_heads, shape.subspaces));
  const device_scratch scratch(device_bytes<pqkv::op::kmeans>({problems, n, shape.row_dim(), shape.centroids(), params}));
  pqkv::train(cpu, keys.view(), book.mutable_view(), pqkv::make_view(outcome.data(), shape.kv_heads, shape.subspaces), params);
  pqkv::train(scratch.policy(), keys_there.view(), there.view(), outcome_there.view(), params);
  const auto view = book.mutable_view();
  const auto floats = [](const float* data, std::size_t count) { return std::vector<float>(data, data + count); };
  all.mean.check(same(floats(view.mean.data, view.mean.size()), there.mean.bytes()), "h %zu n %zu d %zu content %d", shape.kv_heads, n,
                 shape.head_dim, static_cast<int>(what));
  const bool radius = shape.metric == pqkv::key_metric::squared_l2 ||
                      same(floats(view.squared_radius.data, view.squared_radius.size()), there.squared_radius.bytes());
  all.train.check(
      same(outcome, outcome_there.bytes()) && radius && same(floats(view.centroids.data, view.centroids.size()), there.centroids.bytes()),
      "h %zu n %zu d %zu m %zu b %u metric %d bytes %zu content %d L %zu rows %zu start %d layout %d size %a %a constant %d",
      shape.kv_heads, n, shape.head_dim, shape.subspaces, shape.bits, static_cast<int>(shape.metric), sizeof(T), static_cast<int>(what),
      params.iterations, params.rows_per_centroid, static_cast<int>(params.start), static_cast<int>(more.where),
      static_cast<double>(more.size), static_cast<double>(more.centroid_size), more.is_constant ? 1 : 0);
}

template <class T, class U>
void compare_store(std::size_t h, std::size_t n, std::size_t d, layout from, layout to, random_source& random, verdicts& all) {
  rows<T> source = make_rows<T>(content::offset, h, n, d, random.bits(), from);
  if (n > 0) plant_nonfinite(source.view(), 3, random);
  if (n > 0) source(0, n - 1, 0) = T(1e30f);  // beyond half
  rows<U> stored(h, n, d, to);
  std::vector<std::uint32_t> nonfinite(h, 5);
  const on_device source_there(source.view());
  const on_device stored_there(stored.view());
  const on_device nonfinite_there(pqkv::make_view(nonfinite.data(), h));
  pqkv::store_rows(gpu, source_there.view(), stored_there.view(), nonfinite_there.view());
  pqkv::store_rows(cpu, source.view(), stored.view(), pqkv::make_view(nonfinite.data(), h));
  const std::vector<U> from_device = stored_there.bytes();
  const std::vector<U> from_host(stored.view().data, stored.view().data + from_device.size());
  all.store.check(same(from_host, from_device) && same(nonfinite, nonfinite_there.bytes()), "h %zu n %zu d %zu bytes %zu to %zu", h, n, d,
                  sizeof(T), sizeof(U));
}

template <class T>
void compare_rows(workload& work, random_source& random, verdicts& all) {
  const std::size_t dims[] = {16, 64, 128, 256};
  for (const content what : every_content)
    for (const layout where : every_layout)
      for (const pqkv::key_metric metric : {pqkv::key_metric::squared_l2, pqkv::key_metric::inner_product})
        for (std::size_t round = 0; round < work.rounds(); ++round) {
          const std::size_t m = std::size_t{1} << random.below(5), lengths[] = {0, 1, 31, 32, 33, 500};
          const pqkv::pq_shape shape{1 + random.below(3), dims[random.below(4)], m, 4 + static_cast<unsigned>(random.below(5)), metric};
          if (work.another()) compare_encode<T>(shape, lengths[random.below(6)], what, where, random, all);
        }
}

template <class T>
void compare_training(workload& work, random_source& random, verdicts& all) {
  const std::size_t dims[] = {16, 64, 128, 256};
  for (const content what : every_content)
    for (const pqkv::key_metric metric : {pqkv::key_metric::squared_l2, pqkv::key_metric::inner_product})
      for (std::size_t round = 0; round < work.rounds(); ++round) {
        const std::size_t m = std::size_t{1} << random.below(4), lengths[] = {0, 20, 300, 1000, 6000};
        const unsigned bits = 4 + static_cast<unsigned>(random.below(5));
        const pqkv::kmeans_params params{1 + random.below(6), random.bits(),
                                         random.below(3) == 0   ? 0u
                                         : random.below(2) == 0 ? 4u
                                                                : 256u,
                                         random.below(3) == 0 ? pqkv::kmeans_start::given : pqkv::kmeans_start::drawn};
        const pqkv::pq_shape shape{1 + random.below(3), dims[random.below(4)], m, bits, metric};
        const variety more = variety::of<T>(random);
        if (work.another()) compare_train<T>(shape, lengths[random.below(work.small() ? 4 : 5)], what, params, random, all, more);
      }
}

/// As many problems as take a cluster each, and so many that each is one CTA's.
void compare_many_problems(workload& work, random_source& random, verdicts& all) {
  if (work.small()) {
    if (work.another()) compare_train<pqkv::bfloat16>({8, 128, 2, 6}, 2000, content::clustered, {2, 1, 256}, random, all);
    if (work.another()) compare_train<pqkv::bfloat16>({140, 64, 2, 4}, 300, content::offset, {2, 3, 256}, random, all);
    if (work.another()) compare_train<float>({2, 128, 2, 6}, 2000, content::gaussian, {2, 1, 256}, random, all);
    return;
  }
  compare_train<pqkv::bfloat16>({8, 128, 2, 6}, 16384, content::clustered, {}, random, all);
  for (const content what : every_content) compare_train<float>({4, 128, 2, 6}, 16384, what, {}, random, all);
  compare_train<float>({2, 128, 1, 8}, 8000, content::gaussian, {}, random, all);
  compare_train<float>({2, 128, 4, 5}, 8000, content::offset, {}, random, all);
  if (work.rounds() > 1) compare_train<pqkv::bfloat16>({32, 128, 2, 6}, 20000, content::offset, {25, 3, 256}, random, all);
}

void compare_stores(workload& work, random_source& random, verdicts& all) {
  for (const layout from : every_layout)
    for (const layout to : every_layout) {
      const std::size_t h = 1 + random.below(3), n = random.below(90), d = 8 * (1 + random.below(16));
      if (!work.another()) continue;
      compare_store<float, pqkv::half>(h, n, d, from, to, random, all);
      compare_store<float, pqkv::bfloat16>(h, n, d, from, to, random, all);
      compare_store<pqkv::half, float>(h, n, d, from, to, random, all);
      compare_store<pqkv::bfloat16, pqkv::bfloat16>(h, n, d, from, to, random, all);
    }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  workload work(argc, argv, 3);
  verdicts all;
  random_source random(77);
  work.part(0.1);
  for (std::size_t round = 0; round < 20 * work.rounds(); ++round)
    for (const pqkv::key_metric metric : {pqkv::key_metric::squared_l2, pqkv::key_metric::inner_product}) {
      const std::size_t m = std::size_t{1} << random.below(5), d = 16 * (1 + random.below(16));
      const pqkv::pq_shape shape{1 + random.below(4), d, m, 4 + static_cast<unsigned>(random.below(5)), metric};
      if (work.another()) compare_tables(shape, 1 + random.below(8), random, all);
    }
  work.part(0.15);
  compare_stores(work, random, all);
  work.part(0.25);
  compare_rows<float>(work, random, all);
  work.part(0.35);
  compare_rows<pqkv::half>(work, random, all);
  work.part(0.45);
  compare_rows<pqkv::bfloat16>(work, random, all);
  work.part(0.6);
  compare_training<float>(work, random, all);
  work.part(0.7);
  compare_training<pqkv::half>(work, random, all);
  work.part(0.8);
  compare_training<pqkv::bfloat16>(work, random, all);
  work.part(1);
  compare_many_problems(work, random, all);
  work.print();
  const bool whole = !work.small();
  bool passed = all.table.passed(whole ? 40 : 1);
  passed &= all.negative.passed(whole ? 20 : 1);
  passed &= all.encode.passed(whole ? 100 : 1);
  passed &= all.mean.passed(whole ? 20 : 1);
  passed &= all.train.passed(whole ? 20 : 1);
  passed &= all.store.passed(whole ? 100 : 1);
  return passed ? 0 : 1;
}
