// SPDX-License-Identifier: Apache-2.0
// Prints one line: a 64-bit hash over everything that canonical arithmetic decides, on fixed inputs: codebooks, codes, both tables,
// scores of every reduction, selected tokens of both paths. compare_digests.py compiles this file in many ways and compares the
// lines. Exits with 1 when the scalar kernels and the best ones that this CPU has differ.
#include <cinttypes>
#include <cstdio>

#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;
using pqkv::exec::host;

/// FNV-1a over the bytes of 32-bit words.
class digest {
 public:
  void word(std::uint32_t value) {
    for (int byte = 0; byte < 4; ++byte) hash_ = (hash_ ^ ((value >> (8 * byte)) & 0xffu)) * 0x100000001b3u;
  }
  void number(float x) { word(std::isnan(x) ? 0x7fc00000u : pqkv::float_bits(x)); }
  template <class Range>
  void numbers(const Range& range) {
    for (const float x : range) number(x);
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

/// Training, encoding and both tables.
template <class T, class Isa>
void add_quantizer(digest& all, Isa, const pqkv::pq_shape& shape, content what, std::uint64_t seed) {
  const host<Isa> cpu;
  const std::size_t n = 700, hq = shape.kv_heads * 2;
  const auto keys = make_rows<T>(what, shape.kv_heads, n, shape.head_dim, seed, layout::padded);
  pqkv::codebook book(shape);
  all.word(static_cast<std::uint32_t>(pqkv::train(cpu, keys.view(), book, {.iterations = 4, .seed = seed, .rows_per_centroid = 9})));
  const auto view = book.view();
  for (std::size_t i = 0; i < view.centroids.size(); ++i) all.number(view.centroids.data[i]);
  for (std::size_t i = 0; i < view.mean.size(); ++i) all.number(view.mean.data[i]);
  for (std::size_t i = 0; i < view.squared_radius.size(); ++i) all.number(view.squared_radius.data[i]);
  pqkv::codes codes(shape, n);
  pqkv::encode(cpu, keys.view(), book.view(), codes.mutable_view());
  for (std::size_t head = 0; head < shape.kv_heads; ++head)
    for (std::size_t j = 0; j < shape.subspaces; ++j)
      for (std::size_t t = 0; t < n; ++t) all.word(codes.view()(head, j, t));
  random_source random(seed + 1);
  std::vector<float> query(hq * shape.head_dim);
  for (float& x : query) x = random.gaussian();
  pqkv::distance_table table(hq, shape);
  const auto add_table = [&] {
    for (std::size_t i = 0; i < table.view().entries.size(); ++i) all.number(table.view().entries.data[i]);
    for (std::size_t q = 0; q < hq; ++q) all.number(table.view().bias(q));
  };
  pqkv::inner_product_table(cpu, pqkv::make_view(static_cast<const float*>(query.data()), hq, shape.head_dim), book.view(),
                            table.mutable_view());
  add_table();
  if (shape.metric != pqkv::key_metric::squared_l2) return;  // its centroids have no distance to a query
  pqkv::squared_l2_table(cpu, pqkv::make_view(static_cast<const float*>(query.data()), hq, shape.head_dim), book.view(),
                         table.mutable_view());
  add_table();
}

/// Scores and selected tokens.
template <class Isa>
void add_search(digest& all, Isa, const search_problem& problem) {
  const host<Isa> cpu;
  const search_shape& shape = problem.shape();
  pqkv::cell_index index;
  if (shape.m * shape.bits <= 12) {
    index = pqkv::cell_index({shape.h, 64, shape.m, shape.bits}, shape.n);
    fill_index(problem, index, shape.n / 5);
  }
  for (const pqkv::group_reduction reduction : every_reduction) {
    std::vector<float> scores(pqkv::score_lists(reduction, shape.h, shape.hq()) * shape.n);
    pqkv::scan(cpu, problem.table(), problem.codes(), pqkv::make_view(scores.data(), scores.size() / shape.n, shape.n), reduction, shape.d);
    all.numbers(scores);
    for (const pqkv::search_path path : {pqkv::search_path::scan, pqkv::search_path::joint}) {
      if (path == pqkv::search_path::joint && index.view().empty()) continue;
      const retrieved found = run_retrieve(cpu, problem, index.view(), reduction, path);
      for (const auto& list : found.lists)
        for (const std::int32_t t : list) all.word(static_cast<std::uint32_t>(t));
      for (const std::uint8_t flag : found.skipped) all.word(flag);
    }
  }
}

template <class Isa>
std::uint64_t digest_of(Isa isa) {
  digest all;
  for (const std::size_t m : {1u, 2u, 4u, 8u, 16u})
    for (const unsigned bits : {4u, 6u, 8u}) {
      const pqkv::pq_shape shape{2, 48, m, bits};
      add_quantizer<float>(all, isa, shape, content::gaussian, m * 100 + bits);
      add_quantizer<pqkv::half>(all, isa, shape, content::gaussian, m * 100 + bits + 1);
      add_quantizer<pqkv::bfloat16>(all, isa, shape, content::duplicates, m * 100 + bits + 2);
      add_quantizer<float>(all, isa, {2, 48, m, bits, pqkv::key_metric::inner_product}, content::gaussian, m * 100 + bits + 3);
      random_source random(m * 1000 + bits);
      for (const table_kind tables : every_table)
        for (const code_kind kind : {code_kind::uniform, code_kind::skewed}) {
          search_problem problem({.h = 2, .g = 1 + random.below(4), .m = m, .bits = bits, .n = 333, .d = 64, .plane_padding = 7}, tables,
                                 kind, random);
          add_search(all, isa, problem);
        }
    }
  return all.value();
}
}  // namespace

int main() {
  const std::uint64_t scalar = digest_of(pqkv::isa::scalar{}), best = digest_of(pqkv::isa::best{});
  if (scalar != best) {
    std::fprintf(stderr, "canonical_digest: scalar %016" PRIx64 ", best %016" PRIx64 "\n", scalar, best);
    return 1;
  }
  std::printf("%016" PRIx64 "\n", scalar);
}
