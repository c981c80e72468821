// SPDX-License-Identifier: Apache-2.0
// Bookkeeping of a block cache in a decode step of one layer: where every selected token is, how many of them each block has, which blocks
// enter, who leaves. The flat cache beside the textbook's list of lists with a hash, which makes the same decisions. Both take turns over
// the same trace and must agree on every hit. The time is the flat cache's.
//
//   trace:drift    three tokens of four from hot runs of 32 tokens, as many as the cache holds, of which a hundredth is replaced in each
//   step trace:uniform  tokens from anywhere: nearly every offered block enters, and another leaves
#include "data.hpp"
#include "main.hpp"

#include <algorithm>
#include <functional>
#include <list>
#include <random>
#include <unordered_map>

namespace {

constexpr std::size_t tokens = 131072, lists = 8, selected = 1024, offers = 32, turn = 32, turns = 8, hot_run = 32;

struct axes {
  std::size_t block_tokens, cache_tokens;
  bool uniform;
  bool operator==(const axes&) const = default;

  std::size_t capacity() const { return cache_tokens / block_tokens; }
};

/// The rival: a node a block, a node a frequency, a hash for both and one for the counts. Lists are ascending, so that it too asks its
/// hashes once for a run of tokens of one block; risen blocks are spliced, so only entering and leaving ones allocate.
class list_and_hash {
 public:
  explicit list_and_hash(std::size_t capacity) : capacity_(capacity) { where_.reserve(2 * capacity); }

  std::size_t lookup(const std::int32_t* list, std::size_t count, std::int32_t block_tokens, std::int32_t* places) {
    std::size_t hits = 0;
    for (std::size_t i = 0; i < count;) {
      const std::int32_t block = list[i] / block_tokens, first = block * block_tokens;
      const auto found = where_.find(block);
      const std::size_t begin = i;
      for (; i < count && list[i] - first < block_tokens; ++i)
        places[i] = found == where_.end() ? -1 : found->second.node->slot * block_tokens + (list[i] - first);
      hits += found != where_.end() ? i - begin : 0;
      counts_[block] += static_cast<std::uint32_t>(i - begin);
    }
    return hits;
  }

  void admit() {
    ranked_.clear();
    for (const auto& [block, count] : counts_)
      ranked_.push_back(std::uint64_t{count} << 32 | (0xffffffffu - static_cast<std::uint32_t>(block)));
    counts_.clear();
    const std::size_t count = std::min(offers, ranked_.size());
    std::nth_element(ranked_.begin(), ranked_.begin() + static_cast<std::ptrdiff_t>(count) - 1, ranked_.end(), std::greater<>());
    std::sort(ranked_.begin(), ranked_.begin() + static_cast<std::ptrdiff_t>(count), std::greater<>());
    std::int32_t best[offers];
    for (std::size_t i = 0; i < count; ++i) best[i] = static_cast<std::int32_t>(0xffffffffu - (ranked_[i] & 0xffffffffu));
    offer(best, count);
  }

 private:
  struct item {
    std::int32_t block, slot;
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

  /// ranked [count]: distinct blocks, best first.
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
        where_.erase(search->items.front().block);
        search->items.pop_front();
        if (search->items.empty()) search = buckets_.erase(search);
      }
      --entering;
    }
    if (entering == absent_.size()) return;
    if (buckets_.empty() || buckets_.front().frequency != 1) buckets_.push_front({1, {}});
    for (std::size_t i = entering; i < absent_.size(); ++i) {
      buckets_.front().items.push_back(absent_[i]);
      where_[absent_[i].block] = {buckets_.begin(), std::prev(buckets_.front().items.end())};
    }
  }
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
  std::unordered_map<std::int32_t, std::uint32_t> counts_;
  std::vector<std::uint64_t> ranked_;
  std::vector<item> absent_;
};

/// A trace of many turns, and both caches after a first pass over it.
struct contest {
  explicit contest(const axes& a)
      : of(a),
        indices(turns * turn * lists * selected),
        counts(lists, selected),
        places(lists * selected),
        flat(pqkv::exec::host<>{}, {.caches = 1, .tokens = tokens, .block_tokens = a.block_tokens, .capacity_blocks = a.capacity()}),
        nodes(a.capacity()) {
    std::mt19937_64 random(71);
    std::vector<std::size_t> hot(a.cache_tokens / hot_run);
    for (std::size_t& r : hot) r = random() % (tokens / hot_run);
    std::vector<std::size_t> drawn_in(tokens, turns * turn * lists);
    for (std::size_t step = 0; step < turns * turn; ++step) {
      for (std::size_t i = 0; i < 1 + hot.size() / 100; ++i) hot[random() % hot.size()] = random() % (tokens / hot_run);
      for (std::size_t list = step * lists; list < (step + 1) * lists; ++list) {
        const auto first = indices.begin() + static_cast<std::ptrdiff_t>(list * selected);
        for (std::size_t i = 0; i < selected;) {
          const bool is_hot = !a.uniform && random() % 4 != 0;
          const std::size_t t = is_hot ? hot[random() % hot.size()] * hot_run + random() % hot_run : random() % tokens;
          if (std::exchange(drawn_in[t], list) != list) first[static_cast<std::ptrdiff_t>(i++)] = static_cast<std::int32_t>(t);
        }
        std::sort(first, first + static_cast<std::ptrdiff_t>(selected));
      }
    }
    for (std::size_t i = 0; i < turns; ++i) {
      run_flat(i);
      run_nodes(i);
    }
  }

  std::size_t run_flat(std::size_t which) {
    const pqkv::exec::host<> cpu;
    const auto cache = flat.view();
    const std::uint32_t all_final = tokens;
    const auto one = cache.one(0);
    const std::uint64_t before = one.statistics->hits;
    for (std::size_t step = which * turn; step < (which + 1) * turn; ++step) {
      const std::int32_t* const list = indices.data() + step * lists * selected;
      pqkv::lookup_blocks(cpu, cache, {pqkv::make_view(list, lists, selected), pqkv::as_const(pqkv::make_view(counts.data(), lists)), {}},
                          pqkv::make_view(places.data(), lists, selected));
      pqkv::admit_blocks(cpu, cache, pqkv::make_view(&all_final, 1));
      pqkv::fill_blocks(cpu, cache);
    }
    return one.statistics->hits - before;
  }
  std::size_t run_nodes(std::size_t which) {
    std::size_t hits = 0;
    for (std::size_t step = which * turn; step < (which + 1) * turn; ++step) {
      for (std::size_t list = 0; list < lists; ++list)
        hits += nodes.lookup(indices.data() + (step * lists + list) * selected, selected, static_cast<std::int32_t>(of.block_tokens),
                             places.data() + list * selected);
      nodes.admit();
    }
    return hits;
  }

  axes of;
  std::vector<std::int32_t> indices;
  std::vector<std::uint32_t> counts;
  std::vector<std::int32_t> places;
  pqkv::block_cache<> flat;
  list_and_hash nodes;
  std::size_t next = 0;
};

void run(benchmark::State& state, const axes& a) {
  static std::optional<contest> data;  // it neither copies nor moves
  if (!data || !(data->of == a)) data.emplace(a);
  double flat_seconds = 0, node_seconds = 0;
  std::size_t hits = 0;
  for (auto _ : state) {
    const std::size_t which = data->next++ % turns;
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
  const auto steps = static_cast<double>(state.iterations()) * turn;
  state.counters["us_per_step"] = flat_seconds / steps * 1e6;
  state.counters["list_and_hash_us_per_step"] = node_seconds / steps * 1e6;
  state.counters["times_list_and_hash"] = node_seconds / flat_seconds;
  state.counters["hit_rate"] = static_cast<double>(hits) / (steps * lists * selected);
}

void add_all() {
  for (const std::size_t block_tokens : {1u, 16u, 128u})
    for (const std::size_t cache_tokens : {4096u, 32768u})
      for (const bool uniform : {false, true}) {
        const axes a{block_tokens, cache_tokens, uniform};
        bench::add(
            bench::named("block_cache", {{"B", block_tokens}, {"cache", cache_tokens}, {"n", tokens}, {"lists", lists}, {"k", selected}},
                         {{"trace", uniform ? "uniform" : "drift"}}),
            [a](benchmark::State& state) { run(state, a); })
            ->UseManualTime();
      }
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run(argc, argv, add_all, "selected tokens: three of four from a drifting hot set, or all from anywhere");
}
