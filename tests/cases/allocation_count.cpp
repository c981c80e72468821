// SPDX-License-Identifier: Apache-2.0
// The replaced operators new and delete behind allocation_count.hpp. A file of its own: a compiler that sees one of the pair inlined
// and not the other takes them for a mismatch.
#include "allocation_count.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<std::size_t> calls{0}, bytes_asked{0}, until_failure{0};

/// More than any machine has. Under the address sanitizer a call of the allocator for more ends the program.
constexpr std::size_t most_bytes = std::size_t{1} << 40;

bool is_to_fail() {
  std::size_t left = until_failure;
  while (left != 0 && !until_failure.compare_exchange_weak(left, left - 1)) {
  }
  return left == 1;
}

void* counted(std::size_t bytes, std::size_t alignment) {
  ++calls;
  bytes_asked += bytes;
  if (is_to_fail() || bytes > most_bytes) throw std::bad_alloc();
  const std::size_t whole = std::max<std::size_t>(1, (bytes + alignment - 1) / alignment) * alignment;
  void* memory = std::aligned_alloc(alignment, whole);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

/// For callers who can do without, as std::stable_sort can.
void* counted_or_null(std::size_t bytes, std::size_t alignment) noexcept {
  try {
    return counted(bytes, alignment);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
}  // namespace

namespace pqkv_cases {
std::size_t allocations() { return calls; }
std::size_t allocated_bytes() { return bytes_asked; }
void fail_allocation(std::size_t k) { until_failure = k; }
}  // namespace pqkv_cases

void* operator new(std::size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) { return counted(bytes, static_cast<std::size_t>(alignment)); }
void* operator new[](std::size_t bytes, std::align_val_t alignment) { return counted(bytes, static_cast<std::size_t>(alignment)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return counted_or_null(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return counted_or_null(bytes, alignof(std::max_align_t)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
