// SPDX-License-Identifier: Apache-2.0
// pqkv: quantized KV retrieval for long-context decoding, as parts and as a policy. This front page includes everything that runs
// on the host; its order is the way data flows:
//
//   keys [h,n,d] --> kmeans --> codebook [h,m,ds,c] --> encode --> codes [h,m,n] --> cell_index
//                                    |                                 |                |
//   query [hq,d] -------------> distance_table [hq,m,c] --------> scan + reduce ---> top_k [h,k]
//                                                                                       |
//                                              kv_store (the engine's or ours) <--- retrieve
//                                                                                       |
//                           attention over {sinks, selected, window} --> out [hq,d] (+ log-sum-exp)
//                                                                                       |
//                                    pqcache: the policy that composes all of it
//
// Every function takes an execution policy first (exec/host.hpp), views of memory that the caller owns (core/view.hpp), checks
// them, and calls one kernel. Shapes are written next to names in the symbols of docs/notation.md.
#pragma once

#include "version.hpp"

#include "exec/cuda.hpp"
#include "exec/host.hpp"
#include "exec/memory.hpp"
#include "exec/sync.hpp"

#include "quantize/kmeans.hpp"
#include "quantize/codebook.hpp"
#include "quantize/codes.hpp"
#include "quantize/residual.hpp"
#include "quantize/axes.hpp"
#include "quantize/overlap.hpp"
#include "search/distance_table.hpp"
#include "search/scan.hpp"
#include "search/quantized_scan.hpp"
#include "search/top_k.hpp"
#include "search/cell_index.hpp"
#include "search/retrieve.hpp"
#include "search/partial_ranking.hpp"
#include "search/rerank.hpp"
#include "search/pq_index.hpp"
#include "cache/kv_store.hpp"
#include "cache/dense_rows.hpp"
#include "cache/quantized_rows.hpp"
#include "cache/paged_rows.hpp"
#include "cache/block_cache.hpp"
#include "cache/tiered_rows.hpp"
#include "cache/sequence_steps.hpp"
#include "merge.hpp"
#include "attention.hpp"
#include "prefill_attention.hpp"
#include "selector/full.hpp"
#include "selector/streaming.hpp"
#include "selector/oracle.hpp"
#include "selector/pq.hpp"
#include "selector/snapkv.hpp"
#include "selector/h2o.hpp"
#include "selector/sparq.hpp"
#include "selector/quest.hpp"
#include "selector/infllm.hpp"
#include "pqcache.hpp"
#include "preset.hpp"

#include "detail/host/attention.hpp"
#include "detail/host/block_cache.hpp"
#include "detail/host/cell_index.hpp"
#include "detail/host/codebook.hpp"
#include "detail/host/codes.hpp"
#include "detail/host/distance_table.hpp"
#include "detail/host/infllm.hpp"
#include "detail/host/kmeans.hpp"
#include "detail/host/kv_store.hpp"
#include "detail/host/memory.hpp"
#include "detail/host/merge.hpp"
#include "detail/host/oracle.hpp"
#include "detail/host/partial_ranking.hpp"
#include "detail/host/pq_index.hpp"
#include "detail/host/pq_index_learn.hpp"
#include "detail/host/prefill_attention.hpp"
#include "detail/host/quantized_scan.hpp"
#include "detail/host/quest.hpp"
#include "detail/host/received_attention.hpp"
#include "detail/host/rerank.hpp"
#include "detail/host/residual.hpp"
#include "detail/host/attended_sum.hpp"
#include "detail/host/retrieve.hpp"
#include "detail/host/scan.hpp"
#include "detail/host/sequence_steps.hpp"
#include "detail/host/sparq.hpp"
#include "detail/host/step_plan.hpp"
#include "detail/host/sync.hpp"
#include "detail/host/tiered_rows.hpp"
#include "detail/host/top_k.hpp"
