// SPDX-License-Identifier: Apache-2.0
// The index of product quantization on the host: encodes the tokens that leave windows, with one task for each head of each sequence;
// renews codebooks; and copies keys out of stores that are not strided.
#pragma once

#include <algorithm>
#include <vector>

#include "../../core/canonical.hpp"
#include "../../search/pq_index.hpp"
#include "axes.hpp"
#include "codes.hpp"
#include "residual.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::gather_keys, backend::host> {
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first,
                  const pair_axes<>& axes, view<T, 3> out);
};

template <class P, class Rows, class T>
void kernel<op::gather_keys, backend::host>::run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample,
                                                 std::size_t first, const pair_axes<>& axes, view<T, 3> out) {
  const std::size_t d = out.extent(2);
  detail::run_tasks(policy, out.extent(0), [&](std::size_t h) {  // a row of integers is multiplied by its scale, a pair by its weight
    constexpr std::size_t lead = 16;                             // rows ahead: the hardware does not prefetch past the end of a page
    std::uint16_t place[max_head_dim];
    const bool has_own_order = axes.has_own_order(h);
    const float* const weight = has_own_order ? &axes.weight(h, 0) : nullptr;
    for (std::size_t e = 0; e < d; ++e) place[e] = static_cast<std::uint16_t>(has_own_order ? axes.source(h, e) : axes.otherwise(e));
    for (std::size_t i = 0; i < out.extent(1); ++i) {
      const auto key = rows.key(head + h, first + sample(i));
      if (i + lead < out.extent(1)) {
        const auto ahead = rows.key(head + h, first + sample(i + lead));
        constexpr std::size_t line = cache_line_bytes / sizeof(*ahead.data);
        for (std::size_t e = 0; e < d; e += line) __builtin_prefetch(ahead.data + e * ahead.stride);
      }
      T* const row = &out(h, i, 0);
      if (weight != nullptr)
        for (std::size_t e = 0; e < d; ++e) row[e] = static_cast<T>(key[place[e]] * weight[e]);
      else if constexpr (std::is_same_v<T, std::remove_cvref_t<decltype(*key.data)>>)
        for (std::size_t e = 0; e < d; ++e) row[e] = key.data[place[e] * key.stride];
      else
        for (std::size_t e = 0; e < d; ++e) row[e] = static_cast<T>(key[place[e]]);
    }
  });
}

namespace detail {

/// op::replace_centroids in one head and subspace. Returns how many were replaced; their numbers are in
/// `replaced` [max_centroids], ascending.
template <class Rows>
std::size_t replace_least_used(const Rows& rows, std::size_t head, const pq_index_view<>& index, const replaced_centroids& call,
                               std::size_t h, std::size_t j, std::uint8_t* replaced) {
  const std::size_t ds = index.book.sub_dim(), c = index.book.size();
  const std::uint8_t* const codes = &index.codes(h, j, 0);
  std::uint32_t tokens[4][max_centroids]{};  // four counters for a code: equal codes in succession would wait for one counter
  for (std::size_t t = call.first; t < call.last; ++t) ++tokens[t % 4][codes[t]];
  std::uint64_t rank[max_centroids];  // upper bits: how many tokens; lowest 8 bits: the centroid's number
  for (std::size_t x = 0; x < c; ++x) rank[x] = (std::uint64_t{tokens[0][x]} + tokens[1][x] + tokens[2][x] + tokens[3][x]) << 8 | x;
  std::partial_sort(rank, rank + call.fresh.count, rank + c);
  std::size_t count = 0;
  for (std::size_t i = 0; i < call.fresh.count; ++i) {
    const auto key = rows.key(head + h, call.begin + call.fresh(i));
    float y[max_head_dim + 1];
    bool finite = true;
    for (std::size_t e = 0; e < ds; ++e) {
      const std::size_t place = j * ds + e;
      y[e] = canonical::sub(index.pairs.of_key(key, h, place), index.book.mean(h, place));
      finite &= is_finite(y[e]);
    }
    if (index.book.metric() == key_metric::inner_product) finite &= lift_to_sphere(y, ds, index.book.squared_radius(h, j));
    if (!finite) continue;
    for (std::size_t e = 0; e < index.book.row_dim(); ++e) index.book.centroids(h, j, e, rank[i] & 0xff) = y[e];
    replaced[count++] = static_cast<std::uint8_t>(rank[i] & 0xff);
  }
  std::sort(replaced, replaced + count);
  return count;
}

}  // namespace detail

template <>
struct kernel<op::replace_centroids, backend::host> {
  /// A task is a head and subspace.
  template <class P, class Rows>
  static void run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<>& index, const replaced_centroids& call);
};

template <class P, class Rows>
void kernel<op::replace_centroids, backend::host>::run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<>& index,
                                                       const replaced_centroids& call) {
  const std::size_t m = index.book.subspaces();
  detail::run_tasks(policy, index.kv_heads * m, [&](std::size_t problem) {
    std::uint8_t replaced[max_centroids];
    detail::replace_least_used(rows, head, index, call, problem / m, problem % m, replaced);
  });
}

namespace detail {

/// op::renew_replaced in one head and subspace. Rows are centred and, for inner products, lifted to the sphere.
template <class Kernels, class Rows, class T>
class replaced_training {
 public:
  /// @param keys  [n, d] of one head: the new tokens, axes in order
  replaced_training(const Rows& rows, std::size_t head, const pq_index_view<>& index, view<T, 2> keys, std::size_t h, std::size_t j)
      : rows_(rows),
        head_(head),
        index_(index),
        keys_(keys),
        h_(h),
        j_(j),
        ds_(index.book.sub_dim()),
        width_(index.book.row_dim()),
        centroids_(&index.book.centroids(h, j, 0, 0)),
        tile_(width_) {}

  /// In each iteration, moves every replaced centroid to the mean of the new tokens whose nearest centroid it is, if there are any.
  void train(const std::uint8_t* replaced, std::size_t count, std::size_t iterations) {
    if (count == 0) return;
    const std::size_t c = index_.book.size();
    std::uint8_t place[max_centroids];  // of each centroid in `replaced`; `count` if it is not there
    std::fill_n(place, c, static_cast<std::uint8_t>(count));
    for (std::size_t i = 0; i < count; ++i) place[replaced[i]] = static_cast<std::uint8_t>(i);
    float largest = 0;
    for (std::size_t t = 0; t < keys_.extent(0); ++t)
      if (load_new(t, row_)) largest = canonical::max(largest, Kernels::measure(row_, width_).largest);
    const float scale = canonical::power_of_two(canonical::fixed_point_exponent(largest));
    const buffer<std::int64_t> sum(count * width_);
    const buffer<std::uint32_t> tokens(count);
    for (std::size_t iteration = 0; iteration < iterations; ++iteration) {
      std::fill_n(sum.data(), sum.size(), 0);
      std::fill_n(tokens.data(), count, 0u);
      const auto add = [&](std::size_t t, std::uint8_t nearest, bool usable) {
        const std::size_t i = place[nearest];
        if (!usable || i == count) return;
        load_new(t, row_);
        Kernels::accumulate(row_, scale, width_, sum.data() + i * width_);
        ++tokens[i];
      };
      search(
          keys_.extent(0), [&](std::size_t t, float* y) { return load_new(t, y); }, add);
      for (std::size_t i = 0; i < count; ++i)
        for (std::size_t e = 0; e < width_ && tokens[i] != 0; ++e)
          centroids_[e * c + replaced[i]] = canonical::fixed_point_mean(sum[i * width_ + e], tokens[i], scale);
    }
  }

  /// Writes the codes of the new tokens, the first of which is token `begin`, and of those tokens of [first, last) whose code names a
  /// replaced centroid. Returns how many of [first, last) it wrote.
  std::size_t encode(std::size_t first, std::size_t last, std::size_t begin, const std::uint8_t* replaced, std::size_t count) {
    std::uint8_t* const codes = &index_.codes(h_, j_, 0);
    bool is_replaced[max_centroids]{};
    for (std::size_t i = 0; i < count; ++i) is_replaced[replaced[i]] = true;
    std::vector<std::uint32_t> left;
    for (std::size_t t = first; t < last; t += 8) {
      const std::size_t end = std::min(t + 8, last);
      bool any = false;  // rarely true: the least used centroids have few tokens
      for (std::size_t u = t; u < end; ++u) any |= is_replaced[codes[u]];
      for (std::size_t u = t; any && u < end; ++u)
        if (is_replaced[codes[u]]) left.push_back(static_cast<std::uint32_t>(u));
    }
    const std::size_t many = left.size();
    const auto write = [&](std::size_t token, std::uint8_t nearest, bool usable) { codes[token] = usable ? nearest : std::uint8_t{0}; };
    search(
        keys_.extent(0), [&](std::size_t t, float* y) { return load_new(t, y); },
        [&](std::size_t t, std::uint8_t nearest, bool usable) { write(begin + t, nearest, usable); });
    search(
        many, [&](std::size_t i, float* y) { return load_old(left[i], codes[left[i]], y); },
        [&](std::size_t i, std::uint8_t nearest, bool usable) { write(left[i], nearest, usable); });
    return many;
  }

 private:
  static constexpr std::size_t block_rows = nearest_search<Kernels>::block_rows;

  /// Finds the nearest centroids of `count` rows. load(i, y) writes row i to y and returns whether the row can be used; found(i, nearest,
  /// usable) is called with each result.
  template <class Load, class Found>
  void search(std::size_t count, const Load& load, const Found& found) {
    nearest_search<Kernels> nearest(centroids_, index_.book.size(), width_, count);
    std::uint8_t index[block_rows];
    float squared_norm[block_rows];
    bool usable[block_rows];
    for (std::size_t first = 0; first < count; first += block_rows) {
      const std::size_t rows = std::min(block_rows, count - first);
      for (std::size_t r = 0; r < rows; ++r) {
        usable[r] = load(first + r, tile_.row(r));
        if (!usable[r]) tile_.clear(r, r + 1);
        squared_norm[r] = Kernels::measure(tile_.row(r), width_).squared_norm;
      }
      nearest.find_rows(tile_, squared_norm, rows, index);
      for (std::size_t r = 0; r < rows; ++r) found(first + r, index[r], usable[r]);
    }
  }

  /// Writes the centred row of a new token to y. Returns whether its key is finite and, in the inner-product metric, its norm too.
  bool load_new(std::size_t t, float* y) {
    const float* const whole = load_row<Kernels>(kv_row<std::remove_cv_t<T>>{keys_.data + t * keys_.stride(0), 1}, keys_.extent(1), copy_);
    return Kernels::all_finite(whole, keys_.extent(1)) && centre(whole + j_ * ds_, y);
  }
  /// The same for a token that has a code. A key that is not finite has code 0, so the whole key is read only if the code is 0.
  bool load_old(std::size_t t, std::uint8_t code, float* y) {
    const auto key = rows_.key(head_ + h_, t);
    const std::size_t begin = code == 0 ? 0 : j_ * ds_, end = code == 0 ? keys_.extent(1) : begin + ds_;
    for (std::size_t i = begin; i < end; ++i) copy_[i] = index_.pairs.of_key(key, h_, i);
    return Kernels::all_finite(copy_ + begin, end - begin) && centre(copy_ + j_ * ds_, y);
  }
  bool centre(const float* part, float* y) {
    Kernels::centre(part, &index_.book.mean(h_, j_ * ds_), ds_, y);
    if (index_.book.metric() == key_metric::inner_product) return lift_to_sphere(y, ds_, index_.book.squared_radius(h_, j_));
    return is_finite(Kernels::measure(y, ds_).largest);
  }

  const Rows& rows_;
  std::size_t head_;
  const pq_index_view<>& index_;
  view<T, 2> keys_;
  std::size_t h_, j_, ds_, width_;
  float* centroids_;  // [width, c]
  row_tile<Kernels> tile_;
  alignas(cache_line_bytes) float row_[max_row_dim];
  alignas(cache_line_bytes) float copy_[max_head_dim];
};

}  // namespace detail

template <>
struct kernel<op::renew_replaced, backend::host> {
  /// A task is a head and subspace.
  ///
  /// @param keys  [h, n, d] keys of tokens [call.begin, call.begin + n), axes in order; the codes of tokens [call.first, call.last) are
  /// known
  /// @param codes  written: how many codes of tokens before call.begin were written
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<>& index, const replaced_centroids& call,
                  view<T, 3> keys, std::size_t iterations, std::uint64_t* codes);
};

template <class P, class Rows, class T>
void kernel<op::renew_replaced, backend::host>::run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<>& index,
                                                    const replaced_centroids& call, view<T, 3> keys, std::size_t iterations,
                                                    std::uint64_t* codes) {
  const std::size_t m = index.book.subspaces();
  const buffer<std::size_t> written(index.kv_heads * m);
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    using kernels = detail::simd_kernels<decltype(isa)>;
    detail::run_tasks(policy, index.kv_heads * m, [&](std::size_t problem) {
      const std::size_t h = problem / m, j = problem % m;
      std::uint8_t replaced[max_centroids];
      const std::size_t count = detail::replace_least_used(rows, head, index, call, h, j, replaced);
      detail::replaced_training<kernels, Rows, T> training(rows, head, index, keys[h], h, j);
      training.train(replaced, count, iterations);
      written[problem] = training.encode(call.first, std::min(call.begin, call.last), call.begin, replaced, count);
    });
  });
  *codes = 0;
  for (std::size_t i = 0; i < written.size(); ++i) *codes += written[i];
}

template <>
struct kernel<op::order_axes, backend::host> {
  template <class P>
  static void run(const P&, view<const float, 2> rows, const axis_map& axes, view<float, 2> out) noexcept {
    for (std::size_t r = 0; r < rows.extent(0); ++r)
      for (std::size_t i = 0; i < rows.extent(1); ++i) out(r, i) = rows(r, axes(i));
  }
  /// @param heads  of the index
  template <class P>
  static void run(const P&, view<const float, 2> rows, const pair_axes<>& axes, const head_map<>& map, std::size_t heads,
                  view<float, 2> out) noexcept {
    const std::size_t g = rows.extent(0) / map.heads(heads);
    detail::in_float_environment([&] {
      for (std::size_t r = 0; r < rows.extent(0); ++r)
        for (std::size_t i = 0; i < rows.extent(1); ++i) out(r, i) = axes.of_query(&rows(r, 0), map.head(r / g), i);
    });
  }
};

template <>
struct kernel<op::encode_leaving, backend::host> {
  template <class P, class Rows>
  static void run(const P& policy, const pq_index_view<>& index, const Rows& rows, view<const leaving_tokens, 1> leaving);

 private:
  template <class P, class T>
  static void encode(const P& here, const pq_index_view<>& index, std::size_t head, std::size_t first, view<T, 3> keys) {
    const auto book = index.book.slice(head, 1);
    const auto codes = index.codes.slice(0, head, 1).slice(2, first, keys.extent(1));
    kernel<op::encode, backend::host>::run(here, keys, book, codes);
    if (index.has_fine())
      kernel<op::encode_residual, backend::host>::run(here, keys, as_const(codes), book, index.fine_book.slice(head, 1),
                                                      index.fine_codes.slice(0, head, 1).slice(1, first, keys.extent(1)));
  }
};

template <class P, class Rows>
void kernel<op::encode_leaving, backend::host>::run(const P& policy, const pq_index_view<>& index, const Rows& rows,
                                                    view<const leaving_tokens, 1> leaving) {
  const std::size_t h = index.kv_heads;
  const exec::host<typename P::isa_type> here;
  policy.runner.run(leaving.extent(0) * h, [&](std::size_t task) {
    const leaving_tokens tokens = leaving(task / h);
    const std::size_t head = tokens.slot * h + task % h;
    if constexpr (requires { rows.strided_keys(head, std::size_t{1}, std::size_t{0}, std::size_t{0}); })
      if (index.axes.is_identity()) {
        if (tokens.size() != 0) encode(here, index, head, tokens.first, rows.strided_keys(head, 1, tokens.first, tokens.size()));
        return;
      }
    using T = ordered_element<copied_element<typename Rows::value_type>>;
    constexpr std::size_t at_once = 16;
    alignas(cache_line_bytes) T copy[at_once * max_head_dim];
    const std::size_t d = rows.head_dim();
    for (std::size_t first = tokens.first; first < tokens.last; first += at_once) {
      const auto keys = make_view(copy, std::size_t{1}, std::min<std::size_t>(at_once, tokens.last - first), d);
      const stratified_sample all{keys.extent(1), keys.extent(1), {}};
      kernel<op::gather_keys, backend::host>::run(here, rows, head, all, first, index.pairs.heads(head, 1), keys);
      encode(here, index, head, first, as_const(keys));
    }
  });
}

}  // namespace pqkv
