// SPDX-License-Identifier: Apache-2.0
#include "pq_attention.hpp"

#include <algorithm>
#include <array>

namespace engine {
namespace {
constexpr std::size_t max_heads = 16;

std::size_t scratch_bytes(const pq_attention::settings& s) {
  return pqkv::retrieve_scratch_bytes(s.shape.kv_heads, s.query_heads, s.shape.subspaces, s.shape.centroids(), s.capacity, 0);
}
}  // namespace

bool pq_index::usable() const {
  for (std::size_t head = 0; head < outcome.extent(0); ++head)
    for (std::size_t j = 0; j < outcome.extent(1); ++j)
      if (outcome(head, j) != static_cast<std::uint8_t>(pqkv::kmeans_outcome::trained)) return false;
  return true;
}

pqkv::status pq_attention::can_run(const settings& s) {
  if (const pqkv::status status = pqkv::can_quantize(s.shape, "toy_engine"); !status.ok()) return status;
  if (s.shape.kv_heads > max_heads)
    return {pqkv::status::code::value, "toy_engine", "kv_heads", "h, at most", double{max_heads}, static_cast<double>(s.shape.kv_heads)};
  return pqkv::can_budget(s.budget, "toy_engine");
}

std::size_t pq_attention::index_bytes(const settings& s) {
  return pqkv::codebook::required_bytes(s.shape) + pqkv::codes::required_bytes(s.shape, s.capacity) + 4 * pqkv::cache_line_bytes + 256;
}

std::size_t pq_attention::working_bytes(const settings& s) {
  return pqkv::distance_table::required_bytes(s.query_heads, s.shape) + s.shape.kv_heads * (s.capacity + 1) * sizeof(std::int32_t) +
         scratch_bytes(s) + 8 * pqkv::cache_line_bytes;
}

pq_attention::pq_attention(const settings& s, slab& memory) : s_(s), k_max_(s.budget.at(s.capacity).retrieve) {
  const std::size_t h = s.shape.kv_heads, m = s.shape.subspaces, c = s.shape.centroids();
  table_ = {pqkv::make_view(memory.take<float>(s.query_heads * m * c), s.query_heads, m, c),
            pqkv::make_view(memory.take<float>(s.query_heads), s.query_heads)};
  indices_ = pqkv::make_view(memory.take<std::int32_t>(h * k_max_), h, k_max_);
  counts_ = pqkv::make_view(memory.take<std::uint32_t>(h), h);
  scratch_ = pqkv::arena(memory.take<std::byte>(scratch_bytes(s)), scratch_bytes(s));
}

pq_index pq_attention::make_index(slab& memory) const {
  const std::size_t h = s_.shape.kv_heads, m = s_.shape.subspaces, c = s_.shape.centroids(), ds = s_.shape.sub_dim();
  const std::size_t plane = pqkv::code_plane_stride(s_.capacity);
  return {{pqkv::make_view(memory.take<float>(h * m * ds * c), h, m, ds, c),
           pqkv::make_view(memory.take<float>(h * s_.shape.head_dim), h, s_.shape.head_dim)},
          {memory.take<std::uint8_t>(h * m * plane), {h, m, s_.capacity}, {m * plane, plane, 1}},
          pqkv::make_view(memory.take<std::uint8_t>(h * m), h, m)};
}

void pq_attention::observe_prompt(const worker& me, const pq_index& index, pqkv::view<const float, 3> keys) const {
  pqkv::train(me.share(), keys, index.book, index.outcome);
  if (index.usable()) pqkv::encode(me.share(), keys, index.book, index.codes.slice(2, 0, keys.extent(1)));
}

void pq_attention::observe_token(const worker& me, const pq_index& index, pqkv::view<const float, 3> key, std::size_t position) const {
  if (index.usable()) pqkv::encode(me.share(), key, index.book, index.codes.slice(2, position, 1));
}

void pq_attention::attend(const worker& me, const pq_index& index, const paged_kv& store, pqkv::view<const float, 2> query,
                          pqkv::view<float, 2> out, pqkv::view<float, 1> lse) const {
  const std::size_t h = store.h;
  const auto n = static_cast<std::uint32_t>(store.n);
  const pqkv::token_budget budget = s_.budget.at(n);
  const auto sinks = static_cast<std::uint32_t>(std::min<std::size_t>(budget.sinks, n));
  const auto window = n - static_cast<std::uint32_t>(std::min<std::size_t>(budget.window, n - sinks));
  std::array<pqkv::token_span, max_heads> spans;
  if (!index.usable()) {  // everything is "leading"
    spans.fill({.leading = n});
    return pqkv::attention(me.share(), query, store, {pqkv::make_view(std::as_const(spans).data(), h), {}, {}}, out, lse);
  }
  std::array<pqkv::middle_range, max_heads> middle;
  middle.fill({sinks, window, static_cast<std::uint32_t>(std::min(budget.retrieve, k_max_))});
  spans.fill({.leading = sinks, .window_begin = window, .window_end = n});

  pqkv::inner_product_table(me.share(), query, index.book, table_);
  pqkv::retrieve(me.share(scratch_), table_, index.codes.slice(2, 0, n), {}, pqkv::make_view(std::as_const(middle).data(), h), indices_,
                 counts_, {.head_dim = s_.shape.head_dim});
  pqkv::attention(me.share(), query, store, {pqkv::make_view(std::as_const(spans).data(), h), indices_, counts_}, out, lse);
}

std::size_t pq_attention::attended(std::size_t n) const {
  const pqkv::token_budget budget = s_.budget.at(n);
  return std::min(n, budget.sinks + budget.window + budget.retrieve);
}

}  // namespace engine
