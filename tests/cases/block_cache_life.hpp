// SPDX-License-Identifier: Apache-2.0
// A random life of block caches in the memory of any policy, beside plain models of them: selections of many kinds, growth, cuts, copies,
// failed fetches. After every step all that a cache says must be what the model says, and every row that it finds in fast memory must be
// the row of that token as slow memory has it now.
#pragma once

#include <pqkv/cache/block_cache.hpp>

#include <cstdio>
#include <string>

#include "inputs.hpp"
#include "placed_array.hpp"
#include "plain_block_cache.hpp"

namespace pqkv_cases {

template <class E>
inline constexpr plain_policy plain_policy_of = std::is_same_v<E, pqkv::eviction::lfu>   ? plain_policy::lfu
                                                : std::is_same_v<E, pqkv::eviction::lru> ? plain_policy::lru
                                                                                         : plain_policy::tiny_lfu;

/// Settings of a life beside the caches' own.
struct block_life {
  pqkv::block_cache_shape shape;
  std::size_t caches_of_sequence = 1;  // KV heads that have a cache each
  std::size_t lists_of_cache = 1;      // of one query
  std::size_t queries = 0;             // 0: one for each sequence, in order
  std::size_t list_tokens = 16;        // k_max
};

/// Runs its work at once. Another runner may record it and replay it.
struct at_once {
  template <class F>
  void operator()(F&& enqueue) const {
    enqueue();
  }
};

template <class E, class Policy, class Runner = at_once>
class block_cache_life {
  using space = typename Policy::space_type;
  using u32 = std::uint32_t;

 public:
  block_cache_life(const Policy& policy, const block_life& settings, std::uint64_t seed, Runner runner = {})
      : policy_(policy),
        set_(settings),
        runner_(runner),
        random_(seed),
        owner_(policy, settings.shape),
        host_memory_(pqkv::block_cache_view<E>::required_bytes(settings.shape)),
        length_(sequences()),
        slow_(settings.shape.caches, std::vector<u32>(settings.shape.tokens)),
        fast_(settings.shape.caches, std::vector<u32>(settings.shape.capacity_blocks * settings.shape.block_tokens)),
        indices_(policy, lists() * settings.list_tokens),
        counts_(policy, lists()),
        whose_(policy, queries()),
        places_(policy, lists() * settings.list_tokens),
        lengths_(policy, settings.shape.caches) {
    for (std::size_t c = 0; c < set_.shape.caches; ++c)
      models_.emplace_back(plain_policy_of<E>, set_.shape.block_tokens, set_.shape.capacity_blocks, set_.shape.admit_blocks);
    for (std::size_t& n : length_) n = grow_to(0, random_.below(set_.shape.tokens + 1));
  }

  /// @return what went wrong, or nothing
  std::string run(std::size_t steps) {
    for (std::size_t step = 0; step < steps && wrong_.empty(); ++step) {
      change();
      select();
      const bool fails = random_.below(9) == 0, cut_between = random_.below(9) == 0;
      lengths_.write(final_lengths());
      runner_([&] {
        pqkv::lookup_blocks(policy_, owner_.view(), lookup(), places_.view(lists(), set_.list_tokens));
        pqkv::admit_blocks(policy_, owner_.view(), lengths_.const_view(set_.shape.caches));
      });
      follow_lookup();
      follow_admission();
      if (cut_between) truncate();
      if (fails)
        pqkv::abandon_blocks(policy_, owner_.view());
      else
        pqkv::fill_blocks(policy_, owner_.view());
      for (plain_block_cache& model : models_) fails ? model.abandon() : model.fill();
      compare();
      if (!wrong_.empty()) wrong_ += " in step " + std::to_string(step);
    }
    return wrong_;
  }

  std::uint64_t hits() const { return total(&plain_block_cache::totals::hits); }
  std::uint64_t evictions() const { return total(&plain_block_cache::totals::evictions); }

 private:
  std::size_t sequences() const { return set_.shape.caches / set_.caches_of_sequence; }
  std::size_t queries() const { return set_.queries != 0 ? set_.queries : sequences(); }
  std::size_t lists() const { return queries() * set_.caches_of_sequence * set_.lists_of_cache; }
  std::size_t cache_of(std::size_t list) const {
    const std::size_t of_query = set_.caches_of_sequence * set_.lists_of_cache;
    return sequence_[list / of_query] * set_.caches_of_sequence + list % of_query / set_.lists_of_cache;
  }
  std::uint64_t total(std::uint64_t plain_block_cache::totals::*which) const {
    std::uint64_t all = 0;
    for (const plain_block_cache& model : models_) all += model.counted.*which;
    return all;
  }
  pqkv::block_lookup<space> lookup() const {
    pqkv::block_lookup<space> all{indices_.const_view(lists(), set_.list_tokens), counts_.const_view(lists()), {}, set_.caches_of_sequence};
    if (set_.queries != 0) all.sequences = whose_.const_view(queries());
    return all;
  }

  /// New rows, which differ from all that stood there before.
  std::size_t grow_to(std::size_t n, std::size_t last) {
    for (std::size_t c = 0; c < slow_.size(); ++c)
      for (std::size_t t = n; t < last; ++t) slow_[c][t] = ++written_;
    return last;
  }

  void truncate() {
    std::vector<u32> lengths;
    for (std::size_t sequence = 0; sequence < sequences(); ++sequence) {
      const std::size_t n = length_[sequence];
      if (random_.below(2) == 0)
        length_[sequence] = random_.below(3) == 0 ? random_.below(n + 1) : n - random_.below(std::min<std::size_t>(n, 9) + 1);
      for (std::size_t c = 0; c < set_.caches_of_sequence; ++c) lengths.push_back(static_cast<u32>(length_[sequence]));
    }
    lengths_.write(lengths);
    pqkv::truncate_blocks(policy_, owner_.view(), lengths_.const_view(lengths.size()));
    for (std::size_t c = 0; c < models_.size(); ++c) models_[c].truncate(lengths[c]);
  }

  /// What happens between steps.
  void change() {
    if (random_.below(6) == 0) truncate();
    for (std::size_t& n : length_) {
      const std::size_t room = set_.shape.tokens - n,
                        more = random_.below(4) == 0 ? random_.below(room + 1) : std::min<std::size_t>(room, random_.below(3));
      for (std::size_t c = 0; c < set_.caches_of_sequence; ++c) {
        const std::size_t cache = static_cast<std::size_t>(&n - length_.data()) * set_.caches_of_sequence + c;
        for (std::size_t t = n; t < n + more; ++t) slow_[cache][t] = ++written_;
      }
      n += more;
    }
    if (random_.below(40) == 0) {
      const std::size_t sequence = random_.below(sequences()), first = sequence * set_.caches_of_sequence;
      pqkv::reset_blocks(policy_, owner_.view().slice(first, set_.caches_of_sequence));
      for (std::size_t c = first; c < first + set_.caches_of_sequence; ++c)
        models_[c] = plain_block_cache(plain_policy_of<E>, set_.shape.block_tokens, set_.shape.capacity_blocks, set_.shape.admit_blocks);
    }
    if (random_.below(20) == 0) {
      const std::size_t from = random_.below(sequences()), to = random_.below(sequences());
      length_[to] = length_[from];
      for (std::size_t c = 0; c < set_.caches_of_sequence; ++c) {
        const std::size_t source = from * set_.caches_of_sequence + c, target = to * set_.caches_of_sequence + c;
        pqkv::copy_blocks(policy_, owner_.view(), source, target);
        models_[target] = models_[source];
        slow_[target] = slow_[source];
        fast_[target] = fast_[source];
      }
    }
  }

  /// Tokens of every list, ascending.
  void select() {
    sequence_.clear();
    for (std::size_t query = 0; query < queries(); ++query) sequence_.push_back(set_.queries != 0 ? random_.below(sequences()) : query);
    std::vector<u32> whose(sequence_.begin(), sequence_.end()), counts(lists());
    std::vector<std::int32_t> indices(lists() * set_.list_tokens, -1);
    if (random_.below(5) == 0) hot_ = random_.below(set_.shape.tokens);
    const std::size_t kind = random_.below(5);
    for (std::size_t list = 0; list < lists(); ++list) {
      const std::size_t n = length_[cache_of(list) / set_.caches_of_sequence], wanted = std::min(n, random_.below(set_.list_tokens + 1));
      std::vector<std::size_t> chosen;
      for (std::size_t i = 0; i < wanted; ++i) switch (kind) {
          case 0:  // anywhere
            chosen.push_back(random_.below(n));
            break;
          case 1:  // most at the start
            chosen.push_back(random_.below(1 + random_.below(1 + random_.below(n))));
            break;
          case 2:  // side by side
            chosen.push_back((hot_ + i) % n);
            break;
          default:  // around what is hot for some steps, and a few others
            chosen.push_back(random_.below(4) == 0 ? random_.below(n) : (hot_ + random_.below(2 * set_.list_tokens)) % n);
            break;
        }
      std::sort(chosen.begin(), chosen.end());
      chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
      counts[list] = static_cast<u32>(chosen.size());
      std::copy(chosen.begin(), chosen.end(), indices.begin() + static_cast<std::ptrdiff_t>(list * set_.list_tokens));
    }
    indices_.write(indices);
    counts_.write(counts);
    whose_.write(whose);
    selected_ = indices;
    selected_counts_ = counts;
  }
  std::vector<u32> final_lengths() {
    std::vector<u32> lengths;
    for (std::size_t c = 0; c < set_.shape.caches; ++c) {
      const std::size_t n = length_[c / set_.caches_of_sequence];
      lengths.push_back(static_cast<u32>(n - random_.below(std::min<std::size_t>(n, 2) + 1)));
    }
    return final_ = lengths;
  }

  void follow_lookup() {
    const std::vector<std::int32_t> places = places_.read();
    for (std::size_t list = 0; list < lists(); ++list) {
      const std::size_t c = cache_of(list), first = list * set_.list_tokens;
      const std::vector<std::size_t> tokens(selected_.begin() + static_cast<std::ptrdiff_t>(first),
                                            selected_.begin() + static_cast<std::ptrdiff_t>(first + selected_counts_[list]));
      const std::vector<long> wanted = models_[c].lookup(tokens);
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        expect(places[first + i] == wanted[i], "the place of a token");
        if (places[first + i] >= 0 && wrong_.empty())
          expect(fast_[c][static_cast<std::size_t>(places[first + i])] == slow_[c][tokens[i]], "a stale row");
      }
    }
  }
  void follow_admission() {
    const pqkv::block_cache_view<E> now = here();
    for (std::size_t c = 0; c < models_.size(); ++c) {
      const std::vector<plain_block_cache::entered> wanted = models_[c].admit(final_[c]);
      const auto one = now.one(c);
      if (!expect(one.progress->admitted == wanted.size(), "how many blocks were admitted")) return;
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        const pqkv::block_admission& entered = one.admitted[i];
        const std::int64_t evicted = wanted[i].evicted ? static_cast<std::int64_t>(*wanted[i].evicted) : -1;
        if (!expect(entered.block == wanted[i].block && entered.slot == wanted[i].slot && entered.evicted == evicted, "an admission"))
          return;
        const std::size_t b = set_.shape.block_tokens;
        for (std::size_t t = 0; t < b; ++t) fast_[c][entered.slot * b + t] = slow_[c][entered.block * b + t];
      }
    }
  }
  void compare() {
    const pqkv::block_cache_view<E> now = here();
    for (std::size_t c = 0; c < models_.size() && wrong_.empty(); ++c) {
      const auto one = now.one(c);
      const auto& model = models_[c];
      std::size_t held = 0;
      for (u32 block = 0; block < one.blocks; ++block) {
        const auto wanted = model.blocks.find(block);
        const bool there = wanted != model.blocks.end();
        held += there ? 1 : 0;
        if (!expect(one.slot_of(block) == (there ? static_cast<std::int32_t>(wanted->second.slot) : -1) && one.counts[block] == 0,
                    "the slot of a block"))
          return;
        if (!there) continue;
        const auto slot = static_cast<u32>(one.slot_of(block));
        expect(one.found(block) == (wanted->second.valid ? one.slot_of(block) : -1), "whether a block is found");
        expect(one.held[slot] == block + 1, "the block of a slot");
        expect(one.states[slot] == (wanted->second.valid ? pqkv::block_state::valid : pqkv::block_state::filling), "a slot's state");
        expect(pqkv::eviction_order::frequency(one.order[slot]) == wanted->second.frequency, "a frequency");
      }
      for (u32 slot = 0; slot < one.capacity; ++slot) held -= one.states[slot] != pqkv::block_state::empty ? 1 : 0;
      expect(held == 0, "slots that nobody holds");
      const pqkv::block_statistics& s = *one.statistics;
      expect(model.counted == plain_block_cache::totals{s.hits, s.misses, s.admissions, s.evictions, s.kept_out}, "statistics");
    }
  }
  /// The caches as they are now, in host memory.
  pqkv::block_cache_view<E> here() {
    pqkv::arena memory(host_memory_);
    const auto copy = pqkv::block_cache_view<E>::place(memory, set_.shape);
    pqkv::copy_bytes(policy_, copy.first.slots, owner_.view().first.slots, copy.caches() * copy.cache_bytes);
    pqkv::sync(policy_);
    return copy;
  }
  bool expect(bool holds, const char* what) {
    if (!holds && wrong_.empty()) wrong_ = what;
    return holds;
  }

  Policy policy_;
  block_life set_;
  Runner runner_;
  random_source random_;
  pqkv::block_cache<E, space> owner_;
  pqkv::buffer<std::byte> host_memory_;
  std::vector<std::size_t> length_, sequence_;  // of each sequence; of each query
  std::vector<std::vector<u32>> slow_, fast_;   // what stands in each row, of each cache
  placed_array<std::int32_t, Policy> indices_;
  placed_array<u32, Policy> counts_, whose_;
  placed_array<std::int32_t, Policy> places_;
  placed_array<u32, Policy> lengths_;
  std::vector<plain_block_cache> models_;
  std::vector<std::int32_t> selected_;
  std::vector<u32> selected_counts_, final_;
  std::size_t hot_ = 0;
  u32 written_ = 0;
  std::string wrong_;
};

/// Settings of many lives: every size of block and cache, one cache a sequence or one a head, queries in order or of any sequence.
inline block_life random_block_life(random_source& random) {
  constexpr std::size_t block_tokens[] = {1, 1, 2, 3, 16, 64, 128, 256}, admits[] = {1, 2, 5, 32, 200};
  block_life life;
  life.caches_of_sequence = 1 + random.below(2);
  life.lists_of_cache = 1 + random.below(3);
  life.shape.caches = life.caches_of_sequence * (1 + random.below(3));
  life.shape.block_tokens = block_tokens[random.below(8)];
  life.shape.tokens = 1 + random.below(random.below(2) == 0 ? 60 : 40 * life.shape.block_tokens);
  const std::size_t blocks = life.shape.blocks(), capacities[] = {0, 1, 2, 1 + blocks / 4, 1 + blocks / 2, blocks, blocks + 3};
  life.shape.capacity_blocks = capacities[random.below(7)];
  life.shape.admit_blocks = admits[random.below(5)];
  life.list_tokens = 1 + random.below(60);
  life.queries = random.below(2) == 0 ? 0 : 1 + random.below(4);
  return life;
}

}  // namespace pqkv_cases
