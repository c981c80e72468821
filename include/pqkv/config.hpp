// SPDX-License-Identifier: Apache-2.0
// The only home of public macros, and of the refusals that protect the arithmetic.
//
// PQKV_HD            marks a function for host and device; empty without a CUDA compiler.
// PQKV_HIDDEN        keeps a kernel's symbols inside its shared object, so that two builds of it in one process never mix; empty for
//                    nvcc 12.
// PQKV_TARGET(...)   per-function instruction set: a baseline build carries the fast code and runs it where the CPU has it.
// PQKV_INLINE        a part of a SIMD kernel that must be inlined into it, since calls do not inherit a target attribute.
// PQKV_ASSERT(x)     internal invariant; checked when PQKV_CHECKED is defined, free otherwise.
// PQKV_ON_ERROR(s)   where a failed check ends without exceptions (-fno-exceptions); may be defined before inclusion.
// PQKV_COMPILED      defined where the CMake target pqkv::compiled is linked: the usual instantiations of the host's operations are in that
//                    library, compiled once, and not in every file that calls them.
// PQKV_HOST_OPERATION(op, ...)  declares one of them for every instruction set: op's name, then the types of run()'s arguments after the
//                    policy. Nothing without PQKV_COMPILED. The library's own files define it to be compiled there (cmake/compiled).
// PQKV_MODE          the inline namespace that all of the library is in. Its name says what the code of a function depends on: the
//                    version, what a failed check does, PQKV_CHECKED, and the instructions that the compiler may use
//                    (-march). A linker keeps one body of a name, so files of one program that are built otherwise must not share
//                    names: a file for every CPU would get the code of its neighbour for a new one. What such files hand to each other
//                    is the program's own types: a view of one is not a view of the other.
#pragma once

#include <cstdlib>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "pqkv: -ffast-math would change which tokens are selected; build this file without it"
#endif

static_assert(sizeof(1.0) == sizeof(double),
              "pqkv: -fsingle-precision-constant would change which tokens are selected; build this file without it");

#if defined(_MSC_VER) && !defined(__clang__)
#error "pqkv: MSVC is not supported; compile with g++ 12 or clang 14, or newer ones, on Linux (on Windows: under WSL)"
#include <end of compilation: MSVC is not supported>  // a missing file ends it: the hundreds of errors that would follow say nothing
#endif

#if !defined(__cpp_concepts) || __cplusplus < 202002L
#error "pqkv: needs C++20; compile with -std=c++20 or later"
#include <end of compilation: C++20 is needed>  // as above
#endif

#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ < 13 && !defined(_AMXTILEINTRIN_H_INCLUDED)
#define _AMXTILEINTRIN_H_INCLUDED  // nvcc 12 does not know the builtins of that part of g++ 13's <immintrin.h>; nothing here uses them
#endif

#if defined(__CUDACC__)
#pragma nv_diag_suppress 1675  // nvcc warns of `#pragma GCC unroll`, which is for the host's compiler and reaches it
#endif

#if defined(__CUDACC__)
#define PQKV_HD __host__ __device__
#else
#define PQKV_HD
#endif

#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ < 13
#define PQKV_HIDDEN  // the stubs that nvcc 12 writes for kernels take no attribute: g++ warns of each
#else
#define PQKV_HIDDEN __attribute__((visibility("hidden")))
#endif
#define PQKV_TARGET(...) __attribute__((target(__VA_ARGS__)))
#define PQKV_TARGET_AVX2 PQKV_TARGET("avx2,fma,f16c")
#define PQKV_TARGET_AVX512 PQKV_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define PQKV_TARGET_VBMI PQKV_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni")
#define PQKV_TARGET_BF16 PQKV_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16")
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

// 1 where a macro is defined as 1, else 0: PQKV_ONE_1 makes two arguments of one. Four of them make a hexadecimal digit.
#define PQKV_ONE_1 0, 1
#define PQKV_SECOND(first, second, ...) second
#define PQKV_SECOND_OF(...) PQKV_SECOND(__VA_ARGS__)
#define PQKV_BIT_OF(name) PQKV_SECOND_OF(PQKV_ONE_##name, 0, 0)
#define PQKV_BIT(macro) PQKV_BIT_OF(macro)
#define PQKV_HEX_NAME(a, b, c, d) PQKV_HEX_##a##b##c##d
#define PQKV_HEX_OF(a, b, c, d) PQKV_HEX_NAME(a, b, c, d)
#define PQKV_HEX(a, b, c, d) PQKV_HEX_OF(PQKV_BIT(a), PQKV_BIT(b), PQKV_BIT(c), PQKV_BIT(d))
#define PQKV_HEX_0000 0
#define PQKV_HEX_0001 1
#define PQKV_HEX_0010 2
#define PQKV_HEX_0011 3
#define PQKV_HEX_0100 4
#define PQKV_HEX_0101 5
#define PQKV_HEX_0110 6
#define PQKV_HEX_0111 7
#define PQKV_HEX_1000 8
#define PQKV_HEX_1001 9
#define PQKV_HEX_1010 a
#define PQKV_HEX_1011 b
#define PQKV_HEX_1100 c
#define PQKV_HEX_1101 d
#define PQKV_HEX_1110 e
#define PQKV_HEX_1111 f

// A bit for each set of instructions that compilers take on their own where they may. A set that is new in a compiler is added here.
#if defined(__aarch64__)
#define PQKV_CODE_1 PQKV_HEX(__ARM_FEATURE_ATOMICS, __ARM_FEATURE_DOTPROD, __ARM_FEATURE_MATMUL_INT8, __ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#define PQKV_CODE_2 PQKV_HEX(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC, __ARM_FEATURE_SVE, __ARM_FEATURE_SVE2, __ARM_FEATURE_SME)
#define PQKV_MODE_CODE PQKV_JOINED_CODES(PQKV_CODE_1, PQKV_CODE_2, , , , , , )
#else
#define PQKV_CODE_1 PQKV_HEX(__SSE3__, __SSSE3__, __SSE4_1__, __SSE4_2__)
#define PQKV_CODE_2 PQKV_HEX(__POPCNT__, __AVX__, __F16C__, __FMA__)
#define PQKV_CODE_3 PQKV_HEX(__AVX2__, __BMI__, __BMI2__, __LZCNT__)
#define PQKV_CODE_4 PQKV_HEX(__MOVBE__, __FMA4__, __XOP__, __AVXVNNI__)
#define PQKV_CODE_5 PQKV_HEX(__AVX512F__, __AVX512CD__, __AVX512DQ__, __AVX512BW__)
#define PQKV_CODE_6 PQKV_HEX(__AVX512VL__, __AVX512VBMI__, __AVX512VBMI2__, __AVX512VNNI__)
#define PQKV_CODE_7 PQKV_HEX(__AVX512BITALG__, __AVX512VPOPCNTDQ__, __AVX512BF16__, __AVX512FP16__)
#define PQKV_CODE_8 PQKV_HEX(__AVX512IFMA__, __AVX10_1__, __AVX10_2__, __APX_F__)
#define PQKV_MODE_CODE \
  PQKV_JOINED_CODES(PQKV_CODE_1, PQKV_CODE_2, PQKV_CODE_3, PQKV_CODE_4, PQKV_CODE_5, PQKV_CODE_6, PQKV_CODE_7, PQKV_CODE_8)
#endif
#define PQKV_CODE_NAMES(a, b, c, d, e, f, g, h) a##b##c##d##e##f##g##h
#define PQKV_JOINED_CODES(a, b, c, d, e, f, g, h) PQKV_CODE_NAMES(a, b, c, d, e, f, g, h)

#define PQKV_JOINED_NAMES(version, errors, checks, code) version##_##errors##_##checks##_##code
#define PQKV_JOINED(version, errors, checks, code) PQKV_JOINED_NAMES(version, errors, checks, code)
#define PQKV_MODE PQKV_JOINED(v0_1_0, PQKV_MODE_ERRORS, PQKV_MODE_CHECKS, PQKV_MODE_CODE)

#define PQKV_INSTANTIATION extern template
#define PQKV_HOST_INSTANTIATION(isa, op, ...) \
  PQKV_INSTANTIATION void kernel<op, backend::host>::run(const exec::host<isa, exec::erased_runner>&, __VA_ARGS__);
#if !defined(PQKV_COMPILED)
#define PQKV_HOST_OPERATION(...)
#elif defined(__x86_64__)
#define PQKV_HOST_OPERATION(...)                         \
  PQKV_HOST_INSTANTIATION(isa::best, __VA_ARGS__)        \
  PQKV_HOST_INSTANTIATION(isa::scalar, __VA_ARGS__)      \
  PQKV_HOST_INSTANTIATION(isa::avx2, __VA_ARGS__)        \
  PQKV_HOST_INSTANTIATION(isa::avx512, __VA_ARGS__)      \
  PQKV_HOST_INSTANTIATION(isa::avx512_vbmi, __VA_ARGS__) \
  PQKV_HOST_INSTANTIATION(isa::avx512_bf16, __VA_ARGS__)
#else
#define PQKV_HOST_OPERATION(...) PQKV_HOST_INSTANTIATION(isa::best, __VA_ARGS__)
#endif
