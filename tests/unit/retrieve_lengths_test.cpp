// SPDX-License-Identifier: Apache-2.0
// retrieve() at a length that is not the index's: ranges that end before the counted tokens do, and lists that hold ids of tokens that
// were cut off and whose places others took, with other codes. Merged or not, the answer is the plain oracle's.
#include <doctest/doctest.h>

#include <pqkv/pqkv.hpp>

#include "cases/policies.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;
using pqkv::exec::host;

/// A problem whose index lives: tokens come, are cut off, come again with other codes, and are merged now and then.
class living_index {
 public:
  living_index(const search_shape& shape, table_kind tables, code_kind kind, random_source& random)
      : problem_(shape, tables, kind, random),
        book_(pqkv::pq_shape{shape.h, 128, shape.m, shape.bits}),
        index_(book_.shape(), shape.n),
        begin_(random.below(shape.n / 4 + 1)) {
    view_.book = book_.mutable_view();
    const auto codes = problem_.codes();
    view_.codes = {const_cast<std::uint8_t*>(codes.data), {shape.h, shape.m, shape.n}, {codes.stride(0), codes.stride(1), 1}};
    view_.index = index_.mutable_view();
    view_.kv_heads = shape.h;
    last_.assign(shape.h, begin_);
  }

  /// Tokens join a head.
  void count(std::size_t head, std::size_t last) {
    view_.count(head, static_cast<std::uint32_t>(last_[head]), static_cast<std::uint32_t>(last));
    last_[head] = last;
  }
  /// The last ones leave it, and their codes are overwritten.
  void cut(std::size_t head, std::size_t last, random_source& random) {
    view_.uncount(head, static_cast<std::uint32_t>(last), static_cast<std::uint32_t>(last_[head]));
    const search_shape& shape = problem_.shape();
    for (std::size_t t = last; t < last_[head]; ++t)
      for (std::size_t j = 0; j < shape.m; ++j) {
        const auto old = problem_.codes()(head, j, random.below(shape.n));  // a code that the tables allow
        problem_.set_code(head, j, t, old);
      }
    last_[head] = last;
  }
  void merge(std::size_t head) { pqkv::merge_tails(host<>{}, problem_.codes().slice(0, head, 1), index_.mutable_view().heads(head, 1)); }
  /// Each head's range ends at its last token or anywhere before.
  void draw_ranges(random_source& random) {
    for (std::size_t head = 0; head < last_.size(); ++head) {
      const std::size_t end = random.below(3) == 0 ? last_[head] : begin_ + random.below(last_[head] - begin_ + 1), size = end - begin_;
      const std::size_t ks[] = {0, 1, size / 8, size / 2, size > 0 ? size - 1 : 0, size + 3};
      problem_.set_range(head, begin_, end, ks[random.below(6)]);
    }
  }

  const search_problem& problem() const { return problem_; }
  pqkv::cell_index_view<> index() const { return index_.view(); }
  std::size_t begin() const { return begin_; }
  std::size_t last(std::size_t head) const { return last_[head]; }
  std::size_t void_ids(std::size_t head) const {
    const auto v = index_.view();
    return v.offsets(head, v.cells()) - (v.merged(head) - std::min(v.merged(head), v.first(head)));
  }

 private:
  search_problem problem_;
  pqkv::codebook book_;
  pqkv::cell_index index_;
  std::size_t begin_;
  pqkv::pq_index_view<> view_;
  std::vector<std::size_t> last_;
};

struct tally {
  std::size_t asked = 0, earlier = 0, with_void_ids = 0, emptied = 0;
};

void live(const search_shape& shape, table_kind tables, code_kind kind, std::size_t events, random_source& random, tally& counted) {
  living_index one(shape, tables, kind, random);
  for (std::size_t head = 0; head < shape.h; ++head) {
    one.count(head, one.begin() + random.below(shape.n - one.begin() + 1));
    if (random.below(2) == 0) one.merge(head);
  }
  for (std::size_t event = 0; event < events; ++event) {
    for (std::size_t head = 0; head < shape.h; ++head) {
      const std::size_t last = one.last(head), size = last - one.begin(), what = random.below(8);
      if (what < 2) one.cut(head, what == 0 ? one.begin() + random.below(size + 1) : last - std::min(size, random.below(9)), random);
      if (what == 2) one.cut(head, one.begin(), random);
      counted.emptied += one.last(head) == one.begin() ? 1 : 0;
      if (what < 6) one.count(head, one.last(head) + random.below(std::min<std::size_t>(shape.n - one.last(head), what < 4 ? 9 : 400) + 1));
      if (what == 7) one.merge(head);
      counted.with_void_ids += one.void_ids(head) != 0 ? 1 : 0;
    }
    one.draw_ranges(random);
    for (std::size_t head = 0; head < shape.h; ++head) counted.earlier += one.problem().ranges()(head).end < one.last(head) ? 1 : 0;
    const group_reduction reduction = every_reduction[event % 5];
    CAPTURE(shape.m);
    CAPTURE(shape.bits);
    CAPTURE(event);
    CAPTURE(static_cast<int>(reduction));
    plain_notes notes;
    const retrieved wanted = plain_retrieve(one.problem(), reduction, notes);
    for_each_isa([&](auto isa) {
      const host<decltype(isa)> cpu;
      REQUIRE(run_retrieve(cpu, one.problem(), one.index(), reduction, search_path::joint) == wanted);
      REQUIRE(run_retrieve(cpu, one.problem(), one.index(), reduction, search_path::scan) == wanted);
    });
    REQUIRE(run_retrieve(host<pqkv::isa::best, threaded_runner>{}, one.problem(), one.index(), reduction, search_path::joint) == wanted);
    ++counted.asked;
  }
}
}  // namespace

TEST_CASE("retrieve: an index that is cut, grows again and is asked at earlier lengths equals the plain oracle") {
  random_source random(0x1e46);
  tally counted;
  const struct {
    std::size_t m;
    unsigned bits;
    std::size_t n, events;
  } kinds[] = {
      {1, 4, 300, 40}, {2, 4, 700, 40},  {2, 5, 900, 30},  // every cell is scored
      {2, 6, 900, 30}, {1, 8, 400, 30},  {4, 4, 700, 6},   // 65536 cells, of which few hold a token
      {2, 8, 700, 10}, {2, 5, 6000, 10}, {2, 6, 9000, 6},  // many tokens a cell
  };
  for (const auto& kind : kinds)
    for (const table_kind tables : {table_kind::smooth, table_kind::few_values, table_kind::equal, table_kind::overshoot}) {
      const search_shape shape{.h = 1 + random.below(2),
                               .g = 1 + random.below(4),
                               .m = kind.m,
                               .bits = kind.bits,
                               .n = kind.n,
                               .d = 64,
                               .plane_padding = random.below(20),
                               .scale = random_scale(random)};
      live(shape, tables, every_code[random.below(4)], kind.events, random, counted);
    }
  MESSAGE("asked ", counted.asked, ", ranges that end earlier ", counted.earlier, ", lists with void ids ", counted.with_void_ids,
          ", emptied ", counted.emptied);
  CHECK(counted.earlier > counted.asked / 3);
  CHECK(counted.with_void_ids > counted.asked / 5);
  CHECK(counted.emptied > 10);
}

TEST_CASE("retrieve: a longer index does not move the scores of a shorter range") {
  // The normaliser is of the range's tokens alone: tokens behind it that are far better change nothing.
  random_source random(0x1e47);
  search_problem problem({.h = 1, .g = 2, .m = 2, .bits = 4, .n = 600, .d = 64}, table_kind::sharp, code_kind::uniform, random);
  problem.set_range(0, 10, 400, 30);
  pqkv::cell_index exact({1, 64, 2, 4}, 600), longer({1, 64, 2, 4}, 600);
  fill_index(problem, exact, 0);
  problem.set_range(0, 10, 600, 30);
  for (const std::size_t tail : {0u, 100u, 250u}) {
    longer = pqkv::cell_index({1, 64, 2, 4}, 600);
    problem.set_range(0, 10, 600, 30);
    fill_index(problem, longer, tail);
    problem.set_range(0, 10, 400, 30);
    for (const group_reduction reduction : every_reduction) {
      const retrieved wanted = run_retrieve(host<>{}, problem, exact.view(), reduction, search_path::joint);
      CHECK(run_retrieve(host<>{}, problem, longer.view(), reduction, search_path::joint) == wanted);
      CHECK(run_retrieve(host<>{}, problem, longer.view(), reduction, search_path::automatic) == wanted);
    }
  }
}
