// SPDX-License-Identifier: Apache-2.0
// What the system says of this process: resident memory, heap, open files, mapped regions; and whether that is more than it should be.
// Linux with glibc.
#pragma once

#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace pqkv_soak {

struct process_figures {
  std::size_t resident_bytes = 0;  // all pages in memory, those of mapped files too
  std::size_t heap_bytes = 0;      // that the program has from the allocator and has not given back
  std::size_t files = 0;           // open descriptors
  std::size_t regions = 0;         // lines of the memory map

  static process_figures now() {
    process_figures f;
    std::size_t all = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> all >> resident;
    f.resident_bytes = resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const auto heap = ::mallinfo2();
    f.heap_bytes = heap.uordblks + heap.hblkhd;
    for ([[maybe_unused]] const auto& one : std::filesystem::directory_iterator("/proc/self/fd")) ++f.files;
    std::ifstream map("/proc/self/maps");
    for (std::string line; std::getline(map, line);) ++f.regions;
    return f;
  }
  void raise_to(const process_figures& other) {
    resident_bytes = std::max(resident_bytes, other.resident_bytes);
    heap_bytes = std::max(heap_bytes, other.heap_bytes);
    files = std::max(files, other.files);
    regions = std::max(regions, other.regions);
  }
};

/// Decides when it is too much, by two rules.
///
/// 1. At any time: resident memory is at most what it was before the first cache, plus what the caches that live say they take (their
///    memory plans, their files, an engine's pages), plus `allowance` for code, the plain models and the test's own rows.
/// 2. After a round, when the same few caches live as after every round: heap, resident memory, open files and mapped regions are at most
///    the highest of the first rounds (`settling`), plus a little that is given below. So a loss of 1 KB a life is found within some
///    hundred lives, whatever rule 1 has room for.
class watch {
 public:
  static constexpr std::size_t allowance = std::size_t{48} << 20;
  static constexpr process_figures more{std::size_t{6} << 20, std::size_t{256} << 10, 0, 12};

  explicit watch(std::size_t settling) : settling_(settling) {}

  /// @param planned_bytes  of the caches that live
  /// @return why it is too much; empty: it is not
  std::string during(std::size_t planned_bytes) {
    const process_figures now = process_figures::now();
    highest_.raise_to(now);
    const std::size_t most = start_.resident_bytes + planned_bytes + allowance;
    return now.resident_bytes <= most ? "" : exceeds("resident memory", now.resident_bytes, most, "start, plans and allowance");
  }
  /// The same after a round.
  std::string after_round() {
    ::malloc_trim(0);  // pages that the allocator holds back are nobody's
    const process_figures now = process_figures::now();
    if (rounds_++ < settling_) {
      mark_.raise_to(now);
      return "";
    }
    const auto beyond = [](std::size_t got, std::size_t mark, std::size_t over, const char* what) {
      return got <= mark + over ? "" : exceeds(what, got, mark + over, "what it was after the first rounds, and a little");
    };
    std::string why = beyond(now.heap_bytes, mark_.heap_bytes, more.heap_bytes, "heap");
    if (why.empty()) why = beyond(now.resident_bytes, mark_.resident_bytes, more.resident_bytes, "resident memory");
    if (why.empty()) why = beyond(now.files, mark_.files, more.files, "open files");
    if (why.empty()) why = beyond(now.regions, mark_.regions, more.regions, "mapped regions");
    return why;
  }
  std::size_t rounds() const { return rounds_; }
  const process_figures& highest() const { return highest_; }
  const process_figures& mark() const { return mark_; }

 private:
  static std::string exceeds(const char* what, std::size_t got, std::size_t most, const char* of) {
    return std::string(what) + ": expected at most " + std::to_string(most) + " (" + of + "), got " + std::to_string(got);
  }

  process_figures start_ = process_figures::now(), mark_, highest_;
  std::size_t settling_, rounds_ = 0;
};

}  // namespace pqkv_soak
