// SPDX-License-Identifier: Apache-2.0
// Which coordinates of a key form a subspace. Product quantization codes each subspace separately, so coordinates that vary together belong
// in one subspace. Rotary embedding rotates pairs of coordinates by the token's position: if a pair is split, the codes of both subspaces
// lose precision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../core/arena.hpp"
#include "../core/canonical.hpp"
#include "../core/error.hpp"
#include "../core/scalar.hpp"
#include "../core/view.hpp"

namespace pqkv::inline PQKV_MODE {
namespace op {
struct order_axes {};       // run(policy, rows [n, d], axis_map, out [n, d]): out[r, i] = rows[r, map(i)]
                            // run(policy, queries [n, d], pair_axes, head_map, heads, out [n, d]): each query by its head's order
struct observe_queries {};  // run(policy, queries [n, hq, d], pair_axes): adds their squares to the energies of the KV heads
/// run(policy, rows, first head, sample, first token, subspaces, pair_axes): the orders of heads with energy.
struct deal_pairs {
  /// What scratch_bytes() must know.
  struct sizes {
    std::size_t heads, head_dim;
  };
};
}  // namespace op

namespace detail {
/// 64-bit words for what op::deal_pairs sums on a device.
constexpr std::size_t deal_pairs_device_words(const op::deal_pairs::sizes& s) { return s.heads * (3 * s.head_dim + 2); }
constexpr std::size_t deal_pairs_device_scratch_bytes(const op::deal_pairs::sizes& s) {
  return cache_line_bytes + deal_pairs_device_words(s) * sizeof(std::uint64_t);
}
}  // namespace detail

/// The order in which a row's coordinates are cut into subspaces. Any order gives right answers; a good one finds more.
enum class axis_order : std::uint8_t {
  contiguous,     // in their stored order: for models that rotate neighbours (2 i, 2 i + 1), and for keys without rotary embedding
  rotary_halves,  // for models that rotate i with i + d / 2, as Llama in Hugging Face's layout: each pair is in one subspace
  weighted_pairs  // the same pairs, dealt to the subspaces by what they add to a score and weighted by it: see pair_axes
};

/// Where the coordinates of an ordered row come from; passed to kernels by value.
struct axis_map {
  axis_order order = axis_order::contiguous;
  std::uint32_t subspaces = 1;  // m
  std::uint32_t head_dim = 0;   // d

  PQKV_HD constexpr bool is_identity() const { return order == axis_order::contiguous; }
  /// The coordinate of the row that is at place i. Pairs are dealt in turn. Under rotary_halves subspace j has pairs j, j + m, j + 2 m,
  /// ..., the lower coordinates first, so that every subspace has fast and slow pairs. (Runs of neighbouring pairs were tried: one code
  /// alone then has what the slow pairs know, and the example's model loses many answers.) weighted_pairs does the same in a head without
  /// an order of its own.
  PQKV_HD constexpr std::size_t operator()(std::size_t i) const {
    if (is_identity()) return i;
    const auto place = static_cast<std::uint32_t>(i);
    const std::uint32_t run = head_dim / subspaces / 2, j = place / (2 * run), within = place - 2 * run * j;
    return within < run ? j + subspaces * within : head_dim / 2 + j + subspaces * (within - run);
  }
  /// The same of a key of any head.
  template <class Row>
  constexpr float of_key(const Row& key, std::size_t, std::size_t i) const {
    return key[(*this)(i)];
  }
};

/// A sum of squares of floats that does not depend on the order of its terms: whole + fraction / 2^64. Squares are truncated to multiples
/// of 2^-64 and limited to 2^40, so 2^23 of them fit.
struct square_sum {
  std::uint64_t whole = 0, fraction = 0;

  PQKV_HD constexpr void add(float x) {
    const double exact = static_cast<double>(x) * static_cast<double>(x), square = exact < 0x1p40 ? exact : 0x1p40;  // 48 bits: no rounding
    const auto upper = static_cast<std::uint64_t>(square);
    const auto lower = static_cast<std::uint64_t>((square - static_cast<double>(upper)) * 0x1p64);
    fraction += lower;
    whole += upper + (fraction < lower ? 1 : 0);
  }
  PQKV_HD constexpr bool is_zero() const { return whole == 0 && fraction == 0; }
  PQKV_HD constexpr float value() const { return static_cast<float>(static_cast<double>(whole) + static_cast<double>(fraction) * 0x1p-64); }
};

/// Orders and weights of axis_order::weighted_pairs for each head. Let e_i be the sum of squares of the head's queries at coordinate i,
/// averaged over the pair (i, i + d / 2), plus a thousandth of the head's mean. Pairs are dealt to the subspaces in turn, forwards and then
/// backwards, in descending order of (variance of the keys in both coordinates) * e. A key's coordinate is multiplied by the power of two
/// nearest sqrt(e_i / mean e), and a query's is divided by it. Scores stay the same, and training errs where it changes a score least. A
/// head without observed queries when it is trained has no order of its own; it is cut as under rotary_halves.
///
/// Canonical: order and weights depend on the bits of keys and queries alone, not on threads or on how observed queries were split into
/// calls.
template <class Space = space::host>
struct pair_axes {
  view<square_sum, 2, Space> energy{};      // [h, d] of the queries seen so far
  view<float, 2, Space> weight{};           // [h, d] the weight of the key's coordinate at place i
  view<std::uint8_t, 2, Space> source{};    // [h, d] the number of that coordinate
  view<std::uint8_t, 1, Space> is_dealt{};  // [h] 1: the head has an order of its own
  axis_map otherwise{};                     // for heads without an order of their own; for all of them if these arrays are empty

  static constexpr pair_axes place(arena& memory, std::size_t heads, const axis_map& otherwise) {
    const std::size_t d = otherwise.head_dim;
    return {make_view<Space>(memory.take<square_sum>(heads * d), heads, d), make_view<Space>(memory.take<float>(heads * d), heads, d),
            make_view<Space>(memory.take<std::uint8_t>(heads * d), heads, d), make_view<Space>(memory.take<std::uint8_t>(heads), heads),
            otherwise};
  }
  PQKV_HD constexpr bool empty() const { return energy.data == nullptr; }
  PQKV_HD constexpr pair_axes heads(std::size_t first, std::size_t count) const {
    if (empty()) return *this;
    return {energy.slice(0, first, count), weight.slice(0, first, count), source.slice(0, first, count), is_dealt.slice(0, first, count),
            otherwise};
  }
  /// One place of a head's ordered rows.
  struct axis {
    std::size_t source;  // the coordinate of the row
    float weight;        // a power of two; 1 where the head has no order of its own
    PQKV_HD float of_key(float element) const { return canonical::mul(element, weight); }
    PQKV_HD float inverse() const { return canonical::div(1.0f, weight); }
    PQKV_HD float of_query(float element) const { return canonical::mul(element, inverse()); }
  };
  /// The axis at place i. All that it needs is read at once: one read that waited for another would double the time on a device.
  PQKV_HD constexpr axis at(std::size_t head, std::size_t i) const {
    if (empty()) return {otherwise(i), 1.0f};
    const bool is_own = is_dealt(head) != 0;
    const std::size_t own = source(head, i);
    const float own_weight = weight(head, i);
    return {is_own ? own : otherwise(i), is_own ? own_weight : 1.0f};
  }
  /// Whether a head has an order of its own.
  PQKV_HD constexpr bool has_own_order(std::size_t head) const { return !empty() && is_dealt(head) != 0; }
  /// The element at place i of a head's ordered key.
  template <class Row>
  PQKV_HD float of_key(const Row& key, std::size_t head, std::size_t i) const {
    const axis from = at(head, i);
    return from.of_key(key[from.source]);
  }
  /// The element at place i of an ordered query [d] of the head's group.
  PQKV_HD float of_query(const float* query, std::size_t head, std::size_t i) const {
    const axis from = at(head, i);
    return from.of_query(query[from.source]);
  }
};

/// Where a head's order is written, [d] each.
struct pair_axes_row {
  std::uint8_t* source;
  float* weight;
};

/// What op::deal_pairs computes of a head, in the order in which every backend computes it: e_i / mean e and a thousandth, the place of a
/// pair, and its weight.
struct pair_dealing {
  /// @param first, second  energies of the pair's coordinates; mean: of the head's coordinates, above 0
  PQKV_HD static float share(float first, float second, float mean) {
    return canonical::add(canonical::div(canonical::mul(0.5f, canonical::add(first, second)), mean), 1e-3f);
  }
  /// The power of two nearest sqrt(x), for a normal number x above 0: 2^s where 2^(2 s - 1) <= x < 2^(2 s + 1).
  PQKV_HD static float nearest_root(float x) {
    const int exponent = static_cast<int>(float_bits(x) >> 23) - 127;  // 2^exponent <= x
    return canonical::power_of_two((exponent + 1) >> 1);
  }
  /// Writes the pair with this rank to its subspace.
  PQKV_HD static void place(const pair_axes_row& row, std::size_t d, std::size_t m, std::size_t rank, std::size_t pair, float share) {
    const std::size_t pairs = d / 2, run = pairs / m;  // of a subspace
    const std::size_t turn = rank / m, j = turn % 2 == 0 ? rank % m : m - 1 - rank % m;
    const std::size_t lower = j * 2 * run + turn, upper = lower + run;
    row.source[lower] = static_cast<std::uint8_t>(pair);
    row.source[upper] = static_cast<std::uint8_t>(pair + pairs);
    row.weight[lower] = row.weight[upper] = nearest_root(share);
  }
};

/// The type of copies of ordered keys of T: a weight of up to 16 could overflow a half.
template <class T>
using ordered_element = std::conditional_t<std::is_same_v<T, half>, float, T>;

/// Whether rows of d coordinates can be cut into m subspaces under this order.
constexpr status can_order_axes(const char* function, const char* name, axis_order order, std::size_t m, std::size_t d) noexcept {
  return detail::checks(function)
      .that(order <= axis_order::weighted_pairs, status::code::value, name, relation::stated, "an axis_order", 2,
            static_cast<double>(order))
      .that(order == axis_order::contiguous || (m != 0 && d % (2 * m) == 0), status::code::value, name, relation::stated,
            "contiguous unless head_dim is a multiple of 2 * subspaces; head_dim", static_cast<double>(2 * m), static_cast<double>(d));
}

}  // namespace pqkv
