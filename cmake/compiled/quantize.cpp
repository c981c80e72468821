// SPDX-License-Identifier: Apache-2.0
// Part of the library pqkv::compiled: k-means and encoding, for every instruction set and element type.
#include <pqkv/config.hpp>

#undef PQKV_INSTANTIATION
#define PQKV_INSTANTIATION template

#include <pqkv/detail/host/codes.hpp>
#include <pqkv/detail/host/kmeans.hpp>
#include <pqkv/detail/host/residual.hpp>
