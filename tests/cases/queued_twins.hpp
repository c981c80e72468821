// SPDX-License-Identifier: Apache-2.0
// A cache in a queue's memory and a cache on the host that are given the same calls, and what both say of it: the same lists to the token,
// the same attention to 1e-5, the same counters, the same sequences. Steps are made call by call or replayed from a graph, whose slots,
// counts and lengths are in the queue's memory.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "inputs.hpp"
#include "queued_backend.hpp"
#include "slot_bytes.hpp"

namespace pqkv_cases {

/// A step as the host knows it: rows with their tokens.
struct drawn_step {
  std::vector<std::uint32_t> slots, counts;  // of a row

  std::size_t tokens() const { return std::accumulate(counts.begin(), counts.end(), std::size_t{0}); }
  pqkv::cache_step view() const { return {pqkv::make_view(slots.data(), slots.size()), pqkv::make_view(counts.data(), counts.size())}; }
  /// Without the rows that have no token.
  drawn_step active() const {
    drawn_step some;
    for (std::size_t row = 0; row < slots.size(); ++row)
      if (counts[row] != 0) some.slots.push_back(slots[row]), some.counts.push_back(counts[row]);
    return some;
  }
};

/// @tparam T  of the stored rows; HostSelector, DeviceSelector: the same method in both spaces
/// @tparam DeviceRows  of the cache in the queue's memory; the sizes of tiers are drawn
template <class T, class HostSelector, class DeviceSelector, class DeviceRows = pqkv::dense_rows<T, pqkv::space::device>>
class queued_twins {
 public:
  using host_cache = pqkv::pqcache<pqkv::owned_rows<T>, HostSelector>;
  using device_cache = pqkv::pqcache<DeviceRows, DeviceSelector>;
  using device_step = pqkv::basic_step<pqkv::space::device>;

  /// @param most  tokens of a step, padding included
  queued_twins(const typename host_cache::params& p, std::size_t most, content what, std::uint64_t seed)
      : p_(p),
        most_(most),
        what_(what),
        random_(seed),
        here_(p),
        there_(dev_, of_device(p)),
        keys_(dev_, most * p.kv_heads * p.head_dim),
        values_(dev_, most * p.kv_heads * p.head_dim),
        queries_(dev_, most * p.query_heads * p.head_dim),
        out_(dev_, most * p.query_heads * p.head_dim),
        lse_(dev_, most * p.query_heads),
        indices_(dev_, most * here_.lists() * p.capacity),
        listed_(dev_, most * here_.lists()),
        slots_(dev_, p.batch),
        counts_(dev_, p.batch),
        cut_slots_(dev_, p.batch),
        lengths_(dev_, p.batch),
        refused_(p.batch, 0) {
    record();
  }

  const host_cache& here() const { return here_; }
  const device_cache& there() const { return there_; }
  queue& work() { return queue_; }
  std::size_t size(std::size_t slot) const { return here_.size(slot); }

  void prefill(std::size_t slot, std::size_t n) {
    if (here_.size(slot) != 0) reset(slot);
    maintain();  // a cut to nothing by a graph is known to the host from here on
    const std::size_t h = p_.kv_heads, d = p_.head_dim;
    const bool token_major = random_.below(2) == 0;
    rows<float> keys = make_rows<float>(what_, token_major ? n : h, token_major ? h : n, d, random_.bits());
    rows<float> values = make_rows<float>(content::gaussian, token_major ? n : h, token_major ? h : n, d, random_.bits());
    if (n != 0 && random_.below(8) == 0) keys.view().data[random_.below(n * h * d)] = nonfinite(random_.below(3));
    const auto as_heads = [&](auto v) {
      return token_major ? pqkv::view<const float, 3>{v.data, {h, n, d}, {d, h * d, 1}} : pqkv::as_const(v);
    };
    const pqkv::view<const float, 3> k = as_heads(keys.view()), v = as_heads(values.view());
    observe(slot);
    const queued_array<float> device_keys(dev_, std::vector<float>(k.data, k.data + k.size()));
    const queued_array<float> device_values(dev_, std::vector<float>(v.data, v.data + v.size()));
    const auto moved = [](pqkv::view<const float, 3> like, const float* data) {
      pqkv::view<const float, 3, pqkv::space::device> to{data, {}, {}};
      for (std::size_t axis = 0; axis < 3; ++axis) to.extents[axis] = like.extents[axis], to.strides[axis] = like.strides[axis];
      return to;
    };
    for (std::size_t first = 0; first < n || n == 0;) {
      const std::size_t count = n == 0 || random_.below(2) == 0 ? n - first : 1 + random_.below(n - first);
      const pqkv::chunk which = first + count == n ? pqkv::chunk::last : pqkv::chunk::more;
      here_.prefill(cpu_, slot, k.slice(1, first, count), v.slice(1, first, count), which);
      there_.prefill(dev_, slot, moved(k, device_keys.data()).slice(1, first, count), moved(v, device_values.data()).slice(1, first, count),
                     which);
      first += count;
      if (n == 0) break;
      if (which == pqkv::chunk::more && random_.below(2) == 0) {  // the other slots go on meanwhile
        in_prefill_ = slot;
        step(draw_step(), random_.below(2) == 0);
        in_prefill_ = p_.batch;
      }
    }
    pqkv::sync(dev_);  // the prompt's rows end here
  }

  /// Shows both caches some queries of the prompt, where their selector looks at any; not every time.
  void observe(std::size_t slot) {
    if constexpr (requires { p_.selector.axes; }) {
      if (p_.selector.axes != pqkv::axis_order::weighted_pairs || random_.below(5) == 0) return;
      const std::size_t n = 1 + random_.below(20), hq = p_.query_heads, d = p_.head_dim;
      rows<float> queries = make_rows<float>(what_, n, hq, d, random_.bits());
      if (random_.below(4) == 0) queries.view().data[random_.below(n * hq * d)] = nonfinite(random_.below(3));
      const pqkv::view<const float, 3> q = pqkv::as_const(queries.view());
      const queued_array<float> there(dev_, std::vector<float>(q.data, q.data + q.size()));
      here_.observe(cpu_, slot, q);
      there_.observe(dev_, slot, there.const_view(n, hq, d));
      pqkv::sync(dev_);  // the queries end here
      observed += n;
    }
  }

  /// Random rows in any order, 0 to 16 tokens each; now and then more than a slot has room for.
  drawn_step draw_step() {
    drawn_step step;
    step.slots.resize(p_.batch);
    std::iota(step.slots.begin(), step.slots.end(), 0u);
    for (std::size_t i = p_.batch; i > 1; --i) std::swap(step.slots[i - 1], step.slots[random_.below(i)]);
    step.slots.resize(1 + random_.below(p_.batch));
    std::size_t left = most_;
    for (std::size_t row = 0; row < step.slots.size(); ++row) {
      const std::size_t wish = random_.below(6) == 0 ? 0 : random_.below(2) == 0 ? 1 : random_.below(17);
      const std::size_t room = p_.capacity - here_.size(step.slots[row]), beyond = room < 16 && random_.below(4) == 0 ? room + 1 : 0;
      const std::size_t count = beyond != 0 && beyond <= left ? beyond : std::min({wish, left, room});
      step.counts.push_back(step.slots[row] == in_prefill_ ? 0u : static_cast<std::uint32_t>(count));
      left -= step.counts.back();
    }
    return step;
  }

  /// One step on both: append, retrieve, attend, compare. A graph has every slot as a row, those that are not active with no token.
  void step(drawn_step step, bool replayed) {
    if (replayed)
      for (std::uint32_t slot = 0; slot < p_.batch; ++slot)
        if (std::find(step.slots.begin(), step.slots.end(), slot) == step.slots.end()) step.slots.push_back(slot), step.counts.push_back(0);
    inputs(step);
    slots_.write(step.slots);
    counts_.write(step.counts);
    const std::size_t tokens = step.tokens(), rows = step.slots.size();
    if (replayed)
      queue_.launch(step_graph_);
    else
      enqueue(random_.below(2) == 0 ? tokens : most_, {slots_.const_view(rows), counts_.const_view(rows)});
    host_append(step);
    compare(step.active(), tokens);
  }

  /// Every slot one token, in order: the step without a table.
  void plain_step() {
    drawn_step step;
    for (std::uint32_t slot = 0; slot < p_.batch; ++slot) {
      if (here_.size(slot) == p_.capacity) return;
      step.slots.push_back(slot), step.counts.push_back(1);
    }
    inputs(step);
    enqueue(p_.batch, {});
    host_append(step);
    compare(step, p_.batch);
  }

  /// Cuts several slots by lengths in the queue's memory; some may be too long.
  void cut(const std::vector<std::uint32_t>& lengths, bool replayed) {
    std::vector<std::uint32_t> slots(p_.batch);
    for (std::uint32_t slot = 0; slot < p_.batch; ++slot) slots[slot] = static_cast<std::uint32_t>(p_.batch - 1 - slot);
    cut_slots_.write(slots);
    lengths_.write(lengths);
    if (replayed)
      queue_.launch(cut_graph_);
    else
      there_.truncate(dev_, lengths_.const_view(p_.batch), cut_slots_.const_view(p_.batch));
    for (std::size_t row = 0; row < p_.batch; ++row)
      if (lengths[row] <= here_.size(slots[row]))
        here_.truncate(cpu_, slots[row], lengths[row]);
      else
        ++refused_[slots[row]];
    pqkv::sync(dev_);
  }
  void truncate(std::size_t slot, std::size_t n) {
    here_.truncate(cpu_, slot, n);
    there_.truncate(dev_, slot, n);
  }
  void fork(std::size_t from, std::size_t to) {
    here_.fork(cpu_, from, to);
    there_.fork(dev_, from, to);
    refused_[to] = refused_[from];
  }
  /// Each cache's slot goes into the other cache, through a file.
  void exchange(std::size_t from, std::size_t to) {
    const std::vector<std::byte> mine = saved(cpu_, here_, from), theirs = saved(dev_, there_, from);
    REQUIRE(mine.size() == theirs.size());
    REQUIRE(std::memcmp(mine.data(), theirs.data(), mine.size()) == 0);
    reset(to);
    load(cpu_, here_, to, theirs);
    load(dev_, there_, to, mine);
  }
  void reset(std::size_t slot) {
    here_.reset(slot);
    there_.reset(dev_, slot);
    refused_[slot] = 0;
  }
  void maintain() {
    here_.maintain(cpu_);
    there_.maintain(dev_);
  }

  /// Where every slot stands, and its counters.
  void compare_slots() {
    for (std::size_t slot = 0; slot < p_.batch; ++slot) {
      const pqkv::sequence a = here_.at(slot), b = there_.at(dev_, slot);
      REQUIRE(std::memcmp(&a, &b, sizeof a) == 0);
      pqkv::slot_statistics mine = here_.statistics(slot);
      const pqkv::slot_statistics theirs = there_.statistics(dev_, slot);
      mine.refused += refused_[slot];
      REQUIRE(std::memcmp(&mine, &theirs, sizeof mine) == 0);
    }
  }

  std::size_t checked = 0, ranked = 0, refusals = 0, observed = 0;

 private:
  typename device_cache::params of_device(const typename host_cache::params& p) {
    typename device_cache::params all;
    static_cast<pqkv::cache_shape&>(all) = p;
    all.budget = p.budget;
    all.selector = p.selector;
    if constexpr (requires { all.rows.cache_tokens; }) {
      constexpr std::size_t block_tokens[] = {1, 2, 5, 16, 128, 256};
      all.rows.block_tokens = block_tokens[random_.below(6)];
      const std::size_t sizes[] = {0, all.rows.block_tokens, 4 * all.rows.block_tokens, 60, p.capacity + 300};
      all.rows.cache_tokens = sizes[random_.below(5)];
      all.rows.sink_tokens = random_.below(12);
      all.rows.recent_tokens = 1 + random_.below(40);
      all.rows.admit_blocks = 1 + random_.below(32);
      all.rows.scope = static_cast<pqkv::block_scope>(random_.below(2));
    }
    return all;
  }
  auto rows_view(const queued_array<float>& of, std::size_t tokens) const { return of.const_view(tokens, p_.kv_heads, p_.head_dim); }

  void enqueue_attend(std::size_t tokens, const device_step& step) {
    const auto q = queries_.const_view(tokens, p_.query_heads, p_.head_dim);
    there_.retrieve(dev_, q, indices_.view(tokens, here_.lists(), p_.capacity), listed_.view(tokens, here_.lists()), step);
    there_.attend(dev_, q, out_.view(tokens, p_.query_heads, p_.head_dim), lse_.view(tokens, p_.query_heads), step);
  }
  void enqueue(std::size_t tokens, const device_step& step) {
    there_.append(dev_, rows_view(keys_, tokens), rows_view(values_, tokens), step);
    enqueue_attend(tokens, step);
  }
  void record() {
    queue_.begin_capture();
    enqueue(most_, {slots_.const_view(p_.batch), counts_.const_view(p_.batch)});
    step_graph_ = queue_.end_capture();
    queue_.begin_capture();
    there_.truncate(dev_, lengths_.const_view(p_.batch), cut_slots_.const_view(p_.batch));
    cut_graph_ = queue_.end_capture();
  }

  /// Draws a step's rows and queries; what is behind its last token is not a number.
  void inputs(const drawn_step& step) {
    const std::size_t row = p_.kv_heads * p_.head_dim;
    const auto draw = [&](std::vector<float>& to, std::size_t used, float scale) {
      for (std::size_t i = 0; i < to.size(); ++i) to[i] = i < used ? scale * random_.gaussian() : std::nanf("");
    };
    const rows<float> keys = make_rows<float>(what_, most_, p_.kv_heads, p_.head_dim, random_.bits());
    host_keys_.assign(keys.view().data, keys.view().data + most_ * row);
    host_values_.resize(most_ * row);
    host_queries_.resize(most_ * p_.query_heads * p_.head_dim);
    draw(host_values_, step.tokens() * row, 1);
    draw(host_queries_, step.tokens() * p_.query_heads * p_.head_dim, 2);
    std::fill(host_keys_.begin() + static_cast<std::ptrdiff_t>(step.tokens() * row), host_keys_.end(), std::nanf(""));
    if (step.tokens() != 0 && random_.below(20) == 0)
      host_queries_[random_.below(step.tokens() * p_.query_heads * p_.head_dim)] = nonfinite(0);
    keys_.write(host_keys_);
    values_.write(host_values_);
    queries_.write(host_queries_);
  }
  /// The host is not asked to take what the device is to refuse.
  void host_append(const drawn_step& step) {
    const std::size_t h = p_.kv_heads, d = p_.head_dim;
    for (std::size_t row = 0, first = 0; row < step.slots.size(); first += step.counts[row], ++row) {
      const std::uint32_t slot = step.slots[row], count = step.counts[row];
      if (count == 0) continue;
      if (here_.size(slot) + count > p_.capacity) {
        refused_[slot] += count;
        ++refusals;
        continue;
      }
      const auto of = [&](const std::vector<float>& all) { return pqkv::make_view(all.data() + first * h * d, count, h, d); };
      here_.append(cpu_, of(host_keys_), of(host_values_), {pqkv::make_view(&slot, 1), pqkv::make_view(&count, 1)});
    }
  }
  void compare(const drawn_step& step, std::size_t tokens) {
    const std::size_t hq = p_.query_heads, d = p_.head_dim, lists = here_.lists();
    const auto q = pqkv::make_view(std::as_const(host_queries_).data(), tokens, hq, d);
    std::vector<float> out(tokens * hq * d, 77.0f), lse(tokens * hq, 77.0f);
    std::vector<std::int32_t> indices(tokens * lists * p_.capacity, -7);
    std::vector<std::uint32_t> listed(tokens * lists, 77);
    here_.retrieve(cpu_, q, pqkv::make_view(indices.data(), tokens, lists, p_.capacity), pqkv::make_view(listed.data(), tokens, lists),
                   step.view());
    here_.attend(cpu_, q, pqkv::make_view(out.data(), tokens, hq, d), pqkv::make_view(lse.data(), tokens, hq), step.view());
    std::vector<float> device_out(out.size()), device_lse(lse.size());
    std::vector<std::int32_t> device_indices(indices.size());
    std::vector<std::uint32_t> device_listed(listed.size());
    out_.read(device_out), lse_.read(device_lse), indices_.read(device_indices), listed_.read(device_listed);
    REQUIRE(device_listed == listed);
    REQUIRE(device_indices == indices);
    for (std::size_t i = 0; i < lse.size(); ++i) {
      const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(i * d);
      REQUIRE(is_near(device_out.data() + at, out.data() + at, d));
      REQUIRE((same(device_lse[i], lse[i]) || std::fabs(device_lse[i] - lse[i]) < 1e-5f * std::max(1.0f, std::fabs(lse[i]))));
    }
    for (std::size_t i = 0, first = 0; i < step.slots.size(); first += step.counts[i], ++i)
      if (step.counts[i] != 0) {
        ++checked;
        const std::size_t middle = here_.middle(step.slots[i]).size(), got = listed[(first + step.counts[i] - 1) * lists];
        ranked += got != 0 && got < middle ? 1 : 0;
      }
    compare_slots();
  }
  static bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }
  static bool is_near(const float* a, const float* b, std::size_t d) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < d; ++i) {
      if (same(a[i], b[i])) continue;
      difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    }
    for (std::size_t i = 0; i < d; ++i) norm += std::isfinite(b[i]) ? static_cast<double>(b[i]) * static_cast<double>(b[i]) : 0;
    return difference == 0 || difference <= 1e-10 * norm;
  }

  typename host_cache::params p_;
  std::size_t most_;
  content what_;
  random_source random_;
  queue queue_;
  queued_policy dev_{&queue_};
  pqkv::exec::host<> cpu_;
  host_cache here_;
  device_cache there_;
  queued_array<float> keys_, values_, queries_, out_, lse_;
  queued_array<std::int32_t> indices_;
  queued_array<std::uint32_t> listed_, slots_, counts_, cut_slots_, lengths_;
  work_list step_graph_{0}, cut_graph_{0};
  std::vector<float> host_keys_, host_values_, host_queries_;
  std::vector<std::uint64_t> refused_;
  std::size_t in_prefill_ = p_.batch;  // the slot whose prompt is not whole yet; batch: none
};

}  // namespace pqkv_cases
