// SPDX-License-Identifier: Apache-2.0
// Times of the CUDA backend's operations on the shapes of a decode step: one JSON line each, median and spread of replays of a CUDA
// graph by events. Data are random, never zeros; codes and tables differ between heads. bench/gpu.sh builds and runs it.
//
//   operations [name prefix]    exit code 77 where there is no GPU
#include "graph_time.cuh"

namespace {
using namespace bench;

/// Everything that retrieve() needs, for h heads of n tokens; 16 tables, so that replays see different queries.
struct search {
  std::size_t h, hq, m, n, k, c;
  pqkv::pq_shape shape;
  pqkv::device_buffer<float> entries, bias;
  pqkv::device_buffer<std::uint8_t> codes, cell_codes;
  pqkv::device_buffer<std::uint32_t> counts, offsets, ranges_of_index, selected;
  pqkv::device_buffer<std::int32_t> ids, indices;
  pqkv::device_buffer<pqkv::middle_range> ranges;
  pqkv::device_buffer<std::byte> scratch;
  static constexpr std::size_t tables = 16;

  search(std::size_t heads, std::size_t g, std::size_t subspaces, unsigned bits, std::size_t tokens, std::size_t select)
      : h(heads), hq(heads * g), m(subspaces), n(tokens), k(select), c(std::size_t{1} << bits), shape{heads, 128, subspaces, bits} {
    entries = upload(gaussians(tables * hq * m * c, 6));
    bias = upload(gaussians(hq));
    std::vector<std::uint8_t> planes(h * m * n);
    for (auto& code : planes) code = static_cast<std::uint8_t>(std::clamp(gaussian() * 0.2f + 0.5f, 0.0f, 0.999f) * static_cast<float>(c));
    codes = upload(planes);
    indices = pqkv::device_buffer<std::int32_t>(hq * k, nullptr);
    selected = pqkv::device_buffer<std::uint32_t>(hq, nullptr);
    ranges = upload(std::vector<pqkv::middle_range>(h, {0, static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(k)}));
    const std::size_t cells = pqkv::has_cell_index(shape) ? shape.cells() : 0;
    scratch = pqkv::device_buffer<std::byte>(
        pqkv::retrieve_device_scratch_bytes(hq, hq, m, n, cells) + pqkv::merge_tails_device_scratch_bytes(h, n, cells), nullptr);
    if (cells == 0) return;
    counts = pqkv::device_buffer<std::uint32_t>(h * cells, nullptr);
    offsets = pqkv::device_buffer<std::uint32_t>(h * (cells + 1), nullptr);
    ranges_of_index = pqkv::device_buffer<std::uint32_t>(3 * h, nullptr);
    ids = pqkv::device_buffer<std::int32_t>(h * n, nullptr);
    const pqkv::cell_index digits(shape, 1);
    cell_codes = upload(std::vector<std::uint8_t>(digits.view().cell_codes.data, digits.view().cell_codes.data + m * cells));
    pqkv::count_cells(policy(nullptr), codes_view(), 0, n, index());
    pqkv::merge_tails(policy(nullptr), codes_view(), index());
    pqkv::sync(policy(nullptr));
  }
  pqkv::exec::cuda policy(void* stream) const { return {stream, pqkv::device_arena(scratch)}; }
  pqkv::codes_view<device> codes_view() const { return pqkv::as_const(pqkv::make_view<device>(codes.data(), h, m, n)); }
  pqkv::mutable_cell_index_view<device> index() const {
    if (counts.size() == 0) return {};
    const std::size_t cells = shape.cells();
    return {pqkv::make_view<device>(counts.data(), h, cells),
            pqkv::make_view<device>(offsets.data(), h, cells + 1),
            pqkv::make_view<device>(ids.data(), h, n),
            pqkv::make_view<device>(ranges_of_index.data(), h),
            pqkv::make_view<device>(ranges_of_index.data() + h, h),
            pqkv::make_view<device>(ranges_of_index.data() + 2 * h, h),
            pqkv::as_const(pqkv::make_view<device>(cell_codes.data(), m, cells))};
  }
  void retrieve(void* stream, int turn, pqkv::search_path path) const {
    const float* table = entries.data() + static_cast<std::size_t>(turn) % tables * hq * m * c;
    pqkv::retrieve(policy(stream), {pqkv::make_view<device>(table, hq, m, c), pqkv::as_const(pqkv::make_view<device>(bias.data(), hq))},
                   codes_view(), index(), pqkv::as_const(pqkv::make_view<device>(ranges.data(), h)),
                   pqkv::make_view<device>(indices.data(), h, k), pqkv::make_view<device>(selected.data(), h),
                   {.head_dim = 128, .path = path});
  }
};

void searches() {
  for (const std::size_t n : {131072u, 1048576u})
    for (const std::size_t k : {2048u, 16384u}) {
      const search one(8, 4, 2, 6, n, k);
      char name[96];
      std::snprintf(name, sizeof name, "retrieve/joint/h:8/g:4/m:2/b:6/n:%zu/k:%zu", n, k);
      measure(name, 16, 50, [&](void* stream, int turn) { one.retrieve(stream, turn, pqkv::search_path::joint); });
      std::snprintf(name, sizeof name, "retrieve/scan/h:8/g:4/m:2/b:6/n:%zu/k:%zu", n, k);
      measure(name, 16, 30, [&](void* stream, int turn) { one.retrieve(stream, turn, pqkv::search_path::scan); });
    }
  const search fine(8, 4, 4, 8, 131072, 2048);
  measure("retrieve/scan/h:8/g:4/m:4/b:8/n:131072/k:2048", 16, 30,
          [&](void* stream, int turn) { fine.retrieve(stream, turn, pqkv::search_path::scan); });
  const search batch(128, 4, 2, 6, 131072, 2048);
  measure("retrieve/joint/h:128/g:4/m:2/b:6/n:131072/k:2048", 16, 30,
          [&](void* stream, int turn) { batch.retrieve(stream, turn, pqkv::search_path::joint); });
}

void selections() {
  const std::size_t n = 131072;
  const pqkv::device_buffer<float> scores = upload(gaussians(64 * n));
  for (const std::size_t rows : {8u, 64u})
    for (const std::size_t k : {2048u, 16384u}) {
      const pqkv::device_buffer<std::int32_t> indices(rows * k, nullptr);
      char name[96];
      std::snprintf(name, sizeof name, "top_k/rows:%zu/n:131072/k:%zu", rows, k);
      measure(name, 8, 50, [&](void* stream, int) {
        pqkv::top_k(pqkv::exec::cuda{stream}, pqkv::as_const(pqkv::make_view<device>(scores.data(), rows, n)),
                    pqkv::make_view<device>(indices.data(), rows, k));
      });
    }
}

void quantization() {
  for (const std::size_t heads : {8u, 256u}) {  // a layer, and 32 of them
    const std::size_t n = 16384, d = 128, m = 2, c = 64;
    const auto keys = upload(many_rows(heads * n * d));
    const pqkv::device_buffer<float> centroids(heads * d * c, nullptr), mean(heads * d, nullptr);
    const pqkv::device_buffer<std::uint8_t> outcome(heads * m, nullptr), codes(heads * m * n, nullptr);
    const pqkv::mutable_codebook_view<device> book{pqkv::make_view<device>(centroids.data(), heads, m, d / m, c),
                                                   pqkv::make_view<device>(mean.data(), heads, d)};
    const pqkv::kmeans_params params{25, 1, 256};
    const pqkv::device_buffer<std::byte> scratch(pqkv::kmeans_device_scratch_bytes(heads * m, n, d / m, c, params), nullptr);
    const auto rows = pqkv::as_const(pqkv::make_view<device>(keys.data(), heads, n, d));
    char name[96];
    std::snprintf(name, sizeof name, "train/problems:%zu/n:16384/ds:64/c:64/L:25", heads * m);
    measure(name, 1, 5, [&](void* stream, int) {
      pqkv::train(pqkv::exec::cuda{stream, pqkv::device_arena(scratch)}, rows, book, pqkv::make_view<device>(outcome.data(), heads, m),
                  params);
    });
    std::snprintf(name, sizeof name, "encode/h:%zu/n:16384/d:128/m:2/b:6", heads);
    measure(name, 1, 10, [&](void* stream, int) {
      pqkv::encode(pqkv::exec::cuda{stream}, rows, book, pqkv::make_view<device>(codes.data(), heads, m, n));
    });
    std::snprintf(name, sizeof name, "encode/h:%zu/n:1/d:128/m:2/b:6", heads);
    measure(name, 16, 20, [&](void* stream, int) {
      pqkv::encode(pqkv::exec::cuda{stream}, rows.slice(1, 5, 1), book, pqkv::make_view<device>(codes.data(), heads, m, n).slice(2, 0, 1));
    });
    const auto query = upload(gaussians(heads * 4 * d));
    const pqkv::device_buffer<float> entries(heads * 4 * m * c, nullptr), bias(heads * 4, nullptr);
    std::snprintf(name, sizeof name, "table/hq:%zu/d:128/m:2/b:6", heads * 4);
    measure(name, 16, 20, [&](void* stream, int) {
      pqkv::inner_product_table(
          pqkv::exec::cuda{stream}, pqkv::as_const(pqkv::make_view<device>(query.data(), heads * 4, d)), book,
          {pqkv::make_view<device>(entries.data(), heads * 4, m, c), pqkv::make_view<device>(bias.data(), heads * 4)});
    });
  }
}

void attentions() {
  struct one {
    const char* name;
    std::size_t h, n, k;  // k: listed tokens; 0: all n
  };
  for (const one& of : {one{"attention/listed/h:8/g:4/d:128/n:131072/k:4096", 8, 131072, 4096},
                        one{"attention/listed/h:128/g:4/d:128/n:65536/k:4096", 128, 65536, 4096},
                        one{"attention/dense/h:8/g:4/d:128/n:131072", 8, 131072, 0}}) {
    if (!is_wanted(of.name)) continue;
    const std::size_t d = 128, hq = of.h * 4;
    const auto rows = upload(many_rows(of.h * of.n * 2 * d));
    const auto query = upload(gaussians(hq * d));
    std::vector<std::int32_t> listed(of.h * std::max<std::size_t>(of.k, 1));
    for (std::size_t i = 0; i < of.h * of.k; ++i)
      listed[i] = static_cast<std::int32_t>((i % of.k) * (of.n / of.k) + word() % (of.n / of.k));
    const auto indices = upload(listed);
    const auto counts = upload(std::vector<std::uint32_t>(of.h, static_cast<std::uint32_t>(of.k)));
    const auto spans = upload(std::vector<pqkv::token_span>(of.h, {static_cast<std::uint32_t>(of.k == 0 ? of.n : 0), 0, 0}));
    const pqkv::device_buffer<float> out(hq * d, nullptr);
    const pqkv::device_buffer<std::byte> scratch(pqkv::attention_device_scratch_bytes(hq, d), nullptr);
    const pqkv::token_set<device> tokens{pqkv::as_const(pqkv::make_view<device>(spans.data(), of.h)),
                                         pqkv::as_const(pqkv::make_view<device>(indices.data(), of.h, listed.size() / of.h)),
                                         pqkv::as_const(pqkv::make_view<device>(counts.data(), of.h))};
    measure(of.name, 4, 20, [&](void* stream, int) {
      pqkv::attention(pqkv::exec::cuda{stream, pqkv::device_arena(scratch)}, pqkv::as_const(pqkv::make_view<device>(query.data(), hq, d)),
                      pqkv::interleaved_kv<device>(rows.data(), of.h, of.n, d), tokens, pqkv::make_view<device>(out.data(), hq, d));
    });
  }
}
}  // namespace

int main(int argc, char** argv) {
  if (!bench::begin(argc, argv)) return 77;
  searches();
  selections();
  quantization();
  attentions();
}
