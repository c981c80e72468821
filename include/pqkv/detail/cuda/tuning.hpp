// SPDX-License-Identifier: Apache-2.0
// Launch shapes of the CUDA backend, as data. What was measured says where and when; the rest is a first choice.
#pragma once

namespace pqkv::detail::tuning {

inline constexpr unsigned encode_tile_tokens = 32;   // not measured: 4 threads a token; tile and centroids fit in 48 KB at d = 256
inline constexpr unsigned encode_few_tokens = 32;      // up to here a CTA is a token: what a decode step encodes
inline constexpr unsigned encode_few_threads = 128;    // not measured
inline constexpr unsigned encode_run_tokens = 2048;    // of a CTA of the matrix products, for which it stages the centroids once
inline constexpr unsigned encode_run_threads = 256;    // two CTAs a multiprocessor
inline constexpr unsigned kmeans_tile_tokens = 64;   // not measured
inline constexpr unsigned score_tile_tokens = 2048;  // not measured: tokens of a CTA in the passes over all tokens
inline constexpr unsigned score_threads = 256;       // not measured
inline constexpr unsigned score_staged_entries = 8192;  // exponentials in a CTA's shared memory: 32 KB, at least one query head's
inline constexpr unsigned select_threads = 1024;     // not measured
inline constexpr unsigned select_cluster = 8;        // the largest portable cluster
inline constexpr unsigned select_cached_keys = 32768;  // 128 KB of a CTA's shared memory; keys beyond are computed again
inline constexpr unsigned bracket_keys = 262144;       // of a row that one CTA selects by a bracket: 64 KB of bitmaps
inline constexpr unsigned fused_items = 16400;         // cells or tokens that one CTA scores alone
inline constexpr unsigned fused_entries = 8192;        // exponentials of a list, g * m * c: 32 KB
inline constexpr unsigned fused_least_bitmaps = 16384;  // bytes: with less, a range would go through them in too many parts
inline constexpr unsigned multiprocessors = 132;     // of an H100 or H200: how far small calls are spread

}  // namespace pqkv::detail::tuning
