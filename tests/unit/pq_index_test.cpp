// SPDX-License-Identifier: Apache-2.0
// The index of product quantization as one value: what it learns is what its public parts make of the same rows, wherever these are; it is
// grown, cut, copied and emptied a sequence at a time; it ranks what retrieve() and rerank() select from its parts.
#include <doctest/doctest.h>

#include <cstring>
#include <utility>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::leaving_tokens;
using pqkv::middle_range;
using pqkv::pq_index_shape;
using pqkv::search_path;
using pqkv::exec::host;
const host<> cpu;
constexpr std::size_t h = 2, d = 32, capacity = 300;

pq_index_shape shape_of(std::size_t sequences, std::size_t fine, search_path path = search_path::joint,
                        pqkv::key_metric metric = pqkv::key_metric::squared_l2) {
  return {sequences, h, d, 2, 4, capacity, metric, fine, 4, path};
}

/// Rows that are not strided: no part of their keys is a view.
template <class T>
struct opaque_rows {
  using value_type = T;
  using space_type = pqkv::space::host;
  pqkv::strided_store<T> rows;
  std::size_t heads() const { return rows.heads(); }
  std::size_t tokens() const { return rows.tokens(); }
  std::size_t head_dim() const { return rows.head_dim(); }
  pqkv::kv_row<T> key(std::size_t head, std::size_t token) const { return rows.key(head, token); }
  pqkv::kv_row<T> value(std::size_t head, std::size_t token) const { return rows.value(head, token); }
};
static_assert(pqkv::kv_store<opaque_rows<float>>);

/// Bytes of a slot's parts, in their order.
std::vector<std::byte> bytes_of(const pqkv::slot_parts& parts, std::size_t slot, std::size_t n) {
  std::vector<std::byte> all;
  for (std::size_t i = 0; i < parts.count; ++i)
    for (std::size_t segment = 0; segment < parts.part[i].segments; ++segment) {
      const std::byte* const first = parts.part[i].segment(slot, segment);
      all.insert(all.end(), first, first + parts.part[i].bytes(n));
    }
  return all;
}
template <class T>
bool equal(const pqkv::view<T, 3>& a, const pqkv::view<const std::uint8_t, 3>& b, std::size_t first, std::size_t last) {
  bool all = true;
  for (std::size_t i = 0; i < a.extent(0); ++i)
    for (std::size_t j = 0; j < a.extent(1); ++j)
      for (std::size_t t = first; t < last; ++t) all = all && a(i, j, t) == b(i, j, t - first);
  return all;
}

/// Learns sequence `which` of an index and compares every part with the public functions on the same rows.
template <class T, class Policy>
void check_learning(const Policy& policy, std::size_t fine, bool opaque, pqkv::key_metric metric, std::size_t sampled, std::uint64_t seed) {
  const pqkv::pq_index<> index(policy, shape_of(3, fine, search_path::joint, metric));
  const std::size_t which = 1, first = 4, ranked = 220, n = 250;
  const auto keys = make_rows<T>(content::clustered, 3 * h, capacity, d, seed, layout::padded);
  std::vector<std::uint8_t> outcomes(h * (2 + fine), 9);
  pqkv::kmeans_params settings{.iterations = 3, .seed = seed};
  settings.rows_per_centroid = sampled;
  const pqkv::strided_rows<T> rows{
      {const_cast<T*>(keys.view().data), {3 * h, capacity, d}, {keys.view().stride(0), keys.view().stride(1), 1}}, {}};
  const auto outcome_view = pqkv::make_view(outcomes.data(), h, 2 + fine);
  if (opaque)
    index.learn(policy, which, opaque_rows<T>{pqkv::strided_kv(keys.view(), keys.view())}, first, ranked, n, settings, outcome_view);
  else
    index.learn(policy, which, rows, first, ranked, n, settings, outcome_view);
  for (const std::uint8_t one : outcomes) CHECK(one == 0);

  const auto own = index.view().sequence(which);
  const auto part = keys.view().slice(0, which * h, h);
  pqkv::codebook book({h, d, 2, 4, metric});
  REQUIRE(pqkv::train(policy, part.slice(1, first, n - first), book, settings) == pqkv::kmeans_outcome::trained);
  CHECK(std::memcmp(own.book.centroids.data, book.view().centroids.data, book.view().centroids.size() * 4) == 0);
  CHECK(std::memcmp(own.book.mean.data, book.view().mean.data, book.view().mean.size() * 4) == 0);
  pqkv::codes codes(book.shape(), n - first);
  pqkv::encode(policy, part.slice(1, first, n - first), book.view(), codes.mutable_view());
  CHECK(equal(own.codes, codes.view(), first, ranked));

  const auto cells = own.index;
  std::vector<std::uint32_t> counts(h * 256);
  for (std::size_t head = 0; head < h; ++head) {
    CHECK(cells.first(head) == first);
    CHECK(cells.merged(head) == ranked);
    CHECK(cells.last(head) == ranked);
    for (std::size_t t = 0; t < ranked - first; ++t) {
      const std::size_t cell = std::size_t{codes.view()(head, 0, t)} * 16 + codes.view()(head, 1, t);
      ++counts[head * 256 + cell];
      CHECK(own.cell(head, first + t) == cell);
    }
    std::size_t wrong = 0;
    for (std::size_t cell = 0; cell < 256; ++cell) {
      wrong += cells.counts(head, cell) != counts[head * 256 + cell] ? 1 : 0;
      wrong += cells.offsets(head, cell + 1) - cells.offsets(head, cell) != counts[head * 256 + cell] ? 1 : 0;
      for (std::uint32_t i = cells.offsets(head, cell); i < cells.offsets(head, cell + 1); ++i)
        wrong += own.cell(head, static_cast<std::size_t>(cells.ids(head, i))) != cell ? 1 : 0;
    }
    CHECK(wrong == 0);
  }
  if (fine == 0) return;
  pqkv::codebook fine_book(pqkv::residual_shape(book.shape(), fine, 4));
  pqkv::residual_codes fine_codes(fine_book.shape(), n - first);
  std::vector<std::uint8_t> fine_outcomes(h * fine);
  pqkv::train_residual(policy, part.slice(1, first, n - first), codes.view(), book.view(), fine_book.mutable_view(),
                       pqkv::make_view(fine_outcomes.data(), h, fine), settings);
  pqkv::encode_residual(policy, part.slice(1, first, n - first), codes.view(), book.view(), fine_book.view(), fine_codes.mutable_view());
  CHECK(std::memcmp(own.fine_book.centroids.data, fine_book.view().centroids.data, fine_book.view().centroids.size() * 4) == 0);
  std::size_t wrong = 0;
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = first; t < ranked; ++t)
      for (std::size_t j = 0; j < fine; ++j) wrong += own.fine_codes(head, t, j) != fine_codes.view()(head, t - first, j) ? 1 : 0;
  CHECK(wrong == 0);
}
}  // namespace

TEST_CASE("pq_index: learning without tokens to encode writes no codes, and takes more rows than a sequence can hold") {
  const pq_index_shape shape{2, h, d, 2, 4, 40};
  const pqkv::pq_index<> index(cpu, shape);
  const auto keys = make_rows<float>(content::clustered, h, 200, d, 3);
  std::vector<std::uint8_t> outcomes(h * 2, 9);
  index.learn(cpu, 0, pqkv::strided_rows<float>{{const_cast<float*>(keys.view().data), {h, 200, d}, {200 * d, d, 1}}, {}}, 0, 0, 200,
              {.iterations = 3, .seed = 1, .rows_per_centroid = 0}, pqkv::make_view(outcomes.data(), h, 2));
  CHECK(outcomes == std::vector<std::uint8_t>(h * 2, 0));
  const auto codes = index.view().codes;
  bool is_zero = true;
  for (std::size_t i = 0; i < codes.extent(0); ++i)
    for (std::size_t j = 0; j < codes.extent(1); ++j)
      for (std::size_t t = 0; t < codes.extent(2); ++t) is_zero = is_zero && codes(i, j, t) == 0;
  CHECK(is_zero);
}

TEST_CASE("pq index: what its shape comes to") {
  CHECK(shape_of(3, 0).heads() == 6);
  CHECK(shape_of(3, 0).cells() == 256);
  CHECK(shape_of(3, 0, search_path::scan).cells() == 0);
  CHECK(shape_of(3, 0).least_rows() == 16);
  auto shape = shape_of(1, 4);
  CHECK(shape.has_fine());
  shape.fine_bits = 6;
  CHECK(shape.least_rows() == 64);
  shape.path = search_path::automatic;
  shape.capacity = 255;
  CHECK(shape.cells() == 0);  // fewer tokens than cells: it would never be used
  shape.capacity = 256;
  CHECK(shape.cells() == 256);
  shape.subspaces = 8, shape.path = search_path::automatic;
  CHECK(shape.cells() == 0);  // 32 bits
  for (const std::size_t fine : {0u, 4u})
    for (const search_path path : {search_path::scan, search_path::joint}) {
      const pqkv::pq_index<> index(cpu, shape_of(3, fine, path));
      CHECK(index.size_bytes() == pqkv::pq_index<>::required_bytes(shape_of(3, fine, path)));
      CHECK(index.view().has_fine() == (fine != 0));
      CHECK(index.view().index.empty() == (path == search_path::scan));
      CHECK(index.view().sequence(2).codes.extent(0) == h);
      CHECK(index.view().sequence(2).codes.data == index.view().codes.data + 2 * h * index.view().codes.stride(0));
    }
  CHECK(pqkv::pq_index<>().size_bytes() == 0);
}

TEST_CASE("pq index: learns what the public parts make of the same rows") {
  using pqkv::key_metric;
  check_learning<float>(cpu, 0, false, key_metric::squared_l2, 256, 1);
  check_learning<float>(cpu, 4, false, key_metric::squared_l2, 256, 2);
  check_learning<pqkv::half>(cpu, 0, false, key_metric::squared_l2, 256, 3);
  check_learning<pqkv::bfloat16>(host<pqkv::isa::scalar, threaded_runner>{}, 8, false, key_metric::squared_l2, 256, 4);
  check_learning<float>(cpu, 0, false, key_metric::inner_product, 256, 5);
  check_learning<float>(cpu, 0, false, key_metric::squared_l2, 5, 6);  // a sample of 80 rows
}

TEST_CASE("pq index: rows that are not strided are learned from to the same bits") {
  using pqkv::key_metric;
  check_learning<float>(cpu, 0, true, key_metric::squared_l2, 256, 1);
  check_learning<pqkv::half>(cpu, 0, true, key_metric::squared_l2, 5, 3);
  check_learning<pqkv::bfloat16>(host<pqkv::isa::scalar, threaded_runner>{}, 0, true, key_metric::squared_l2, 5, 4);
  check_learning<float>(cpu, 0, true, key_metric::inner_product, 5, 5);
  check_learning<float>(cpu, 4, true, key_metric::squared_l2, 256, 2);
  check_learning<pqkv::bfloat16>(cpu, 8, true, key_metric::squared_l2, 5, 4);
}

TEST_CASE("pq index: training that fails says so, and nothing is counted") {
  const pqkv::pq_index<> index(cpu, shape_of(1, 0));
  auto keys = make_rows<float>(content::gaussian, h, capacity, d, 1);
  for (std::size_t t = 5; t < capacity; ++t)
    for (std::size_t i = 0; i < d; ++i) keys(1, t, i) = nonfinite(t);  // five rows of one head that can be used
  std::vector<std::uint8_t> outcomes(h * 2, 9);
  index.learn(cpu, 0, pqkv::strided_rows<float>{keys.view(), keys.view()}, 0, 200, 250, {.iterations = 2},
              pqkv::make_view(outcomes.data(), h, 2));
  bool failed = false;
  for (const std::uint8_t one : outcomes) failed = failed || one != 0;
  CHECK(failed);
  for (std::size_t head = 0; head < h; ++head) CHECK(index.view().index.first(head) == index.view().index.last(head));
}

namespace {
/// An index of three sequences that have learned tokens [4, 100), and their rows.
struct learned_index {
  pqkv::pq_index<> index;
  rows<float> keys = make_rows<float>(content::clustered, 3 * h, capacity, d, 9);

  explicit learned_index(std::size_t fine, search_path path = search_path::joint) : index(cpu, shape_of(3, fine, path)) {
    std::vector<std::uint8_t> outcomes(h * (2 + fine));
    for (std::size_t which = 0; which < 3; ++which)
      index.learn(cpu, which, rows_view(), 4, 100, 120, {.iterations = 2}, pqkv::make_view(outcomes.data(), h, 2 + fine));
  }
  pqkv::strided_rows<float> rows_view() { return {keys.view(), keys.view()}; }
  void grow(const std::vector<leaving_tokens>& tokens) {
    index.view().encode(cpu, rows_view(), pqkv::make_view(tokens.data(), tokens.size()));
    for (const leaving_tokens& one : tokens) index.view().commit(one);
  }
  /// What the index of a sequence says of its ranked tokens, whatever is merged: counts, and each token's cell.
  std::vector<std::uint32_t> content_of(std::size_t which) const {
    const auto own = index.view().sequence(which);
    std::vector<std::uint32_t> all;
    for (std::size_t head = 0; head < h; ++head) {
      all.push_back(own.index.first(head)), all.push_back(own.index.last(head));
      for (std::size_t cell = 0; cell < 256; ++cell) all.push_back(own.index.counts(head, cell));
      for (std::uint32_t t = own.index.first(head); t < own.index.last(head); ++t) all.push_back(own.cell(head, t));
    }
    return all;
  }
};
}  // namespace

TEST_CASE("pq index: grown by runs of any length or token by token it is the same, and cut it is what it was") {
  for (const std::size_t fine : {0u, 4u}) {
    learned_index runs(fine), single(fine);
    std::vector<std::vector<std::uint32_t>> past;  // of sequence 1
    runs.grow({{1, 100, 103}, {0, 100, 150}, {2, 100, 100}});
    past.push_back(runs.content_of(1));
    runs.grow({{1, 103, 120}});
    past.push_back(runs.content_of(1));
    runs.index.merge(cpu, 1);
    CHECK(runs.content_of(1) == past.back());
    CHECK(runs.index.view().sequence(1).index.merged(0) == 120);
    runs.grow({{1, 120, 290}, {2, 100, 101}});
    for (std::uint32_t t = 100; t < 290; ++t) {
      std::vector<leaving_tokens> step = {{1, t, t + 1}};
      if (t < 150) step.push_back({0, t, t + 1});
      if (t == 100) step.push_back({2, t, t + 1});
      single.grow(step);
    }
    for (std::size_t which = 0; which < 3; ++which) CHECK(runs.content_of(which) == single.content_of(which));
    if (fine != 0) {
      std::size_t wrong = 0;
      for (std::size_t head = 0; head < 3 * h; ++head)
        for (std::size_t t = 4; t < (head / h == 1 ? 290u : head / h == 0 ? 150u : 101u); ++t)
          for (std::size_t j = 0; j < fine; ++j)
            wrong += runs.index.view().fine_codes(head, t, j) != single.index.view().fine_codes(head, t, j) ? 1 : 0;
      CHECK(wrong == 0);
    }
    runs.index.view().forget({1, 120, 290}, pqkv::sequence{});
    CHECK(runs.content_of(1) == past[1]);
    runs.index.view().forget({1, 103, 120}, pqkv::sequence{});
    CHECK(runs.content_of(1) == past[0]);
    CHECK(runs.index.view().sequence(1).index.merged(0) == 103);  // ids from there on are void
    runs.index.merge(cpu, 1);
    CHECK(runs.content_of(1) == past[0]);
    runs.grow({{1, 103, 120}});
    CHECK(runs.content_of(1) == past[1]);
    runs.index.view().forget({1, 4, 120}, pqkv::sequence{});
    CHECK(runs.index.view().sequence(1).index.last(0) == 4);
    for (std::size_t cell = 0; cell < 256; ++cell) CHECK(runs.index.view().sequence(1).index.counts(1, cell) == 0);
  }
}

TEST_CASE("pq index: tokens that leave are encoded alike from rows that are strided and rows that are not") {
  learned_index strided(4), opaque(4);
  const std::vector<leaving_tokens> leaving = {{2, 100, 140}, {0, 100, 100}, {1, 100, 101}};
  strided.index.view().encode(cpu, strided.rows_view(), pqkv::make_view(leaving.data(), 3));
  opaque.index.view().encode(host<pqkv::isa::scalar, threaded_runner>{},
                             opaque_rows<float>{pqkv::strided_kv(std::as_const(opaque.keys).view(), std::as_const(opaque.keys).view())},
                             pqkv::make_view(leaving.data(), 3));
  CHECK(bytes_of(strided.index.view().learnt_parts(), 2, 140) == bytes_of(opaque.index.view().learnt_parts(), 2, 140));
  CHECK(bytes_of(strided.index.view().learnt_parts(), 1, 101) == bytes_of(opaque.index.view().learnt_parts(), 1, 101));
  CHECK(strided.index.view().sequence(2).index.last(0) == 100);  // nobody ranks them before they are committed
}

TEST_CASE("pq index: a sequence is its parts: copied it is the other, and made again from what was learned") {
  for (const std::size_t fine : {0u, 4u}) {
    learned_index one(fine);
    one.grow({{0, 100, 200}});
    one.index.merge(cpu, 0);
    one.grow({{0, 200, 230}});
    const pqkv::slot_parts parts = one.index.view().parts(), learnt = one.index.view().learnt_parts();
    CHECK(parts.count == learnt.count + 6);
    const auto third = one.content_of(2);
    for (std::size_t i = 0; i < parts.count; ++i)
      for (std::size_t segment = 0; segment < parts.part[i].segments; ++segment)
        std::memcpy(parts.part[i].segment(1, segment), parts.part[i].segment(0, segment), parts.part[i].bytes(230));
    CHECK(one.content_of(1) == one.content_of(0));
    CHECK(bytes_of(parts, 1, 230) == bytes_of(parts, 0, 230));
    CHECK(one.content_of(2) == third);
    // Codes are below c; a loaded file is held to it.
    std::size_t limits = 0;
    for (std::size_t i = 0; i < learnt.count; ++i) limits += learnt.part[i].limit == 16 ? 1 : 0;
    CHECK(limits == (fine != 0 ? 2 : 1));
    const auto before = one.content_of(0);
    one.index.clear(cpu, 0);
    CHECK(one.index.view().sequence(0).index.last(1) == 0);
    CHECK(one.content_of(1) == before);  // the others are not touched
    one.index.recount(cpu, 0, 4, 230);
    CHECK(one.content_of(0) == before);
    CHECK(one.index.view().sequence(0).index.merged(0) == 230);
    one.index.recount(cpu, 0, 50, 50);  // none
    CHECK(one.index.view().sequence(0).index.last(0) == one.index.view().sequence(0).index.first(0));
  }
  const learned_index scanned(0, search_path::scan);
  CHECK(scanned.index.view().parts().count == scanned.index.view().learnt_parts().count);
}

TEST_CASE("pq index: ranks what retrieve() and rerank() select from its parts") {
  random_source random(0x19d);
  for (const std::size_t fine : {0u, 4u})
    for (const search_path path : {search_path::scan, search_path::joint})
      for (const group_reduction reduction : every_reduction) {
        learned_index one(fine, path);
        one.grow({{0, 100, 150}, {1, 100, 290}, {2, 100, 101}});
        const std::size_t g = 3, rows = 4, hq = rows * h * g, lists = pqkv::score_lists(reduction, rows * h, hq), k_max = 30;
        const std::uint32_t slots[rows] = {1, 0, 1, 2};
        const pqkv::head_map<> map{pqkv::make_view(slots, rows), h};
        std::vector<float> query(hq * d);
        for (float& x : query) x = random.gaussian();
        std::vector<middle_range> ranges;
        const std::uint32_t ends[] = {280, 150, 0, 60}, ks[] = {30, 7, 0, 100};  // earlier than the index; none; all
        for (std::size_t row = 0; row < rows; ++row)
          for (std::size_t head = 0; head < h; ++head)
            ranges.push_back(ends[row] == 0 ? middle_range{} : middle_range{4, ends[row], std::min(ks[row], std::uint32_t{30})});
        const auto range_view = pqkv::make_view(std::as_const(ranges).data(), rows * h);
        const auto q = pqkv::as_const(pqkv::make_view(query.data(), hq, d));
        const float scale = random_scale(random);
        const pqkv::retrieve_params how{.head_dim = d, .reduction = reduction, .path = path, .scale = scale};

        pqkv::arena count;
        pqkv::pq_workspace<>::place(count, one.index.shape(), rows, h * g, reduction);
        const pqkv::buffer<std::byte> memory(count.used_bytes());
        pqkv::arena carve(memory);
        const auto work = pqkv::pq_workspace<>::place(carve, one.index.shape(), rows, h * g, reduction);
        CHECK(carve.free_bytes() == 0);
        std::vector<std::int32_t> got(lists * k_max, -7), wanted(lists * k_max, -7);
        std::vector<std::uint32_t> got_counts(lists, 77), wanted_counts(lists, 77);
        const std::size_t factor = 3;
        one.index.rank(cpu, q, map, range_view, pqkv::make_view(got.data(), lists, k_max), pqkv::make_view(got_counts.data(), lists), how,
                       factor, work);

        const auto own = one.index.view();
        std::vector<float> entries(hq * 2 * 16), bias(hq), fine_entries(hq * 4 * 16), fine_bias(hq);
        const pqkv::mutable_distance_table_view<> table{pqkv::make_view(entries.data(), hq, 2, 16), pqkv::make_view(bias.data(), hq)};
        pqkv::inner_product_table(cpu, q, own.book, table, map);
        const auto to = pqkv::make_view(wanted.data(), lists, k_max);
        const auto counts = pqkv::make_view(wanted_counts.data(), lists);
        if (fine == 0) {
          pqkv::retrieve(cpu, table, pqkv::as_const(own.codes), own.index, range_view, to, counts, how, {}, map);
        } else {
          std::vector<middle_range> longer = ranges;
          for (middle_range& range : longer) range.retrieve = std::min<std::uint32_t>(range.size(), range.retrieve * factor);
          std::vector<std::int32_t> shortlist(lists * 90);
          std::vector<std::uint32_t> lengths(lists);
          pqkv::retrieve(cpu, table, pqkv::as_const(own.codes), own.index, pqkv::make_view(std::as_const(longer).data(), rows * h),
                         pqkv::make_view(shortlist.data(), lists, 90), pqkv::make_view(lengths.data(), lists), how, {}, map);
          const pqkv::mutable_distance_table_view<> fine_table{pqkv::make_view(fine_entries.data(), hq, 4, 16),
                                                               pqkv::make_view(fine_bias.data(), hq)};
          pqkv::inner_product_table(cpu, q, own.fine_book, fine_table, map);
          pqkv::rerank(cpu, {table, fine_table}, {pqkv::as_const(own.codes), pqkv::as_const(own.fine_codes)},
                       pqkv::as_const(pqkv::make_view(shortlist.data(), lists, 90)), pqkv::as_const(pqkv::make_view(lengths.data(), lists)),
                       range_view, to, counts, {.head_dim = d, .reduction = reduction, .scale = scale}, {}, map);
        }
        CHECK(got_counts == wanted_counts);
        CHECK(got == wanted);
      }
}
