// SPDX-License-Identifier: Apache-2.0
// Re-ranking against the plain oracle: every reduction, instruction set and group size, ragged shortlists, ties, odd strides, tables of
// many characters; a second opinion in double; what is refused, and that nothing is allocated with scratch given.
#include <pqkv/search/rerank.hpp>

#include <doctest/doctest.h>

#include "cases/allocation_count.hpp"
#include "cases/plain_rerank.hpp"
#include "cases/policies.hpp"
#include "cases/refusals.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;

/// Two stages' tables and codes over the same tokens, and a ragged shortlist for each list.
class rerank_problem {
 public:
  rerank_problem(const search_shape& shape, std::size_t fine_m, unsigned fine_bits, table_kind coarse, table_kind fine, code_kind kind,
                 random_source& random)
      : first_(shape, coarse, kind, random), second_(fine_shape(shape, fine_m, fine_bits), fine, kind, random), padding_(random.below(3)) {
    const search_shape& s = second_.shape();
    const auto planes = second_.codes();
    row_ = s.m + padding_;
    rows_.assign(s.h * s.n * row_ + 1, 0xff);
    for (std::size_t head = 0; head < s.h; ++head)
      for (std::size_t t = 0; t < s.n; ++t)
        for (std::size_t j = 0; j < s.m; ++j) rows_[(head * s.n + t) * row_ + j] = planes(head, j, t);
    first_.random_ranges(random);
  }

  const search_problem& first() const { return first_; }
  pqkv::two_stage_table<> tables() const { return {first_.table(), second_.table()}; }
  pqkv::two_stage_codes<> codes() const {
    const search_shape& s = second_.shape();
    return {first_.codes(), {rows_.data(), {s.h, s.n, s.m}, {s.n * row_, row_, 1}}};
  }

  /// Any tokens of each list's range, from none to all.
  void draw_shortlists(group_reduction reduction, random_source& random) {
    const search_shape& s = first_.shape();
    lists_.clear();
    for (std::size_t list = 0; list < pqkv::score_lists(reduction, s.h, s.hq()); ++list) {
      const pqkv::middle_range& range = first_.range_of(list, reduction);
      const std::size_t share = random.below(5);
      lists_.emplace_back();
      for (std::size_t t = range.begin; t < range.end; ++t)
        if (random.below(4) < share) lists_.back().push_back(static_cast<std::int32_t>(t));
    }
  }
  const std::vector<std::vector<std::int32_t>>& shortlists() const { return lists_; }

  plain_shortlist plain(std::size_t list, group_reduction reduction) const {
    const search_shape& s = first_.shape();
    const std::size_t g = reduction == group_reduction::none ? 1 : s.g;
    return {first_.list(list, reduction), second_.table().entries.slice(0, list * g, g), codes().fine[list * g / s.g], lists_[list]};
  }
  std::size_t wanted(std::size_t list, group_reduction reduction) const { return first_.range_of(list, reduction).retrieve; }

  /// rerank() into rows of odd strides.
  template <class Policy>
  retrieved run(const Policy& policy, group_reduction reduction, std::size_t k_extra = 2) const {
    const std::size_t lists = lists_.size();
    std::size_t longest = 0, k_max = 0;
    for (std::size_t list = 0; list < lists; ++list) {
      longest = std::max(longest, lists_[list].size());
      k_max = std::max(k_max, std::min(lists_[list].size(), wanted(list, reduction)));
    }
    k_max += k_extra;
    const std::size_t in_stride = longest + 5, out_stride = k_max + 3;
    std::vector<std::int32_t> in(lists * in_stride, 1 << 30), out(lists * out_stride, -7);
    std::vector<std::uint32_t> lengths, counts(lists, 12345);
    for (std::size_t list = 0; list < lists; ++list) {
      std::copy(lists_[list].begin(), lists_[list].end(), in.begin() + static_cast<std::ptrdiff_t>(list * in_stride));
      lengths.push_back(static_cast<std::uint32_t>(lists_[list].size()));
    }
    retrieved found;
    found.skipped.assign(first_.shape().hq(), 9);
    pqkv::rerank(policy, tables(), codes(), pqkv::view<const std::int32_t, 2>{in.data(), {lists, longest}, {in_stride, 1}},
                 pqkv::as_const(pqkv::make_view(lengths.data(), lists)), first_.ranges(),
                 pqkv::view<std::int32_t, 2>{out.data(), {lists, k_max}, {out_stride, 1}}, pqkv::make_view(counts.data(), lists),
                 {.head_dim = first_.shape().d, .reduction = reduction, .scale = first_.shape().scale},
                 pqkv::make_view(found.skipped.data(), found.skipped.size()));
    for (std::size_t list = 0; list < lists; ++list) {
      const auto row = out.begin() + static_cast<std::ptrdiff_t>(list * out_stride);
      const std::size_t count = std::min<std::size_t>(counts[list], k_max);
      found.lists.emplace_back(row, row + static_cast<std::ptrdiff_t>(count));
      for (std::size_t i = count; i < out_stride; ++i) found.padded = found.padded && out[list * out_stride + i] == (i < k_max ? -1 : -7);
      found.padded = found.padded && counts[list] <= k_max;
    }
    return found;
  }

  retrieved plain_answer(group_reduction reduction) const {
    retrieved out;
    for (std::size_t list = 0; list < lists_.size(); ++list) {
      const plain_shortlist one = plain(list, reduction);
      out.lists.push_back(plain_rerank(one, wanted(list, reduction)));
      for (std::size_t q = 0; q < one.coarse.group(); ++q) out.skipped.push_back(one.left_out(q) ? 1 : 0);
    }
    return out;
  }

 private:
  static search_shape fine_shape(search_shape shape, std::size_t m, unsigned bits) {
    shape.m = m;
    shape.bits = bits;
    return shape;
  }
  search_problem first_, second_;
  std::size_t padding_, row_ = 0;
  std::vector<std::uint8_t> rows_;
  std::vector<std::vector<std::int32_t>> lists_;
};

search_shape random_shape(random_source& random) {
  const std::size_t groups[] = {1, 2, 3, 4, 5, 8}, dims[] = {16, 64, 128, 256}, lengths[] = {0, 1, 9, 63, 64, 65, 200, 700};
  search_shape shape;
  shape.h = 1 + random.below(3);
  shape.g = groups[random.below(6)];
  shape.m = std::size_t{1} << random.below(5);
  shape.bits = 4 + static_cast<unsigned>(random.below(5));
  shape.n = lengths[random.below(8)];
  shape.d = dims[random.below(4)];
  shape.plane_padding = random.below(3) * 13;
  shape.table_padding = random.below(2) * 3;
  shape.scale = random_scale(random);
  return shape;
}
}  // namespace

TEST_CASE("rerank: instruction sets, threads and the plain oracle agree over random problems") {
  random_source random(0x5e7a);
  std::size_t lists = 0, chosen = 0, left_out = 0;
  for (std::size_t round = 0; round < 30; ++round)
    for (const table_kind tables : every_table)
      for (const bool first_stage : {true, false}) {  // which of the two has the tables' character
        const search_shape shape = random_shape(random);
        const std::size_t fine_m = std::size_t{1} << random.below(5), bits = 4 + random.below(5);
        const code_kind kind = every_code[random.below(4)];
        rerank_problem problem(shape, fine_m, static_cast<unsigned>(bits), first_stage ? tables : table_kind::smooth,
                               first_stage ? table_kind::smooth : tables, kind, random);
        for (const group_reduction reduction : every_reduction) {
          CAPTURE(static_cast<int>(reduction));
          CAPTURE(shape.g);
          CAPTURE(shape.m);
          CAPTURE(fine_m);
          problem.draw_shortlists(reduction, random);
          const retrieved wanted = problem.plain_answer(reduction);
          for_each_isa([&](auto isa) { REQUIRE(problem.run(pqkv::exec::host<decltype(isa)>{}, reduction) == wanted); });
          REQUIRE(problem.run(pqkv::exec::host<>{}, reduction, 0) == wanted);
          if (round % 8 == 0) REQUIRE(problem.run(pqkv::exec::host<pqkv::isa::best, threaded_runner>{}, reduction) == wanted);
          lists += wanted.lists.size();
          for (std::size_t list = 0; list < wanted.lists.size(); ++list)
            chosen += !wanted.lists[list].empty() && wanted.lists[list].size() < problem.shortlists()[list].size();
          for (const std::uint8_t flag : wanted.skipped) left_out += flag;
        }
      }
  CHECK(chosen > lists / 8);
  CHECK(left_out > 500);
}

TEST_CASE("rerank: the chosen have the highest probabilities in double too, up to rounding") {
  random_source random(0xd0b1e);
  std::size_t compared = 0;
  for (std::size_t round = 0; round < 60; ++round)
    for (const table_kind tables : {table_kind::smooth, table_kind::sharp, table_kind::overshoot}) {
      search_shape shape = random_shape(random);
      shape.n = 700;
      rerank_problem problem(shape, 4, 6, tables, table_kind::smooth, code_kind::uniform, random);
      problem.draw_shortlists(group_reduction::probability_sum, random);
      const retrieved found = problem.run(pqkv::exec::host<>{}, group_reduction::probability_sum);
      for (std::size_t list = 0; list < found.lists.size(); ++list) {
        const plain_shortlist one = problem.plain(list, group_reduction::probability_sum);
        const double_shortlist exact = double_probability_sums(one);
        double least = HUGE_VAL, most = 0;
        for (std::size_t i = 0; i < one.tokens.size(); ++i) {
          const bool in = std::binary_search(found.lists[list].begin(), found.lists[list].end(), one.tokens[i]);
          if (in) least = std::min(least, exact.scores[i]);
          if (!in) most = std::max(most, exact.scores[i]);
        }
        if (least == HUGE_VAL || most < 0x1p-100) continue;
        ++compared;
        CHECK(most <= least * (1 + 2 * exact.slack) + 0x1p-40);  // tokens of vanishing probability are told apart less finely
      }
    }
  CHECK(compared > 50);
}

TEST_CASE("rerank: equal scores go to the lower position") {
  random_source random(3);
  rerank_problem problem({.h = 2, .g = 4, .m = 2, .bits = 6, .n = 500, .d = 64}, 4, 8, table_kind::equal, table_kind::equal,
                         code_kind::uniform, random);
  for (const group_reduction reduction : every_reduction) {
    problem.draw_shortlists(reduction, random);
    const retrieved found = problem.run(pqkv::exec::host<>{}, reduction);
    for (std::size_t list = 0; list < found.lists.size(); ++list) {
      const auto& from = problem.shortlists()[list];
      REQUIRE(found.lists[list].size() == std::min(from.size(), problem.wanted(list, reduction)));
      CHECK(std::equal(found.lists[list].begin(), found.lists[list].end(), from.begin()));
    }
  }
}

TEST_CASE("rerank: sums that overflow leave their query head out") {
  random_source random(4);
  const search_shape shape{.h = 1, .g = 3, .m = 2, .bits = 4, .n = 90, .d = 64};
  search_problem coarse(shape, table_kind::smooth, code_kind::uniform, random);
  search_problem fine(shape, table_kind::smooth, code_kind::same, random);
  const std::uint8_t used = fine.codes()(0, 0, 0);
  for (std::size_t j = 0; j < 2; ++j) fine.mutable_table().entries(1, j, used) = 3e38f;  // finite, their sum is not
  std::vector<std::uint8_t> rows(90 * 2, used), skipped(3, 9);
  std::vector<std::int32_t> tokens, out(10);
  for (std::int32_t t = 0; t < 90; t += 2) tokens.push_back(t);
  const std::uint32_t length = 45;
  std::uint32_t count = 0;
  const pqkv::middle_range range{0, 90, 10};
  for_each_isa([&](auto isa) {
    pqkv::rerank(pqkv::exec::host<decltype(isa)>{}, {coarse.table(), fine.table()},
                 {coarse.codes(), pqkv::as_const(pqkv::make_view(rows.data(), 1, 90, 2))},
                 pqkv::make_view<>(std::as_const(tokens).data(), 1, 45), pqkv::make_view(&length, 1), pqkv::make_view(&range, 1),
                 pqkv::make_view(out.data(), 1, 10), pqkv::make_view(&count, 1), {.head_dim = 64}, pqkv::make_view(skipped.data(), 3));
    CHECK(count == 10);
    CHECK(skipped == std::vector<std::uint8_t>{0, 1, 0});
  });
}

TEST_CASE("rerank: scratch as announced is enough, less is refused, and with it nothing is allocated") {
  random_source random(5);
  rerank_problem problem({.h = 2, .g = 5, .m = 2, .bits = 6, .n = 300, .d = 64}, 4, 8, table_kind::smooth, table_kind::smooth,
                         code_kind::uniform, random);
  problem.draw_shortlists(group_reduction::probability_sum, random);
  std::size_t longest = 0;
  for (const auto& list : problem.shortlists()) longest = std::max(longest, list.size());
  const std::size_t bytes = pqkv::scratch_bytes<pqkv::op::rerank>(pqkv::exec::host<>{}, {2, 10, 2 * 64 + 4 * 256, longest});
  const pqkv::buffer<std::byte> block(bytes);
  pqkv::exec::host<> cpu;
  cpu.scratch = pqkv::arena(block);
  const retrieved wanted = problem.plain_answer(group_reduction::probability_sum);
  CHECK(problem.run(cpu, group_reduction::probability_sum) == wanted);
  cpu.scratch = pqkv::arena(block.data(), bytes - 64);
  CHECK(unless_refused<pqkv::capacity_error>([&] { problem.run(cpu, group_reduction::probability_sum); }, "rerank: policy.scratch",
                                             static_cast<double>(bytes), static_cast<double>(bytes - 64)) == "");
}

TEST_CASE("rerank: a shortlist is some times k, at most the middle") {
  CHECK(pqkv::shortlist_size({10, 1010, 100}, 4) == 400);
  CHECK(pqkv::shortlist_size({10, 310, 100}, 4) == 300);
  CHECK(pqkv::shortlist_size({10, 310, 400}, 4) == 300);
  CHECK(pqkv::shortlist_size({10, 310, 0}, 4) == 0);
  CHECK(pqkv::shortlist_size({}, 4) == 0);
  CHECK(pqkv::shortlist_size({0, 1000, 100}, 1) == 100);
}

TEST_CASE("rerank: bad arguments, each named with its number, nothing written") {
  using pqkv::shape_error;
  using pqkv::value_error;
  random_source random(6);
  search_problem coarse({.h = 2, .g = 2, .m = 2, .bits = 4, .n = 60, .d = 64}, table_kind::smooth, code_kind::uniform, random);
  search_problem fine({.h = 2, .g = 2, .m = 4, .bits = 5, .n = 60, .d = 64}, table_kind::smooth, code_kind::uniform, random);
  search_problem three({.h = 3, .g = 2, .m = 2, .bits = 4, .n = 60, .d = 64}, table_kind::smooth, code_kind::uniform, random);
  std::vector<std::uint8_t> rows(3 * 80 * 8), flags(9, 9);
  std::vector<std::int32_t> short_memory(4 * 20), out(4 * 20, -7);
  for (std::size_t i = 0; i < short_memory.size(); ++i) short_memory[i] = static_cast<std::int32_t>(i % 20 + 10);
  std::vector<std::uint32_t> length_memory(4, 20), counts(4, 77);
  std::vector<pqkv::middle_range> range_memory(4, {5, 50, 8});

  struct arguments {
    pqkv::two_stage_table<> tables;
    pqkv::two_stage_codes<> codes;
    pqkv::view<const std::int32_t, 2> shortlist;
    pqkv::view<const std::uint32_t, 1> lengths;
    pqkv::view<const pqkv::middle_range, 1> ranges;
    pqkv::view<std::int32_t, 2> indices;
    pqkv::view<std::uint32_t, 1> counts;
    pqkv::rerank_params params;
    pqkv::view<std::uint8_t, 1> skipped;
  };
  const auto good = [&] {
    return arguments{{coarse.table(), fine.table()},
                     {coarse.codes(), pqkv::as_const(pqkv::make_view(rows.data(), 2, 60, 4))},
                     pqkv::as_const(pqkv::make_view(short_memory.data(), 2, 20)),
                     pqkv::as_const(pqkv::make_view(length_memory.data(), 2)),
                     pqkv::as_const(pqkv::make_view(range_memory.data(), 2)),
                     pqkv::make_view(out.data(), 2, 8),
                     pqkv::make_view(counts.data(), 2),
                     {.head_dim = 64},
                     pqkv::make_view(flags.data(), 4)};
  };
  const auto call = [&](const arguments& a) {
    pqkv::rerank(pqkv::exec::host<>{}, a.tables, a.codes, a.shortlist, a.lengths, a.ranges, a.indices, a.counts, a.params, a.skipped);
  };
  const auto refuse = [&]<class Error>(Error, auto spoil, const std::string& where, double expected, double got) {
    arguments a = good();
    spoil(a);
    CHECK(unless_refused<Error>([&] { call(a); }, "rerank: " + where, expected, got) == "");
    CHECK(out == std::vector<std::int32_t>(80, -7));
    CHECK(counts == std::vector<std::uint32_t>(4, 77));
  };
  const shape_error shape("");
  const value_error value("");
  call(good());
  CHECK(std::vector<std::uint32_t>(counts.begin(), counts.begin() + 2) == std::vector<std::uint32_t>{8, 8});
  std::fill(out.begin(), out.end(), -7);
  std::fill(counts.begin(), counts.end(), 77u);
  refuse(
      shape, [&](arguments& a) { a.tables.coarse = three.table(); }, "tables.fine.extent(0)", 6, 4);
  refuse(
      shape, [&](arguments& a) { a.tables.coarse = fine.table(); }, "codes.extent(1)", 4, 2);
  refuse(
      value, [&](arguments& a) { a.tables.fine.entries = a.tables.fine.entries.slice(2, 0, 24); }, "tables.fine.extent(2)", 256, 24);
  refuse(
      value, [&](arguments& a) { a.tables.fine.entries = a.tables.fine.entries.slice(1, 0, 0); }, "tables.fine.extent(1)", 1, 0);
  refuse(
      shape, [&](arguments& a) { a.tables.fine.entries.strides[2] = 2; }, "tables.fine.stride(2)", 1, 2);
  refuse(
      shape, [&](arguments& a) { a.codes.fine = a.codes.fine.slice(0, 0, 1); }, "codes.fine.extent(0)", 2, 1);
  refuse(
      shape, [&](arguments& a) { a.codes.fine = a.codes.fine.slice(1, 0, 59); }, "codes.fine.extent(1)", 60, 59);
  refuse(
      shape, [&](arguments& a) { a.codes.fine = a.codes.fine.slice(2, 0, 3); }, "codes.fine.extent(2)", 4, 3);
  refuse(
      shape, [&](arguments& a) { a.codes.fine.strides[2] = 3; }, "codes.fine.stride(2)", 1, 3);
  refuse(
      shape, [&](arguments& a) { a.shortlist = a.shortlist.slice(0, 0, 1); }, "shortlist.extent(0)", 2, 1);
  refuse(
      shape, [&](arguments& a) { a.shortlist.strides[1] = 2; }, "shortlist.stride(1)", 1, 2);
  refuse(
      shape, [&](arguments& a) { a.lengths = a.lengths.slice(0, 0, 1); }, "lengths.extent(0)", 2, 1);
  refuse(
      shape, [&](arguments& a) { a.ranges = a.ranges.slice(0, 0, 1); }, "ranges.extent(0)", 2, 1);
  refuse(
      shape, [&](arguments& a) { a.indices = a.indices.slice(0, 0, 1); }, "indices.extent(0)", 2, 1);
  refuse(
      shape, [&](arguments& a) { a.indices.strides[1] = 2; }, "indices.stride(1)", 1, 2);
  refuse(
      shape, [&](arguments& a) { a.counts = a.counts.slice(0, 0, 1); }, "counts.extent(0)", 2, 1);
  refuse(
      shape, [&](arguments& a) { a.params.reduction = group_reduction::none; }, "shortlist.extent(0)", 4, 2);
  refuse(
      shape, [&](arguments& a) { a.skipped = a.skipped.slice(0, 0, 3); }, "skipped.extent(0)", 4, 3);
  refuse(
      value, [&](arguments& a) { a.params.head_dim = 0; }, "params.head_dim", 1, 0);
  refuse(
      value, [&](arguments& a) { a.shortlist = a.shortlist.slice(1, 0, 19); }, "lengths", 19, 20);
  refuse(
      value, [&](arguments& a) { a.indices = a.indices.slice(1, 0, 7); }, "ranges.retrieve", 7, 8);
  refuse(
      value, [&](arguments&) { range_memory[1].begin = 11; }, "shortlist", 11, 10);
  range_memory[1] = {5, 29, 8};
  refuse(
      value, [](arguments&) {}, "shortlist", 28, 29);
  range_memory[1] = {5, 61, 8};
  refuse(
      value, [](arguments&) {}, "ranges.end", 60, 61);
}
