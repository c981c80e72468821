// SPDX-License-Identifier: Apache-2.0
// Host and device on keys and queries of a real model (cases/key_dump.hpp; real_keys.sh makes the file and runs this). Given one codebook,
// the same codes, and the same selected sets to the token, each side on its own codes, tables and index. Codebooks trained on each are
// compared by themselves. Ends with 77 where there is no GPU or no file.
//
//   real_keys FILE [steps]    decode steps of the file whose queries are used, all unless given
#include "on_device.cuh"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <optional>

#include "cases/key_dump.hpp"
#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::group_reduction;
using pqkv::search_path;

const pqkv::exec::host<> cpu;
constexpr std::uint32_t tail_tokens = 300;  // that stay out of an index's lists

struct verdicts {
  verdict trained{"codebooks trained on each, real keys"}, codes{"codes, real keys"}, tables{"tables, real queries"},
      index{"joint-code indices, real keys"}, scanned{"selected sets by scan, real keys"}, joint{"selected sets by joint codes, real keys"},
      automatic{"selected sets by the automatic path, real keys"};
};

struct code_shape {
  std::size_t m;
  unsigned bits;
  pqkv::key_metric metric;
};
constexpr code_shape every_shape[] = {{2, 6, pqkv::key_metric::squared_l2},
                                      {4, 8, pqkv::key_metric::squared_l2},
                                      {2, 8, pqkv::key_metric::squared_l2},
                                      {8, 4, pqkv::key_metric::squared_l2},
                                      {2, 6, pqkv::key_metric::inner_product}};

/// What the heads rank: between sinks and a window; everything; another part each.
std::vector<pqkv::middle_range> make_ranges(std::size_t which, std::size_t h, std::size_t tokens) {
  const auto n = static_cast<std::uint32_t>(tokens);
  std::vector<pqkv::middle_range> ranges(h, which == 0 ? pqkv::middle_range{32, n - n / 32, 0} : pqkv::middle_range{0, n, 0});
  for (std::size_t head = 0; head < h && which == 2; ++head)
    ranges[head] = head % 2 == 0 ? pqkv::middle_range{n / 3, n - 1, 0} : pqkv::middle_range{7, n / 2, 0};
  return ranges;
}
constexpr std::size_t range_kinds = 3;

/// Tokens to select of a range, from one to all.
std::uint32_t selected_at(std::size_t turn, std::uint32_t size) {
  const std::uint32_t counts[] = {size / 10, size / 40, 1, size / 5, size / 2, size, 64, 0};
  return std::min(counts[turn % std::size(counts)], size);
}

/// Every head's own range, the last tokens in the tail.
template <class Policy, class Codes, class Index>
void grow(const Policy& policy, const Codes& codes, const std::vector<pqkv::middle_range>& ranges, const Index& index) {
  for (std::size_t head = 0; head < ranges.size(); ++head) {
    const auto part = index.heads(head, 1);
    const auto own = codes.slice(0, head, 1);
    const std::uint32_t merged = std::max(ranges[head].begin, ranges[head].end - std::min(ranges[head].end, tail_tokens));
    pqkv::count_cells(policy, own, ranges[head].begin, merged, part);
    pqkv::merge_tails(policy, own, part);
    pqkv::count_cells(policy, own, merged, ranges[head].end, part);
  }
}

/// How far apart two arrays are at most.
double furthest(const std::vector<float>& a, const std::vector<float>& b) {
  double most = a.size() == b.size() ? 0 : HUGE_VAL;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
    most = std::fmax(most, std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return most;
}

/// One layer's keys under one shape, on both sides.
class comparison {
 public:
  comparison(const key_dump& dump, std::size_t layer, const code_shape& code, verdicts& all)
      : dump_(dump),
        layer_(layer),
        shape_{dump.h, dump.d, code.m, code.bits, code.metric},
        all_(all),
        book_(shape_),
        codes_(shape_, dump.n),
        keys_there_(dump.keys_of(layer)),
        codes_there_(codes_.mutable_view()),
        scratch_(scratch_bytes()) {}

  /// Trains on each side by itself, then encodes on each under the host's codebook.
  void train_and_encode() {
    const std::size_t h = dump_.h, m = shape_.subspaces;
    const auto keys = dump_.keys_of(layer_);
    pqkv::codebook untouched(shape_);
    const book_on_device trained_there(untouched.mutable_view());
    std::vector<std::uint8_t> outcome(h * m, 9), poison(h * m, 9);
    const on_device outcome_there(pqkv::make_view(poison.data(), h, m));
    pqkv::train(cpu, keys, book_.mutable_view(), pqkv::make_view(outcome.data(), h, m));
    pqkv::train(scratch_.policy(), keys_there_.view(), trained_there.view(), outcome_there.view());
    const auto book = book_.mutable_view();
    const auto floats = [](const auto& view) { return std::vector<float>(view.data, view.data + view.size()); };
    const std::vector<float> centroids = floats(book.centroids), centroids_there = trained_there.centroids.bytes();
    const bool radius =
        shape_.metric == pqkv::key_metric::squared_l2 || same(floats(book.squared_radius), trained_there.squared_radius.bytes());
    all_.trained.check(same(centroids, centroids_there) && same(floats(book.mean), trained_there.mean.bytes()) && radius &&
                           same(outcome, outcome_there.bytes()),
                       "layer %zu m %zu b %u metric %d: centroids %g apart at most, means %g", layer_, m, shape_.bits,
                       static_cast<int>(shape_.metric), furthest(centroids, centroids_there),
                       furthest(floats(book.mean), trained_there.mean.bytes()));

    book_there_.emplace(book);
    pqkv::encode(cpu, keys, book_.view(), codes_.mutable_view());
    pqkv::encode(scratch_.policy(), keys_there_.view(), pqkv::codebook_view<device>(book_there_->view()), codes_there_.view());
    const std::vector<std::uint8_t> from_device = codes_there_.bytes();
    const std::uint8_t* from_host = codes_.mutable_view().data;
    const bool trained = std::count(outcome.begin(), outcome.end(), static_cast<std::uint8_t>(pqkv::kmeans_outcome::trained)) ==
                         static_cast<std::ptrdiff_t>(outcome.size());
    all_.codes.check(trained && std::memcmp(from_host, from_device.data(), from_device.size()) == 0,
                     "layer %zu m %zu b %u metric %d: %zu codes differ", layer_, m, shape_.bits, static_cast<int>(shape_.metric),
                     differences(from_host, from_device));
  }

  /// The queries of some steps over ranges of one kind.
  void search(std::size_t range_kind, std::size_t steps) {
    std::vector<pqkv::middle_range> ranges = make_ranges(range_kind, dump_.h, dump_.n);
    const bool joint = pqkv::has_cell_index(shape_);
    pqkv::cell_index index;
    if (joint) index = pqkv::cell_index(shape_, dump_.n);
    const index_on_device index_there(index.mutable_view());
    if (joint) {
      grow(cpu, codes_.view(), ranges, index.mutable_view());
      grow(scratch_.policy(), pqkv::codes_view<device>(codes_there_.view()), ranges, index_there.view());
      const auto host = index.mutable_view();
      const auto equal = [](const auto& view, const auto& there) {
        const auto copy = there.bytes();
        return copy.size() == view.size() && std::memcmp(copy.data(), view.data, view.size() * sizeof copy[0]) == 0;
      };
      all_.index.check(equal(host.counts, index_there.counts) && equal(host.offsets, index_there.offsets) &&
                           equal(host.ids, index_there.ids) && equal(host.first, index_there.first) &&
                           equal(host.merged, index_there.merged) && equal(host.last, index_there.last),
                       "layer %zu m %zu b %u ranges %zu", layer_, shape_.subspaces, shape_.bits, range_kind);
    }
    for (std::size_t step = range_kind; step < steps; step += range_kinds) {
      search_step(step, ranges, index.view(), joint ? index_there.view() : pqkv::cell_index_view<device>{});
    }
  }

 private:
  std::size_t scratch_bytes() const {
    const std::size_t hq = dump_.hq, cells = pqkv::has_cell_index(shape_) ? shape_.cells() : 0;
    return std::max({device_bytes<pqkv::op::kmeans>({dump_.h * shape_.subspaces, dump_.n, shape_.row_dim(), shape_.centroids(), {}}),
                     device_bytes<pqkv::op::merge_tails>({dump_.h, dump_.n, cells}),
                     device_bytes<pqkv::op::retrieve>({.lists = hq, .query_heads = hq, .tokens = dump_.n, .cells = cells})});
  }
  static std::size_t differences(const std::uint8_t* a, const std::vector<std::uint8_t>& b) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < b.size(); ++i) count += a[i] != b[i] ? 1 : 0;
    return count;
  }

  /// One step's queries: tables, then every reduction, each with another k.
  void search_step(std::size_t step, std::vector<pqkv::middle_range>& ranges, pqkv::cell_index_view<> index,
                   pqkv::cell_index_view<device> index_there) {
    const pqkv::view<const float, 2> query = dump_.queries_of(layer_)[step];
    const on_device query_there(query);
    pqkv::distance_table table(dump_.hq, shape_);
    const on_device entries(table.mutable_view().entries);
    const on_device bias(table.mutable_view().bias);
    pqkv::inner_product_table(scratch_.policy(), query_there.view(), pqkv::codebook_view<device>(book_there_->view()),
                              pqkv::mutable_distance_table_view<device>{entries.view(), bias.view()});
    pqkv::inner_product_table(cpu, query, book_.view(), table.mutable_view());
    const auto equal = [](const auto& view, const auto& there) {
      const auto copy = there.bytes();
      return std::memcmp(copy.data(), view.data, copy.size() * sizeof copy[0]) == 0;
    };
    all_.tables.check(equal(table.view().entries, entries) && equal(table.view().bias, bias), "layer %zu step %zu m %zu b %u", layer_, step,
                      shape_.subspaces, shape_.bits);
    const pqkv::distance_table_view<device> table_there{entries.view(), bias.view()};
    for (const group_reduction reduction : every_reduction) {
      std::uint32_t k_max = 1;
      for (pqkv::middle_range& range : ranges) {
        range.retrieve = selected_at(step / range_kinds + static_cast<std::size_t>(reduction), range.size());
        k_max = std::max(k_max, range.retrieve);
      }
      const on_device ranges_there(pqkv::as_const(pqkv::make_view(ranges.data(), ranges.size())));
      const std::size_t lists = pqkv::score_lists(reduction, dump_.h, dump_.hq);
      std::vector<std::int32_t> indices(lists * k_max, -7);
      std::vector<std::uint32_t> counts(lists, 12345);
      const auto indices_here = pqkv::make_view(indices.data(), lists, std::size_t{k_max});
      const auto counts_here = pqkv::make_view(counts.data(), lists);
      const on_device indices_there(indices_here);
      const on_device counts_there(counts_here);
      pqkv::retrieve(cpu, table.view(), codes_.view(), {}, pqkv::make_view(std::as_const(ranges).data(), ranges.size()), indices_here,
                     counts_here, {.head_dim = dump_.d, .reduction = reduction, .path = search_path::scan});
      const auto test = [&](verdict& of, pqkv::cell_index_view<device> with, search_path path) {
        cudaMemset(indices_there.view().data, 0x77, indices.size() * sizeof indices[0]);
        pqkv::retrieve(scratch_.policy(), table_there, pqkv::codes_view<device>(codes_there_.view()), with, ranges_there.view(),
                       indices_there.view(), counts_there.view(), {.head_dim = dump_.d, .reduction = reduction, .path = path});
        of.check(same(indices, indices_there.bytes()) && same(counts, counts_there.bytes()),
                 "layer %zu step %zu m %zu b %u metric %d reduction %d k %u of range [%u, %u)", layer_, step, shape_.subspaces, shape_.bits,
                 static_cast<int>(shape_.metric), static_cast<int>(reduction), ranges[0].retrieve, ranges[0].begin, ranges[0].end);
      };
      test(all_.scanned, {}, search_path::scan);
      if (index.empty()) continue;
      test(all_.joint, index_there, search_path::joint);
      test(all_.automatic, index_there, search_path::automatic);
    }
  }

  const key_dump& dump_;
  std::size_t layer_;
  pqkv::pq_shape shape_;
  verdicts& all_;
  pqkv::codebook book_;
  pqkv::codes codes_;
  on_device<const pqkv::bfloat16, 3> keys_there_;
  on_device<std::uint8_t, 3> codes_there_;
  std::optional<book_on_device> book_there_;
  device_scratch scratch_;
};

int compare(const char* path, std::size_t most_steps) {
  const key_dump dump = key_dump::read(path);
  const std::size_t steps = std::min(dump.steps, most_steps);
  std::printf("%s: %zu layers, h %zu, hq %zu, n %zu, d %zu; queries of %zu steps of %zu\n", path, dump.layers, dump.h, dump.hq, dump.n,
              dump.d, steps, dump.steps);
  verdicts all;
  for (std::size_t layer = 0; layer < dump.layers; ++layer)
    for (const code_shape& code : every_shape) {
      comparison one(dump, layer, code, all);
      one.train_and_encode();
      for (std::size_t kind = 0; kind < range_kinds; ++kind) one.search(kind, steps);
    }
  bool passed = all.trained.passed();
  passed &= all.codes.passed();
  passed &= all.tables.passed();
  passed &= all.index.passed();
  passed &= all.scanned.passed(steps < dump.steps ? 1 : 1000);
  passed &= all.joint.passed();
  passed &= all.automatic.passed();
  return passed ? 0 : 1;
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  if (argc < 2) {
    std::printf("no file of keys; real_keys.sh makes one\n");
    return 77;
  }
  try {
    return compare(argv[1], argc > 2 ? static_cast<std::size_t>(std::atoi(argv[2])) : SIZE_MAX);
  } catch (const std::exception& failed) {
    std::printf("%s\n", failed.what());
    return 1;
  }
}
