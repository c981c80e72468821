// SPDX-License-Identifier: Apache-2.0
// The joint-code index of a layer: counting tokens into cells (clearing it first is in the time) and merging them into the lists, alone,
// beside CUB's radix sort of the same cells (pairs of head and cell, and token, made before it); and the whole build of an index from
// keys: a codebook trained for ten iterations on 256 rows a centroid, all tokens encoded, counted and merged. Keys normal, the slowest to
// settle, and in clusters.
//
//   cell_index [name prefix | --names]    exit code 77 where there is no GPU
#include <cub/device/device_radix_sort.cuh>
#include <pqkv/detail/cuda/cell_index.cuh>
#include <pqkv/detail/cuda/codebook.cuh>
#include <pqkv/detail/cuda/codes.cuh>
#include <pqkv/detail/cuda/kmeans.cuh>

#include "codebook_memory.cuh"
#include "search_case.cuh"
#include "timing.cuh"

namespace {
using namespace bench;
constexpr std::size_t h = 8, d = 128, m = 2, n = 131072;
constexpr unsigned bits = 6;

struct head_and_cell {
  pqkv::codes_view<device> codes;
  __device__ std::uint32_t operator()(std::size_t i) const {
    const std::size_t head = i / n, t = i % n;
    return static_cast<std::uint32_t>(head << m * bits) | std::uint32_t{codes(head, 0, t)} << bits | codes(head, 1, t);
  }
};
struct token {
  __device__ std::uint32_t operator()(std::size_t i) const { return static_cast<std::uint32_t>(i % n); }
};

/// What the lists would be by a sort: offsets not among it.
void measure_sort(const std::string& name, const search_case& data) {
  if (!is_wanted(name)) return;
  const auto keys = filled<std::uint32_t>(h * n, head_and_cell{data.codes_view()}), tokens = filled<std::uint32_t>(h * n, token{});
  const pqkv::device_buffer<std::uint32_t> sorted(h * n, nullptr), lists(h * n, nullptr);
  constexpr int key_bits = static_cast<int>(m * bits) + 3;
  static_assert(h == 8);
  std::size_t bytes = 0;
  const auto sort = [&](void* memory, void* stream) {
    pqkv::detail::check_cuda(cub::DeviceRadixSort::SortPairs(memory, bytes, keys.data(), sorted.data(), tokens.data(), lists.data(),
                                                             static_cast<int>(h * n), 0, key_bits, static_cast<cudaStream_t>(stream)),
                             "cell_index", "SortPairs");
  };
  sort(nullptr, nullptr);
  const pqkv::device_buffer<std::byte> scratch(bytes, nullptr);
  measure(name, {.calls = 4, .replays = 20, .bytes = static_cast<double>(h * n * 16)},
          [&](void* stream, int) { sort(scratch.data(), stream); });
}

void measure_parts() {
  const std::string start = named("cell_index", {{"h", h}, {"m", m}, {"b", bits}, {"n", n}}), count = start + "/op:count",
                    merge = start + "/op:merge";
  const std::string sort = named("cub_radix_sort", {{"h", h}, {"m", m}, {"b", bits}, {"n", n}});
  if (!is_any_wanted(std::initializer_list<std::string>{count, merge, sort})) return;
  const search_case data(h, 4, m, bits, n);
  measure_sort(sort, data);
  const index_memory index(data.shape, n);
  const pqkv::device_buffer<std::byte> scratch(device_bytes<pqkv::op::merge_tails>({h, n, data.shape.cells()}), nullptr);
  const timing how{.calls = 4, .replays = 20, .bytes = static_cast<double>(h * n * m)};
  measure(count, how, [&](void* stream, int) {
    index.clear(stream);
    pqkv::count_cells(pqkv::exec::cuda{stream}, data.codes_view(), 0, n, index.view());
  });
  const pqkv::exec::cuda now;  // what the merge works on, whether counting was measured or not
  index.clear(now.stream);
  pqkv::count_cells(now, data.codes_view(), 0, n, index.view());
  pqkv::sync(now);
  measure(merge, {.calls = 4, .replays = 20, .bytes = how.bytes + static_cast<double>(h * n * sizeof(std::int32_t))},
          [&](void* stream, int) {
            index.unmerge(stream);
            pqkv::merge_tails(pqkv::exec::cuda{stream, pqkv::arena(scratch)}, data.codes_view(), index.view());
          });
}

void measure_build(const char* kind, bool is_clustered) {
  const std::string axes = named("", {{"h", h}, {"d", d}, {"m", m}, {"b", bits}, {"n", n}, {"L", 10}}) + "/keys:" + kind;
  const std::string build = "index_build" + axes, train = "index_build_train" + axes;
  if (!is_any_wanted(std::initializer_list<std::string>{train, build})) return;
  const auto keys = is_clustered ? clustered<pqkv::bfloat16>(h, n, d) : normals<pqkv::bfloat16>(h * n * d);
  const auto rows = pqkv::as_const(pqkv::make_view<device>(keys.data(), h, n, d));
  const codebook_memory book(h, d, m, bits);
  const pqkv::device_buffer<std::uint8_t> memory(h * m * n, nullptr);
  const auto codes = pqkv::make_view<device>(memory.data(), h, m, n);
  const pqkv::pq_shape shape{h, d, m, bits};
  const index_memory index(shape, n);
  const pqkv::kmeans_params params{10, 1, 256};
  const pqkv::device_buffer<std::byte> scratch(
      std::max(book.training_scratch_bytes(n, params), device_bytes<pqkv::op::merge_tails>({h, n, shape.cells()})), nullptr);
  const auto train_book = [&](const pqkv::exec::cuda& gpu) {
    pqkv::train(gpu, rows, book.view(), pqkv::make_view<device>(book.outcome.data(), h, m), params);
  };
  const timing how{.calls = 1, .replays = 10, .cold_replays = 10};
  measure(train, how, [&](void* stream, int) { train_book({stream, pqkv::arena(scratch)}); });
  measure(build, how, [&](void* stream, int) {
    const pqkv::exec::cuda gpu{stream, pqkv::arena(scratch)};
    train_book(gpu);
    pqkv::encode(gpu, rows, pqkv::codebook_view<device>(book.view()), codes);
    index.clear(stream);
    pqkv::count_cells(gpu, pqkv::as_const(codes), 0, n, index.view());
    pqkv::merge_tails(gpu, pqkv::as_const(codes), index.view());
  });
}

void measure_all() {
  measure_parts();
  measure_build("normal", false);
  measure_build("clustered", true);
}
}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, measure_all); }
