// SPDX-License-Identifier: Apache-2.0
// Part of the library pqkv::compiled: what selectors compute from keys themselves.
#include <pqkv/config.hpp>

#undef PQKV_INSTANTIATION
#define PQKV_INSTANTIATION template

#include <pqkv/detail/host/attended_sum.hpp>
#include <pqkv/detail/host/oracle.hpp>
#include <pqkv/detail/host/received_attention.hpp>
#include <pqkv/detail/host/sparq.hpp>
