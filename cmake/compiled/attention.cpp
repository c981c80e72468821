// SPDX-License-Identifier: Apache-2.0
// Part of the library pqkv::compiled: attention of decode steps and of prompts over dense rows.
#include <pqkv/config.hpp>

#undef PQKV_INSTANTIATION
#define PQKV_INSTANTIATION template

#include <pqkv/detail/host/attention.hpp>
#include <pqkv/detail/host/prefill_attention.hpp>
