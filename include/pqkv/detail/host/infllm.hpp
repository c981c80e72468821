// SPDX-License-Identifier: Apache-2.0
// The rows of infllm's blocks on the host: chooses representatives and adds them up.
#pragma once

#include <algorithm>
#include <array>
#include <limits>

#include "../../exec/host.hpp"
#include "../../selector/infllm.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// The sum of the queries after a token t: those at the positions (t, t + local_tokens], up to the newest one that counts. From a token to
/// the one before it, the sum is updated: one query more, at most one less. Sums are in double, so that what is added can be taken away.
class local_queries {
 public:
  explicit local_queries(const selector::infllm_index& index) : index_(index) {}

  void move_to(std::size_t head, std::uint32_t t, std::uint32_t last) {
    const std::uint64_t local = index_.settings.local_tokens;
    if (head == head_ && last == last_ && std::uint64_t{t} + 1 == t_) {
      add(t + 1, 1);
      if (t + 1 + local <= last) add(static_cast<std::uint32_t>(t + 1 + local), -1);
    } else {
      head_ = head, last_ = last, count_ = 0;
      sum_.fill(0);
      for (std::uint64_t q = std::uint64_t{t} + 1; q <= last && q <= t + local; ++q) add(static_cast<std::uint32_t>(q), 1);
    }
    t_ = t;
  }
  /// How many of them were seen.
  std::int64_t count() const { return count_; }
  double inner_product(const float* key, std::size_t d) const {
    double dot = 0;
    for (std::size_t i = 0; i < d; ++i) dot += sum_[i] * static_cast<double>(key[i]);
    return dot;
  }

 private:
  void add(std::uint32_t position, int sign) {
    if (position > last_ || index_.seen(head_, position) == 0) return;
    const float* const query = &index_.queries(head_, position, 0);
    for (std::size_t i = 0; i < index_.queries.extent(2); ++i) sum_[i] += sign * static_cast<double>(query[i]);
    count_ += sign;
  }

  const selector::infllm_index& index_;
  std::size_t head_ = static_cast<std::size_t>(-1);
  std::uint64_t t_ = 0;
  std::uint32_t last_ = 0;
  std::int64_t count_ = 0;
  std::array<double, max_head_dim> sum_{};
};

/// Makes rows of blocks, in one thread.
template <class Kernels, class Rows>
class block_worker {
 public:
  block_worker(const Rows& rows, const selector::infllm_index& index) : rows_(rows), index_(index), queries_(index) {}

  /// Writes the sum of a block's representatives: the keys whose inner products with the queries after them have the highest mean. Tokens
  /// after which no query was seen come last, as do keys that are not finite; equal scores go to the lower token.
  /// @return whether any such query was seen; true for a block without tokens
  bool choose(const selector::block_keys& block) {
    const std::size_t d = rows_.head_dim(), most = index_.settings.representatives;
    std::array<candidate, selector::infllm_params::most_representatives + 1> best;
    std::size_t count = 0;
    bool any_seen = block.first == block.last;
    for (std::uint32_t t = block.last; t-- > block.first;) {
      queries_.move_to(block.head, t, block.last_query);
      candidate one{-std::numeric_limits<double>::infinity(), t};
      if (queries_.count() > 0) {
        any_seen = true;
        const float* const key = load(block.head, t);
        if (Kernels::all_finite(key, d)) one.score = queries_.inner_product(key, d) / static_cast<double>(queries_.count());
      }
      std::size_t place = count;
      for (; place > 0 && best[place - 1].score <= one.score; --place) best[place] = best[place - 1];
      best[place] = one;
      count = std::min(count + 1, most);
    }
    std::size_t finite = 0;
    sum_.fill(0);
    for (std::size_t i = 0; i < count; ++i) finite += add_key(block.head, best[i].token);
    for (std::size_t i = 0; i < d; ++i) block.out[i] = finite == 0 ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(sum_[i]);
    return any_seen;
  }

 private:
  struct candidate {
    double score;
    std::uint32_t token;
  };

  const float* load(std::size_t head, std::uint32_t t) { return load_row<Kernels>(rows_.key(head, t), rows_.head_dim(), copy_); }
  /// @return 1 for a finite key, 0 for another, which is left out
  std::size_t add_key(std::size_t head, std::uint32_t t) {
    const std::size_t d = rows_.head_dim();
    const float* const key = load(head, t);
    if (!Kernels::all_finite(key, d)) return 0;
    for (std::size_t i = 0; i < d; ++i) sum_[i] += static_cast<double>(key[i]);
    return 1;
  }
  const Rows& rows_;
  const selector::infllm_index& index_;
  local_queries queries_;
  std::array<double, max_head_dim> sum_{};
  alignas(cache_line_bytes) float copy_[max_head_dim];
};

}  // namespace detail

template <>
struct kernel<op::represent_blocks, backend::host> {
  template <class P, class Rows, class F>
  static void run(const P& policy, const Rows& rows, const selector::infllm_index& index, std::size_t tasks, const F& f) {
    isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
      detail::run_tasks(policy, tasks, [&](std::size_t task) {
        detail::block_worker<detail::simd_kernels<decltype(isa)>, Rows> worker(rows, index);
        f(task, worker);
      });
    });
  }
};

}  // namespace pqkv
