// SPDX-License-Identifier: Apache-2.0
// Random and adversarial inputs of the search stage: tables of many characters, codes with and without many equal scores, ragged
// ranges, padded strides. A problem is complete: entries, biases, codes, one range per KV head. The same seed gives the same bits with
// every compiler: no product feeds an add here, and no expression draws twice.
#pragma once

#include <limits>
#include <vector>

#include <pqkv/pqkv.hpp>

#include "inputs.hpp"
#include "plain_search.hpp"

namespace pqkv_cases {

inline constexpr pqkv::group_reduction every_reduction[] = {pqkv::group_reduction::probability_sum, pqkv::group_reduction::probability_max,
                                                            pqkv::group_reduction::logit_sum, pqkv::group_reduction::logit_max,
                                                            pqkv::group_reduction::none};

/// What a table's entries look like; a unit is one nat of the softmax.
enum class table_kind {
  smooth,      // gaussian, 1 nat
  sharp,       // gaussian, 12 nats
  overshoot,   // some entries that no token uses, above the others: the maxima overshoot the best token by 30 to 70 nats
  wide,        // magnitudes from 1e-30 to 1e30
  few_values,  // from {-1, -0.0, 0, 1/2}
  equal,       // all the same
  hopeless,    // every factor of a token 150 nats or more below one entry that no token uses
  nonfinite,   // smooth, one query head with an infinity or a NaN
  all_nonfinite
};
inline constexpr table_kind every_table[] = {table_kind::smooth,   table_kind::sharp,      table_kind::overshoot,
                                             table_kind::wide,     table_kind::few_values, table_kind::equal,
                                             table_kind::hopeless, table_kind::nonfinite,  table_kind::all_nonfinite};

enum class code_kind { uniform, few, skewed, same };
inline constexpr code_kind every_code[] = {code_kind::uniform, code_kind::few, code_kind::skewed, code_kind::same};

struct search_shape {
  std::size_t h = 1, g = 1, m = 2;
  unsigned bits = 6;
  std::size_t n = 0, d = 64;
  std::size_t plane_padding = 0, table_padding = 0;  // odd strides
  float scale = 0;                                   // of the logits; 0: 1 / sqrt(d)

  /// One nat of the softmax in units of a table.
  float nat() const { return scale == 0 ? std::sqrt(static_cast<float>(d)) : 1 / scale; }
  std::size_t c() const { return std::size_t{1} << bits; }
  std::size_t hq() const { return h * g; }
  bool joint() const { return m * bits <= pqkv::max_joint_bits; }
};

class search_problem {
 public:
  search_problem(const search_shape& shape, table_kind tables, code_kind kind, random_source& random)
      : shape_(shape),
        row_(shape.c() + shape.table_padding),
        plane_(shape.n + shape.plane_padding),
        entries_(shape.hq() * shape.m * row_, std::numeric_limits<float>::quiet_NaN()),
        bias_(shape.hq()),
        codes_(shape.h * shape.m * plane_ + 1, 0xff),
        ranges_(shape.h) {
    for (std::size_t q = 0; q < shape.hq(); ++q) fill_table(q, tables, random);
    if (tables == table_kind::nonfinite) spoil(random.below(shape.hq()), random);
    if (tables == table_kind::all_nonfinite)
      for (std::size_t q = 0; q < shape.hq(); ++q) spoil(q, random);
    fill_codes(tables, kind, random);
    for (std::size_t head = 0; head < shape.h; ++head) set_range(head, 0, shape.n, shape.n / 4);
  }

  const search_shape& shape() const { return shape_; }
  pqkv::distance_table_view<> table() const {
    return {{entries_.data(), {shape_.hq(), shape_.m, shape_.c()}, {shape_.m * row_, row_, 1}}, {bias_.data(), {shape_.hq()}, {1}}};
  }
  pqkv::mutable_distance_table_view<> mutable_table() {
    return {{entries_.data(), {shape_.hq(), shape_.m, shape_.c()}, {shape_.m * row_, row_, 1}}, {bias_.data(), {shape_.hq()}, {1}}};
  }
  pqkv::codes_view<> codes() const { return {codes_.data(), {shape_.h, shape_.m, shape_.n}, {shape_.m * plane_, plane_, 1}}; }
  pqkv::view<const pqkv::middle_range, 1> ranges() const { return pqkv::as_const(pqkv::make_view(ranges_.data(), shape_.h)); }

  void set_code(std::size_t head, std::size_t j, std::size_t t, std::uint8_t code) { codes_[(head * shape_.m + j) * plane_ + t] = code; }
  void set_range(std::size_t head, std::size_t begin, std::size_t end, std::size_t k) {
    ranges_[head] = {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end), static_cast<std::uint32_t>(k)};
  }
  /// Ragged: empty, one token, or any part of the codes; k of 0, 1, one less than all, all, more, or any.
  void random_ranges(random_source& random) {
    for (std::size_t head = 0; head < shape_.h; ++head) {
      const std::size_t begin = random.below(shape_.n / 2 + 1), what = random.below(8);
      const std::size_t size = what == 0 ? 0 : what == 1 && begin < shape_.n ? 1 : random.below(shape_.n - begin + 1);
      const std::size_t ks[] = {0,       1, size > 0 ? size - 1 : 0, size, size + 7, random.below(size + 1), random.below(size / 8 + 1),
                                size / 2};
      set_range(head, begin, begin + size, ks[random.below(8)]);
    }
  }
  std::size_t most_selected() const {
    std::size_t most = 0;
    for (const pqkv::middle_range& range : ranges_) most = std::max<std::size_t>(most, range.selected());
    return most;
  }

  /// List `list` of a reduction as the plain oracle wants it.
  plain_list list(std::size_t which, pqkv::group_reduction reduction) const {
    const std::size_t g = reduction == pqkv::group_reduction::none ? 1 : shape_.g, head = which * g / shape_.g;
    return {table().entries.slice(0, which * g, g),
            table().bias.slice(0, which * g, g),
            codes()[head],
            ranges_[head].begin,
            ranges_[head].end,
            shape_.d,
            reduction,
            shape_.scale};
  }
  const pqkv::middle_range& range_of(std::size_t which, pqkv::group_reduction reduction) const {
    return ranges_[reduction == pqkv::group_reduction::none ? which / shape_.g : which];
  }

 private:
  void fill_table(std::size_t q, table_kind kind, random_source& random) {
    const float nat = shape_.nat(), part = nat / static_cast<float>(shape_.m);
    const float few[] = {-1.0f, -0.0f, 0.0f, 0.5f};
    bias_[q] = 10 * random.gaussian();
    for (std::size_t j = 0; j < shape_.m; ++j)
      for (std::size_t x = 0; x < shape_.c(); ++x) {
        float& entry = entries_[(q * shape_.m + j) * row_ + x];
        switch (kind) {
          case table_kind::sharp:
            entry = 12 * nat * random.gaussian();
            break;
          case table_kind::overshoot:
            entry = x % 16 == 5 ? (0.75f + random.uniform()) * 40 * part : part * random.gaussian();
            break;
          case table_kind::wide:
            entry = random.gaussian();
            entry = std::ldexp(entry, static_cast<int>(random.below(200)) - 100);
            break;
          case table_kind::few_values:
            entry = few[random.below(4)];
            break;
          case table_kind::equal:
            entry = 3.25f;
            break;
          case table_kind::hopeless:
            entry = x == 5 ? 0.0f : (-15 - random.uniform()) * 10 * nat;
            break;
          default:
            entry = nat * random.gaussian();
        }
      }
  }
  void spoil(std::size_t q, random_source& random) {
    const std::size_t j = random.below(shape_.m), x = random.below(shape_.c());
    entries_[(q * shape_.m + j) * row_ + x] = nonfinite(random.below(3));
  }
  /// Codes of the tables with entries that no token may use avoid those.
  void fill_codes(table_kind tables, code_kind kind, random_source& random) {
    const bool avoid = tables == table_kind::overshoot || tables == table_kind::hopeless;
    std::vector<std::uint8_t> few;
    for (int i = 0; i < 3; ++i) few.push_back(static_cast<std::uint8_t>(random.below(shape_.c())));
    for (std::size_t head = 0; head < shape_.h; ++head)
      for (std::size_t j = 0; j < shape_.m; ++j)
        for (std::size_t t = 0; t < shape_.n; ++t) {
          std::uint8_t code = 0;
          switch (kind) {
            case code_kind::uniform:
              code = static_cast<std::uint8_t>(random.below(shape_.c()));
              break;
            case code_kind::few:
              code = few[random.below(3)];
              break;
            case code_kind::skewed:
              code = static_cast<std::uint8_t>(random.below(1 + random.below(shape_.c())));
              break;
            case code_kind::same:
              code = few[0];
              break;
          }
          if (avoid && code % 16 == 5) --code;
          codes_[(head * shape_.m + j) * plane_ + t] = code;
        }
  }

  search_shape shape_;
  std::size_t row_, plane_;
  std::vector<float> entries_, bias_;
  std::vector<std::uint8_t> codes_;
  std::vector<pqkv::middle_range> ranges_;
};

/// What retrieve() wrote.
struct retrieved {
  std::vector<std::vector<std::int32_t>> lists;
  std::vector<std::uint8_t> skipped;
  bool padded = true;  // -1 after every list, and nothing written beyond k_max

  bool operator==(const retrieved&) const = default;

  /// Reads lists of at most k_max from rows `stride` apart that held -7 before the call.
  void read(const std::vector<std::int32_t>& indices, const std::vector<std::uint32_t>& counts, std::size_t k_max, std::size_t stride) {
    for (std::size_t list = 0; list < counts.size(); ++list) {
      const auto row = indices.begin() + static_cast<std::ptrdiff_t>(list * stride);
      const std::size_t count = std::min<std::size_t>(counts[list], k_max);
      lists.emplace_back(row, row + static_cast<std::ptrdiff_t>(count));
      for (std::size_t i = count; i < stride; ++i) padded = padded && indices[list * stride + i] == (i < k_max ? -1 : -7);
      padded = padded && counts[list] <= k_max;
    }
  }
};

/// Sums over other tokens for every query head: none, or with logits from far below those of the ranked tokens to far above.
inline std::vector<pqkv::attended_sum> random_attended(const search_problem& problem, random_source& random) {
  std::vector<pqkv::attended_sum> sums;
  for (std::size_t q = 0; q < problem.shape().hq(); ++q) {
    float top = problem.table().bias(q);
    for (std::size_t j = 0; j < problem.shape().m; ++j) top += problem.table().entries(q, j, 0);
    const float spread = random.below(8) == 0 ? 1e30f : 8 * problem.shape().nat();
    sums.push_back({(pqkv::is_finite(top) ? top : 0) + spread * random.gaussian(),
                    random.below(5) == 0 ? 0 : std::uint64_t{1 + random.below(1u << 30)} << random.below(20)});
  }
  return sums;
}

/// retrieve() into rows of an odd stride.
/// @param attended  empty, or sums that are added to the normalisers
template <class Policy>
retrieved run_retrieve(const Policy& policy, const search_problem& problem, pqkv::cell_index_view<> index, pqkv::group_reduction reduction,
                       pqkv::search_path path, std::size_t k_extra = 2, const std::vector<pqkv::attended_sum>& attended = {}) {
  const search_shape& shape = problem.shape();
  const std::size_t lists = pqkv::score_lists(reduction, shape.h, shape.hq()), k_max = problem.most_selected() + k_extra,
                    stride = k_max + 3;
  std::vector<std::int32_t> indices(lists * stride, -7);
  std::vector<std::uint32_t> counts(lists, 12345);
  retrieved out;
  out.skipped.assign(shape.hq(), 9);
  const pqkv::view<std::int32_t, 2> found{indices.data(), {lists, k_max}, {stride, 1}};
  const auto many = pqkv::make_view(counts.data(), lists);
  const pqkv::retrieve_params how{.head_dim = shape.d, .reduction = reduction, .path = path, .scale = shape.scale};
  const auto skipped = pqkv::make_view(out.skipped.data(), shape.hq());
  if (attended.empty())
    pqkv::retrieve(policy, problem.table(), problem.codes(), index, problem.ranges(), found, many, how, skipped);
  else
    pqkv::retrieve(policy, problem.table(), problem.codes(), index, problem.ranges(), found, many, how, skipped, {},
                   pqkv::make_view(attended.data(), attended.size()));
  out.read(indices, counts, k_max, stride);
  return out;
}

/// The plain oracle's answer to the same.
inline retrieved plain_retrieve(const search_problem& problem, pqkv::group_reduction reduction, plain_notes& notes) {
  const search_shape& shape = problem.shape();
  retrieved out;
  for (std::size_t which = 0; which < pqkv::score_lists(reduction, shape.h, shape.hq()); ++which) {
    const plain_list list = problem.list(which, reduction);
    out.lists.push_back(plain_top_k(plain_scores(list, notes), problem.range_of(which, reduction).retrieve));
    for (std::int32_t& t : out.lists.back()) t += static_cast<std::int32_t>(list.begin);
    for (std::size_t q = 0; q < list.group(); ++q) out.skipped.push_back(list.left_out(q) ? 1 : 0);
  }
  return out;
}

/// The usual scale half of the time, any other else.
inline float random_scale(random_source& random) {
  const bool usual = random.below(2) == 0;
  const float other = 0.01f + 0.6f * random.uniform();
  return usual ? 0.0f : other;
}

/// An index of every head's own range. `tail` tokens of each range stay unmerged.
inline void fill_index(const search_problem& problem, pqkv::cell_index& index, std::size_t tail) {
  const pqkv::exec::host<pqkv::isa::scalar> cpu;
  for (std::size_t head = 0; head < problem.shape().h; ++head) {
    const pqkv::middle_range range = problem.ranges()(head);
    const auto part = index.mutable_view().heads(head, 1);
    const auto codes = problem.codes().slice(0, head, 1);
    const std::size_t merged = range.size() > tail ? range.end - tail : range.begin;
    pqkv::count_cells(cpu, codes, range.begin, merged, part);
    pqkv::merge_tails(cpu, codes, part);
    pqkv::count_cells(cpu, codes, merged, range.end, part);
  }
}

}  // namespace pqkv_cases
