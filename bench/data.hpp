// SPDX-License-Identifier: Apache-2.0
// What the benchmarks are timed on: random numbers near the normal distribution, and keys in clusters with an offset in some
// dimensions, as real keys have. Never zeros: they would be special cases of branch predictors, of floats and of top-k.
#pragma once

#include <pqkv/pqkv.hpp>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace bench {

inline constexpr const char* clustered_keys =
    "keys in 256 clusters per head, spread 1 between and 0.7 inside them, offset of spread 2 per dimension; queries normal";

/// Near-normal numbers, mean 0 and variance 1: sums of four uniform ones. Fast enough to fill gigabytes.
class normal_source {
 public:
  explicit normal_source(std::uint64_t seed) : state_(seed) {}

  float operator()() {
    state_ += 0x9e3779b97f4a7c15u;  // SplitMix64
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    const auto sum = static_cast<float>((z & 0xffffu) + ((z >> 16) & 0xffffu) + ((z >> 32) & 0xffffu) + (z >> 48));
    return (sum * (1.0f / 65536.0f) - 2.0f) * 1.7320508f;
  }

 private:
  std::uint64_t state_;
};

template <class T>
pqkv::buffer<T> normal_numbers(std::size_t count, std::uint64_t seed) {
  pqkv::buffer<T> numbers(count);
  normal_source normal(seed);
  for (T& x : numbers) x = static_cast<T>(normal());
  return numbers;
}

/// A model's head: where its clusters are. Rows of any token can be drawn at any time.
class key_source {
 public:
  key_source(std::size_t head_dim, std::uint64_t seed) : d_(head_dim), centres_(clusters * head_dim), normal_(seed) {
    std::vector<float> offset(d_);
    for (float& x : offset) x = 2.0f * normal_();
    for (std::size_t i = 0; i < clusters * d_; ++i) centres_[i] = offset[i % d_] + normal_();
  }

  /// Writes the next row.
  template <class T>
  void draw(T* row, std::size_t stride = 1) {
    const float* centre = centres_.data() + (number_++ * 2654435761u >> 8) % clusters * d_;
    for (std::size_t i = 0; i < d_; ++i) row[i * stride] = static_cast<T>(centre[i] + 0.7f * normal_());
  }

 private:
  static constexpr std::size_t clusters = 256;
  std::size_t d_;
  std::vector<float> centres_;
  normal_source normal_;
  std::uint64_t number_ = 0;
};

/// Keys [h, n, d].
template <class T>
pqkv::buffer<T> clustered_rows(std::size_t h, std::size_t n, std::size_t d, std::uint64_t seed) {
  pqkv::buffer<T> rows(h * n * d);
  for (std::size_t head = 0; head < h; ++head) {
    key_source source(d, seed + head);
    for (std::size_t t = 0; t < n; ++t) source.draw(rows.data() + (head * n + t) * d);
  }
  return rows;
}

/// Everything that a search over one KV head works on.
struct search_case {
  struct axes {
    std::size_t n = 0, m = 2, g = 4, d = 128;
    unsigned b = 6;
    bool clustered = true;  // false: normal keys, which fill the cells of a joint code as evenly as keys can
    bool operator==(const axes&) const = default;
  };

  explicit search_case(const axes& a)
      : of(a),
        shape{1, a.d, a.m, a.b},
        keys(a.clustered ? clustered_rows<pqkv::bfloat16>(1, a.n, a.d, 11) : normal_numbers<pqkv::bfloat16>(a.n * a.d, 11)),
        query(normal_numbers<float>(a.g * a.d, 12)),
        book(shape),
        codes(shape, a.n),
        table(a.g, shape) {
    const pqkv::exec::host<> cpu;
    pqkv::train(cpu, key_view(), book, {.iterations = 4, .seed = 1, .rows_per_centroid = 64});
    pqkv::encode(cpu, key_view(), book.view(), codes.mutable_view());
    pqkv::inner_product_table(cpu, query_view(), book.view(), table.mutable_view());
    if (!pqkv::has_cell_index(shape)) return;
    index = pqkv::cell_index(shape, a.n);
    pqkv::count_cells(cpu, codes.view(), 0, a.n, index.mutable_view());
    pqkv::merge_tails(cpu, codes.view(), index.mutable_view());
  }
  pqkv::view<const pqkv::bfloat16, 3> key_view() const { return pqkv::as_const(pqkv::make_view(keys.data(), 1, of.n, of.d)); }
  pqkv::view<const float, 2> query_view() const { return pqkv::as_const(pqkv::make_view(query.data(), of.g, of.d)); }

  axes of;
  pqkv::pq_shape shape;
  pqkv::buffer<pqkv::bfloat16> keys;
  pqkv::buffer<float> query;
  pqkv::codebook book;
  pqkv::codes codes;
  pqkv::distance_table table;
  pqkv::cell_index index;
};

/// Makes a value for a key and keeps it until another key comes: Google Benchmark calls a benchmark several times, and two sets of
/// data of the largest sizes need not be in memory together.
template <class Value, class Key>
Value& kept(const Key& key) {
  static std::optional<std::pair<Key, Value>> latest;
  if (!latest || !(latest->first == key)) {
    latest.reset();
    latest.emplace(key, Value(key));
  }
  return latest->second;
}

}  // namespace bench
