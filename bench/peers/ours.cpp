// SPDX-License-Identifier: Apache-2.0
// Our side of bench/peers/contests.py: the library behind a C interface, so that one process times us and the rivals on the same
// arrays, one after the other. Functions take what the rivals take, run the work `times` times and return 0, or 1 with a text in
// ours_error(). One thread, best ISA of the CPU. std::nth_element, a rival, is here too.
#include <pqkv/pqkv.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace {

using pqkv::bfloat16;
using pqkv::make_view;

const pqkv::exec::host<> cpu;
const pqkv::kmeans_params training{.iterations = 10, .seed = 7, .rows_per_centroid = 256};  // the same for all: equal rows, equal codebooks
std::string latest_error;

template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    latest_error = error.what();
    return 1;
  }
}

/// Codebook, codes, index and tables of h heads, from keys that the caller keeps.
struct search {
  search(const bfloat16* keys, std::size_t h, std::size_t n_, std::size_t d, std::size_t group, std::size_t m, unsigned b)
      : n(n_),
        g(group),
        shape{h, d, m, b},
        book(shape),
        codes(shape, n),
        index(shape, n),
        table(h * g, shape),
        small_table(h * g, shape),
        ranges(h),
        counts(h),
        scratch(std::max(pqkv::scratch_bytes<pqkv::op::retrieve>(cpu, {h, h * g, m, shape.centroids(), n, shape.cells()}),
                         pqkv::scratch_bytes<pqkv::op::scan>(cpu, {h * g, m, shape.centroids()}))) {
    const auto rows = make_view(keys, h, n, d);
    pqkv::train(cpu, rows, book, training);
    pqkv::encode(cpu, rows, book.view(), codes.mutable_view());
    pqkv::count_cells(cpu, codes.view(), 0, n, index.mutable_view());
    pqkv::merge_tails(cpu, codes.view(), index.mutable_view());
  }

  /// indices [h, k], ascending.
  void retrieve(const float* query, std::size_t k, std::int32_t* indices) {
    const std::size_t h = shape.kv_heads;
    std::fill_n(ranges.data(), h, pqkv::middle_range{0, static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(k)});
    const pqkv::exec::host<> policy{.runner = {}, .scratch = pqkv::arena(scratch)};
    pqkv::inner_product_table(policy, make_view(query, h * g, shape.head_dim), book.view(), table.mutable_view());
    pqkv::retrieve(policy, table.view(), codes.view(), index.view(), pqkv::as_const(make_view(ranges.data(), h)), make_view(indices, h, k),
                   make_view(counts.data(), h), {.head_dim = shape.head_dim, .path = pqkv::search_path::joint});
  }

  /// sums [h * g, n].
  void scan(const float* query, std::uint16_t* sums) {
    const std::size_t hq = shape.kv_heads * g;
    pqkv::inner_product_table(cpu, make_view(query, hq, shape.head_dim), book.view(), table.mutable_view());
    pqkv::quantize_table(cpu, table.view(), small_table.mutable_view());
    pqkv::quantized_scan(cpu, small_table.view(), codes.view(), make_view(sums, hq, n));
  }

  std::size_t n, g;
  pqkv::pq_shape shape;
  pqkv::codebook book;
  pqkv::codes codes;
  pqkv::cell_index index;
  pqkv::distance_table table;
  pqkv::quantized_table<std::uint16_t> small_table;
  pqkv::buffer<pqkv::middle_range> ranges;
  pqkv::buffer<std::uint32_t> counts;
  pqkv::buffer<std::byte> scratch;
};

/// A layer's cache and its attention; `full` attends to all tokens.
struct layer {
  virtual ~layer() = default;
  virtual void step(const bfloat16* key, const bfloat16* value, const float* query, float* out) = 0;
};

template <class Selector>
struct layer_of final : layer {
  using cache_type = pqkv::pqcache<pqkv::dense_rows<bfloat16>, Selector>;

  layer_of(const bfloat16* keys, const bfloat16* values, const typename cache_type::params& p, std::size_t n) : cache(p) {
    const auto rows = [&](const bfloat16* from) { return make_view(from, p.kv_heads, n, p.head_dim); };
    cache.prefill(cpu, 0, rows(keys), rows(values));
    cache.maintain(cpu);
  }
  void step(const bfloat16* key, const bfloat16* value, const float* query, float* out) override {
    const std::size_t h = cache.parameters().kv_heads, hq = cache.parameters().query_heads, d = cache.parameters().head_dim;
    cache.append(cpu, make_view(key, 1, h, d), make_view(value, 1, h, d));
    cache.attend(cpu, make_view(query, 1, hq, d), make_view(out, 1, hq, d));
    cache.maintain(cpu);
  }
  cache_type cache;
};

/// sinks + window + retrieved tokens attend; retrieved 0: all do.
std::unique_ptr<layer> make_layer(const bfloat16* keys, const bfloat16* values, std::size_t h, std::size_t n, std::size_t d, std::size_t g,
                                  std::size_t sinks, std::size_t window, std::size_t retrieved, std::size_t room) {
  const auto fill = [&](auto& p) {
    p.batch = 1;
    p.kv_heads = h;
    p.query_heads = h * g;
    p.head_dim = d;
    p.capacity = n + room;
  };
  if (retrieved == 0) {
    using type = layer_of<pqkv::selector::full>;
    typename type::cache_type::params p{};
    fill(p);
    return std::make_unique<type>(keys, values, p, n);
  }
  using type = layer_of<pqkv::selector::pq>;
  typename type::cache_type::params p{};
  fill(p);
  p.budget.tokens = sinks + window + retrieved;
  p.budget.sinks = sinks;
  p.budget.window = window;
  p.budget.retrieve = retrieved;
  p.selector.subspaces = 2, p.selector.bits = 6;  // as the names of the results say
  p.selector.train = training;
  return std::make_unique<type>(keys, values, p, n);
}

}  // namespace

extern "C" {

const char* ours_error() { return latest_error.c_str(); }

const char* ours_version() {
  static const std::string text =
      "pqkv " + std::to_string(pqkv::version_major) + "." + std::to_string(pqkv::version_minor) + "." + std::to_string(pqkv::version_patch);
  return text.c_str();
}

const char* ours_compiler() {
#ifdef __clang__
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

/// rows [n, ds] float or, with bits 16, bfloat16; centroids [ds, c] written. All rows take part; no offset.
int ours_kmeans(const void* rows, unsigned bits, std::size_t n, std::size_t ds, std::size_t c, std::size_t iterations, float* centroids) {
  return guarded([&] {
    const pqkv::buffer<float> offset(ds);
    std::fill_n(offset.data(), ds, 0.0f);
    std::uint8_t outcome = 0;
    const auto run = [&](auto* points) {
      pqkv::kmeans(cpu, make_view(points, 1, 1, n, ds), pqkv::as_const(make_view(offset.data(), 1, 1, ds)),
                   make_view(centroids, 1, 1, ds, c), make_view(&outcome, 1, 1),
                   {.iterations = iterations, .seed = 3, .rows_per_centroid = 0});
    };
    if (bits == 16)
      run(static_cast<const bfloat16*>(rows));
    else
      run(static_cast<const float*>(rows));
    if (outcome != static_cast<std::uint8_t>(pqkv::kmeans_outcome::trained)) throw pqkv::value_error("fewer finite rows than centroids");
  });
}

/// keys [h, n, d] bfloat16. Null when it failed.
void* ours_search(const void* keys, std::size_t h, std::size_t n, std::size_t d, std::size_t g, std::size_t m, unsigned b) {
  search* made = nullptr;
  guarded([&] { made = new search(static_cast<const bfloat16*>(keys), h, n, d, g, m, b); });
  return made;
}
void ours_search_free(void* handle) { delete static_cast<search*>(handle); }

/// The codebook as the rivals hold one: centroids [h, m, c, ds] float, the mean added back.
int ours_search_centroids(void* handle, float* out) {
  return guarded([&] {
    const pqkv::codebook_view<> book = static_cast<search*>(handle)->book.view();
    for (std::size_t head = 0; head < book.heads(); ++head)
      for (std::size_t j = 0; j < book.subspaces(); ++j)
        for (std::size_t x = 0; x < book.size(); ++x)
          for (std::size_t i = 0; i < book.sub_dim(); ++i) *out++ = book.centroids(head, j, i, x) + book.mean(head, j * book.sub_dim() + i);
  });
}

/// codes [h, m, n] uint8.
int ours_search_codes(void* handle, std::uint8_t* out) {
  return guarded([&] {
    const pqkv::codes_view<> codes = static_cast<search*>(handle)->codes.view();
    for (std::size_t head = 0; head < codes.extent(0); ++head)
      for (std::size_t j = 0; j < codes.extent(1); ++j)
        for (std::size_t t = 0; t < codes.extent(2); ++t) *out++ = codes(head, j, t);
  });
}

/// Encodes rows [n, d] float anew. @pre one head
int ours_encode(void* handle, const float* rows) {
  return guarded([&] {
    auto& s = *static_cast<search*>(handle);
    pqkv::encode(cpu, make_view(rows, 1, s.n, s.shape.head_dim), s.book.view(), s.codes.mutable_view());
  });
}

/// Table, scores, sum of probabilities over the group, the k best: query [h * g, d], indices [h, k] written.
int ours_retrieve(void* handle, const float* query, std::size_t k, std::int32_t* indices, std::size_t times) {
  return guarded([&] {
    for (std::size_t i = 0; i < times; ++i) static_cast<search*>(handle)->retrieve(query, k, indices);
  });
}

/// Table and integer logits: query [h * g, d], sums [h * g, n] written.
int ours_scan(void* handle, const float* query, std::uint16_t* sums, std::size_t times) {
  return guarded([&] {
    for (std::size_t i = 0; i < times; ++i) static_cast<search*>(handle)->scan(query, sums);
  });
}

int ours_top_k(const float* scores, std::size_t n, std::size_t k, std::int32_t* indices, std::size_t times) {
  return guarded([&] {
    for (std::size_t i = 0; i < times; ++i) pqkv::top_k(cpu, make_view(scores, 1, n), make_view(indices, 1, k));
  });
}

/// The standard library's selection of the same set, unsorted: pairs of score and index, so that equal scores go to the lower index.
int ours_nth_element(const float* scores, std::size_t n, std::size_t k, std::int32_t* indices, std::size_t times) {
  return guarded([&] {
    std::vector<std::pair<float, std::int32_t>> pairs(n);
    for (std::size_t i = 0; i < times; ++i) {
      for (std::size_t t = 0; t < n; ++t) pairs[t] = {-scores[t], static_cast<std::int32_t>(t)};
      if (k < n) std::nth_element(pairs.begin(), pairs.begin() + static_cast<std::ptrdiff_t>(k), pairs.end());
      for (std::size_t t = 0; t < std::min(k, n); ++t) indices[t] = pairs[t].second;
    }
  });
}

/// Dense attention: rows [h, n, 2, d] bfloat16, K and V of a token side by side; query and out [h * g, d].
int ours_attention(const void* rows, std::size_t h, std::size_t n, std::size_t d, std::size_t g, const float* query, float* out) {
  return guarded([&] {
    const std::vector<pqkv::token_span> spans(h, {static_cast<std::uint32_t>(n), 0, 0});
    const pqkv::token_set<> all{make_view(spans.data(), h), {}, {}};
    pqkv::attention(cpu, make_view(query, h * g, d), pqkv::interleaved_kv(static_cast<const bfloat16*>(rows), h, n, d), all,
                    make_view(out, h * g, d));
  });
}

/// The same over k tokens of each KV head, indices [h, k] ascending, of rows in half (1) or bfloat16 (0); k 0: all tokens.
int ours_listed_attention(const void* rows, std::size_t is_half, std::size_t h, std::size_t n, std::size_t d, std::size_t g,
                          const std::int32_t* indices, std::size_t k, const float* query, float* out) {
  return guarded([&] {
    const std::uint32_t leading = k == 0 ? static_cast<std::uint32_t>(n) : 0;
    const std::vector<pqkv::token_span> spans(h, {leading, 0, 0});
    const std::vector<std::uint32_t> counts(h, static_cast<std::uint32_t>(k));
    pqkv::token_set<> chosen{make_view(spans.data(), h), {}, {}};
    if (k != 0) chosen.indices = make_view(indices, h, k), chosen.counts = make_view(counts.data(), h);
    const auto attend = [&](const auto* stored) {
      pqkv::attention(cpu, make_view(query, h * g, d), pqkv::interleaved_kv(stored, h, n, d), chosen, make_view(out, h * g, d));
    };
    is_half != 0 ? attend(static_cast<const pqkv::half*>(rows)) : attend(static_cast<const bfloat16*>(rows));
  });
}

/// keys and values [h, n, d] bfloat16; retrieved 0: dense. Null when it failed.
void* ours_layer(const void* keys, const void* values, std::size_t h, std::size_t n, std::size_t d, std::size_t g, std::size_t sinks,
                 std::size_t window, std::size_t retrieved, std::size_t room) {
  std::unique_ptr<layer> made;
  guarded([&] {
    made = make_layer(static_cast<const bfloat16*>(keys), static_cast<const bfloat16*>(values), h, n, d, g, sinks, window, retrieved, room);
  });
  return made.release();
}
void ours_layer_free(void* handle) { delete static_cast<layer*>(handle); }

/// append, attend, maintain: key and value [h, d] bfloat16, query and out [h * g, d] float.
int ours_step(void* handle, const void* key, const void* value, const float* query, float* out) {
  return guarded(
      [&] { static_cast<layer*>(handle)->step(static_cast<const bfloat16*>(key), static_cast<const bfloat16*>(value), query, out); });
}

}  // extern "C"
