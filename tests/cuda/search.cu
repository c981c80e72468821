// SPDX-License-Identifier: Apache-2.0
// scan, top_k, the joint-code index and retrieve on a GPU against the host, to the bit and to the token: the shapes, tables, codes and
// ranges of the host's property test, and long ones; rows of slots in any order, at earlier lengths, on an index that was cut. The same
// under fast math. Ends with 77 where there is no GPU.
//
//   search [rounds]       random problems of each shape, 4 unless given
//   search --seconds S    a small problem of each kind while the time lasts, for compute-sanitizer
#include "device_search.cuh"

#include <span>

#include "top_k_scores.cuh"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

const pqkv::exec::host<> cpu;

struct verdicts {
  verdict attended{"retrieve over attended"}, recentred{"lists with recentred query heads"};
  verdict scan{"scan"}, scanned{"retrieve by scan"}, joint{"retrieve by joint codes"}, automatic{"retrieve, automatic"},
      index{"count_cells and merge_tails"}, mapped{"retrieve of mapped rows"}, tables{"inner_product_table of mapped rows"}, top_k{"top_k"};
};

void compare_scan(const device_scratch& scratch, const search_problem& problem, const problem_on_device& there, group_reduction reduction,
                  verdicts& all) {
  const search_shape& shape = problem.shape();
  const std::size_t lists = pqkv::score_lists(reduction, shape.h, shape.hq()), stride = shape.n + 3;
  std::vector<float> scores(lists * stride, -7.0f);
  const pqkv::view<float, 2> here{scores.data(), {lists, shape.n}, {stride, 1}};
  const on_device<float, 2> scores_there(here);
  pqkv::scan(scratch.policy(), there.table(), there.codes.view(), scores_there.view(), reduction, shape.d);
  pqkv::scan(cpu, problem.table(), problem.codes(), here, reduction, shape.d);
  std::vector<float> from_device = scores_there.bytes();
  scores.resize(from_device.size());
  all.scan.check(same(scores, from_device), "h %zu g %zu m %zu b %u n %zu reduction %d", shape.h, shape.g, shape.m, shape.bits, shape.n,
                 static_cast<int>(reduction));
}

/// Everything for one problem. @param tail  tokens that stay out of the lists
void compare(const search_problem& problem, std::size_t tail, std::span<const group_reduction> reductions, verdicts& all) {
  const search_shape& shape = problem.shape();
  const problem_on_device there(problem);
  const device_scratch scratch(device_bytes<pqkv::op::retrieve>(
      {.lists = shape.hq(), .query_heads = shape.hq(), .tokens = shape.n, .cells = shape.joint() ? 65536u : 0u}));
  pqkv::cell_index index;
  if (shape.joint()) {
    index = pqkv::cell_index({shape.h, 128, shape.m, shape.bits}, shape.n);
    fill_index(problem, index, tail);
  }
  const index_on_device index_there(index.mutable_view());
  for (const group_reduction reduction : reductions) {
    compare_scan(scratch, problem, there, reduction, all);
    const retrieved wanted = run_retrieve(cpu, problem, {}, reduction, search_path::scan);
    random_source random(shape.n + 31 * static_cast<std::size_t>(reduction));
    std::vector<pqkv::attended_sum> beside;
    if (pqkv::detail::block::uses_probabilities(reduction)) beside = random_attended(problem, random);
    const retrieved wanted_over = beside.empty() ? wanted : run_retrieve(cpu, problem, {}, reduction, search_path::scan, 2, beside);
    const auto test = [&](verdict& of, pqkv::cell_index_view<device> with, search_path path) {
      of.check(device_retrieve(scratch, problem, there, with, reduction, path) == wanted,
               "h %zu g %zu m %zu b %u n %zu d %zu reduction %d tail %zu", shape.h, shape.g, shape.m, shape.bits, shape.n, shape.d,
               static_cast<int>(reduction), tail);
      if (!beside.empty())
        all.attended.check(device_retrieve(scratch, problem, there, with, reduction, path, beside) == wanted_over,
                           "h %zu g %zu m %zu b %u n %zu d %zu reduction %d tail %zu path %d", shape.h, shape.g, shape.m, shape.bits,
                           shape.n, shape.d, static_cast<int>(reduction), tail, static_cast<int>(path));
    };
    test(all.scanned, {}, search_path::scan);
    if (!shape.joint()) continue;
    test(all.joint, index_there.view(), search_path::joint);
    test(all.automatic, index_there.view(), search_path::automatic);
  }
}

/// An index that grows on the device against one that grows on the host: same arrays after every step.
void compare_index(const search_problem& problem, random_source& random, verdicts& all) {
  const search_shape& shape = problem.shape();
  if (!shape.joint()) return;
  const pqkv::pq_shape book{shape.h, 128, shape.m, shape.bits};
  pqkv::cell_index index(book, shape.n);
  const index_on_device there(index.mutable_view());
  const on_device codes(problem.codes());
  const device_scratch scratch(device_bytes<pqkv::op::merge_tails>({shape.h, shape.n, book.cells()}));
  std::size_t last = random.below(shape.n + 1);
  for (int step = 0; step < 4; ++step) {
    const std::size_t next = last + random.below(shape.n - last + 1);
    pqkv::count_cells(cpu, problem.codes(), last, next, index.mutable_view());
    pqkv::count_cells(scratch.policy(), codes.view(), last, next, there.view());
    if (step % 2 == 1) {
      pqkv::merge_tails(cpu, problem.codes(), index.mutable_view());
      pqkv::merge_tails(scratch.policy(), codes.view(), there.view());
    }
    last = next;
    const auto host = index.mutable_view();
    const auto equal = [](const auto& view, const auto& copy) {
      return copy.bytes().size() == view.size() && (view.size() == 0 || std::memcmp(copy.bytes().data(), view.data, view.size() * 4) == 0);
    };
    all.index.check(equal(host.counts, there.counts) && equal(host.offsets, there.offsets) && equal(host.ids, there.ids) &&
                        equal(host.first, there.first) && equal(host.merged, there.merged) && equal(host.last, there.last),
                    "h %zu m %zu b %u n %zu step %d", shape.h, shape.m, shape.bits, shape.n, step);
  }
}

/// Cuts a head's index and lets other tokens follow: its lists then hold ids that are void.
void cut_and_regrow(search_problem& problem, pqkv::mutable_cell_index_view<> index, std::size_t head, random_source& random) {
  const search_shape& shape = problem.shape();
  const auto part = index.heads(head, 1);
  const std::size_t first = part.first(0), last = part.last(0), cut = first + random.below(last - first + 1);
  for (std::size_t t = cut; t < last; ++t) {
    std::size_t cell = 0;
    for (std::size_t j = 0; j < shape.m; ++j) cell = cell * shape.c() + problem.codes()(head, j, t);
    --part.counts(0, cell);
  }
  part.last(0) = static_cast<std::uint32_t>(cut);
  part.merged(0) = std::min(part.merged(0), part.last(0));
  for (std::size_t j = 0; j < shape.m; ++j)
    for (std::size_t t = cut; t < last; ++t) problem.set_code(head, j, t, static_cast<std::uint8_t>(random.below(shape.c())));
  pqkv::count_cells(cpu, problem.codes().slice(0, head, 1), cut, random.below(2) == 0 ? last : cut + random.below(last - cut + 1), part);
}

/// Ranges of row heads of mapped rows: from where the index of each begins, to its end or, for a query in the middle of several tokens,
/// before it.
std::vector<pqkv::middle_range> earlier_ranges(pqkv::cell_index_view<> index, const pqkv::head_map<>& map, random_source& random) {
  std::vector<pqkv::middle_range> ranges(map.heads(0));
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const std::uint32_t begin = index.first(map.head(i)), size = index.last(map.head(i)) - begin;
    const std::size_t back = random.below(4) == 0 ? 0 : random.below(random.below(4) == 0 ? size + 1 : std::min(size, 16u) + 1);
    const std::size_t left = size - back, ks[] = {random.below(left + 1), left / 8, left, 1, left / 100 + 1};
    ranges[i] = {begin, static_cast<std::uint32_t>(begin + left), static_cast<std::uint32_t>(ks[random.below(5)])};
  }
  return ranges;
}

/// Rows of queries for slots in any order and more than once, each at a length of its own, on an index that was cut and grew again.
/// @param h  heads of a slot; shape.h are those of all slots
void compare_mapped(const search_shape& shape, std::size_t h, table_kind tables, std::span<const group_reduction> reductions,
                    random_source& random, verdicts& all) {
  search_problem problem(shape, tables, code_kind::skewed, random);
  for (std::size_t head = 0; head < shape.h; ++head) problem.set_range(head, random.below(20), shape.n - random.below(20), 0);
  pqkv::cell_index index({shape.h, 128, shape.m, shape.bits}, shape.n);
  fill_index(problem, index, random.below(600));
  for (std::size_t head = 0; head < shape.h; ++head) cut_and_regrow(problem, index.mutable_view(), head, random);

  const std::size_t slots = shape.h / h, rows = 1 + random.below(slots), hq = rows * h * shape.g;
  std::vector<std::uint32_t> slot_of(rows);
  for (std::uint32_t& slot : slot_of) slot = static_cast<std::uint32_t>(random.below(slots));
  const pqkv::head_map<> map{pqkv::as_const(pqkv::make_view(slot_of.data(), rows)), static_cast<std::uint32_t>(h)};
  const std::vector<pqkv::middle_range> ranges = earlier_ranges(index.view(), map, random);
  const auto ranges_here = pqkv::make_view(ranges.data(), ranges.size());
  const pqkv::distance_table_view<> table{problem.table().entries.slice(0, 0, hq), problem.table().bias.slice(0, 0, hq)};

  const on_device entries(table.entries);
  const on_device bias(table.bias);
  const on_device codes(problem.codes());
  const on_device ranges_there(ranges_here);
  const on_device slots_there(map.slots);
  const index_on_device index_there(index.mutable_view());
  const pqkv::head_map<device> map_there{slots_there.view(), map.kv_heads};
  const device_scratch scratch(device_bytes<pqkv::op::retrieve>({.lists = hq, .query_heads = hq, .tokens = shape.n, .cells = 65536}));
  std::size_t k_max = 1;
  for (const pqkv::middle_range& range : ranges) k_max = std::max<std::size_t>(k_max, range.selected());
  for (const group_reduction reduction : reductions) {
    const std::size_t lists = pqkv::score_lists(reduction, rows * h, hq);
    std::vector<std::int32_t> indices(lists * k_max), by_cells(lists * k_max);
    std::vector<std::uint32_t> counts(lists), counts_by_cells(lists);
    const pqkv::retrieve_params how{.head_dim = shape.d, .reduction = reduction, .path = search_path::scan, .scale = 0.11f};
    pqkv::retrieve_params joint = how;
    joint.path = search_path::joint;
    pqkv::retrieve(cpu, table, problem.codes(), {}, ranges_here, pqkv::make_view(indices.data(), lists, k_max),
                   pqkv::make_view(counts.data(), lists), how, {}, map);
    pqkv::retrieve(cpu, table, problem.codes(), index.view(), ranges_here, pqkv::make_view(by_cells.data(), lists, k_max),
                   pqkv::make_view(counts_by_cells.data(), lists), joint, {}, map);
    all.mapped.check(same(indices, by_cells) && same(counts, counts_by_cells), "the host's paths differ");
    for (const search_path path : {search_path::scan, search_path::joint, search_path::automatic}) {
      pqkv::retrieve_params there = how;
      there.path = path;
      std::vector<std::int32_t> poison(lists * k_max, -7);
      const on_device<std::int32_t, 2> indices_there(pqkv::make_view(poison.data(), lists, k_max));
      const on_device<std::uint32_t, 1> counts_there(pqkv::make_view(counts_by_cells.data(), lists));
      pqkv::retrieve(scratch.policy(), pqkv::distance_table_view<device>{entries.view(), bias.view()}, codes.view(), index_there.view(),
                     ranges_there.view(), indices_there.view(), counts_there.view(), there, {}, map_there);
      all.mapped.check(same(indices, indices_there.bytes()) && same(counts, counts_there.bytes()),
                       "%zu of %zu heads, g %zu m %zu b %u n %zu, reduction %d path %d", h, shape.h, shape.g, shape.m, shape.bits, shape.n,
                       static_cast<int>(reduction), static_cast<int>(path));
    }
  }
}

/// Tables of mapped rows, to the bit.
void compare_mapped_tables(random_source& random, verdicts& all) {
  const std::size_t slots = 3, h = 2, g = 3, d = 64, m = 4, rows = 5, hq = rows * h * g;
  const pqkv::pq_shape shape{slots * h, d, m, 5};
  pqkv::codebook book(shape);
  const pqkv::mutable_codebook_view<> own = book.mutable_view();
  for (std::size_t i = 0; i < own.centroids.size(); ++i) own.centroids.data[i] = random.gaussian();
  for (std::size_t i = 0; i < own.mean.size(); ++i) own.mean.data[i] = random.gaussian();
  std::vector<float> query(hq * d);
  for (float& x : query) x = random.gaussian();
  const std::vector<std::uint32_t> slot_of{2, 0, 2, 1, 0};
  const pqkv::head_map<> map{pqkv::make_view(slot_of.data(), rows), h};
  const on_device slots_there(map.slots);
  const on_device query_there(pqkv::as_const(pqkv::make_view(query.data(), hq, d)));
  const book_on_device book_there(own);
  pqkv::distance_table table(hq, shape);
  const on_device<float, 3> entries(table.mutable_view().entries);
  const on_device<float, 1> bias(table.mutable_view().bias);
  pqkv::inner_product_table(cpu, pqkv::as_const(pqkv::make_view(query.data(), hq, d)), book.view(), table.mutable_view(), map);
  pqkv::inner_product_table(pqkv::exec::cuda{}, query_there.view(), pqkv::codebook_view<device>(book_there.view()),
                            pqkv::mutable_distance_table_view<device>{entries.view(), bias.view()},
                            pqkv::head_map<device>{slots_there.view(), h});
  const auto equal = [](const auto& host, const auto& there) {
    return there.size() == host.size() && std::memcmp(there.data(), host.data, there.size() * sizeof(float)) == 0;
  };
  all.tables.check(equal(table.view().entries, entries.bytes()) && equal(table.view().bias, bias.bytes()), "a table differs");
}

void compare_maps(workload& work, random_source& random, verdicts& all) {
  compare_mapped_tables(random, all);
  // One launch, of whose lists some are of cells; scores in scratch (16 bits); one launch of long lists.
  const search_shape shapes[] = {{6, 2, 2, 4, 700, 64},    {8, 4, 2, 6, 9000, 128},  {4, 1, 1, 8, 3000, 64},
                                 {6, 2, 2, 8, 70000, 128}, {2, 4, 4, 4, 90000, 128}, {6, 4, 2, 6, 131072, 128}};
  const table_kind kinds[] = {table_kind::smooth, table_kind::few_values, table_kind::equal, table_kind::sharp};
  const std::span<const group_reduction> reductions(every_reduction);
  std::size_t turn = 0;
  for (const search_shape& shape : shapes)
    for (const table_kind tables : kinds)
      for (std::size_t round = 0; round < (shape.n < 20000 ? 3 * work.rounds() : 1); ++round) {
        if (!work.another()) continue;
        compare_mapped(shape, 2, tables, work.small() ? reductions.subspan(turn++ % reductions.size(), 1) : reductions, random, all);
      }
}

void compare_top_k(std::size_t rows, std::size_t n, std::size_t k_max, score_kind kind, random_source& random, verdicts& all) {
  const std::size_t stride = n + random.below(3), list = k_max + 2;
  const std::vector<float> scores = make_scores(kind, rows, n, stride, random);
  std::vector<std::int32_t> indices(rows * list + 1, -7);
  const pqkv::view<std::int32_t, 2> here{indices.data(), {rows, k_max}, {list, 1}};
  const pqkv::view<const float, 2> from{scores.data(), {rows, n}, {stride, 1}};
  const on_device<std::int32_t, 2> indices_there(here);
  const on_device<const float, 2> scores_there(from);
  pqkv::top_k(pqkv::exec::cuda{}, scores_there.view(), indices_there.view());
  pqkv::top_k(cpu, from, here);
  const std::vector<std::int32_t> from_device = indices_there.bytes();
  indices.resize(from_device.size());
  all.top_k.check(same(indices, from_device), "rows %zu n %zu k %zu kind %d", rows, n, k_max, static_cast<int>(kind));
}

void compare_shapes(workload& work, random_source& random, verdicts& all) {
  const std::size_t groups[] = {1, 2, 3, 4, 8}, dims[] = {16, 64, 128, 256}, lengths[] = {0, 1, 9, 63, 64, 65, 200, 700, 4100};
  std::size_t turn = 0;
  for (const std::size_t m : {1u, 2u, 4u, 8u, 16u})
    for (unsigned bits = 4; bits <= 8; ++bits)
      for (std::size_t round = 0; round < (m * bits > 12 && m * bits <= 16 ? 1 : work.rounds()); ++round)
        for (const table_kind tables : every_table) {
          search_shape shape{1 + random.below(3), groups[random.below(5)], m, bits, lengths[random.below(9)], dims[random.below(4)]};
          shape.plane_padding = random.below(3) * 13;
          shape.table_padding = random.below(2) * 3;
          // A small run takes each code shape once, with the tables in turn, and one reduction after the other.
          const bool chosen = !work.small() || static_cast<std::size_t>(tables) == (m + bits) % std::size(every_table);
          if (!chosen || !work.another()) continue;
          search_problem problem(shape, tables, every_code[random.below(4)], random);
          problem.random_ranges(random);
          const std::span<const group_reduction> reductions(every_reduction);
          compare(problem,
                  random.below(3) == 0   ? 0
                  : random.below(2) == 0 ? shape.n
                                         : random.below(shape.n / 4 + 1),
                  work.small() ? reductions.subspan(turn++ % reductions.size(), 1) : reductions, all);
          compare_index(problem, random, all);
        }
}

/// Lengths at which every path of the device is taken: one launch or many, one CTA or a cluster, keys in shared memory or not.
void compare_long(workload& work, random_source& random, verdicts& all) {
  const search_shape long_shapes[] = {
      {8, 4, 2, 6, 131072, 128}, {2, 1, 2, 4, 20000, 64},   {2, 4, 2, 7, 70000, 128},  {1, 4, 2, 8, 300000, 128},
      {2, 8, 4, 4, 300000, 128}, {1, 4, 4, 8, 400000, 128}, {1, 32, 16, 8, 5000, 128}, {1, 2, 2, 6, 1048576, 64},
      {3, 5, 6, 8, 50001, 96},   {2, 8, 8, 6, 40003, 64},   {9, 8, 2, 7, 300000, 128}};  // 72 lists under `none`: a CTA each, in two steps
  const search_shape small_shapes[] = {{1, 2, 2, 6, 66000, 128},  {1, 1, 2, 4, 20000, 64}, {1, 32, 16, 8, 5000, 128},
                                       {1, 2, 2, 8, 66000, 128},  {1, 2, 4, 4, 20000, 64}, {1, 2, 4, 8, 40000, 128},
                                       {1, 1, 2, 8, 300000, 128}, {2, 2, 2, 7, 20000, 64}};
  const std::span<const group_reduction> reductions(every_reduction);
  std::size_t turn = 0;
  for (search_shape shape : work.small() ? std::span<const search_shape>(small_shapes) : std::span<const search_shape>(long_shapes))
    for (std::size_t round = 0; round < (work.rounds() + 1) / 2; ++round) {
      if (!work.another()) continue;
      shape.plane_padding = round == 0 ? 0 : random.below(9);  // planes whose words are aligned, or not
      const table_kind tables = round == 0 ? table_kind::smooth : every_table[random.below(std::size(every_table))];
      search_problem problem(shape, tables, every_code[round == 0 ? 0 : random.below(4)], random);
      for (std::size_t head = 0; head < shape.h; ++head) {
        const std::size_t any = random.below(shape.n / 2), ks[] = {any, 0, shape.n, 1}, k = head == 0 ? any : ks[random.below(4)];
        problem.set_range(head, random.below(100), shape.n - random.below(100), round == 0 ? shape.n / 64 : k);
      }
      compare(problem, round == 0 ? 300 : random.below(5000), work.small() ? reductions.subspan(turn++ % reductions.size(), 1) : reductions,
              all);
      if (work.rounds() > 1) compare_index(problem, random, all);
    }
}

/// Long lists with query heads that are recentred beside others that are not.
void compare_recentred(workload& work, random_source& random, verdicts& all) {
  const search_shape shapes[] = {{1, 3, 2, 6, 30000, 64},   {2, 4, 4, 8, 40000, 128}, {1, 6, 8, 8, 30011, 128}, {1, 5, 3, 8, 25000, 96},
                                 {1, 4, 8, 8, 150000, 128}, {9, 8, 4, 8, 20000, 128}, {1, 4, 16, 4, 9000, 128}, {40, 4, 2, 7, 20000, 64}};
  const group_reduction reductions[] = {group_reduction::probability_sum, group_reduction::probability_max, group_reduction::none};
  std::size_t turn = 0;
  for (const search_shape& shape : shapes) {
    if (!work.another()) continue;
    search_problem problem(shape, table_kind::overshoot, code_kind::uniform, random);
    const pqkv::mutable_distance_table_view<> table = problem.mutable_table();
    for (std::size_t q = 1; q < shape.hq(); q += 2)
      for (std::size_t j = 0; j < shape.m; ++j)
        for (std::size_t x = 5; x < shape.c(); x += 16) table.entries(q, j, x) = 0;  // its maxima do not overshoot
    for (std::size_t head = 0; head < shape.h; ++head)
      problem.set_range(head, random.below(100), shape.n - random.below(100), 1 + random.below(shape.n / 8));
    const plain_list list = problem.list(0, group_reduction::probability_sum);
    plain_notes notes;
    for (std::size_t q = 0; q < shape.g; ++q) probabilities_of(list, q, notes);
    all.recentred.check(notes.recentred == (shape.g + 1) / 2, "h %zu g %zu m %zu b %u n %zu: %zu recentred", shape.h, shape.g, shape.m,
                        shape.bits, shape.n, notes.recentred);
    compare(problem, 0, work.small() ? std::span(reductions).subspan(turn++ % std::size(reductions), 1) : std::span(reductions), all);
  }
}

/// Lists whose CTAs are spread over the device: long ones beside empty ones, some shorter than one CTA's share.
void compare_spread(workload& work, random_source& random, verdicts& all) {
  const group_reduction reductions[] = {group_reduction::probability_sum, group_reduction::probability_max};
  for (const search_shape& shape : {search_shape{8, 4, 4, 8, 200000, 128}, {3, 6, 8, 8, 100003, 128}, {5, 4, 2, 6, 400000, 128}})
    for (std::size_t round = 0; round < 4 * work.rounds(); ++round)
      if (work.another()) compare(ragged_problem(shape, round, random), 0, reductions, all);
}

/// Tokens of which the sample of a long list's bracket has all, and which are unlike the others: lowest or highest of all, so that the
/// bracket does not hold, or as many as it may select.
void compare_misled(workload& work, random_source& random, verdicts& all) {
  const std::span<const group_reduction> reductions(every_reduction);
  std::size_t turn = 0;
  for (const bool are_lowest : {true, false})
    for (const std::size_t k : {100u, 4095u, 4096u, 4097u, 20000u, 20001u}) {
      if (!work.another()) continue;
      const std::size_t m = are_lowest == (k % 2 == 0) ? 4 : 8, n = k == 20001 ? 400000 : 50000;  // the longer list is spread
      search_problem problem({1, 2, m, 8, n, 128}, table_kind::smooth, code_kind::uniform, random);
      const pqkv::mutable_distance_table_view<> table = problem.mutable_table();
      for (std::size_t q = 0; q < 2; ++q)
        for (std::size_t j = 0; j < m; ++j) table.entries(q, j, 0) = are_lowest ? -200.0f : 200.0f;
      const std::uint32_t begin = 77, end = static_cast<std::uint32_t>(n) - 10;
      for (std::size_t j = 0; j < m; ++j) {
        for (std::size_t t = 0; t < problem.shape().n; ++t)
          if (problem.codes()(0, j, t) == 0) problem.set_code(0, j, t, 1);
        for (std::uint32_t i = 0; i < pqkv::detail::block::bracket_sample; ++i)
          problem.set_code(0, j, begin + pqkv::detail::block::sample_place(i, end - begin), 0);
      }
      problem.set_range(0, begin, end, k);
      compare(problem, 0, work.small() ? reductions.subspan(turn++ % reductions.size(), 1) : reductions, all);
    }
}

void compare_selections(workload& work, random_source& random, verdicts& all) {
  for (std::size_t round = 0; round < 20 * work.rounds(); ++round)
    for (const score_kind kind : every_score) {
      const std::size_t sizes[] = {0, 1, 31, 500, 4096, 4097, 16385, 32768, 40000, 131072, 65537, 131073, 262143, 262144, 300001},
                        n = sizes[random.below(round % 4 == 0 ? std::size(sizes) : 9)];
      const std::size_t ks[] = {0, 1, n, n + 5, n / 2, random.below(n + 1), random.below(n / 16 + 1)},
                        rows = n < 70000 && random.below(6) == 0 ? 1 + random.below(70) : 1 + random.below(4);
      if (work.another()) compare_top_k(rows, n, ks[random.below(7)], kind, random, all);
    }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  workload work(argc, argv, 4);
  verdicts all;
  random_source random(0x9a1e);
  work.part(0.4);
  compare_shapes(work, random, all);
  work.part(0.75);
  compare_long(work, random, all);
  compare_misled(work, random, all);
  compare_spread(work, random, all);
  compare_recentred(work, random, all);
  work.part(0.9);
  compare_maps(work, random, all);
  work.part(1);
  compare_selections(work, random, all);
  work.print();
  const bool whole = !work.small();
  bool passed = all.scan.passed(whole ? 500 : 1);
  passed &= all.attended.passed(whole ? 500 : 1);
  passed &= all.recentred.passed(whole ? 8 : 0);
  passed &= all.scanned.passed(whole ? 500 : 1);
  passed &= all.joint.passed(whole ? 200 : 1);
  passed &= all.automatic.passed(whole ? 200 : 1);
  passed &= all.index.passed(whole ? 100 : 1);
  passed &= all.mapped.passed(whole ? 500 : 1);
  passed &= all.tables.passed();
  passed &= all.top_k.passed(whole ? 200 : 1);
  return passed ? 0 : 1;
}
