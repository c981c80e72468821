// SPDX-License-Identifier: Apache-2.0
// PQKV_TEST_SANITIZED is defined where a sanitizer watches the test: memory that is freed stays with the process, more of it is mapped
// than any limit allows, and everything is several times slower.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PQKV_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define PQKV_TEST_SANITIZED 1
#endif
#endif

#include <cstddef>

namespace pqkv_cases {

/// Of `all` random problems the number that a test looks at: an eighth under a sanitizer, where each takes many times as long and the
/// question is another: not whether the result is right, but whether computing it touches what it should not.
constexpr std::size_t problems(std::size_t all) {
#if defined(PQKV_TEST_SANITIZED)
  return all / 8;
#else
  return all;
#endif
}

/// Whether a test of many combinations looks at its i-th: at every fifth under a sanitizer.
constexpr bool looks_at([[maybe_unused]] std::size_t i) {
#if defined(PQKV_TEST_SANITIZED)
  return i % 5 == 0;
#else
  return true;
#endif
}

}  // namespace pqkv_cases
