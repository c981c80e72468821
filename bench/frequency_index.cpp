// SPDX-License-Identifier: Apache-2.0
// Least frequently used blocks: the flat index beside the textbook's list of lists with a hash, which makes the same decisions. Both
// take turns over the same trace, 1024 steps at a time, and must agree on every hit. The time is the flat index's.
//
//   work:ranked  a step looks up 32 distinct keys and offers all of them, ranked by the caller
//   work:counts  a step looks up 128 distinct keys and offers the 32 of the highest counts
#include "data.hpp"
#include "main.hpp"

#include <pqkv/cache/frequency_index.hpp>

#include <algorithm>
#include <functional>
#include <list>
#include <numeric>
#include <random>
#include <unordered_map>

namespace {

using index_view = pqkv::frequency_index_view<>;
constexpr std::size_t offers = 32, turn = 1024;

struct axes {
  std::size_t keys, capacity, step_keys;
  bool uniform;
  bool operator==(const axes&) const = default;
};

/// The rival: a node a key, a node a frequency, a hash; risen keys are spliced, so only entering and leaving ones allocate.
class list_and_hash {
 public:
  explicit list_and_hash(std::size_t capacity) : capacity_(capacity) { where_.reserve(2 * capacity); }

  std::size_t lookup(const std::int32_t* keys, std::size_t count, std::int32_t* slots) const {
    std::size_t hits = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto found = where_.find(keys[i]);
      slots[i] = found == where_.end() ? -1 : found->second.node->slot;
      hits += found != where_.end();
    }
    return hits;
  }

  /// ranked [count]: distinct keys, best first.
  void offer(const std::int32_t* ranked, std::size_t count) {
    const std::uint64_t step = offers_;
    offers_ += count;
    absent_.clear();
    for (std::size_t rank = count; rank-- > 0;) {
      const auto found = where_.find(ranked[rank]);
      if (found != where_.end())
        rise(found->second, step + (count - 1 - rank));
      else
        absent_.push_back({ranked[rank], 0, step + (count - 1 - rank)});
    }
    auto search = buckets_.begin();
    std::size_t entering = absent_.size();
    while (entering != 0) {
      item& next = absent_[entering - 1];
      if (where_.size() + (absent_.size() - entering) < capacity_) {
        next.slot = static_cast<std::int32_t>(where_.size() + (absent_.size() - entering));
      } else {
        while (search != buckets_.end() && search->items.front().offer >= step) ++search;
        if (search == buckets_.end()) break;
        next.slot = search->items.front().slot;
        where_.erase(search->items.front().key);
        search->items.pop_front();
        if (search->items.empty()) search = buckets_.erase(search);
      }
      --entering;
    }
    if (entering == absent_.size()) return;
    if (buckets_.empty() || buckets_.front().frequency != 1) buckets_.push_front({1, {}});
    for (std::size_t i = entering; i < absent_.size(); ++i) {
      buckets_.front().items.push_back(absent_[i]);
      where_[absent_[i].key] = {buckets_.begin(), std::prev(buckets_.front().items.end())};
    }
  }

 private:
  struct item {
    std::int32_t key, slot;
    std::uint64_t offer;
  };
  struct bucket {
    std::uint32_t frequency;
    std::list<item> items;
  };
  struct place {
    std::list<bucket>::iterator in_bucket;
    std::list<item>::iterator node;
  };

  void rise(place& at, std::uint64_t offer) {
    const auto from = at.in_bucket;
    auto to = std::next(from);
    if (to == buckets_.end() || to->frequency != from->frequency + 1) to = buckets_.insert(to, {from->frequency + 1, {}});
    to->items.splice(to->items.end(), from->items, at.node);
    at.node->offer = offer;
    at.in_bucket = to;
    if (from->items.empty()) buckets_.erase(from);
  }

  std::size_t capacity_;
  std::uint64_t offers_ = 0;
  std::list<bucket> buckets_;
  std::unordered_map<std::int32_t, place> where_;
  std::vector<item> absent_;
};

/// A trace of many turns, and both caches after a first pass over it.
struct contest {
  static constexpr std::size_t turns = 16;

  explicit contest(const axes& a)
      : of(a), keys(turns * turn * a.step_keys), counts(keys.size()), slots(a.step_keys), flat(a.keys, a.capacity), nodes(a.capacity) {
    std::mt19937_64 random(71);
    std::vector<double> below(a.keys);  // Zipf's law, exponent 1, over keys in random order
    double sum = 0;
    for (std::size_t i = 0; i < a.keys; ++i) below[i] = sum += a.uniform ? 1.0 : 1.0 / static_cast<double>(i + 1);
    std::vector<std::int32_t> order(a.keys);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::size_t> drawn_in(a.keys, keys.size());
    for (std::size_t i = 0; i < keys.size();) {
      const double x = sum * static_cast<double>(random() >> 11) * 0x1p-53;
      const auto rank = static_cast<std::size_t>(std::upper_bound(below.begin(), below.end() - 1, x) - below.begin());
      if (std::exchange(drawn_in[rank], i / a.step_keys) == i / a.step_keys) continue;  // distinct keys in a step
      counts[i] = 1 + static_cast<std::uint32_t>(random() % 64);
      keys[i++] = order[rank];
    }
    for (std::size_t i = 0; i < turns; ++i) {
      run_flat(i);
      run_nodes(i);
    }
  }

  std::size_t run_flat(std::size_t which) {
    const index_view index = flat.mutable_view();
    std::size_t hits = 0;
    for (std::size_t step = which * turn; step < (which + 1) * turn; ++step) {
      const auto list = pqkv::as_const(pqkv::make_view(keys.data() + step * of.step_keys, of.step_keys));
      hits += index.lookup(list, pqkv::make_view(slots.data(), of.step_keys)).hits;
      if (of.step_keys == offers)
        index.admit_ranked(list);
      else
        index.admit(list, pqkv::as_const(pqkv::make_view(counts.data() + step * of.step_keys, of.step_keys)), offers);
    }
    return hits;
  }

  std::size_t run_nodes(std::size_t which) {
    std::size_t hits = 0;
    for (std::size_t step = which * turn; step < (which + 1) * turn; ++step) {
      const std::int32_t* list = keys.data() + step * of.step_keys;
      hits += nodes.lookup(list, of.step_keys, slots.data());
      if (of.step_keys == offers) {
        nodes.offer(list, offers);
        continue;
      }
      ranked.clear();  // keys are distinct: no counts to add up
      for (std::size_t i = 0; i < of.step_keys; ++i)
        ranked.push_back(std::uint64_t{counts[step * of.step_keys + i]} << 32 | (0xffffffffu - static_cast<std::uint32_t>(list[i])));
      std::nth_element(ranked.begin(), ranked.begin() + offers, ranked.end(), std::greater<>());
      std::sort(ranked.begin(), ranked.begin() + offers, std::greater<>());
      std::int32_t best[offers];
      for (std::size_t i = 0; i < offers; ++i) best[i] = static_cast<std::int32_t>(0xffffffffu - (ranked[i] & 0xffffffffu));
      nodes.offer(best, offers);
    }
    return hits;
  }

  axes of;
  std::vector<std::int32_t> keys;
  std::vector<std::uint32_t> counts;
  std::vector<std::int32_t> slots;
  std::vector<std::uint64_t> ranked;
  pqkv::frequency_index<> flat;
  list_and_hash nodes;
  std::size_t next = 0;
};

void run(benchmark::State& state, const axes& a) {
  static std::optional<contest> data;  // it neither copies nor moves
  if (!data || !(data->of == a)) data.emplace(a);
  double flat_seconds = 0, node_seconds = 0;
  std::size_t hits = 0;
  for (auto _ : state) {
    const std::size_t which = data->next++ % contest::turns;
    const bench::stopwatch first;
    const std::size_t found = data->run_flat(which);
    const double seconds = first.seconds();
    const bench::stopwatch second;
    const std::size_t rival_found = data->run_nodes(which);
    node_seconds += second.seconds();
    flat_seconds += seconds;
    state.SetIterationTime(seconds);
    hits += found;
    if (found != rival_found) {
      state.SkipWithError("the two disagree on what is a hit");
      return;
    }
  }
  const auto keys = static_cast<double>(state.iterations()) * static_cast<double>(turn * a.step_keys);
  state.counters["ns_per_key"] = flat_seconds / keys * 1e9;
  state.counters["list_and_hash_ns_per_key"] = node_seconds / keys * 1e9;
  state.counters["times_list_and_hash"] = node_seconds / flat_seconds;
  state.counters["hit_rate"] = static_cast<double>(hits) / keys;
}

void add_all() {
  for (const std::size_t keys : {4096u, 65536u})
    for (const bool uniform : {false, true})
      for (const std::size_t step_keys : {offers, 4 * offers}) {
        const axes a{keys, keys / 4, step_keys, uniform};
        bench::add(bench::named("frequency_index", {{"keys", keys}, {"capacity", keys / 4}},
                                {{"trace", uniform ? "uniform" : "zipf"}, {"work", step_keys == offers ? "ranked" : "counts"}}),
                   [a](benchmark::State& state) { run(state, a); })
            ->UseManualTime();
      }
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run(argc, argv, add_all, "keys drawn by Zipf's law with exponent 1, or all alike; counts 1 to 64");
}
