// SPDX-License-Identifier: Apache-2.0
// The caches that the soak lets live, one kind for each place that rows can be in. Each is the test tree's own pair of a cache and what it
// is compared with (cases/): on the host a cache of dense rows beside the plain model; every other kind beside a cache of dense rows.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cases/model_life.hpp"
#include "cases/paged_twins.hpp"
#include "cases/quantized_twins.hpp"
#include "cases/queued_twins.hpp"
#include "cases/tiered_twins.hpp"

namespace pqkv_soak {

using namespace pqkv_cases;
using host_pq = pqkv::selector::basic_pq<>;
using device_pq = pqkv::selector::basic_pq<pqkv::space::device>;
using host = pqkv::exec::host<>;
using dense_params = pqkv::pqcache<>::params;

/// What has been done so far.
struct life_counts {
  std::size_t lives = 0, events = 0, tokens = 0, compared = 0, ranked = 0;
  void add(const life_counts& o) { lives += o.lives, events += o.events, tokens += o.tokens, compared += o.compared, ranked += o.ranked; }
};

/// A cache and its reference, under random calls. What differs ends in a failed REQUIRE.
class inhabitant {
 public:
  inhabitant() = default;
  inhabitant(const inhabitant&) = delete;
  inhabitant& operator=(const inhabitant&) = delete;
  virtual ~inhabitant() = default;
  virtual void begin() = 0;
  virtual void event() = 0;
  virtual life_counts counts() const = 0;
  /// Of memory, and of files, that cache and reference were planned with.
  std::size_t planned_bytes = 0;
};

/// The dense cache and the plain model.
template <class T>
class modelled : public inhabitant {
 public:
  modelled(const typename model_life<T, host>::params& p, content what, std::uint64_t seed) : life_({}, p, what, seed) {
    using cache = typename model_life<T, host>::cache_type;
    planned_bytes = cache::plan(p).total_bytes() + p.batch * p.capacity * p.kv_heads * p.head_dim * 2 * sizeof(T);
  }
  void begin() override { life_.begin(); }
  void event() override { life_.event(), ++events_; }
  life_counts counts() const override { return {1, events_, life_.given, life_.checked, life_.listed}; }

 private:
  model_life<T, host> life_;
  std::size_t events_ = 0;
};

/// Twins that share the verbs prefill, step, truncate, fork, maintain; some can be reset, saved and loaded.
template <class Twins>
class twinned : public inhabitant {
 public:
  template <class... Argument>
  twinned(const dense_params& p, std::size_t planned, std::uint64_t seed, Argument&&... argument)
      : batch_(p.batch), capacity_(p.capacity), random_(seed), twins_(std::forward<Argument>(argument)...) {
    planned_bytes = planned;
  }
  void begin() override {
    for (std::size_t slot = 0; slot < batch_; ++slot) prefill(slot, 1 + random_.below(capacity_ - 30));
  }
  void event() override {
    const std::size_t slot = random_.below(batch_), n = twins_.size(slot);
    ++events_;
    switch (random_.below(16)) {
      case 0:
        twins_.fork(slot, random_.below(batch_));
        break;
      case 1:
        twins_.maintain();
        break;
      case 2:
        if (n + 20 > capacity_ || n == 0) prefill(slot, 1 + random_.below(capacity_ - 1));
        break;
      case 3:
        cut(slot, n - random_.below(1 + n / (1 + random_.below(6))));
        break;
      case 4:
        if (random_.below(3) == 0) twins_.reset(slot);
        break;
      case 5:
        if constexpr (requires { twins_.exchange(slot); }) twins_.exchange(slot);
        if constexpr (requires { twins_.exchange(slot, slot); }) twins_.exchange(slot, random_.below(batch_));
        if constexpr (requires { twins_.reload(slot); }) twins_.reload(slot);
        break;
      default:
        step();
    }
  }
  life_counts counts() const override { return {1, events_, tokens_, twins_.checked, twins_.ranked}; }

 private:
  /// Steps of the queue are recorded once and replayed, or made call by call.
  static constexpr bool is_queued = requires(Twins t) { t.draw_step(); };

  void prefill(std::size_t slot, std::size_t n) {
    twins_.prefill(slot, n);
    tokens_ += n;
  }
  void step() {
    const std::size_t before = held();
    if constexpr (is_queued)
      twins_.step(twins_.draw_step(), random_.below(2) == 0);
    else
      twins_.step(random_.below(2) == 0 ? 1 : 7);
    tokens_ += held() - before;
  }
  void cut(std::size_t slot, std::size_t n) {
    if constexpr (is_queued)
      if (random_.below(2) == 0) {
        std::vector<std::uint32_t> lengths;  // of the slots, last to first
        for (std::size_t row = batch_; row-- > 0;) lengths.push_back(static_cast<std::uint32_t>(row == slot ? n : twins_.size(row)));
        return twins_.cut(lengths, random_.below(2) == 0);
      }
    twins_.truncate(slot, n);
  }
  std::size_t held() const {
    std::size_t all = 0;
    for (std::size_t slot = 0; slot < batch_; ++slot) all += twins_.size(slot);
    return all;
  }

  std::size_t batch_, capacity_, events_ = 0, tokens_ = 0;
  random_source random_;
  Twins twins_;
};

/// A cache for twins: now and then a long one.
inline dense_params drawn_params(random_source& random) {
  dense_params p;
  p.batch = 1 + random.below(3), p.kv_heads = 1 + random.below(2), p.query_heads = p.kv_heads * (1 + random.below(4));
  p.head_dim = 16 * (1 + random.below(2));
  p.capacity = random.below(8) == 0 ? 1000 + random.below(3000) : 100 + random.below(300);
  p.step_queries = random.below(2) == 0 ? 0 : 5;
  p.selection = static_cast<pqkv::draft_selection>(random.below(4) == 0);
  p.budget.sinks = random.below(6), p.budget.window = 4 + random.below(12), p.budget.retrieve = 5 + random.below(20);
  p.selector.subspaces = std::size_t{1} << random.below(3), p.selector.bits = 4;
  p.selector.train.iterations = 2, p.selector.train.seed = random.bits();
  p.selector.tail_tokens = 1 + random.below(30);
  if (random.below(3) == 0) p.selector.reduction = static_cast<pqkv::group_reduction>(random.below(5));
  return p;
}

/// @param T  of the stored rows
template <class T>
std::unique_ptr<inhabitant> make_modelled(std::uint64_t seed, const char*) {
  random_source random(seed);
  const auto p = random_params<T>(random);
  const content what = every_content[random.below(4)];
  return std::make_unique<modelled<T>>(p, what, random.bits());
}

inline std::unique_ptr<inhabitant> make_paged(std::uint64_t seed, const char*) {
  using twins = paged_twins<float, host, host_pq, host_pq>;
  random_source random(seed);
  const dense_params p = drawn_params(random);
  constexpr std::size_t sizes[] = {1, 3, 16, 64};
  const page_layout how{sizes[random.below(4)], random.below(2) == 0, random.below(2) == 0};
  const std::size_t pages = 2 * p.batch * ((p.capacity + how.page_tokens - 1) / how.page_tokens);
  const std::size_t pool = pages * how.page_tokens * p.kv_heads * p.head_dim * 2 * sizeof(float);
  const std::size_t planned = 2 * pqkv::pqcache<>::plan(p).total_bytes() + pool;
  return std::make_unique<twinned<twins>>(p, planned, random.bits(), host{}, p, how, content::clustered, random.bits());
}

inline std::unique_ptr<inhabitant> make_quantized(std::uint64_t seed, const char*) {
  using twins = quantized_twins<host, host_pq, host_pq>;
  random_source random(seed);
  const dense_params p = drawn_params(random);
  return std::make_unique<twinned<twins>>(p, 2 * pqkv::pqcache<>::plan(p).total_bytes(), random.bits(), host{}, p,
                                          every_content[random.below(3)], random.bits());
}

inline std::unique_ptr<inhabitant> make_tiered(std::uint64_t seed, const char* folder) {
  using rows = pqkv::tiered_rows<pqkv::file_rows<float>>;
  using twins = tiered_twins<rows, host_pq>;
  random_source random(seed);
  const dense_params p = drawn_params(random);
  rows::params r;
  constexpr std::size_t block_tokens[] = {1, 2, 5, 16, 128};
  r.slow.folder = folder;
  r.block_tokens = block_tokens[random.below(5)];
  const std::size_t sizes[] = {0, r.block_tokens, 4 * r.block_tokens, 60, p.capacity};
  r.cache_tokens = sizes[random.below(5)];
  r.sink_tokens = random.below(12), r.recent_tokens = 1 + random.below(40), r.admit_blocks = 1 + random.below(8);
  typename twins::tiered_cache::params all;
  static_cast<pqkv::cache_shape&>(all) = p;
  all.budget = p.budget, all.selector = p.selector, all.rows = r;
  const std::size_t planned =
      pqkv::pqcache<>::plan(p).total_bytes() + twins::tiered_cache::plan(all).total_bytes() + pqkv::file_rows<float>::file_bytes(p);
  return std::make_unique<twinned<twins>>(p, planned, random.bits(), p, r, random.bits());
}

inline std::unique_ptr<inhabitant> make_queued(std::uint64_t seed, const char*) {
  using twins = queued_twins<float, host_pq, device_pq>;
  random_source random(seed);
  const dense_params p = drawn_params(random);
  const std::size_t most = 20 + random.below(20);
  return std::make_unique<twinned<twins>>(p, 2 * pqkv::pqcache<>::plan(p).total_bytes(), random.bits(), p, most,
                                          every_content[random.below(4)], random.bits());
}

struct kind {
  const char* name;
  std::unique_ptr<inhabitant> (*make)(std::uint64_t seed, const char* folder);
  bool stays;  // one of the kind lives from the first round to the last
};
/// Those whose reference is the plain model do not stay: its memory follows the tokens, and would hide a loss.
inline constexpr kind every_kind[] = {{"dense", make_modelled<float>, false},
                                      {"dense_half", make_modelled<pqkv::half>, false},
                                      {"paged", make_paged, true},
                                      {"quantized", make_quantized, true},
                                      {"tiered", make_tiered, true},
                                      {"queued", make_queued, true}};

}  // namespace pqkv_soak
