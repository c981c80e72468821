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

/// For tests that take minutes under a sanitizer, where all of their code is that of other tests.
#if defined(PQKV_TEST_SANITIZED)
inline constexpr bool under_sanitizers = true;
#else
inline constexpr bool under_sanitizers = false;
#endif

/// Of `all` random problems the number that a test looks at: an eighth under a sanitizer, where each takes many times as long and the
/// question is another: not whether the result is right, but whether computing it touches what it should not.
constexpr std::size_t problems(std::size_t all) {
#if defined(PQKV_TEST_SANITIZED)
  return all / 8;
#else
  return all;
#endif
}

/// How far apart the combinations are that looks_at() takes.
#if defined(PQKV_TEST_SANITIZED)
inline constexpr std::size_t looked_at_step = 5;
#else
inline constexpr std::size_t looked_at_step = 1;
#endif

/// More than 1 under a sanitizer in a quick run (PQKV_TEST_QUICK: tests/run.sh without --all). Only for tests that the quick run has as a
/// whole without a sanitizer, too.
#if defined(PQKV_TEST_SANITIZED) && defined(PQKV_TEST_QUICK)
inline constexpr std::size_t quick_step = 3;
#else
inline constexpr std::size_t quick_step = 1;
#endif

/// Of `all` random lives the number that are lived: a fifth under a sanitizer, a third of those in a quick run, and two at least.
constexpr std::size_t lives_of(std::size_t all) {
  const std::size_t some = all / looked_at_step / quick_step;
  return some < 2 ? 2 : some;
}

/// Whether a test of many combinations looks at its i-th: at every fifth under a sanitizer.
constexpr bool looks_at(std::size_t i) { return i % looked_at_step == 0; }

}  // namespace pqkv_cases
