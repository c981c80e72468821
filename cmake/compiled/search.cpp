// SPDX-License-Identifier: Apache-2.0
// Part of the library pqkv::compiled: tables, scan, top-k, index and retrieval, for every instruction set.
#include <pqkv/config.hpp>

#undef PQKV_INSTANTIATION
#define PQKV_INSTANTIATION template

#include <pqkv/detail/host/cell_index.hpp>
#include <pqkv/detail/host/distance_table.hpp>
#include <pqkv/detail/host/partial_ranking.hpp>
#include <pqkv/detail/host/quantized_scan.hpp>
#include <pqkv/detail/host/rerank.hpp>
#include <pqkv/detail/host/retrieve.hpp>
#include <pqkv/detail/host/scan.hpp>
#include <pqkv/detail/host/top_k.hpp>
