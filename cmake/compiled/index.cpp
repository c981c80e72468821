// SPDX-License-Identifier: Apache-2.0
// Part of the library pqkv::compiled: what the index of a cache does with rows in dense memory.
#include <pqkv/detail/host/cell_index.hpp>
#include <pqkv/detail/host/codes.hpp>
#include <pqkv/detail/host/kmeans.hpp>
#include <pqkv/detail/host/residual.hpp>
#include <pqkv/detail/host/scan.hpp>

#undef PQKV_INSTANTIATION
#define PQKV_INSTANTIATION template

#include <pqkv/detail/host/sequence_steps.hpp>
