// SPDX-License-Identifier: Apache-2.0
// The index of product quantization on the host: codes of the tokens that leave windows, with one task for each head of each sequence; and
// copies of keys from a store that is not strided.
#pragma once

#include <algorithm>

#include "../../core/canonical.hpp"
#include "../../search/pq_index.hpp"
#include "axes.hpp"
#include "codes.hpp"
#include "residual.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::gather_keys, backend::host> {
  /// @param axes  axis_map, or pair_axes of these heads
  template <class P, class Rows, class Axes, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample, std::size_t first, const Axes& axes,
                  view<T, 3> out);
};

template <class P, class Rows, class Axes, class T>
void kernel<op::gather_keys, backend::host>::run(const P& policy, const Rows& rows, std::size_t head, const stratified_sample& sample,
                                                 std::size_t first, const Axes& axes, view<T, 3> out) {
  const std::size_t d = out.extent(2);
  detail::run_tasks(policy, out.extent(0), [&](std::size_t h) {  // a row of integers is multiplied by its scale, a pair by its weight
    constexpr std::size_t lead = 16;                             // rows: the hardware does not prefetch past the end of a page
    std::uint16_t place[max_head_dim];
    const float* weight = nullptr;
    if constexpr (std::is_same_v<Axes, axis_map>) {
      for (std::size_t e = 0; e < d; ++e) place[e] = static_cast<std::uint16_t>(axes(e));
    } else {
      const bool is_dealt = axes.is_dealt(h) != 0;
      if (is_dealt) weight = &axes.weight(h, 0);
      for (std::size_t e = 0; e < d; ++e) place[e] = static_cast<std::uint16_t>(is_dealt ? axes.source(h, e) : axes.otherwise(e));
    }
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

/// op::replace_centroids in one head and subspace. Returns how many were replaced; their numbers are in `replaced`, ascending.
template <class Rows>
std::size_t replace_least_used(const Rows& rows, std::size_t head, const pq_index_view<>& index, const replaced_centroids& call,
                               std::size_t h, std::size_t j, std::uint8_t (&replaced)[max_centroids]) {
  const std::size_t ds = index.book.sub_dim(), c = index.book.size();
  std::uint64_t rank[max_centroids];  // how many tokens, then the centroid's number
  for (std::size_t x = 0; x < c; ++x) rank[x] = x;
  for (std::size_t t = call.first; t < call.last; ++t) rank[index.codes(h, j, t)] += std::uint64_t{1} << 8;
  std::partial_sort(rank, rank + call.fresh.count, rank + c);
  std::size_t count = 0;
  for (std::size_t i = 0; i < call.fresh.count; ++i) {
    const auto key = rows.key(head + h, call.begin + call.fresh(i));
    float y[max_head_dim + 1];
    bool finite = true;
    for (std::size_t e = 0; e < ds; ++e) {
      const std::size_t place = j * ds + e;
      const float element = index.pairs.empty() ? key[index.axes(place)] : index.pairs.of_key(key, h, place);
      y[e] = canonical::sub(element, index.book.mean(h, place));
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

template <>
struct kernel<op::renew_codebook, backend::host> {
  /// Replaces centroids, runs k-means from there and writes the codes of all keys, to the bits of the three operations one after the other.
  /// A row's code says which of the kept centroids is nearest, so the first assignment compares it with that one and the replaced ones.
  /// The last one, which is the encoding, reads rows that k-means has rounded already.
  ///
  /// @param keys      [h, n, d] keys of tokens [call.first, call.last), axes in order; their codes must be known
  /// @param outcomes  [h, m], written. Codes are written where it is `trained`
  template <class P, class Rows, class T>
  static void run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<>& index, const replaced_centroids& call,
                  view<T, 3> keys, const kmeans_params& params, view<std::uint8_t, 2> outcomes);
};

template <class P, class Rows, class T>
void kernel<op::renew_codebook, backend::host>::run(const P& policy, const Rows& rows, std::size_t head, const pq_index_view<>& index,
                                                    const replaced_centroids& call, view<T, 3> keys, const kmeans_params& params,
                                                    view<std::uint8_t, 2> outcomes) {
  const std::size_t h = index.kv_heads, m = index.book.subspaces();
  const view<T, 4> points = split_subspaces(keys, m);
  const buffer<std::uint8_t> is_encoded(h * m);
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    using leaf = detail::leaf<decltype(isa)>;
    detail::run_tasks(policy, h * m, [&](std::size_t problem) {
      const std::size_t i = problem / m, j = problem % m;
      std::uint8_t replaced[max_centroids];
      const std::size_t count = detail::replace_least_used(rows, head, index, call, i, j, replaced);
      float* radius = index.book.metric() == key_metric::inner_product ? &index.book.squared_radius(i, j) : nullptr;
      detail::kmeans_problem<leaf, std::remove_cv_t<T>> lloyd(points[i][j], &index.book.mean(i, j * index.book.sub_dim()),
                                                              &index.book.centroids(i, j, 0, 0), index.book.size(), radius);
      std::uint8_t* const codes = &index.codes(i, j, call.first);
      const kmeans_outcome outcome = lloyd.run(params, problem + 1, {codes, replaced, count});
      outcomes(i, j) = static_cast<std::uint8_t>(outcome);
      is_encoded[problem] = static_cast<std::uint8_t>(outcome == kmeans_outcome::trained && lloyd.write_nearest(codes));
    });
  });
  for (std::size_t i = 0; i < h; ++i)  // a key that k-means left out has code 0 in every subspace
    if (std::find(&is_encoded[i * m], &is_encoded[i * m] + m, 0) != &is_encoded[i * m] + m)
      kernel<op::encode, backend::host>::run(policy, keys.slice(0, i, 1), index.book.slice(i, 1),
                                             index.codes.slice(0, i, 1).slice(2, call.first, keys.extent(1)));
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
      if (index.pairs.empty())
        kernel<op::gather_keys, backend::host>::run(here, rows, head, all, first, index.axes, keys);
      else
        kernel<op::gather_keys, backend::host>::run(here, rows, head, all, first, index.pairs.heads(head, 1), keys);
      encode(here, index, head, first, as_const(keys));
    }
  });
}

}  // namespace pqkv
