// SPDX-License-Identifier: Apache-2.0
// How a rank of a context-parallel cache takes rows and learns from them. One codebook for all ranks: every rank gets the keys that one
// rank with all tokens would train on, in the same order, so training gives the same bits everywhere and with any number of ranks. Only
// context_parallel.hpp includes this file.
#pragma once

#include "context_state.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// Memory for rows on their way: it is taken before any rank waits for another.
template <class T>
struct gathered_pieces {
  std::size_t piece = 0;       // rows of a rank that are sent at once
  buffer<T> own, all;          // [piece, row], [ranks, piece, row]
  buffer<std::size_t> filled;  // [ranks]

  gathered_pieces() = default;
  /// @param row  elements of a row. @throws std::bad_alloc
  gathered_pieces(std::size_t ranks, std::size_t rows, std::size_t row)
      : piece(rows), own(rows * row), all(ranks * rows * row), filled(ranks) {}
};

/// Gathers the sampled keys of all ranks.
///
/// @param rows    this rank's, by their place in its share; heads [first_head, first_head + h)
/// @param sample  of the sequence's tokens from `first` on
/// @param out     [h, sample.count, d], written on every rank
/// @param memory  for rows of h * d elements; a piece is at least 1
/// @throws communication_error
/// @cost   sends the sample once to every rank; every rank's piece must be filled, so tokens that are dealt in turn take fewest messages
template <class P, class Communicator, class Rows, class T>
void gather_sample(const P& policy, Communicator& ranks, const Rows& rows, std::size_t first_head, const stratified_sample& sample,
                   std::size_t first, const token_layout& layout, view<T, 3> out, const gathered_pieces<T>& memory) {
  const std::size_t h = out.extent(0), d = out.extent(2), row = h * d;
  const auto& [piece, own, all, filled] = memory;
  for (std::size_t next = 0; next < sample.count;) {
    // As many rows of the sample as fit: until a rank's piece is full.
    std::fill(filled.begin(), filled.end(), std::size_t{0});
    std::size_t end = next;
    for (; end < sample.count; ++end) {
      const std::size_t token = first + sample(end), owner = layout.owner(token);
      if (filled[owner] == piece) break;
      if (owner == ranks.rank()) {
        const std::size_t place = layout.held(owner, token);
        for (std::size_t head = 0; head < h; ++head) {
          const auto key = rows.key(first_head + head, place);
          for (std::size_t i = 0; i < d; ++i) own[filled[owner] * row + head * d + i] = static_cast<T>(key[i]);
        }
      }
      ++filled[owner];
    }
    const std::size_t most = *std::max_element(filled.begin(), filled.end());
    ranks.all_gather(policy, reinterpret_cast<const std::byte*>(own.data()), reinterpret_cast<std::byte*>(all.data()),
                     most * row * sizeof(T));
    std::fill(filled.begin(), filled.end(), std::size_t{0});
    for (; next < end; ++next) {
      const std::size_t owner = layout.owner(first + sample(next));
      const T* const from = &all[(owner * most + filled[owner]++) * row];
      for (std::size_t head = 0; head < h; ++head) std::copy_n(from + head * d, d, &out(head, next, 0));
    }
  }
}

/// The part of a context-parallel cache that changes rows and index. Template parameters as in context_parallel.
template <class Rows, class Communicator>
class context_training : public context_state<Rows, Communicator> {
  using state = context_state<Rows, Communicator>;

 public:
  using state::at;
  using typename state::params;
  using typename state::value_type;

 protected:
  using state::params_, state::layout_, state::ranks_, state::rows_, state::index_, state::rule_, state::work_, state::merged_;

  template <exec::policy P>
  context_training(const P& policy, const Communicator& ranks, const params& p) : state(policy, ranks, p) {}

  /// Appends rows [h, n, d] to those that this rank stores of a slot of `before` tokens.
  template <class P, class K, class V>
  void store(const P& policy, std::size_t slot, std::size_t before, view<K, 3> keys, view<V, 3> values) const {
    pqkv::detail::run_operation<op::store_tokens>(policy, rows_.view(),
                                                  stored_tokens<space::host>{slot * params_.kv_heads, layout_.held(ranks_.rank(), before),
                                                                             make_view(work_.slots.nonfinite.data, std::size_t{2})},
                                                  keys, values);
  }
  /// Stores those of a row's new tokens [count, h, d] that are this rank's.
  template <class P, class K, class V>
  void store_own(const P& policy, std::size_t slot, view<K, 3> keys, view<V, 3> values) const {
    const auto by_head = [](auto rows) {
      std::swap(rows.extents[0], rows.extents[1]);
      std::swap(rows.strides[0], rows.strides[1]);
      return rows;
    };
    const std::size_t n = at(slot).n, count = keys.extent(0);
    for (std::size_t first = 0, last = 0; first < count; first = last) {
      const std::size_t owner = layout_.owner(n + first);
      for (last = first; last < count && layout_.owner(n + last) == owner;) ++last;
      if (owner == ranks_.rank())
        store(policy, slot, n + first, by_head(keys.slice(0, first, last - first)), by_head(values.slice(0, first, last - first)));
    }
  }

  /// Trains a slot's codebooks on the keys of all ranks, encodes and counts this rank's middle. Ends with a vote.
  /// @return what is to be written to the slot when all ranks agree
  template <class P>
  committed_prompt<space::host> learn(const P& policy, agreement& agreed, std::size_t slot, const sequence& now) {
    const middle_range middle = now.middle(rule_);
    const std::size_t first = middle.begin, h = params_.kv_heads;
    const bool tries = now.prefilling == 0 && now.n >= first + index_.shape().least_rows();
    using T = copied_element<value_type>;
    const stratified_sample sample =
        tries ? training_rows(params_.selector.train, now.n - first, index_.shape().coarse().centroids()) : stratified_sample{};
    const std::size_t row = h * params_.head_dim;
    buffer<T> memory;
    gathered_pieces<T> pieces;
    agreed.attempt([&] {
      if (!tries) return;
      memory = buffer<T>(sample.count * row);
      pieces = gathered_pieces<T>(layout_.ranks, gathered_rows(row * sizeof(T)), row);
      this->reserve_messages(pieces.own.size_bytes(), pieces.all.size_bytes());
    });
    this->ask_all(policy, agreed);  // before keys are gathered, so that a rank whose rows or memory failed keeps no one waiting
    if (!tries) return {slot, now, false, {}, {}};
    const auto keys = make_view(memory.data(), h, sample.count, params_.head_dim);
    gather_sample(policy, ranks_, rows_.view(), slot * h, sample, first, layout_, keys, pieces);
    const auto outcomes = work_.ranking.outcomes;
    agreed.attempt([&] {
      kmeans_params settings = params_.selector.train;
      settings.rows_per_centroid = 0;
      index_.learn(this->working(policy), slot, sampled_keys<T>{keys, slot * h}, 0, 0, sample.count, settings, outcomes);
      for (std::size_t i = 0; i < outcomes.size(); ++i)
        if (outcomes.data[i] != static_cast<std::uint8_t>(kmeans_outcome::trained)) return;
      const middle_range own = this->local(middle);
      encode(policy, slot, own);
      index_.recount(this->working(policy), slot, own.begin, own.end);
      merged_[slot] = own.end;
    });
    this->ask_all(policy, agreed);
    return {slot, now, true, as_const(outcomes), {}, params_.selector.outgrown_at(now.n)};
  }
  /// Rows of a rank that are gathered at once: messages of about 1 MiB.
  static constexpr std::size_t gathered_rows(std::size_t row_bytes) { return std::max<std::size_t>(1, (std::size_t{1} << 20) / row_bytes); }

  /// Encodes a range of this rank's tokens, in runs that are tasks of their own.
  template <class P>
  void encode(const P& policy, std::size_t slot, const middle_range& own) const {
    constexpr std::uint32_t run = 1024;
    const buffer<leaving_tokens> runs((own.size() + run - 1) / run);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::uint32_t begin = own.begin + static_cast<std::uint32_t>(i) * run;
      runs[i] = {static_cast<std::uint32_t>(slot), begin, std::min(begin + run, own.end)};
    }
    index_.view().encode(policy, rows_.view(), as_const(make_view(runs.data(), runs.size())));
  }
};

}  // namespace pqkv::scale
