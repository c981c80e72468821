// SPDX-License-Identifier: Apache-2.0
// Random lives of a context-parallel cache beside one pqcache that holds everything. A life is a script of calls that depends on its seed
// alone: one thread for each rank plays it to its rank, and one plays it to the pqcache. Every answer is written down, and compared after.
#pragma once

#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include <pqkv/pqkv.hpp>
#include <pqkv/scale/context_parallel.hpp>
#include <pqkv/scale/in_process.hpp>

#include "inputs.hpp"
#include "slot_bytes.hpp"

namespace pqkv_cases {

/// What the queries of one step were answered.
struct answer {
  std::vector<std::vector<std::int32_t>> lists;  // of each query token and list: positions, ascending
  std::vector<float> out, lse;
};
using answers = std::vector<answer>;

/// Plays to a pqcache.
template <class T>
class whole_player {
 public:
  using cache_type = pqkv::pqcache<pqkv::dense_rows<T>>;
  whole_player(const typename cache_type::params& p) : cache_(p) {}

  void prefill(std::size_t slot, pqkv::view<const T, 3> keys, pqkv::view<const T, 3> values, pqkv::chunk which) {
    cache_.prefill(cpu_, slot, keys, values, which);
  }
  void copy_by_file(std::size_t from, std::size_t to) {
    const std::vector<std::byte> file = saved(cpu_, cache_, from);
    cache_.reset(to);
    load(cpu_, cache_, to, file);
  }
  cache_type& cache() { return cache_; }
  const pqkv::exec::host<>& policy() const { return cpu_; }

 private:
  pqkv::exec::host<> cpu_;
  cache_type cache_;
};

/// Copies a slot of a context_parallel: each rank saves it, and reads its own file.
template <class Policy, class Cache>
void copy_by_own_file(const Policy& policy, Cache& cache, std::size_t from, std::size_t to) {
  const std::vector<std::byte> file = saved(policy, cache, from);
  cache.reset(policy, to);
  file_source own[] = {{file}};
  cache.load(policy, to, own);
}

/// Plays to one rank.
template <class T, class Communicator = pqkv::scale::in_process>
class rank_player {
 public:
  using cache_type = pqkv::scale::context_parallel<pqkv::dense_rows<T>, Communicator>;
  rank_player(const Communicator& ranks, const typename cache_type::params& p) : rank_(ranks.rank()), cache_(cpu_, ranks, p) {}

  void prefill(std::size_t slot, pqkv::view<const T, 3> keys, pqkv::view<const T, 3> values, pqkv::chunk which) {
    const std::size_t before = cache_.size(slot), n = keys.extent(1), h = keys.extent(0), d = keys.extent(2);
    std::vector<std::size_t> own;
    for (std::size_t t = 0; t < n; ++t)
      if (cache_.layout().owner(before + t) == rank_) own.push_back(t);
    rows<T> k(h, own.size(), d), v(h, own.size(), d);
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t t = 0; t < own.size(); ++t)
        for (std::size_t i = 0; i < d; ++i) k(head, t, i) = keys(head, own[t], i), v(head, t, i) = values(head, own[t], i);
    cache_.prefill(cpu_, slot, k.view(), v.view(), n, which);
  }
  void copy_by_file(std::size_t from, std::size_t to) { copy_by_own_file(cpu_, cache_, from, to); }
  cache_type& cache() { return cache_; }
  const pqkv::exec::host<>& policy() const { return cpu_; }

 private:
  pqkv::exec::host<> cpu_;
  std::size_t rank_;
  cache_type cache_;
};

/// What a step's queries are answered. @param most  room for the tokens of a list
template <class Player>
answer ask(Player& player, pqkv::view<const float, 3> query, std::size_t lists, std::size_t most, const pqkv::cache_step& step) {
  const std::size_t tokens = query.extent(0), hq = query.extent(1), all = tokens * lists;
  std::vector<std::int32_t> indices(all * most);
  std::vector<std::uint32_t> sizes(all);
  rows<float> out(tokens, hq, query.extent(2));
  answer found;
  found.lse.resize(tokens * hq);
  player.cache().retrieve(player.policy(), query, pqkv::make_view(indices.data(), tokens, lists, most),
                          pqkv::make_view(sizes.data(), tokens, lists), step);
  for (std::size_t list = 0; list < all; ++list) {
    const auto first = indices.begin() + static_cast<std::ptrdiff_t>(list * most);
    found.lists.emplace_back(first, first + static_cast<std::ptrdiff_t>(sizes[list]));
  }
  player.cache().attend(player.policy(), query, out.view(), pqkv::make_view(found.lse.data(), tokens, hq), step);
  found.out.assign(out.view().data, out.view().data + query.size());
  return found;
}

/// A life: what happens, from its seed.
struct life_script {
  std::size_t batch, h, hq, d, lists, capacity, events;
  content what;
  std::uint64_t seed;

  template <class T, class Player>
  answers play(Player& player) const {
    random_source random(seed);
    answers all;
    std::vector<std::size_t> n(batch, 0);
    const auto drawn = [&](std::size_t a, std::size_t b, content like) {
      rows<T> made(a, b, d);
      fill(made.view(), like, random);
      return made;
    };
    const auto prefill = [&](std::size_t slot, std::size_t count) {
      const auto keys = drawn(h, count, what), values = drawn(h, count, content::gaussian);
      for (std::size_t first = 0; first < count || count == 0;) {
        const std::size_t some = count == 0 || random.below(2) == 0 ? count - first : 1 + random.below(count - first);
        player.prefill(slot, keys.view().slice(1, first, some), values.view().slice(1, first, some),
                       first + some == count ? pqkv::chunk::last : pqkv::chunk::more);
        first += some;
        if (count == 0) break;
      }
      n[slot] = count;
    };
    for (std::size_t slot = 0; slot < batch; ++slot) prefill(slot, random.below(3) == 0 ? random.below(40) : random.below(capacity - 30));
    for (std::size_t event = 0; event < events; ++event) {
      const std::size_t slot = random.below(batch), other = random.below(batch), kind = random.below(16);
      if (kind == 0) {
        player.cache().reset(player.policy(), slot);
        n[slot] = 0;
      } else if (kind == 1) {
        player.cache().fork(player.policy(), slot, other);
        n[other] = n[slot];
      } else if (kind == 2) {
        player.cache().maintain(player.policy());
      } else if (kind == 3 && n[slot] == 0) {
        prefill(slot, random.below(capacity - 20));
      } else if (kind == 4 || kind == 5) {
        n[slot] -= random.below(1 + n[slot] / (1 + random.below(8)));
        player.cache().truncate(player.policy(), slot, n[slot]);
      } else if (kind == 6) {
        player.copy_by_file(slot, other);
        n[other] = n[slot];
      } else {
        all.push_back(step<T>(player, random, n, drawn));
      }
    }
    return all;
  }

 private:
  template <class T, class Player, class Drawn>
  answer step(Player& player, random_source& random, std::vector<std::size_t>& n, const Drawn& drawn) const {
    std::vector<std::uint32_t> slots, counts;
    std::size_t tokens = 0;
    for (std::uint32_t slot = 0; slot < batch; ++slot) {
      if (random.below(4) == 0) continue;
      const std::size_t count = std::min(capacity - n[slot], random.below(3) == 0 ? random.below(6) : std::size_t{1});
      slots.push_back(slot), counts.push_back(static_cast<std::uint32_t>(count));
      n[slot] += count, tokens += count;
    }
    pqkv::cache_step step;
    step.slots = pqkv::make_view(std::as_const(slots));
    step.counts = pqkv::make_view(std::as_const(counts));
    const auto keys = drawn(tokens, h, what), values = drawn(tokens, h, content::gaussian);
    player.cache().append(player.policy(), keys.view(), values.view(), step);
    rows<float> query(tokens, hq, d);
    fill(query.view(), content::gaussian, random);
    const float loud = random.below(4) == 0 ? 8.0f : 1.0f;  // steep: products far below the table's maxima
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t q = 0; q < hq; ++q)
        for (std::size_t i = 0; i < d; ++i) query(t, q, i) *= loud;
    return ask(player, pqkv::as_const(query.view()), lists, capacity, step);
  }
};

/// Runs task(rank) in a thread for each rank. Returns what each threw, "" if nothing.
template <class Task>
std::vector<std::string> run_ranks(std::size_t ranks, const Task& task) {
  std::vector<std::string> thrown(ranks);
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      try {
        task(rank);
      } catch (const std::exception& error) {
        thrown[rank] = error.what();
      }
    });
  for (std::thread& one : threads) one.join();
  return thrown;
}

/// The ranks' lists together, ascending.
inline std::vector<std::int32_t> joined_list(const std::vector<answers>& parts, std::size_t step, std::size_t list) {
  std::vector<std::int32_t> all;
  for (const answers& part : parts) all.insert(all.end(), part[step].lists[list].begin(), part[step].lists[list].end());
  std::sort(all.begin(), all.end());
  return all;
}

/// The largest |a - b| / (1 + |b|); infinite where one alone is not finite.
inline float distance(const std::vector<float>& a, const std::vector<float>& b) {
  float most = a.size() == b.size() ? 0.0f : INFINITY;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
    if (!(a[i] == b[i]))
      most = std::max(most, std::isnan(a[i]) && std::isnan(b[i]) ? 0.0f : std::fabs(a[i] - b[i]) / (1 + std::fabs(b[i])));
  return most;
}

}  // namespace pqkv_cases
