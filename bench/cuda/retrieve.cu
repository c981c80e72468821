// SPDX-License-Identifier: Apache-2.0
// From distance tables to the k best tokens of every KV head, by cells and by tokens. The table is not included; distance_table has it.
//
//   retrieve [name prefix | --names]    exit code 77 where there is no GPU
#include <pqkv/detail/cuda/cell_index.cuh>
#include <pqkv/detail/cuda/retrieve.cuh>

#include <optional>

#include "search_case.cuh"
#include "timing.cuh"

namespace {
using namespace bench;

/// A search_case with its index, where one exists, and room for the results.
struct retrieval {
  search_case data;
  std::size_t k;
  std::optional<index_memory> index;
  pqkv::device_buffer<std::int32_t> indices;
  pqkv::device_buffer<std::uint32_t> selected;
  pqkv::device_buffer<pqkv::middle_range> ranges;
  pqkv::device_buffer<std::byte> scratch;

  retrieval(std::size_t h, std::size_t g, std::size_t m, unsigned bits, std::size_t n, std::size_t select, float size)
      : data(h, g, m, bits, n, size),
        k(select),
        indices(h * k, nullptr),
        selected(h, nullptr),
        ranges(upload(std::vector<pqkv::middle_range>(h, {0, static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(k)}))) {
    const std::size_t cells = pqkv::has_cell_index(data.shape) ? data.shape.cells() : 0;
    scratch =
        pqkv::device_buffer<std::byte>(device_bytes<pqkv::op::retrieve>({.lists = h, .query_heads = data.hq, .tokens = n, .cells = cells}) +
                                           device_bytes<pqkv::op::merge_tails>({h, n, cells}),
                                       nullptr);
    if (cells == 0) return;
    index.emplace(data.shape, n);
    pqkv::count_cells(policy(nullptr), data.codes_view(), 0, n, index->view());
    pqkv::merge_tails(policy(nullptr), data.codes_view(), index->view());
    pqkv::sync(policy(nullptr));
  }
  pqkv::exec::cuda policy(void* stream) const { return {stream, pqkv::arena(scratch)}; }
  void run(void* stream, int turn, pqkv::search_path path) const {
    const pqkv::cell_index_view<device> cells = index ? pqkv::cell_index_view<device>(index->view()) : pqkv::cell_index_view<device>{};
    pqkv::retrieve(policy(stream), data.table(turn), data.codes_view(), cells,
                   pqkv::as_const(pqkv::make_view<device>(ranges.data(), data.h)), pqkv::make_view<device>(indices.data(), data.h, k),
                   pqkv::make_view<device>(selected.data(), data.h), {.head_dim = 128, .path = path});
  }
  /// Tables and results, and what ranks the tokens: cells with their lists, of which k ids are read, or all codes.
  double bytes(pqkv::search_path path) const {
    const double results = static_cast<double>(data.h * k * sizeof(std::int32_t));
    const double tables = static_cast<double>(data.hq * data.m * data.c * sizeof(float));
    const bool joint = path == pqkv::search_path::joint;
    return tables + results +
           (joint ? static_cast<double>(2 * data.h * data.shape.cells() * sizeof(std::uint32_t)) + results
                  : static_cast<double>(data.h * data.m * data.n));
  }
};

struct axes {
  std::size_t h, m;
  unsigned b;
  std::size_t n, k;
  bool is_recentred = false;  // every query head
  std::string name(const char* path) const {
    return named(std::string("retrieve/") + path, {{"h", h}, {"g", 4}, {"m", m}, {"b", b}, {"n", n}, {"k", k}});
  }
};

void measure_paths(const axes& a, std::initializer_list<pqkv::search_path> paths) {
  const auto name = [&](pqkv::search_path path) {
    return a.name(path == pqkv::search_path::joint ? "joint" : a.is_recentred ? "scan_recentred" : "scan");
  };
  std::vector<std::string> names;
  for (const pqkv::search_path path : paths) names.push_back(name(path));
  if (!is_any_wanted(names)) return;
  const retrieval one(a.h, 4, a.m, a.b, a.n, a.k, a.is_recentred ? 40 : 6);
  for (const pqkv::search_path path : paths)
    measure(name(path), {.calls = 16, .replays = path == pqkv::search_path::joint ? 50 : 30, .bytes = one.bytes(path)},
            [&](void* stream, int turn) { one.run(stream, turn, path); });
}

void measure_all() {
  using enum pqkv::search_path;
  for (const std::size_t n : {131072u, 1048576u})
    for (const std::size_t k : {2048u, 16384u}) measure_paths({8, 2, 6, n, k}, {joint, scan});
  for (const std::size_t m : {4u, 8u})
    for (const std::size_t n : {32768u, 131072u, 1048576u}) measure_paths({8, m, 8, n, 2048}, {scan});
  for (const std::size_t m : {4u, 8u}) measure_paths({8, m, 8, 131072, 2048, true}, {scan});
  measure_paths({128, 2, 6, 131072, 2048}, {joint});
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
