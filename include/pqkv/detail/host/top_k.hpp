// SPDX-License-Identifier: Apache-2.0
// Exact selection on the host. A sample gives two scores that bracket the k-th largest one. One pass over the row counts the scores above
// the bracket and keeps those inside; the threshold is then found among the few that were kept, and a second pass writes the list. Counts
// verify every step, so the sample decides the time and never the result. If it misleads, halving the interval of keys ends after 32 counts
// at most, whatever the values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../../core/canonical.hpp"
#include "../../exec/host.hpp"
#include "../../search/top_k.hpp"
#include "simd/kernels.hpp"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Unsigned keys in the order of the scores. Keys from `bottom` to `top` are those of numbers and infinities.
template <class T>
struct select_key;
template <>
struct select_key<float> {
  static constexpr std::uint32_t bottom = 0x007fffff, top = 0xff800000;  // -infinity and infinity; a NaN has key 0
  static constexpr float bound(std::uint32_t key) {
    if (key < bottom) key = bottom;
    return float_from_bits((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);  // above the top: a NaN, which no score reaches
  }
};
template <>
struct select_key<std::uint16_t> {
  static constexpr std::uint32_t bottom = 0, top = 0xffff;
  static constexpr std::uint16_t bound(std::uint32_t key) { return static_cast<std::uint16_t>(key); }
};

inline constexpr std::uint64_t all_equal = std::numeric_limits<std::uint64_t>::max();

/// Selects every score above `key`, and the first `of_equal` that equal it.
struct selection_threshold {
  std::uint32_t key = 0;
  std::uint64_t of_equal = all_equal;
};

/// An interval [low, high) of keys that holds the k-th largest. at_low items have keys of at least low, at_high of at least high, and
/// at_high < k <= at_low.
struct key_interval {
  std::uint64_t low = 0, high = 0, at_low = 0, at_high = 0;

  bool decided(std::uint64_t k) const { return high - low == 1 || at_low == k; }
  selection_threshold threshold(std::uint64_t k) const { return {static_cast<std::uint32_t>(low), at_low == k ? all_equal : k - at_high}; }
  void cut(std::uint64_t key, std::uint64_t at_key, std::uint64_t k) {
    if (at_key >= k)
      low = key, at_low = at_key;
    else
      high = key, at_high = at_key;
  }
  /// A key inside the interval: in even turns the key that would be the k-th if keys were evenly distributed in the interval, in odd turns
  /// the middle. So two cuts at least halve the interval.
  std::uint64_t next(unsigned turn, std::uint64_t k) const {
    const std::uint64_t width = high - low;
    if (turn % 2 != 0) return low + width / 2;
    const double part = (static_cast<double>(at_low - k) + 0.5) / (static_cast<double>(at_low - at_high) + 1);
    return std::clamp<std::uint64_t>(low + static_cast<std::uint64_t>(part * static_cast<double>(width)), low + 1, high - 1);
  }
};

/// Cuts the interval, by counts over all items, until it is decided or at most `enough` items lie inside.
/// @param at_least  (key) how many items have at least this key; the sum of their weights where they have weights
template <class T, class AtLeast>
void narrow(key_interval& interval, std::uint64_t k, std::uint64_t enough, AtLeast at_least) {
  for (unsigned turn = 0; !interval.decided(k); ++turn) {
    if (interval.high <= select_key<T>::bottom) {  // k falls among the NaNs, which are equal
      interval.low = 0, interval.high = 1;
      return;
    }
    const bool of_numbers = interval.low + 1 > select_key<T>::bottom;  // means low >= bottom; nvcc warns of that form where bottom is 0
    if (of_numbers && interval.at_low - interval.at_high <= enough) return;
    const std::uint64_t key = std::max<std::uint64_t>(interval.next(turn, k), select_key<T>::bottom);
    interval.cut(key, at_least(static_cast<std::uint32_t>(key)), k);
  }
}

/// Finds a key in [low, high) such that between `fewest` and `most` items have at least this key. If there is none, the last key with more
/// items.
/// @param at_least  (key) how many items have at least this key
template <class AtLeast>
std::uint64_t suggest(double fewest, double most, std::uint64_t low, std::uint64_t high, AtLeast at_least) {
  while (high - low > 1) {
    const std::uint64_t key = low + (high - low) / 2;
    const auto found = static_cast<double>(at_least(static_cast<std::uint32_t>(key)));
    if (found >= fewest && found <= most) return key;
    (found > most ? low : high) = key;
  }
  return low;
}

/// Selects from one row of scores.
template <class Kernels, class T>
class row_selection {
  using key_type = select_key<T>;

 public:
  row_selection(const T* scores, std::size_t n) : scores_(scores), n_(n) {}

  /// The threshold of the k largest; 1 <= k <= n.
  selection_threshold threshold(std::uint64_t k) {
    key_interval interval{0, std::uint64_t{key_type::top} + 1, n_, 0};
    if (n_ > 2 * least_sample && k < n_) bracket(interval, k);
    narrow<T>(interval, k, n_ > room ? room / 2 : 0, [&](std::uint32_t key) { return count(scores_, n_, key); });
    if (interval.high > key_type::top) narrow_at(interval, k, key_type::top);
    if (!interval.decided(k)) {
      const interval_counts found = keep(interval.low, interval.high);
      PQKV_ASSERT(found.above == interval.at_high && found.kept == interval.at_low - interval.at_high);
      refine(interval, k, found.kept);
    }
    return interval.threshold(k);
  }

  /// Writes first + i for every selected i, ascending. @param selected  how many there are
  std::size_t emit(selection_threshold threshold, std::int32_t first, std::int32_t* out, std::size_t selected) const {
    std::size_t begin = 0, count = 0;
    if (threshold.of_equal != all_equal || threshold.key == 0) {
      begin = threshold.of_equal >= n_ ? n_ : end_of_equals(threshold.key, threshold.of_equal);
      count = emit_part(0, begin, threshold.key, first, out, selected);
      if (threshold.key >= key_type::top) return count;
      ++threshold.key;
    }
    return count + emit_part(begin, n_, threshold.key, first, out + count, selected - count);
  }

 private:
  // room: scores kept at a time; tile: scores read between two checks of how many are kept. Not tuned.
  static constexpr std::size_t room = 12288, tile = 2048, least_sample = 1024, most_sample = 8192;

  static std::uint64_t count(const T* scores, std::size_t n, std::uint32_t key) {
    return key == 0 ? n : Kernels::count_at_least(scores, n, key_type::bound(key));
  }

  /// Cuts the interval to the bracket that a sample suggests. If the bracket holds the k-th score, this decides the interval.
  void bracket(key_interval& interval, std::uint64_t k) {
    const std::size_t size = std::clamp(n_ / 64, least_sample, most_sample), step = n_ / size;
    // One score out of every step, at a varying place, so that a period in the row cannot mislead the sample.
    std::uint32_t draw = 1;
    for (std::size_t i = 0; i < size; ++i, draw = draw * 1664525u + 1013904223u)
      kept_[i] = scores_[i * step + (std::uint64_t{draw} * step >> 32)];
    // The bracket reaches four standard deviations of the rank to each side, or up to five if that saves cuts.
    const double part = static_cast<double>(k) / static_cast<double>(n_), rank = part * static_cast<double>(size);
    const double deviation = std::sqrt(rank * (1 - part)) + 1;
    const auto at_least = [&](std::uint32_t key) { return count(kept_, size, key); };
    const std::uint64_t low = suggest(rank + 4 * deviation, rank + 5 * deviation, key_type::bottom, interval.high, at_least);
    std::uint64_t over = interval.high;
    if (rank > 4 * deviation + 1) over = suggest(rank - 5 * deviation, rank - 4 * deviation, low, over, at_least);
    const std::uint64_t high = std::min<std::uint64_t>(over, key_type::top);
    if (high <= low) {  // for example where many scores are equal
      narrow_at(interval, k, low);
      narrow_at(interval, k, high + 1);
      return;
    }
    const interval_counts found = keep(low, high);
    if (found.kept > room) {
      narrow_at(interval, k, low);
      narrow_at(interval, k, high);
      return;
    }
    interval.cut(high, found.above, k);
    if (interval.low == high) return;
    interval.cut(low, found.above + found.kept, k);
    if (interval.low == low) refine(interval, k, found.kept);
  }

  void narrow_at(key_interval& interval, std::uint64_t k, std::uint64_t key) const {
    if (key > interval.low && key < interval.high) interval.cut(key, count(scores_, n_, static_cast<std::uint32_t>(key)), k);
  }

  /// Copies the scores with keys in [low, high) to scratch; low must be at least `bottom`. Stops when there are more than `room`.
  interval_counts keep(std::uint64_t low, std::uint64_t high) {
    const T from = key_type::bound(static_cast<std::uint32_t>(low)), to = key_type::bound(static_cast<std::uint32_t>(high));
    interval_counts all;
    for (std::size_t begin = 0; begin < n_ && all.kept <= room; begin += tile) {
      const interval_counts part = Kernels::keep_between(scores_ + begin, std::min(tile, n_ - begin), from, to, kept_ + all.kept);
      all.above += part.above;
      all.kept += part.kept;
    }
    return all;
  }

  /// Decides the interval among the kept scores, which are all of the interval's scores.
  void refine(key_interval& interval, std::uint64_t k, std::size_t kept) const {
    const std::uint64_t above = interval.at_high;
    narrow<T>(interval, k, 0, [&](std::uint32_t key) { return above + count(kept_, kept, key); });
  }

  /// The place after the `wanted`-th score that has this key; 1 <= wanted <= how many have it.
  std::size_t end_of_equals(std::uint32_t key, std::uint64_t wanted) const {
    const auto equals = [&](std::size_t begin, std::size_t size) {
      const std::uint64_t more = key >= key_type::top ? 0 : count(scores_ + begin, size, key + 1);
      return count(scores_ + begin, size, key) - more;
    };
    std::size_t begin = 0;
    for (std::size_t size = tile; size != 0;) {
      size = std::min(size, n_ - begin);
      const std::uint64_t found = equals(begin, size);
      if (found >= wanted && size == 1) return begin + 1;
      if (found >= wanted) {
        size = (size + 1) / 2;
      } else {
        wanted -= found;
        begin += size;
      }
    }
    return n_;
  }

  std::size_t emit_part(std::size_t begin, std::size_t end, std::uint32_t key, std::int32_t first, std::int32_t* out,
                        std::size_t room_left) const {
    first += static_cast<std::int32_t>(begin);
    if (key != 0) return Kernels::emit_at_least(scores_ + begin, end - begin, key_type::bound(key), first, out, room_left);
    for (std::size_t i = 0; i < end - begin; ++i) out[i] = first + static_cast<std::int32_t>(i);
    return end - begin;
  }

  const T* scores_;
  std::size_t n_;
  T kept_[room + tile + select_slack];
};

/// Pads a list with -1.
inline void pad(std::int32_t* list, std::size_t from, std::size_t to) {
  for (std::size_t i = from; i < to; ++i) list[i] = -1;
}

}  // namespace detail

template <>
struct kernel<op::top_k, backend::host> {
  template <class P, class T>
  static void run(const P& policy, view<const T, 2> scores, view<std::int32_t, 2> indices);
};

template <class P, class T>
void kernel<op::top_k, backend::host>::run(const P& policy, view<const T, 2> scores, view<std::int32_t, 2> indices) {
  const std::size_t n = scores.extent(1), k_max = indices.extent(1), k = std::min(n, k_max);
  isa::with<typename P::isa_type, isa::avx512_vbmi>([&](auto isa) {
    detail::run_tasks(policy, scores.extent(0), [&](std::size_t row) {
      std::int32_t* out = indices.data + row * indices.stride(0);
      if (k != 0) {
        detail::row_selection<detail::simd_kernels<decltype(isa)>, T> selection(scores.data + row * scores.stride(0), n);
        selection.emit(selection.threshold(k), 0, out, k);
      }
      detail::pad(out, k, k_max);
    });
  });
}

PQKV_HOST_OPERATION(op::top_k, view<const float, 2>, view<std::int32_t, 2>)
PQKV_HOST_OPERATION(op::top_k, view<const std::uint16_t, 2>, view<std::int32_t, 2>)

}  // namespace pqkv
