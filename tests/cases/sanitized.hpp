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
