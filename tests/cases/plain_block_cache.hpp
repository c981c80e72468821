// SPDX-License-Identifier: Apache-2.0
// The block cache's rules as sentences, with maps and searches through everything: what block_cache is compared with.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace pqkv_cases {

enum class plain_policy { lfu, lru, tiny_lfu };

class plain_block_cache {
 public:
  struct block {
    std::uint64_t frequency;  // of offers; of lru always 1
    std::size_t step, rank;   // the latest step that offered it, and its place there, 0 the best
    std::size_t slot;
    bool valid;
    bool operator==(const block&) const = default;
  };
  struct entered {
    std::size_t block, slot;
    std::optional<std::size_t> evicted;
    bool operator==(const entered&) const = default;
  };
  struct totals {
    std::uint64_t hits = 0, misses = 0, admissions = 0, evictions = 0, kept_out = 0;
    bool operator==(const totals&) const = default;
  };

  plain_block_cache(plain_policy policy, std::size_t block_tokens, std::size_t capacity, std::size_t admit)
      : policy_(policy), block_tokens_(block_tokens), capacity_(capacity), admit_(admit) {}

  /// Row of the fast memory of each token, or -1.
  std::vector<long> lookup(const std::vector<std::size_t>& tokens) {
    std::vector<long> places;
    for (const std::size_t token : tokens) {
      const auto found = blocks.find(token / block_tokens_);
      const bool hit = found != blocks.end() && found->second.valid;
      places.push_back(hit ? static_cast<long>(found->second.slot * block_tokens_ + token % block_tokens_) : -1);
      ++(hit ? counted.hits : counted.misses);
      ++selected_[token / block_tokens_];
    }
    return places;
  }

  /// Ends the step. Tokens from `final_tokens` on may still change.
  std::vector<entered> admit(std::size_t final_tokens) {
    std::vector<std::size_t> offers;
    for (const auto& [number, tokens] : selected_) offers.push_back(number);
    std::sort(offers.begin(), offers.end(),
              [&](std::size_t a, std::size_t b) { return selected_[a] != selected_[b] ? selected_[a] > selected_[b] : a < b; });
    if (offers.size() > admit_) offers.resize(admit_);
    selected_.clear();
    ++step_;
    for (std::size_t rank = 0; rank < offers.size(); ++rank) {
      const auto found = blocks.find(offers[rank]);
      std::uint64_t frequency = 1;
      if (policy_ == plain_policy::lfu && found != blocks.end()) frequency = found->second.frequency + 1;
      if (policy_ == plain_policy::tiny_lfu) {
        std::uint64_t& all = remembered_[offers[rank]];
        frequency = all = std::min<std::uint64_t>(all + 1, 255);
      }
      if (found == blocks.end()) continue;
      found->second.frequency = frequency;
      found->second.step = step_;
      found->second.rank = rank;
    }
    std::vector<entered> all;
    for (std::size_t rank = 0; rank < offers.size(); ++rank) {
      const std::size_t number = offers[rank];
      if (blocks.count(number) != 0 || (number + 1) * block_tokens_ > final_tokens) continue;
      const std::uint64_t frequency = policy_ == plain_policy::tiny_lfu ? remembered_[number] : 1;
      const std::optional<entered> place = place_for(number, frequency);
      if (!place) {
        ++counted.kept_out;
        continue;
      }
      if (place->evicted) {
        blocks.erase(*place->evicted);
        ++counted.evictions;
      }
      blocks[number] = {frequency, step_, rank, place->slot, false};
      ++counted.admissions;
      all.push_back(*place);
    }
    offers_of_age_ += offers.size();
    if (policy_ == plain_policy::tiny_lfu && offers_of_age_ >= 10 * std::max<std::size_t>(64, capacity_)) {
      offers_of_age_ = 0;
      for (auto& [number, frequency] : remembered_) frequency /= 2;
      for (auto& [number, one] : blocks) one.frequency /= 2;
    }
    return all;
  }

  void fill() {
    for (auto& [number, one] : blocks) one.valid = true;
  }
  void abandon() {
    selected_.clear();
    std::erase_if(blocks, [](const auto& one) { return !one.second.valid; });
  }
  void truncate(std::size_t length) {
    const auto is_cut = [&](const auto& one) { return (one.first + 1) * block_tokens_ > length; };
    std::erase_if(blocks, is_cut);
    std::erase_if(remembered_, is_cut);
  }

  std::map<std::size_t, block> blocks;
  totals counted;

 private:
  std::optional<entered> place_for(std::size_t number, std::uint64_t frequency) const {
    std::vector<bool> is_held(capacity_);
    for (const auto& [other, one] : blocks) is_held[one.slot] = true;
    for (std::size_t slot = 0; slot < capacity_; ++slot)
      if (!is_held[slot]) return entered{number, slot, {}};
    auto victim = blocks.end();
    for (auto it = blocks.begin(); it != blocks.end(); ++it)  // nobody leaves in the step that offers it, or before its rows are there
      if (it->second.step != step_ && it->second.valid && (victim == blocks.end() || leaves_before(it->second, victim->second)))
        victim = it;
    if (victim == blocks.end()) return {};
    if (policy_ == plain_policy::tiny_lfu && frequency <= victim->second.frequency) return {};
    return entered{number, victim->second.slot, victim->first};
  }
  /// The lowest frequency leaves; then the one used the longest ago; of one step the one that ranked last.
  static bool leaves_before(const block& a, const block& b) {
    if (a.frequency != b.frequency) return a.frequency < b.frequency;
    if (a.step != b.step) return a.step < b.step;
    return a.rank > b.rank;
  }

  plain_policy policy_;
  std::size_t block_tokens_, capacity_, admit_, step_ = 0, offers_of_age_ = 0;
  std::map<std::size_t, std::size_t> selected_;      // tokens of the step, by block
  std::map<std::size_t, std::uint64_t> remembered_;  // frequencies of all blocks
};

}  // namespace pqkv_cases
