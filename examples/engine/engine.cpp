// SPDX-License-Identifier: Apache-2.0
// What is pqkv's and what is the engine's: threads, pages, block table, projections and the order of calls are the engine's; what a query
// attends to, when a slot gets a codebook and what a fork copies are the cache's.
#include "engine.hpp"

namespace engine {
namespace {
std::size_t row_floats(const model_shape& m) { return 3 * m.width + 2 * m.query_width() + 2 * m.kv_width() + m.query_heads; }

std::size_t scratch_bytes(const engine_settings& s) {
  return pqkv::scratch_bytes<pqkv::op::prefill_attention>(pqkv::exec::host<>{},
                                                          {s.model.kv_heads, s.model.query_heads, s.capacity, s.model.head_dim});
}

/// [n, heads, d] seen as [heads, n, d].
template <class T>
pqkv::view<T, 3> by_head(T* rows, std::size_t n, std::size_t heads, std::size_t d) {
  return {rows, {heads, n, d}, {d, heads * d, 1}};
}
}  // namespace

layer_cache::params engine_settings::cache() const {
  layer_cache::params p;
  static_cast<pqkv::cache_shape&>(p) = {
      .batch = slots, .kv_heads = model.kv_heads, .query_heads = model.query_heads, .head_dim = model.head_dim, .capacity = capacity};
  p.budget = budget;
  p.selector.subspaces = subspaces;
  p.selector.bits = bits;
  return p;
}

pqkv::status decoder::can_run(const engine_settings& s) {
  const layer_cache::params p = s.cache();
  if (const pqkv::status status = pqkv::can_cache(p); !status.ok()) return status;
  if (const pqkv::status status = pqkv::can_budget(p.budget, "toy_engine"); !status.ok()) return status;
  return pqkv::selector::pq::can_construct(p, p.selector);
}

std::size_t decoder::memory_bytes(const engine_settings& s) {
  return model::bytes(s.model) + page_pool::bytes(s.model.layers, s.pages, s.model.kv_heads, s.model.head_dim) +
         s.slots * s.pages_of_slot() * sizeof(std::uint32_t) + s.capacity * row_floats(s.model) * sizeof(float) + scratch_bytes(s) + 1024;
}

decoder::decoder(const engine_settings& s, slab& memory, team& threads)
    : s_(s),
      threads_(threads),
      model_(s.model, memory),
      pool_(memory, s.model.layers, s.pages, s.model.kv_heads, s.model.head_dim),
      table_(memory, pool_, s.slots, s.pages_of_slot()) {
  for (std::size_t l = 0; l < s.model.layers; ++l) {
    layer_cache::params p = s.cache();
    p.rows = {.keys = pool_.keys(l),
              .values = pool_.values(l),
              .pages = pool_.pages(),
              .page_tokens = page_tokens,
              .strides = pool_.strides(),
              .table = table_.pages()};
    caches_.emplace_back(p);
  }
  const std::size_t rows = s.capacity;
  hidden_ = memory.take<float>(rows * s.model.width);
  normed_ = memory.take<float>(rows * s.model.width);
  projected_ = memory.take<float>(rows * s.model.width);
  query_ = memory.take<float>(rows * s.model.query_width());
  gathered_ = memory.take<float>(rows * s.model.query_width());
  key_ = memory.take<float>(rows * s.model.kv_width());
  value_ = memory.take<float>(rows * s.model.kv_width());
  lse_ = memory.take<float>(rows * s.model.query_heads);
  scratch_ = pqkv::arena(memory.take<std::byte>(scratch_bytes(s)), scratch_bytes(s));
}

bool decoder::admit(std::size_t slot, std::span<const unsigned> prompt) {
  const std::size_t n = prompt.size();
  if (size(slot) != 0 || !table_.reserve(slot, 0, n)) return false;
  threads_.run([&](const worker& me) {
    for (std::size_t t = me.ith; t < n; t += me.nth) model_.embed(prompt[t], t, hidden_ + t * s_.model.width);
    me.wait();
    run_layers(me, n, [&](const policy& cpu, std::size_t layer) { attend_prompt(cpu, layer, slot, n); });
  });
  return true;
}

bool decoder::step(std::span<const fed_tokens> rows) {
  if (rows.empty()) return true;
  slots_.clear(), counts_.clear();
  std::size_t tokens = 0;
  for (const fed_tokens& row : rows) {
    const std::size_t n = size(row.slot);
    if (!table_.reserve(row.slot, n, n + row.tokens.size())) return false;
    for (std::size_t i = 0; i < row.tokens.size(); ++i) model_.embed(row.tokens[i], n + i, hidden_ + tokens++ * s_.model.width);
    slots_.push_back(row.slot);
    counts_.push_back(static_cast<std::uint32_t>(row.tokens.size()));
  }
  threads_.run([&](const worker& me) {
    run_layers(me, tokens, [&](const policy& cpu, std::size_t layer) { attend_step(cpu, layer, rows, tokens); });
    me.lead([&](const policy& cpu) {  // between steps: a slot whose prompt was short gets its codebook here
      for (layer_cache& cache : caches_) cache.maintain(cpu);
    });
  });
  return true;
}

void decoder::fork(std::size_t from, std::size_t to) {
  table_.share(from, to);
  for (layer_cache& cache : caches_) cache.fork(pqkv::exec::host<>{}, from, to);
}

void decoder::truncate(std::size_t slot, std::size_t n) {
  for (layer_cache& cache : caches_) cache.truncate(pqkv::exec::host<>{}, slot, n);
  table_.cut(slot, n);
}

/// `count` rows of hidden_ through all layers; attend(policy, layer) fills gathered_ from query_, key_ and value_ in the first thread.
template <class Attend>
void decoder::run_layers(const worker& me, std::size_t count, Attend attend) {
  const model_shape& m = s_.model;
  for (std::size_t l = 0; l < m.layers; ++l) {
    const layer_weights& w = model_.layer(l);
    normalise(me, hidden_, count, m.width, normed_);
    me.wait();
    multiply(me, w.query, normed_, count, m.width, m.query_width(), query_);
    multiply(me, w.key, normed_, count, m.width, m.kv_width(), key_);
    multiply(me, w.value, normed_, count, m.width, m.kv_width(), value_);
    me.wait();
    me.lead([&](const policy& cpu) { attend(cpu, l); });
    multiply(me, w.out, gathered_, count, m.query_width(), m.width, projected_);
    me.wait();
    add(me, projected_, count, m.width, hidden_);
    me.wait();
  }
}

// The cache writes the rows into the pages, in prefill() and append(): the projections are float, so somebody has to convert them, and
// the cache finds the row through the same table that it reads. An engine whose own kernel writes pages calls the forms without rows,
// prefill(policy, slot, n) and append(policy, tokens, step).

void decoder::attend_prompt(const policy& cpu, std::size_t layer, std::size_t slot, std::size_t n) {
  const std::size_t h = s_.model.kv_heads, hq = s_.model.query_heads, d = s_.model.head_dim;
  layer_cache& cache = caches_[layer];
  cache.prefill(cpu, slot, by_head(std::as_const(key_), n, h, d), by_head(std::as_const(value_), n, h, d));
  const auto only = static_cast<std::uint32_t>(slot);  // a prompt attends densely, to the rows of its own slot
  const pqkv::mapped_store<pqkv::paged_store<bfloat16>> own{cache.store(), {pqkv::make_view(&only, 1), static_cast<std::uint32_t>(h)}, h};
  policy scratched = cpu;
  scratched.scratch = scratch_;
  pqkv::prefill_attention(scratched, by_head(std::as_const(query_), n, hq, d), own, 0, by_head(gathered_, n, hq, d));
}

void decoder::attend_step(const policy& cpu, std::size_t layer, std::span<const fed_tokens> rows, std::size_t tokens) {
  const std::size_t h = s_.model.kv_heads, hq = s_.model.query_heads, d = s_.model.head_dim;
  layer_cache& cache = caches_[layer];
  const pqkv::cache_step step{.slots = pqkv::make_view(std::as_const(slots_).data(), rows.size()),
                              .counts = pqkv::make_view(std::as_const(counts_).data(), rows.size())};
  const auto query = pqkv::make_view(std::as_const(query_), tokens, hq, d);
  const auto out = pqkv::make_view(gathered_, tokens, hq, d);
  const auto lse = pqkv::make_view(lse_, tokens, hq);
  attended_.clear();
  for (const fed_tokens& row : rows) attended_.push_back(cache.statistics(row.slot).tokens_attended);
  cache.append(cpu, pqkv::make_view(std::as_const(key_), tokens, h, d), pqkv::make_view(std::as_const(value_), tokens, h, d), step);
  cache.attend(cpu, query, out, lse, step);

  std::size_t t = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::size_t slot = rows[i].slot, count = rows[i].tokens.size(), n = cache.size(slot);
    const std::size_t attended = cache.statistics(slot).tokens_attended - attended_[i], all = count * n - count * (count - 1) / 2;
    for (std::size_t j = 0; j < count; ++j, ++t) {
      const std::size_t seen = n - count + j + 1;
      const slot_rows own{pool_.keys(layer), &table_.pages()(slot, 0), h, seen, d};
      check_.compare(own, query[t], pqkv::as_const(out)[t], pqkv::as_const(lse)[t], attended == all ? seen : attended / count);
    }
  }
}

}  // namespace engine
