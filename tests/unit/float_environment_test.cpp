// SPDX-License-Identifier: Apache-2.0
// The caller's rounding mode and flushing of subnormals change no bit of any operation on the host, and come back as they were. Shapes are
// constants here and several tasks run in one call: what a compiler could compute ahead of the change of modes, it can compute ahead here.
// The life of a cache has a file of its own (float_environment_cache_test.cpp).
#include <pqkv/core/float_environment.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "cases/float_modes.hpp"
#include "cases/search_cases.hpp"
#include "cases/upper_halves.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::make_view;
const pqkv::exec::host<> cpu;
constexpr std::size_t h = 2, g = 3, hq = h * g, m = 4, d = 48, n = 300;
constexpr pqkv::pq_shape coarse{h, d, m, 4};
constexpr float scales[] = {0.0f, 0.3f};  // of the logits; 0: 1 / sqrt(d)

/// Numbers of a size, and numbers whose squares are subnormal.
constexpr float units[] = {1.0f, 0x1p-68f};

std::vector<float> numbers(std::size_t count, std::uint64_t seed, float unit) {
  random_source random(seed);
  std::vector<float> all(count);
  for (float& x : all) x = unit * random.gaussian();
  return all;
}
rows<float> keys_of(float unit) {
  auto keys = make_rows<float>(content::offset, h, n, d, 1);
  for (std::size_t head = 0; head < h; ++head)
    for (std::size_t t = 0; t < n; ++t)
      for (std::size_t i = 0; i < d; ++i) keys(head, t, i) *= unit;
  return keys;
}
search_problem problem_of(table_kind tables, float scale) {
  random_source random(5);
  return {{.h = h, .g = g, .m = 2, .bits = 5, .n = n, .d = d, .scale = scale}, tables, code_kind::uniform, random};
}
constexpr table_kind tables_of_every_size[] = {table_kind::sharp, table_kind::overshoot, table_kind::wide, table_kind::hopeless};

/// What retrieve() and rerank() write.
struct lists_of_tokens {
  std::vector<std::int32_t> indices;
  std::vector<std::uint32_t> counts;
  explicit lists_of_tokens(std::size_t lists, std::size_t k) : indices(lists * k), counts(lists) {}
  void add_to(byte_list& out) const { out.add(indices), out.add(counts); }
};
}  // namespace

TEST_CASE("float environment: work runs with rounding to nearest and subnormals, and the caller's modes come back") {
  const volatile float third = 3, tiny = 0x1p-130f, half = 0.5f;
  CHECK(modes_that_change([&](byte_list& out) {
          float results[2];
          pqkv::detail::in_float_environment([&] { results[0] = 1 / third, results[1] = tiny * half; });
          out.add(results, 2);
        }) == "");
}

TEST_CASE("float environment: what depends on arguments alone is not computed ahead of it, nor after it") {
  // The loop gives a compiler a place to move the division to, and inlining brings all of it into one function.
  for (const std::size_t dim : {std::size_t{48}, std::size_t{80}})
    CHECK(modes_that_change([&](byte_list& out) {
            float results[3][3];
            pqkv::exec::host<> serial;
            pqkv::detail::run_tasks(serial, 3, [&](std::size_t task) {
              const auto scale = pqkv::canonical::softmax_scale::of(dim);
              results[task][0] = scale.scale, results[task][1] = scale.floor;
              results[task][2] = 1 / std::sqrt(static_cast<float>(dim));
            });
            out.add(&results[0][0], 9);
          }) == "");
}

#if defined(__x86_64__)
TEST_CASE("float environment: work leaves no upper half of a vector register in use, which would slow down the caller's SSE code") {
  if (!upper_halves::can_be_seen()) return;  // an older CPU, or one that does not keep track of it
  const auto in_use_after = [](auto&& work) {
    upper_halves::clear();
    work();
    const bool in_use = upper_halves::in_use();
    upper_halves::clear();
    return in_use;
  };
  CHECK(in_use_after([] { upper_halves::use(); }));
  CHECK_FALSE(in_use_after([] { pqkv::detail::in_float_environment([] { upper_halves::use(); }); }));
  CHECK_FALSE(in_use_after([] { pqkv::detail::run_tasks(cpu, 2, [](std::size_t) { upper_halves::use(); }); }));
  CHECK_FALSE(in_use_after([] {
    try {
      pqkv::detail::in_float_environment([] {
        upper_halves::use();
        throw 1;
      });
    } catch (int) {
    }
  }));
}
#endif

TEST_CASE("float environment: settings come to the same numbers under every mode") {
  CHECK(modes_that_change([](byte_list& out) {
          for (const float scale : scales) {
            const auto softmax = pqkv::canonical::softmax_scale::of(d, scale);
            const double factor = pqkv::canonical::logit_factor(d, scale);
            out.add(&softmax.scale, 1), out.add(&softmax.floor, 1), out.add(&factor, 1);
          }
        }) == "");
  // 0.3 * 10 is 3 to the nearest double, and less when rounded down.
  pqkv::budget_rule rule{.ratio = 0.3, .min_tokens = 0, .sinks = 0, .window_share = 0.29};
  CHECK(rule.at(10).retrieve + rule.at(10).window == 3);
  CHECK(modes_that_change([&](byte_list& out) {
          for (std::size_t length = 0; length < 2000; ++length) {
            const pqkv::token_budget budget = rule.at(length);
            out.add(&budget.window, 1), out.add(&budget.retrieve, 1);
          }
        }) == "");
}

TEST_CASE("float environment: training, encoding and decoding") {
  for (const float unit : units) {
    CAPTURE(unit);
    const auto keys = keys_of(unit);
    pqkv::codebook trained(coarse);
    REQUIRE(pqkv::train(cpu, keys.view(), trained, {.iterations = 3}) == pqkv::kmeans_outcome::trained);
    pqkv::codes given(coarse, n);
    pqkv::encode(cpu, keys.view(), trained.view(), given.mutable_view());
    const pqkv::pq_shape finer = pqkv::residual_shape(coarse, 2, 4);

    CHECK(modes_that_change([&](byte_list& out) {
            pqkv::codebook book(coarse);
            pqkv::train(cpu, keys.view(), book, {.iterations = 3});
            out.add(book.view().centroids.data, book.view().centroids.size());
            out.add(book.view().mean.data, book.view().mean.size());
          }) == "");
    CHECK(modes_that_change([&](byte_list& out) {
            pqkv::codes codes(coarse, n);
            pqkv::encode(cpu, keys.view(), trained.view(), codes.mutable_view());
            out.add(codes.view().data, codes.size_bytes());
          }) == "");
    CHECK(modes_that_change([&](byte_list& out) {
            std::vector<float> back(h * n * d);
            pqkv::decode(cpu, given.view().slice(2, 0, n), trained.view(), make_view(back.data(), h, n, d));
            out.add(back);
          }) == "");
    CHECK(modes_that_change([&](byte_list& out) {
            pqkv::codebook fine(finer);
            std::vector<std::uint8_t> outcome(h * 2);
            pqkv::residual_codes codes(finer, n);
            const auto first = given.view().slice(2, 0, n);
            pqkv::train_residual(cpu, keys.view(), first, trained.view(), fine.mutable_view(), make_view(outcome.data(), h, std::size_t{2}),
                                 {.iterations = 3});
            pqkv::encode_residual(cpu, keys.view(), first, trained.view(), fine.view(), codes.mutable_view());
            out.add(outcome), out.add(fine.view().centroids.data, fine.view().centroids.size());
            out.add(codes.view().data, codes.size_bytes());
          }) == "");
  }
}

TEST_CASE("float environment: tables, and tables of integers with their scans") {
  for (const float unit : units) {
    CAPTURE(unit);
    const auto query = numbers(hq * d, 3, unit);
    const pqkv::codebook book = make_book(coarse, 2);
    const auto queries = make_view(query.data(), hq, d);
    CHECK(modes_that_change([&](byte_list& out) {
            pqkv::distance_table table(hq, coarse), distances(hq, coarse);
            pqkv::inner_product_table(cpu, queries, book.view(), table.mutable_view());
            pqkv::squared_l2_table(cpu, queries, book.view(), distances.mutable_view());
            for (const auto* each : {&table, &distances})
              out.add(each->view().entries.data, each->view().entries.size()), out.add(each->view().bias.data, hq);
          }) == "");
  }
  for (const table_kind kind : tables_of_every_size) {
    const search_problem problem = problem_of(kind, 0);
    CHECK(modes_that_change([&](byte_list& out) {
            pqkv::quantized_table<std::uint16_t> table(hq, {h, d, 2, 5});
            pqkv::quantized_table<std::uint8_t> small(hq, {h, d, 2, 5});
            std::vector<std::uint16_t> sums(hq * n);
            pqkv::quantize_table(cpu, problem.table(), table.mutable_view());
            pqkv::quantize_table(cpu, problem.table(), small.mutable_view());
            pqkv::quantized_scan(cpu, table.view(), problem.codes(), make_view(sums.data(), hq, n));
            out.add(sums), out.add(table.view().entries.data, hq * 2 * 32), out.add(small.view().entries.data, hq * 2 * 32);
            for (std::size_t q = 0; q < hq; ++q) out.add(&table.view().scaling(q).step, 1), out.add(&small.view().scaling(q).bound, 1);
          }) == "");
  }
}

TEST_CASE("float environment: scores of codes, the best of them, lists by both paths") {
  for (const table_kind kind : tables_of_every_size)
    for (const float scale : scales) {
      const search_problem problem = problem_of(kind, scale);
      const pqkv::cell_index index = [&] {
        pqkv::cell_index made({h, d, 2, 5}, n);
        pqkv::count_cells(cpu, problem.codes(), 0, n, made.mutable_view());
        pqkv::merge_tails(cpu, problem.codes(), made.mutable_view());
        return made;
      }();
      for (const group_reduction reduction : every_reduction) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(static_cast<int>(reduction));
        CAPTURE(scale);
        const std::size_t lists = pqkv::score_lists(reduction, h, hq), k = n / 4;
        CHECK(modes_that_change([&](byte_list& out) {
                std::vector<float> scores(lists * n);
                std::vector<std::int32_t> best(lists * 20);
                pqkv::scan(cpu, problem.table(), problem.codes(), make_view(scores.data(), lists, n), reduction, d, scale);
                pqkv::top_k(cpu, pqkv::as_const(make_view(scores.data(), lists, n)), make_view(best.data(), lists, std::size_t{20}));
                out.add(scores), out.add(best);
              }) == "");
        for (const pqkv::search_path path : {pqkv::search_path::scan, pqkv::search_path::joint})
          CHECK(modes_that_change([&](byte_list& out) {
                  lists_of_tokens found(lists, k);
                  pqkv::retrieve(cpu, problem.table(), problem.codes(), index.view(), problem.ranges(),
                                 make_view(found.indices.data(), lists, k), make_view(found.counts.data(), lists),
                                 {.head_dim = d, .reduction = reduction, .path = path, .scale = scale});
                  found.add_to(out);
                }) == "");
      }
    }
}

TEST_CASE("float environment: a shortlist ranked again") {
  for (const float scale : {0.0f, 1e-7f}) {  // the second makes scores so near to each other that their last bits order them
    const search_problem first = problem_of(table_kind::smooth, 0), second = problem_of(table_kind::sharp, 0);
    std::vector<std::uint8_t> fine(h * n * 2);
    for (std::size_t i = 0; i < fine.size(); ++i) fine[i] = second.codes()(i / (n * 2), i % 2, i / 2 % n);
    std::vector<std::int32_t> shortlist;
    for (std::size_t list = 0; list < hq; ++list)
      for (std::size_t t = 0; t < 150; ++t) shortlist.push_back(static_cast<std::int32_t>(2 * t + list % 2));
    const std::vector<std::uint32_t> lengths(hq, 150);
    for (const group_reduction reduction : every_reduction) {
      CAPTURE(static_cast<int>(reduction));
      CAPTURE(scale);
      const std::size_t lists = pqkv::score_lists(reduction, h, hq), k = n / 4;
      CHECK(modes_that_change([&](byte_list& out) {
              lists_of_tokens found(lists, k);
              const auto rows = pqkv::as_const(make_view(fine.data(), h, n, std::size_t{2}));
              pqkv::rerank(cpu, {first.table(), second.table()}, {first.codes(), rows},
                           make_view(shortlist.data(), lists, std::size_t{150}), make_view(lengths.data(), lists), first.ranges(),
                           make_view(found.indices.data(), lists, k), make_view(found.counts.data(), lists),
                           {.head_dim = d, .reduction = reduction, .scale = scale});
              found.add_to(out);
            }) == "");
    }
  }
}

TEST_CASE("float environment: exact scores") {
  for (const float unit : units)
    for (const float scale : scales) {
      CAPTURE(unit);
      CAPTURE(scale);
      const auto keys = keys_of(unit);
      const auto query = numbers(hq * d, 3, unit);
      const auto store = pqkv::strided_kv(keys.view(), keys.view());
      const std::vector<pqkv::middle_range> ranges(h, {3, n, 50});
      for (const group_reduction reduction : every_reduction)
        CHECK(modes_that_change([&](byte_list& out) {
                std::vector<float> scores(hq * n);
                const std::size_t lists = pqkv::score_lists(reduction, h, hq);
                pqkv::exact_scores(cpu, make_view(query.data(), hq, d), store, make_view(ranges.data(), h), reduction,
                                   make_view(scores.data(), lists, n), scale);
                out.add(scores);
                pqkv::sparse_query_scores(cpu, make_view(query.data(), hq, d), store, make_view(ranges.data(), h), d / 4, reduction,
                                          make_view(scores.data(), lists, n), scale);
                out.add(scores);
              }) == "");
    }
}

TEST_CASE("float environment: attention of one query and of a block, and partial results merged") {
  constexpr std::size_t queries = 40, many = 2 * pqkv::detail::attention_part_tokens + 5;  // several parts a list
  for (const float unit : {1.0f, 0x1p-130f})
    for (const float scale : scales) {
      CAPTURE(unit);
      CAPTURE(scale);
      const auto keys = make_rows<float>(content::gaussian, h, many, d, 4);
      auto values = make_rows<float>(content::gaussian, h, many, d, 5);
      for (std::size_t i = 0; i < h * many * d; ++i) values.view().data[i] *= unit;
      const auto store = pqkv::strided_kv(keys.view(), values.view());
      const auto query = numbers(hq * queries * d, 3, 1);
      for (const std::size_t length : {n, many}) {
        const std::vector<pqkv::token_span> spans(h, {static_cast<std::uint32_t>(length), 0, 0});
        CHECK(modes_that_change([&](byte_list& out) {
                std::vector<float> result(hq * d), lse(hq);
                pqkv::attention(cpu, make_view(query.data(), hq, d), store, {make_view(spans.data(), h), {}, {}},
                                make_view(result.data(), hq, d), make_view(lse.data(), hq), scale);
                out.add(result), out.add(lse);
              }) == "");
      }
      CHECK(modes_that_change([&](byte_list& out) {
              std::vector<float> result(hq * queries * d), lse(hq * queries);
              pqkv::prefill_attention(cpu, make_view(query.data(), hq, queries, d), store, n, make_view(result.data(), hq, queries, d),
                                      make_view(lse.data(), hq, queries), scale);
              out.add(result), out.add(lse);
            }) == "");
      const auto a = numbers(hq * d, 8, unit), b = numbers(hq * d, 9, unit), sum_a = numbers(hq, 10, 1), sum_b = numbers(hq, 11, 1);
      CHECK(modes_that_change([&](byte_list& out) {
              std::vector<float> result = a, lse = sum_a;
              pqkv::merge(cpu, make_view(result.data(), hq, d), make_view(lse.data(), hq), make_view(b.data(), hq, d),
                          make_view(sum_b.data(), hq));
              out.add(result), out.add(lse);
            }) == "");
    }
}
