// SPDX-License-Identifier: Apache-2.0
// The only home of public macros, and of the refusals that protect the arithmetic.
//
// PQKV_HD            marks a function for host and device; empty without a CUDA compiler.
// PQKV_HIDDEN        keeps a kernel's symbols inside its shared object, so that two builds of it in one process never mix.
// PQKV_TARGET(...)   per-function instruction set: a baseline build carries the fast code and runs it where the CPU has it.
// PQKV_INLINE        a part of a leaf that must be inlined into it, since a target attribute does not cross a call.
// PQKV_ASSERT(x)     internal invariant; checked when PQKV_CHECKED is defined, free otherwise.
// PQKV_ON_ERROR(s)   where a failed check ends without exceptions (-fno-exceptions); may be defined before inclusion.
// PQKV_MODE          the inline namespace that all of the library is in, named after the version and what bodies of functions depend on: a
//                    linker keeps one body of a name, so files of one program that are built otherwise must not share names. What such
//                    files hand to each other is the program's own types: a view of one is not a view of the other.
#pragma once

#include <cstdlib>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "pqkv: -ffast-math would change which tokens are selected; build this file without it"
#endif

static_assert(sizeof(1.0) == sizeof(double),
              "pqkv: -fsingle-precision-constant would change which tokens are selected; build this file without it");

#if !defined(__cpp_concepts) || __cplusplus < 202002L
#error "pqkv: needs C++20; compile with -std=c++20 or later"
#endif

#if defined(__CUDACC__)
#pragma nv_diag_suppress 1675  // nvcc warns of `#pragma GCC unroll`, which is for the host's compiler and reaches it
#endif

#if defined(__CUDACC__)
#define PQKV_HD __host__ __device__
#else
#define PQKV_HD
#endif

#define PQKV_HIDDEN __attribute__((visibility("hidden")))
#define PQKV_TARGET(...) __attribute__((target(__VA_ARGS__)))
#define PQKV_TARGET_AVX2 PQKV_TARGET("avx2,fma,f16c")
#define PQKV_TARGET_AVX512 PQKV_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define PQKV_TARGET_VBMI PQKV_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")
#define PQKV_TARGET_BF16 PQKV_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512bf16")
#define PQKV_INLINE inline __attribute__((always_inline))

#if defined(PQKV_CHECKED)
#define PQKV_ASSERT(condition) ((condition) ? static_cast<void>(0) : ::std::abort())
#else
#define PQKV_ASSERT(condition) static_cast<void>(0)
#endif

#if defined(__cpp_exceptions)
#define PQKV_HAS_EXCEPTIONS 1
#else
#define PQKV_HAS_EXCEPTIONS 0
#if defined(PQKV_ON_ERROR)
#define PQKV_ERRORS_ARE_HANDLED
#else
#define PQKV_ON_ERROR(message) (static_cast<void>(message), ::std::abort())
#endif
#endif

#if PQKV_HAS_EXCEPTIONS
#define PQKV_MODE_ERRORS throws
#elif defined(PQKV_ERRORS_ARE_HANDLED)
#define PQKV_MODE_ERRORS handles
#else
#define PQKV_MODE_ERRORS aborts
#endif
#if defined(PQKV_CHECKED)
#define PQKV_MODE_CHECKS checked
#else
#define PQKV_MODE_CHECKS plain
#endif
#define PQKV_JOINED_NAMES(version, errors, checks) version##_##errors##_##checks
#define PQKV_JOINED(version, errors, checks) PQKV_JOINED_NAMES(version, errors, checks)
#define PQKV_MODE PQKV_JOINED(v0_1_0, PQKV_MODE_ERRORS, PQKV_MODE_CHECKS)
