// SPDX-License-Identifier: Apache-2.0
// All leaves that this architecture can have.
#pragma once

#include "float_environment.hpp"
#include "scalar.hpp"
#if defined(__x86_64__)
#include "avx2.hpp"
#include "avx512.hpp"
#else
namespace pqkv::detail {
template <>
struct leaf<isa::avx2> : leaf<isa::scalar> {};
template <>
struct leaf<isa::avx512> : leaf<isa::avx2> {};
}  // namespace pqkv::detail
#endif

namespace pqkv::detail {
template <>
struct leaf<isa::avx512_vbmi> : leaf<isa::avx512> {};
}  // namespace pqkv::detail
