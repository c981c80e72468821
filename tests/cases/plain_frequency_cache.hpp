// SPDX-License-Identifier: Apache-2.0
// The block cache's rules as sentences, with maps and searches through everything: what frequency_index is compared with.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

namespace pqkv_cases {

class plain_frequency_cache {
 public:
  struct block {
    std::uint64_t frequency;  // steps that offered it since it entered
    std::size_t step;         // the latest of them
    std::size_t rank;         // and its place there, 0 the best
  };
  struct entered {
    std::size_t key;
    bool evicts;
    std::size_t evicted;
    bool operator==(const entered&) const = default;
  };
  struct totals {
    std::uint64_t hits = 0, misses = 0, admissions = 0, evictions = 0;
  };

  plain_frequency_cache(std::size_t capacity, std::uint64_t max_frequency) : capacity_(capacity), max_frequency_(max_frequency) {}

  /// Which of the keys are there.
  std::vector<bool> lookup(const std::vector<std::size_t>& keys) {
    std::vector<bool> found;
    for (const std::size_t key : keys) {
      found.push_back(blocks.count(key) != 0);
      ++(found.back() ? counted.hits : counted.misses);
    }
    return found;
  }

  /// One step's admissions: the blocks of the highest counts are offered, the lower block first among equals, none with count zero.
  std::vector<entered> admit(const std::vector<std::size_t>& keys, const std::vector<std::uint32_t>& counts, std::size_t limit,
                             const std::function<bool(std::size_t)>& is_final) {
    std::map<std::size_t, std::uint64_t> tokens;
    for (std::size_t i = 0; i < keys.size(); ++i) tokens[keys[i]] += counts[i];
    std::vector<std::size_t> offers;
    for (const auto& [key, count] : tokens)
      if (count != 0) offers.push_back(key);
    std::sort(offers.begin(), offers.end(),
              [&](std::size_t a, std::size_t b) { return tokens[a] != tokens[b] ? tokens[a] > tokens[b] : a < b; });
    if (offers.size() > limit) offers.resize(limit);
    return offer(offers, is_final);
  }

  std::vector<entered> offer(const std::vector<std::size_t>& offers, const std::function<bool(std::size_t)>& is_final) {
    ++step_;
    std::vector<std::size_t> absent;
    for (std::size_t rank = 0; rank < offers.size(); ++rank) {
      const auto found = blocks.find(offers[rank]);
      if (found == blocks.end())
        absent.push_back(rank);
      else
        found->second = {std::min(found->second.frequency + 1, max_frequency_), step_, rank};
    }
    std::vector<entered> all;
    for (const std::size_t rank : absent) {
      if (!is_final(offers[rank])) continue;
      entered one{offers[rank], false, 0};
      if (blocks.size() >= capacity_) {
        auto victim = blocks.end();
        for (auto it = blocks.begin(); it != blocks.end(); ++it)
          if (it->second.step != step_ && (victim == blocks.end() || leaves_before(it->second, victim->second))) victim = it;
        if (victim == blocks.end()) continue;  // all of them were offered in this step
        one.evicts = true;
        one.evicted = victim->first;
        blocks.erase(victim);
        ++counted.evictions;
      }
      blocks[one.key] = {1, step_, rank};
      ++counted.admissions;
      all.push_back(one);
    }
    return all;
  }

  void age() {
    for (auto& [key, b] : blocks) b.frequency = (b.frequency + 1) / 2;
  }
  std::size_t drop(const std::vector<std::size_t>& keys) {
    std::size_t count = 0;
    for (const std::size_t key : keys) count += blocks.erase(key);
    return count;
  }

  std::map<std::size_t, block> blocks;
  totals counted;

 private:
  /// The lowest frequency leaves; then the one used the longest ago; of one step the one that ranked last.
  static bool leaves_before(const block& a, const block& b) {
    if (a.frequency != b.frequency) return a.frequency < b.frequency;
    if (a.step != b.step) return a.step < b.step;
    return a.rank > b.rank;
  }

  std::size_t capacity_;
  std::uint64_t max_frequency_;
  std::size_t step_ = 0;
};

}  // namespace pqkv_cases
