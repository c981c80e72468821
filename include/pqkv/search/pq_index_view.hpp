// SPDX-License-Identifier: Apache-2.0
// The parts of an index of product quantization, wherever they are: their places in memory, the share of one sequence, and what happens to
// them when tokens come and go. pq_index.hpp owns them.
#pragma once

#include "../core/row.hpp"
#include "../core/slot_parts.hpp"
#include "../quantize/residual.hpp"
#include "pq_workspace.hpp"

namespace pqkv::inline PQKV_MODE {

/// Views of all parts. Trivially copyable; passed to kernels by value.
template <class Space = space::host>
struct pq_index_view {
  mutable_codebook_view<Space> book;              // [sequences * h, m, ds, c]
  mutable_codes_view<Space> codes;                // [sequences * h, m, capacity]; codes of each sequence's middle
  mutable_cell_index_view<Space> index;           // or empty
  mutable_codebook_view<Space> fine_book;         // or empty
  mutable_residual_codes_view<Space> fine_codes;  // or empty
  std::size_t kv_heads = 0;                       // h of one sequence
  axis_map axes{};                                // how the coordinates of keys and queries are ordered before the codebooks see them
  pair_axes<Space> pairs{};                       // the order of each head, for weighted_pairs; otherwise `axes` for all

  static constexpr pq_index_view place(arena& memory, const pq_index_shape& shape) {
    pq_index_view all;
    all.book = codebook::place<Space>(memory, shape.coarse());
    all.codes = codes::place<Space>(memory, shape.coarse(), shape.capacity);
    if (shape.cells() != 0) all.index = cell_index::place<Space>(memory, shape.coarse(), shape.capacity);
    if (shape.has_fine()) {
      all.fine_book = codebook::place<Space>(memory, shape.fine());
      all.fine_codes = residual_codes::place<Space>(memory, shape.fine(), shape.capacity);
    }
    all.kv_heads = shape.kv_heads;
    all.axes = shape.axis_places();
    all.pairs.otherwise = all.axes;
    if (shape.axes == axis_order::weighted_pairs) all.pairs = pair_axes<Space>::place(memory, shape.heads(), all.axes);
    return all;
  }

  PQKV_HD constexpr bool has_fine() const { return fine_codes.data != nullptr; }
  /// The parts of one sequence.
  PQKV_HD constexpr pq_index_view sequence(std::size_t which) const {
    const std::size_t first = which * kv_heads;
    pq_index_view one{book.slice(first, kv_heads), codes.slice(0, first, kv_heads), {}, {}, {}, kv_heads, axes,
                      pairs.heads(first, kv_heads)};
    if (!index.empty()) one.index = index.heads(first, kv_heads);
    if (has_fine()) {
      one.fine_book = fine_book.slice(first, kv_heads);
      one.fine_codes = fine_codes.slice(0, first, kv_heads);
    }
    return one;
  }
  /// The cell that a token's codes name.
  PQKV_HD constexpr std::uint32_t cell(std::size_t head, std::size_t t) const {
    std::uint32_t value = 0;
    for (std::size_t j = 0; j < codes.extent(1); ++j) value = value * static_cast<std::uint32_t>(book.size()) + codes(head, j, t);
    return value;
  }

  /// Encodes the tokens that leave each sequence's window. Nobody reads these codes before commit().
  template <exec::policy P, class Rows>
  void encode(const P& policy, const Rows& rows, view<const leaving_tokens, 1, Space> leaving) const {
    detail::run_operation<op::encode_leaving>(policy, *this, rows, leaving);
  }

  /// Adds the encoded tokens to the ranked tokens of every head. Runs in the calling thread.
  void commit(const leaving_tokens& tokens) const noexcept {
    for (std::size_t head = 0; head < kv_heads; ++head) count(tokens.slot * kv_heads + head, tokens.first, tokens.last);
  }
  /// Takes the last tokens out of the ranked tokens of every head. Runs in the calling thread.
  template <class Sequence>
  void forget(const leaving_tokens& tokens, const Sequence&) const noexcept {
    for (std::size_t head = 0; head < kv_heads; ++head) uncount(tokens.slot * kv_heads + head, tokens.first, tokens.last);
  }

  /// Counts encoded tokens of a head: it ranks them from now on.
  PQKV_HD constexpr void count(std::size_t head, std::uint32_t first, std::uint32_t last) const {
    if (index.empty() || first >= last) return;
    if (index.first(head) == index.last(head)) index.first(head) = index.merged(head) = first;
    for (std::uint32_t t = first; t < last; ++t) ++index.counts(head, cell(head, t));
    index.last(head) = last;
  }
  /// Removes a head's tokens from `first` on from its ranked tokens. Their ids may stay in the id lists: ids from `merged` on are void.
  PQKV_HD constexpr void uncount(std::size_t head, std::uint32_t first, std::uint32_t last) const {
    if (index.empty() || first >= last) return;
    for (std::uint32_t t = first; t < last; ++t) --index.counts(head, cell(head, t));
    index.last(head) = first;
    if (index.merged(head) > first) index.merged(head) = first;
  }

  /// The parts of one sequence, for copying and saving it. cell_codes are not among them: they are the same for all.
  slot_parts parts() const {
    slot_parts all = learnt_parts();
    const std::size_t h = kv_heads;
    if (index.empty()) return all;
    all.add_fixed(index.counts.data, h, index.cells());
    all.add_fixed(index.offsets.data, h, index.cells() + 1);
    all.add_tokens(index.ids.data, h, index.ids.stride(0), 1);
    all.add_fixed(index.first.data, 1, h);
    all.add_fixed(index.merged.data, 1, h);
    all.add_fixed(index.last.data, 1, h);
    return all;
  }
  /// Codebooks and codes, the parts from which all others can be rebuilt.
  slot_parts learnt_parts() const {
    slot_parts all;
    const std::size_t h = kv_heads, m = book.subspaces();
    all.add_fixed(book.centroids.data, h, book.centroids.stride(0));
    all.add_fixed(book.mean.data, h, book.head_dim());
    all.add_fixed(book.squared_radius.data, h, m);
    all.add_tokens(codes.data, h * m, codes.stride(1), 1, book.size());
    all.add_fixed(pairs.energy.data, h, book.head_dim());
    all.add_fixed(pairs.weight.data, h, book.head_dim());
    all.add_fixed(pairs.source.data, h, book.head_dim(), book.head_dim());
    all.add_fixed(pairs.is_dealt.data, 1, h, 2);
    if (!has_fine()) return all;
    all.add_fixed(fine_book.centroids.data, h, fine_book.centroids.stride(0));
    all.add_fixed(fine_book.mean.data, h, fine_book.head_dim());
    all.add_tokens(fine_codes.data, h, fine_codes.extent(1), fine_codes.extent(2), fine_book.size());
    return all;
  }
};

}  // namespace pqkv
