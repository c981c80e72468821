// SPDX-License-Identifier: Apache-2.0
// Each CTA of a list looks up its tokens in a table of exponentials. A thread takes eight consecutive tokens, whose codes of one subspace
// are one load. Shared memory holds several interleaved copies of the table: with eight copies of four query heads, the eight lanes that
// shared memory serves together read different banks whatever their codes are. With one copy, random codes often need the same bank.
#pragma once

#include "scan_positions.cuh"
#include "scan_rounded.cuh"
#include "scan_scorer.cuh"

namespace pqkv::inline PQKV_MODE::detail::block {

template <unsigned Pack>
__device__ query_pack<Pack> load_shared_pack(std::uint32_t address) {
  static_assert(Pack == 4);
  query_pack<Pack> entry;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(entry.of[0]), "=f"(entry.of[1]), "=f"(entry.of[2]), "=f"(entry.of[3])
               : "r"(address));
  return entry;
}

/// Where the exponentials of a list are, for one lane. Passed by value to functions that are not inlined: their loops then have all
/// registers to themselves, and each is in the kernel once.
template <unsigned Pack>
struct lookup_table {
  using pack = query_pack<Pack>;
  std::uint32_t own;             // shared address of the lane's copy of the first entry
  std::uint32_t step, row_step;  // bytes to the next entry, and to the next row
  unsigned m, packs;

  __device__ std::uint32_t row(unsigned group, unsigned j) const { return own + (group * m + j) * row_step; }
  __device__ pack at(std::uint32_t of_row, unsigned code) const { return load_shared_pack<Pack>(of_row + code * step); }
  /// The products of one token in one pack of query heads. @param codes  of the token, planes `stride` apart
  __device__ pack product(const std::uint8_t* codes, std::size_t stride, unsigned group) const {
    pack value{};
#pragma unroll 2
    for (unsigned j = 0; j < m; ++j) {
      const pack entry = at(row(group, j), __ldcg(codes + j * stride));
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) value.of[q] = j == 0 ? entry.of[q] : canonical::mul(value.of[q], entry.of[q]);
    }
    return value;
  }
};

/// A number for each query head of a pack.
template <unsigned Pack>
struct pack_sums {
  std::uint64_t of[Pack];
};

/// Loops over a list's tokens.
/// @tparam M  number of subspaces, with probability_sum as the reduction; or 0 for any number and reduction
template <unsigned Threads, unsigned Pack, unsigned M>
class token_loops {
  using pack = query_pack<Pack>;
  using table_type = lookup_table<Pack>;

 public:
  static constexpr unsigned at_once = 8, tile = at_once * Threads;  // tokens of a thread; positions that the CTA takes in one turn
  using pack_sums = block::pack_sums<Pack>;

  /// A thread's sums of F of the products over the positions [begin, end) in one pack of query heads.
  /// @tparam Rounds  whether the rounded products are written
  /// @param rounded  aligned to 16 bytes: where, by rounded_place() of each position
  template <bool Rounds>
  __device__ __noinline__ static pack_sums sum(table_type table, token_positions tokens, std::uint32_t begin, std::uint32_t end,
                                               unsigned group, std::uint32_t* rounded) {
    pack_sums z{};
    const std::uint32_t first = begin + at_once * threadIdx.x;
    codes next(tokens, first < end ? first : tokens.end);
    entries<products> ahead;
    ahead.read(table, tokens, first, group, next, 0);
#pragma unroll 1
    for (std::uint32_t position = first; position < end; position += tile) {
      const codes now = next;
      const std::uint32_t following = position + tile < end ? position + tile : tokens.end;
      next = codes(tokens, following);
      std::int32_t upper[Pack] = {}, lower[Pack] = {};  // of eight tokens, below 2^26
      [[maybe_unused]] std::uint32_t words[at_once];
#pragma unroll
      for (unsigned part = 0; part < parts; ++part) {
        pack value[of_part];
        ahead.join(value);
        if (part + 1 < parts)
          ahead.read(table, tokens, position, group, now, part + 1);
        else
          ahead.read(table, tokens, following, group, next, 0);
        if constexpr (Rounds)
#pragma unroll
          for (unsigned a = 0; a < of_part; ++a) words[part * of_part + a] = rounded_products::word(value[a]);
#pragma unroll
        for (unsigned q = 0; q < Pack; ++q)
#pragma unroll
          for (unsigned a = 0; a < of_part; ++a) {
            const canonical::fixed_parts fixed = canonical::to_fixed_parts(value[a].of[q]);
            upper[q] += fixed.upper, lower[q] += fixed.lower;
          }
      }
      const bool is_live = tokens.live(position) == 0xff;
      if constexpr (Rounds) {
        std::uint32_t* const to = rounded + rounded_place(position);
        store_if(is_live, to, {words[0], words[1], words[2], words[3]});
        store_if(is_live, to + rounded_half, {words[4], words[5], words[6], words[7]});
      }
      // By a mask, not a branch: the compiler would move the products into it, and then wait for the next codes before it.
      const std::uint64_t mask = is_live ? ~std::uint64_t{0} : 0;
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q)
        z.of[q] += ((static_cast<std::uint64_t>(std::int64_t{upper[q]}) << 22) + static_cast<std::uint64_t>(std::int64_t{lower[q]})) & mask;
    }
    tokens.for_ends(begin, end, [&](std::uint32_t position, unsigned live) {
      if (!has_token(live)) return;
      const pack value = joined<products>(table, tokens, position + threadIdx.x, group);
      if constexpr (Rounds) rounded[rounded_place(position + threadIdx.x)] = rounded_products::word(value);
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) z.of[q] += canonical::to_fixed(value.of[q]);
    });
    return z;
  }

  /// A thread's largest sums of entries over the positions [begin, end) in one pack of query heads; -infinity without tokens.
  __device__ __noinline__ static pack largest(table_type table, token_positions tokens, std::uint32_t begin, std::uint32_t end,
                                              unsigned group) {
    const float lowest = float_from_bits(0xff800000u);
    pack top;
#pragma unroll
    for (unsigned q = 0; q < Pack; ++q) top.of[q] = lowest;
    const std::uint32_t first = begin + at_once * threadIdx.x;
    codes next(tokens, first < end ? first : tokens.end);
#pragma unroll 1
    for (std::uint32_t position = first; position < end; position += tile) {
      const codes now = next;
      next = codes(tokens, position + tile < end ? position + tile : tokens.end);
      if (tokens.live(position) != 0xff) continue;
#pragma unroll
      for (unsigned part = 0; part < parts; ++part) {
        entries<sums> own;
        own.read(table, tokens, position, group, now, part);
        pack value[of_part];
        own.join(value);
#pragma unroll
        for (unsigned a = 0; a < of_part; ++a)
#pragma unroll
          for (unsigned q = 0; q < Pack; ++q) top.of[q] = canonical::max(top.of[q], value[a].of[q]);
      }
    }
    tokens.for_ends(begin, end, [&](std::uint32_t position, unsigned live) {
      if (!has_token(live)) return;
      const pack value = joined<sums>(table, tokens, position + threadIdx.x, group);
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) top.of[q] = canonical::max(top.of[q], value.of[q]);
    });
    return top;
  }

  /// Calls take(position, keys) for the positions [begin, end), eight at a time, with the order keys of their scores; the keys of positions
  /// outside the range are undefined. Positions may also be past `end`. Returns `take`.
  /// @param factors  shared address of [packs * Pack] R of each query head
  template <class Take>
  __device__ __noinline__ static Take for_scores(table_type table, token_positions tokens, std::uint32_t begin, std::uint32_t end,
                                                 group_reduction reduction, std::uint32_t factors, Take take) {
    const std::uint32_t first = begin + at_once * threadIdx.x;
    codes next(tokens, first < end ? first : tokens.end);
    entries<products> ahead;
    ahead.read(table, tokens, first < end ? first : tokens.end, 0, next, 0);
#pragma unroll 1
    for (std::uint32_t base = begin; base < end; base += tile) {
      const std::uint32_t position = base + at_once * threadIdx.x, own = position < end ? position : tokens.end,
                          following = position + tile < end ? position + tile : tokens.end;
      const codes now = next;
      next = codes(tokens, following);
      float score[at_once] = {};
#pragma unroll 1
      for (unsigned group = 0; group < table.packs; ++group) {
        const bool is_last = group + 1 == table.packs;
        const pack factor = load_shared_pack<Pack>(factors + group * static_cast<unsigned>(sizeof(pack)));
#pragma unroll
        for (unsigned part = 0; part < parts; ++part) {
          pack value[of_part];
          ahead.join(value);
          if (part + 1 < parts)
            ahead.read(table, tokens, own, group, now, part + 1);
          else
            ahead.read(table, tokens, is_last ? following : own, is_last ? 0 : group + 1, codes(now, next, is_last), 0);
#pragma unroll
          for (unsigned a = 0; a < of_part; ++a)
            score[part * of_part + a] =
                with_pack(M != 0 ? group_reduction::probability_sum : reduction, score[part * of_part + a], value[a], factor);
        }
      }
      std::uint32_t keys[at_once];
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) keys[a] = key_of(score[a]);
      const unsigned live = tokens.live(position);
      take(live == 0xff || live == 0 ? position : token_positions::no_position, keys);
    }
    tokens.for_ends(begin, end, [&](std::uint32_t position, unsigned live) {
      if (threadIdx.x / 32 != 0) return;
      float score = 0;
#pragma unroll 1
      for (unsigned group = 0; has_token(live) && group < table.packs; ++group)
        score = with_pack(M != 0 ? group_reduction::probability_sum : reduction, score,
                          joined<products>(table, tokens, position + threadIdx.x, group),
                          load_shared_pack<Pack>(factors + group * static_cast<unsigned>(sizeof(pack))));
      std::uint32_t keys[at_once];
#pragma unroll
      for (unsigned a = 0; a < at_once; ++a) keys[a] = __shfl_sync(all_lanes, key_of(score), static_cast<int>(a));
      take(threadIdx.x == 0 ? position : token_positions::no_position, keys);
    });
    return take;
  }

  /// A score of probabilities is not negative, so its order key is its bits with the highest bit set.
  __device__ static std::uint32_t key_of(float score) { return float_bits(score) | 0x80000000u; }
  __device__ static float with_pack(group_reduction reduction, float score, const pack& value, const pack& factor) {
#pragma unroll
    for (unsigned q = 0; q < Pack; ++q)
      score = reduction == group_reduction::probability_sum ? add_query(group_reduction::probability_sum, score, value.of[q], factor.of[q])
                                                            : add_query(group_reduction::probability_max, score, value.of[q], factor.of[q]);
    return score;
  }

 private:
  // A thread has the entries of a few tokens ahead, so that looking up and calculating overlap.
  static constexpr unsigned planes = M == 0 ? 1 : M, of_part = M == 0 ? 4 : 8 / M, parts = at_once / of_part;
  /// The codes of eight tokens, read ahead: of all subspaces if their number is known, or of the first.
  struct codes {
    uint2 of[planes];
    __device__ codes(const token_positions& tokens, std::uint32_t position) { tokens.read(0, position, of); }
    /// Chooses one of two, by value: references would put both into memory.
    __device__ codes(const codes& first, const codes& second, bool is_second) {
#pragma unroll
      for (unsigned j = 0; j < planes; ++j) {
        of[j].x = is_second ? second.of[j].x : first.of[j].x;
        of[j].y = is_second ? second.of[j].y : first.of[j].y;
      }
    }
  };
  __device__ static unsigned code_of(const uint2& words, unsigned a) { return __byte_perm(a < 4 ? words.x : words.y, 0, 0x4440 + a % 4); }

  /// How a token's entries become one number.
  struct products {
    __device__ static float join(float a, float b) { return canonical::mul(a, b); }
  };
  struct sums {
    __device__ static float join(float a, float b) { return canonical::add(a, b); }
  };
  /// The entries of a part's tokens in all subspaces if their number is known; otherwise what they become.
  template <class How>
  struct entries {
    pack of[planes][of_part];

    __device__ void read(const table_type& table, const token_positions& tokens, std::uint32_t position, unsigned group, const codes& from,
                         unsigned part) {
#pragma unroll
      for (unsigned j = 0; j < planes; ++j)
#pragma unroll
        for (unsigned a = 0; a < of_part; ++a) of[j][a] = table.at(table.row(group, j), code_of(from.of[j], part * of_part + a));
      if constexpr (M == 0) {
#pragma unroll 1
        for (unsigned j = 1; j < table.m; ++j) {
          uint2 own[1];
          tokens.read(j, position, own);
#pragma unroll
          for (unsigned a = 0; a < of_part; ++a) take(of[0][a], table.at(table.row(group, j), code_of(own[0], part * of_part + a)));
        }
      }
    }
    __device__ void join(pack (&value)[of_part]) const {
#pragma unroll
      for (unsigned a = 0; a < of_part; ++a) {
        value[a] = of[0][a];
#pragma unroll
        for (unsigned j = 1; j < planes; ++j) take(value[a], of[j][a]);
      }
    }

   private:
    __device__ static void take(pack& value, const pack& entry) {
#pragma unroll
      for (unsigned q = 0; q < Pack; ++q) value.of[q] = How::join(value.of[q], entry.of[q]);
    }
  };
  /// Whether this thread has one of eight tokens at an end of the range: the first eight threads share them.
  __device__ static bool has_token(unsigned live) { return threadIdx.x < at_once && (live >> threadIdx.x & 1) != 0; }
  /// The entries of one token, joined.
  template <class How>
  __device__ static pack joined(const table_type& table, const token_positions& tokens, std::uint32_t position, unsigned group) {
    constexpr unsigned ahead = M == 0 ? 4 : M;  // subspaces whose codes are read together
    const std::uint8_t* code = tokens.codes + position;
    pack value{};
#pragma unroll 1
    for (unsigned first = 0; first < table.m; first += ahead) {
      std::uint32_t own[ahead];
#pragma unroll
      for (unsigned j = 0; j < ahead; ++j) own[j] = M != 0 || first + j < table.m ? __ldcg(code + (first + j) * tokens.stride) : 0;
#pragma unroll
      for (unsigned j = 0; j < ahead; ++j) {
        if (M == 0 && first + j >= table.m) continue;
        const pack entry = table.at(table.row(group, first + j), own[j]);
#pragma unroll
        for (unsigned q = 0; q < Pack; ++q) value.of[q] = first + j == 0 ? entry.of[q] : How::join(value.of[q], entry.of[q]);
      }
    }
    return value;
  }
};

/// The products and scores of a list's tokens, from the exponentials that a list_scorer has staged.
template <unsigned Threads, unsigned Pack>
class token_lookups {
  using pack = query_pack<Pack>;
  template <unsigned M>
  using loops = token_loops<Threads, Pack, M>;

 public:
  static constexpr unsigned at_once = loops<0>::at_once;

  /// @param copies  [packs, m, c, 2^log_copies]
  __device__ token_lookups(const scoring& call, unsigned packs, pack* copies, unsigned log_copies)
      : copies_(copies), count_((packs * call.m) << call.bits << log_copies), log_copies_(log_copies) {
    constexpr unsigned size = sizeof(pack);
    table_ = {shared_address(copies) + size * (threadIdx.x & ((1u << log_copies) - 1)), size << log_copies, size << log_copies << call.bits,
              call.m, packs};
  }

  /// Writes the table's copies. A barrier must stand before and after.
  __device__ void copy(const pack* entries) const {
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < count_; i += Threads) copies_[i] = entries[i >> log_copies_];
  }
  /// As in token_loops and lookup_table.
  /// @{
  /// @tparam From  rounded products are written where there are so many subspaces or more, and not for 2 of them
  template <unsigned From>
  __device__ pack_sums<Pack> sum(const token_positions& tokens, std::uint32_t begin, std::uint32_t end, unsigned group,
                                 std::uint32_t* rounded) const {
    static_assert(From > 2);
    if (table_.m == 4) return loops<4>::template sum<(4 >= From)>(table_, tokens, begin, end, group, rounded);
    if (table_.m == 2) return loops<2>::template sum<false>(table_, tokens, begin, end, group, rounded);
    if (table_.m == 8) return loops<8>::template sum<true>(table_, tokens, begin, end, group, rounded);
    if (table_.m < From) return loops<0>::template sum<false>(table_, tokens, begin, end, group, rounded);
    return loops<0>::template sum<true>(table_, tokens, begin, end, group, rounded);
  }
  __device__ pack largest(const token_positions& tokens, std::uint32_t begin, std::uint32_t end, unsigned group) const {
    if (table_.m == 4) return loops<4>::largest(table_, tokens, begin, end, group);
    if (table_.m == 2) return loops<2>::largest(table_, tokens, begin, end, group);
    if (table_.m == 8) return loops<8>::largest(table_, tokens, begin, end, group);
    return loops<0>::largest(table_, tokens, begin, end, group);
  }
  template <class Take>
  __device__ Take for_scores(const token_positions& tokens, std::uint32_t begin, std::uint32_t end, group_reduction reduction,
                             const float* factors, Take take) const {
    if (reduction == group_reduction::probability_sum) {
      if (table_.m == 4) return loops<4>::for_scores(table_, tokens, begin, end, reduction, shared_address(factors), take);
      if (table_.m == 2) return loops<2>::for_scores(table_, tokens, begin, end, reduction, shared_address(factors), take);
      if (table_.m == 8) return loops<8>::for_scores(table_, tokens, begin, end, reduction, shared_address(factors), take);
    }
    return loops<0>::for_scores(table_, tokens, begin, end, reduction, shared_address(factors), take);
  }
  __device__ pack product(const std::uint8_t* codes, std::size_t stride, unsigned group) const {
    return table_.product(codes, stride, group);
  }
  __device__ const lookup_table<Pack>& table() const { return table_; }
  /// @}
  /// for_scores() with less code, for rare cases.
  template <class Take>
  __device__ Take for_scores_slowly(const token_positions& tokens, std::uint32_t begin, std::uint32_t end, group_reduction reduction,
                                    const float* factors, Take take) const {
    return loops<0>::for_scores(table_, tokens, begin, end, reduction, shared_address(factors), take);
  }
  /// The order key of a token's score. @param first  its products in the first pack
  __device__ std::uint32_t score_one(const pack& first, const std::uint8_t* codes, std::size_t stride, group_reduction reduction,
                                     const float* factors) const {
    float score = 0;
#pragma unroll 1
    for (unsigned group = 0; group < table_.packs; ++group)
      score = loops<0>::with_pack(reduction, score, group == 0 ? first : product(codes, stride, group),
                                  *reinterpret_cast<const pack*>(factors + group * Pack));
    return loops<0>::key_of(score);
  }

 private:
  pack* copies_;
  unsigned count_, log_copies_;
  lookup_table<Pack> table_;
};

}  // namespace pqkv::detail::block
