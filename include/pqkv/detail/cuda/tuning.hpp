// SPDX-License-Identifier: Apache-2.0
// Launch shapes of the CUDA backend, as data. What was measured says where and when; the rest is a first choice.
#pragma once

namespace pqkv::inline PQKV_MODE::detail::tuning {

inline constexpr unsigned encode_tile_tokens = 32;       // not measured: 4 threads a token; tile and centroids fit in 48 KB at d = 256
inline constexpr unsigned encode_few_tokens = 32;        // up to here a CTA is a token: what a decode step encodes
inline constexpr unsigned encode_few_threads = 128;      // not measured
inline constexpr unsigned encode_shared_bytes = 131072;  // most centroids that a CTA copies to encode one key of a step
inline constexpr unsigned encode_step_ctas = 8;         // CTAs that share one key of a step, a subspace or more each
inline constexpr unsigned encode_run_tokens = 2048;    // tokens that a CTA of the matrix products encodes with one staging of the centroids
inline constexpr unsigned encode_run_threads = 256;    // two CTAs a multiprocessor
inline constexpr unsigned count_run_tokens = 16384;    // that a CTA counts in shared memory; not used with fewer tokens or more cells
inline constexpr unsigned merge_shared_bytes = 32768;  // most bytes of a run's places; a warp has them to itself
inline constexpr unsigned mean_threads = 512;          // a warp waits for rows most of its time
inline constexpr unsigned kmeans_tile_tokens = 64;     // not measured
inline constexpr unsigned spread_table_bytes = 73728;  // exponentials in a CTA of a shared list: enough for four query heads of 16 x 8 bits
inline constexpr unsigned spread_other_bytes = 73728;  // for everything else that such a CTA has: 32 KB of keys, 33 KB to select
inline constexpr unsigned spread_least_items = 2048;   // not measured: items of a CTA of a shared list
inline constexpr unsigned filter_tile_tokens = 8192;   // scores in a CTA's shared memory
inline constexpr unsigned filter_bitmap_words = 16384;  // two of them in shared memory: 524288 tokens at a time
// measured: retrieve/scan of bench/cuda/retrieve.cu, 8 lists, 4 x 8 bits, n 131072, k 2048, H200, 2026-11: 256 and 512 threads 48.5 and
// 33.7 us; 512 and 1024 threads 29.8 and 60.3 us: with 64 registers a thread the look-ups spill
inline constexpr unsigned cluster_threads = 512;
// measured: retrieve/scan of bench/cuda/retrieve.cu, 8 lists, k 2048, H200, 2026-12; a cluster and spread lists, warm (cold): 4 x 8 bits, n
// 32768 23.8 (30.8), 25.3 (34.8) us, n 131072 32.3 (38.5), 29.4 (38.8); 2 x 6 bits, n 131072 27.7 (32.0), 27.0 (33.3)
inline constexpr float spread_delay = 2.0f;            // us that exchanges through device memory take longer
// measured: retrieve/scan of bench/cuda/retrieve.cu, 8 lists, k 2048, H200, 2026-12; tokens looked up twice, and sorted by rounded
// products: in clusters, 4 x 8 bits, n 32768 23.6, 23.4 us, cold 30.5, 29.2; spread, 4 x 8 bits, n 131072 29.2, 30.4, n 1048576 70.4, 85.3;
// 8 x 8 bits 44.5, 39.4 and 176, 143; 2 x 6 bits 26.3, 26.5 and 55.6, 71.6: of few subspaces the words are as many bytes as the codes
inline constexpr unsigned rounded_from = 3;            // subspaces from which on rounded products save the second look-ups
inline constexpr unsigned rounded_from_spread = 5;     // the same where a list's CTAs are spread over the device
inline constexpr unsigned cluster_kept = 8192;         // not measured: most tokens of a CTA near the threshold
inline constexpr unsigned cluster_copied = 24576;      // not measured: least room for a list's tokens near the threshold, of all CTAs
inline constexpr unsigned select_threads = 1024;       // not measured
inline constexpr unsigned select_cluster = 8;          // the largest portable cluster
inline constexpr unsigned select_cached_keys = 32768;  // 128 KB of a CTA's shared memory; further keys are computed again
// measured: bench/cuda/top_k.cu, n 131072, H200, 2026-11: 512, 1024 threads, 8 rows, k 2048 13.3, 13.7 us, k 16384 16.5, 16.2 us; 64 rows
// 24.1, 23.5 us and 29.8, 27.6 us
inline constexpr unsigned bracket_threads = 1024;
inline constexpr unsigned bracket_keys = 262144;       // longest row that is selected by a bracket: 64 KB of bitmaps for one CTA
// measured: retrieve/joint of bench/cuda/retrieve.cu, 8 lists, n 131072, k 2048, H200, 2026-11: 256, 512, 1024 threads 20.6, 16.2, 16.7 us
// before loops read several items at once, after that 512, 1024 threads 13.8, 13.9 us; k 16384 22.1, 20.0 us
inline constexpr unsigned fused_threads = 512;
inline constexpr unsigned fused_items = 16400;  // cells or tokens that one CTA scores alone
// measured: retrieve/joint of bench/cuda/retrieve.cu, 8 lists, H100, 2026-11; 1, 2, 4, 8, 16 parts: n 131072, k 16384 29.5, 25.8, 23.9,
// 22.9, 22.7 us; n 1048576, k 2048 20.7, 16.6, 15.9, 15.6, 15.5 us
inline constexpr unsigned fused_parts = 8;              // most CTAs that share a list's tokens
inline constexpr unsigned fused_entries = 8192;         // exponentials of a list, g * m * c: 32 KB
inline constexpr unsigned fused_least_bitmaps = 16384;  // bytes; with less, a range would need too many steps through the bitmaps
inline constexpr unsigned tier_refresh_ctas = 2;        // not measured: a step refreshes one row a head
inline constexpr unsigned tier_copy_ctas = 32;          // not measured: CTAs that read rows over the bus, which few can fill
inline constexpr unsigned multiprocessors = 132;        // of an H100 or H200: small calls are distributed over this many

}  // namespace pqkv::detail::tuning
