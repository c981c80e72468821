// SPDX-License-Identifier: Apache-2.0
// Rows of queries for some sequences of an index, in any order, several times: every row gets what a call on its sequence alone gives, to
// the bit, in tables, lists of either path and re-ranked lists.
#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>

#include "cases/inputs.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::middle_range;
using pqkv::search_path;
using pqkv::exec::host;

/// An index of several sequences with ranges of their own, and a batch of rows that asks for some of them.
struct mapped_problem {
  std::size_t sequences, h, g, d = 32, n, fine_m = 4;
  pqkv::pq_shape shape, fine_shape;
  pqkv::codebook book, fine_book;
  pqkv::codes codes;
  pqkv::residual_codes fine_codes;
  pqkv::cell_index index;
  std::vector<middle_range> of_sequence;  // [sequences * h]
  std::vector<std::uint32_t> slots;       // [rows]
  std::vector<float> query;               // [rows * hq, d]

  mapped_problem(std::size_t count, std::size_t kv_heads, std::size_t group, std::size_t tokens, std::vector<std::uint32_t> rows,
                 random_source& random)
      : sequences(count),
        h(kv_heads),
        g(group),
        n(tokens),
        shape{count * kv_heads, 32, 2, 4},
        fine_shape(pqkv::residual_shape(shape, 4, 4)),
        book(make_book(shape, random.bits())),
        fine_book(make_book(fine_shape, random.bits())),
        codes(make_codes(shape, tokens, random.bits())),
        fine_codes(fine_shape, tokens),
        index(shape, tokens),
        slots(std::move(rows)),
        query(slots.size() * hq() * 32) {
    for (float& x : query) x = random.gaussian();
    const auto fine = fine_codes.mutable_view();
    for (std::size_t head = 0; head < fine.extent(0); ++head)
      for (std::size_t t = 0; t < n; ++t)
        for (std::size_t j = 0; j < fine.extent(2); ++j) fine(head, t, j) = static_cast<std::uint8_t>(random.below(16));
    const host<pqkv::isa::scalar> cpu;
    for (std::size_t head = 0; head < sequences * h; ++head) {
      const std::size_t begin = random.below(5), end = begin + random.below(n - begin + 1), merged = begin + random.below(end - begin + 1);
      of_sequence.push_back(
          {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end), static_cast<std::uint32_t>(random.below(60))});
      const auto part = index.mutable_view().heads(head, 1);
      const auto own = codes.view().slice(0, head, 1);
      pqkv::count_cells(cpu, own, begin, merged, part);
      pqkv::merge_tails(cpu, own, part);
      pqkv::count_cells(cpu, own, merged, end, part);
    }
  }

  std::size_t hq() const { return h * g; }
  pqkv::head_map<> map() const { return {pqkv::make_view(slots.data(), slots.size()), static_cast<std::uint32_t>(h)}; }
  /// Of every row in the batch.
  std::vector<middle_range> ranges() const {
    std::vector<middle_range> all;
    for (const std::uint32_t slot : slots) all.insert(all.end(), of_sequence.data() + slot * h, of_sequence.data() + (slot + 1) * h);
    return all;
  }
};

/// What one call answers, for `rows` rows.
struct answers {
  std::vector<float> entries, bias;
  std::vector<std::int32_t> lists[2], reranked;
  std::vector<std::uint32_t> counts[2], reranked_counts;
  std::vector<std::uint8_t> skipped;
  bool operator==(const answers&) const = default;

  void add(const answers& more) {
    const auto join = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    join(entries, more.entries), join(bias, more.bias), join(reranked, more.reranked), join(reranked_counts, more.reranked_counts);
    join(skipped, more.skipped);
    for (std::size_t path : {0u, 1u}) join(lists[path], more.lists[path]), join(counts[path], more.counts[path]);
  }
};

struct parts {
  pqkv::codebook_view<> book, fine_book;
  pqkv::codes_view<> codes;
  pqkv::residual_codes_view<> fine_codes;
  pqkv::cell_index_view<> index;
};

template <class Policy>
answers run(const Policy& policy, const mapped_problem& p, const parts& of, pqkv::view<const float, 2> query,
            const std::vector<middle_range>& ranges, group_reduction reduction, const pqkv::head_map<>& map) {
  const std::size_t hq = query.extent(0), k_max = 64, longest = p.n;
  const std::size_t lists = pqkv::score_lists(reduction, ranges.size(), hq);
  answers a;
  a.entries.assign(hq * 2 * 16, -9.0f), a.bias.assign(hq, -9.0f), a.skipped.assign(hq, 9);
  const pqkv::mutable_distance_table_view<> table{pqkv::make_view(a.entries.data(), hq, 2, 16), pqkv::make_view(a.bias.data(), hq)};
  pqkv::inner_product_table(policy, query, of.book, table, map);
  const auto range_view = pqkv::make_view(ranges.data(), ranges.size());
  for (const std::size_t path : {0u, 1u}) {
    a.lists[path].assign(lists * k_max, -7), a.counts[path].assign(lists, 77);
    pqkv::retrieve(policy, table, of.codes, of.index, range_view, pqkv::make_view(a.lists[path].data(), lists, k_max),
                   pqkv::make_view(a.counts[path].data(), lists),
                   {.head_dim = p.d, .reduction = reduction, .path = path == 0 ? search_path::scan : search_path::joint},
                   pqkv::make_view(a.skipped.data(), hq), map);
  }
  // A shortlist of all tokens, ranked again.
  std::vector<std::int32_t> all(lists * longest), short_list(lists * longest, -1);
  std::vector<std::uint32_t> lengths(lists);
  for (std::size_t list = 0; list < lists; ++list) {
    const middle_range& range = ranges[list * ranges.size() / lists];
    for (std::uint32_t t = range.begin; t < range.end; t += 1 + t % 3) all[list * longest + lengths[list]++] = static_cast<std::int32_t>(t);
  }
  std::vector<float> fine_entries(hq * 4 * 16), fine_bias(hq);
  const pqkv::mutable_distance_table_view<> fine{pqkv::make_view(fine_entries.data(), hq, 4, 16), pqkv::make_view(fine_bias.data(), hq)};
  pqkv::inner_product_table(policy, query, of.fine_book, fine, map);
  a.reranked.assign(lists * k_max, -7), a.reranked_counts.assign(lists, 77);
  pqkv::rerank(policy, {table, fine}, {of.codes, of.fine_codes}, pqkv::as_const(pqkv::make_view(all.data(), lists, longest)),
               pqkv::as_const(pqkv::make_view(lengths.data(), lists)), range_view, pqkv::make_view(a.reranked.data(), lists, k_max),
               pqkv::make_view(a.reranked_counts.data(), lists), {.head_dim = p.d, .reduction = reduction}, {}, map);
  return a;
}

/// Every row of its own, on its sequence's part alone.
template <class Policy>
answers run_apart(const Policy& policy, const mapped_problem& p, group_reduction reduction) {
  answers all;
  for (std::size_t row = 0; row < p.slots.size(); ++row) {
    const std::size_t first = p.slots[row] * p.h;
    const parts own{p.book.view().slice(first, p.h), p.fine_book.view().slice(first, p.h), p.codes.view().slice(0, first, p.h),
                    p.fine_codes.view().slice(0, first, p.h), p.index.view().heads(first, p.h)};
    const std::vector<middle_range> ranges(p.of_sequence.begin() + static_cast<std::ptrdiff_t>(first),
                                           p.of_sequence.begin() + static_cast<std::ptrdiff_t>(first + p.h));
    all.add(run(policy, p, own, pqkv::make_view(p.query.data() + row * p.hq() * p.d, p.hq(), p.d), ranges, reduction, {}));
  }
  return all;
}
parts whole(const mapped_problem& p) { return {p.book.view(), p.fine_book.view(), p.codes.view(), p.fine_codes.view(), p.index.view()}; }
pqkv::view<const float, 2> queries(const mapped_problem& p) { return pqkv::make_view(p.query.data(), p.slots.size() * p.hq(), p.d); }
}  // namespace

TEST_CASE("head map: heads of rows") {
  const std::uint32_t slots[] = {3, 0, 3};
  const pqkv::head_map<> map{pqkv::make_view(slots, 3), 2}, none;
  CHECK_FALSE(map.empty());
  CHECK(map.heads(100) == 6);
  const std::size_t wanted[] = {6, 7, 0, 1, 6, 7};
  for (std::size_t i = 0; i < 6; ++i) CHECK(map.head(i) == wanted[i]);
  CHECK(none.empty());
  CHECK(none.heads(5) == 5);
  CHECK(none.head(4) == 4);
  const pqkv::head_map<> of_one{pqkv::make_view(slots, 3), 1};
  CHECK(of_one.head(2) == 3);
  const pqkv::leaving_tokens leaving{7, 10, 14};
  CHECK(leaving.size() == 4);
  CHECK(pqkv::leaving_tokens{}.size() == 0);
}

TEST_CASE("head map: repeated and shuffled rows equal calls on each sequence alone, to the bit") {
  random_source random(0x6ead);
  const std::vector<std::uint32_t> batches[] = {{0}, {3}, {0, 1, 2, 3}, {3, 2, 1, 0}, {2, 2, 2}, {1, 3, 1, 0, 3, 3, 2, 1, 1}};
  for (const auto& slots : batches)
    for (const group_reduction reduction : every_reduction) {
      const std::size_t h = 1 + random.below(3), g = 1 + random.below(4);
      const mapped_problem p(4, h, g, 700, slots, random);
      const answers wanted = run_apart(host<pqkv::isa::scalar>{}, p, reduction);
      const std::vector<middle_range> ranges = p.ranges();
      for_each_isa([&](auto isa) { CHECK((run(host<decltype(isa)>{}, p, whole(p), queries(p), ranges, reduction, p.map()) == wanted)); });
      CHECK((run(host<pqkv::isa::best, threaded_runner>{}, p, whole(p), queries(p), ranges, reduction, p.map()) == wanted));
    }
}

TEST_CASE("head map: in order it changes nothing, and no rows are no work") {
  random_source random(0x6eae);
  const mapped_problem p(3, 2, 2, 300, {0, 1, 2}, random);
  const auto reduction = group_reduction::probability_sum;
  CHECK((run(host<>{}, p, whole(p), queries(p), p.ranges(), reduction, p.map()) ==
         run(host<>{}, p, whole(p), queries(p), p.ranges(), reduction, {})));
}

TEST_CASE("head map: extents are those of the rows, and a map that does not divide the heads is refused") {
  random_source random(0x6eaf);
  const mapped_problem p(3, 2, 2, 300, {2, 0}, random);
  const auto call = [&](pqkv::view<const float, 2> query, const std::vector<middle_range>& ranges, pqkv::head_map<> map) {
    return [&p, query, ranges, map] { run(host<>{}, p, whole(p), query, ranges, group_reduction::probability_sum, map); };
  };
  using pqkv::shape_error;
  pqkv::head_map<> odd = p.map();
  odd.kv_heads = 4;  // 6 heads are not sequences of 4
  CHECK(unless_refused<shape_error>(call(queries(p), p.ranges(), odd), "inner_product_table: map.kv_heads", 6, 4) == "");
  auto few = p.ranges();
  few.pop_back();
  few.pop_back();
  CHECK(unless_refused<shape_error>(call(queries(p), few, p.map()), "retrieve: ranges.extent(0)", 4, 2) == "");
  CHECK(unless_refused<shape_error>(call(queries(p).slice(0, 0, 6), p.ranges(), p.map()), "inner_product_table: query.extent(0)", 4, 6) ==
        "");
}
