// SPDX-License-Identifier: Apache-2.0
#include "engine.hpp"

namespace engine {
namespace {
std::size_t row_floats(const model_shape& m) { return 3 * m.width + 2 * m.query_width() + 2 * m.kv_width() + m.query_heads; }
}  // namespace

pqkv::status decoder::can_run(const engine_settings& s) { return pq_attention::can_run(s.attention()); }

std::size_t decoder::memory_bytes(const engine_settings& s) {
  return model::bytes(s.model) + page_pool::bytes(s.pages, s.model.kv_heads, s.model.head_dim) +
         pq_attention::working_bytes(s.attention()) + s.slots * s.model.layers * pq_attention::index_bytes(s.attention()) +
         s.capacity * row_floats(s.model) * sizeof(float) + 1024;
}

decoder::decoder(const engine_settings& s, slab& memory, team& threads)
    : s_(s),
      threads_(threads),
      model_(s.model, memory),
      pool_(memory, s.pages, s.model.kv_heads, s.model.head_dim),
      attention_(s.attention(), memory),
      slots_(s.slots) {
  for (sequence& slot : slots_) {
    slot.pages.resize(s.model.layers);
    for (std::size_t l = 0; l < s.model.layers; ++l) {
      slot.pages[l].reserve((s.capacity + page_tokens - 1) / page_tokens);
      slot.index.push_back(attention_.make_index(memory));
    }
  }
  const std::size_t rows = s.capacity;
  hidden_ = memory.take<float>(rows * s.model.width);
  normed_ = memory.take<float>(rows * s.model.width);
  projected_ = memory.take<float>(rows * s.model.width);
  query_ = memory.take<float>(rows * s.model.query_width());
  attended_ = memory.take<float>(rows * s.model.query_width());
  key_ = memory.take<float>(rows * s.model.kv_width());
  value_ = memory.take<float>(rows * s.model.kv_width());
  lse_ = memory.take<float>(rows * s.model.query_heads);
}

bool decoder::reserve(sequence& s, std::size_t n) {
  const std::size_t wanted = (n + page_tokens - 1) / page_tokens, more = wanted - s.pages[0].size();
  if (n > s_.capacity || more * s.pages.size() > pool_.free_pages()) return false;
  for (auto& pages : s.pages)
    while (pages.size() < wanted) pages.push_back(pool_.take());
  return true;
}

paged_kv decoder::store(const sequence& s, std::size_t layer, std::size_t n) const {
  return {s.pages[layer].data(), s_.model.kv_heads, n, s_.model.head_dim};
}

bool decoder::admit(std::size_t slot, std::span<const unsigned> prompt) {
  sequence& s = slots_[slot];
  if (s.n != 0 || !reserve(s, prompt.size())) return false;
  threads_.run([&](const worker& me) {
    for (std::size_t t = me.ith; t < prompt.size(); t += me.nth) model_.embed(prompt[t], t, hidden_ + t * s_.model.width);
    me.wait();
    for (std::size_t l = 0; l < s_.model.layers; ++l) run_layer(me, s, l, 0, prompt.size());
  });
  s.n = prompt.size();
  return true;
}

bool decoder::step(std::span<const unsigned> next) {
  for (std::size_t i = 0; i < slots_.size(); ++i)
    if (slots_[i].n != 0 && !reserve(slots_[i], slots_[i].n + 1)) return false;
  threads_.run([&](const worker& me) {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      sequence& s = slots_[i];
      if (s.n == 0) continue;
      if (me.first()) model_.embed(next[i], s.n, hidden_);
      me.wait();
      for (std::size_t l = 0; l < s_.model.layers; ++l) run_layer(me, s, l, s.n, 1);
      if (me.first()) ++s.n;
      me.wait();
    }
  });
  return true;
}

void decoder::release(std::size_t slot) {
  for (auto& pages : slots_[slot].pages) {
    for (bfloat16* page : pages) pool_.give_back(page);
    pages.clear();
  }
  slots_[slot].n = 0;
}

void decoder::store_rows(const worker& me, const paged_kv& kv, std::size_t first, std::size_t count) const {
  const std::size_t h = kv.h, d = kv.d;
  const pqkv::view<const float, 3> keys{key_, {h, count, d}, {d, h * d, 1}}, values{value_, {h, count, d}, {d, h * d, 1}};
  for (std::size_t done = 0; done < count;) {
    const std::size_t t = first + done, part = std::min(count - done, page_tokens - t % page_tokens);
    const pqkv::view<bfloat16, 3> to = kv.keys_in_page(t, part);
    pqkv::view<bfloat16, 3> values_to = to;
    values_to.data += page_tokens * d;
    pqkv::store_rows(me.share(), keys.slice(1, done, part), to);
    pqkv::store_rows(me.share(), values.slice(1, done, part), values_to);
    done += part;
  }
}

/// Tokens [first, first + count) of a sequence through one layer: a prompt from an empty sequence, or one token.
void decoder::run_layer(const worker& me, sequence& s, std::size_t layer, std::size_t first, std::size_t count) {
  const model_shape& m = s_.model;
  const std::size_t h = m.kv_heads, hq = m.query_heads, d = m.head_dim;
  const layer_weights& w = model_.layer(layer);
  normalise(me, hidden_, count, m.width, normed_);
  me.wait();
  multiply(me, w.query, normed_, count, m.width, m.query_width(), query_);
  multiply(me, w.key, normed_, count, m.width, m.kv_width(), key_);
  multiply(me, w.value, normed_, count, m.width, m.kv_width(), value_);
  me.wait();

  const paged_kv kv = store(s, layer, first + count);
  store_rows(me, kv, first, count);
  const pqkv::view<const float, 3> keys{key_, {h, count, d}, {d, h * d, 1}};
  const auto lse = pqkv::make_view(lse_, hq);
  if (first == 0) {
    attention_.observe_prompt(me, s.index[layer], keys);
    const pqkv::exec::host<> alone;  // dense and causal: tokens are shared out, each is this thread's own call
    for (std::size_t t = me.ith; t < count; t += me.nth) {
      const std::vector<pqkv::token_span> spans(h, {.leading = static_cast<std::uint32_t>(t + 1)});
      pqkv::attention(alone, pqkv::make_view(std::as_const(query_) + t * hq * d, hq, d), kv, {pqkv::make_view(spans.data(), h), {}, {}},
                      pqkv::make_view(attended_ + t * hq * d, hq, d));
    }
  } else {
    const auto query = pqkv::make_view(std::as_const(query_), hq, d);
    const auto out = pqkv::make_view(attended_, hq, d);
    attention_.observe_token(me, s.index[layer], keys, first);
    attention_.attend(me, s.index[layer], kv, query, out, lse);
    if (me.first()) check_.compare(kv, query, out, lse, s.index[layer].usable() ? attention_.attended(kv.n) : kv.n);
  }
  me.wait();
  multiply(me, w.out, attended_, count, m.query_width(), m.width, projected_);
  me.wait();
  add(me, projected_, count, m.width, hidden_);
  me.wait();
}

}  // namespace engine
