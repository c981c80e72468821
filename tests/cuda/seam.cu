// SPDX-License-Identifier: Apache-2.0
// The seam of the CUDA backend on a GPU: memory's owner, errors by name, scratch that is too small, calls on a stream of the engine's
// own, and a retrieval that is captured in a CUDA graph once and replayed over changing tables, since nothing in it allocates or
// waits. Ends with 77 where there is no GPU.
#include "on_device.cuh"

#include <string>

#include "cases/search_cases.hpp"

namespace {
using namespace pqkv_cases;

void memory(verdict& all) {
  std::vector<int> from(1000), to(1000, -1);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<int>(i * i);
  pqkv::device_buffer<int> zeroed(1000, nullptr), none;
  zeroed.download(to.data(), nullptr);
  pqkv::sync(pqkv::exec::cuda{});
  all.check(same(to, std::vector<int>(1000)), "a new buffer is not zero");
  zeroed.upload(from.data(), nullptr);
  pqkv::device_buffer<int> moved(std::move(zeroed));
  none = std::move(moved);
  none.download(to.data(), nullptr);
  pqkv::sync(pqkv::exec::cuda{});
  all.check(same(from, to) && none.size_bytes() == 4000, "what went up did not come down");
}

/// What a call throws; "" for nothing.
template <class Error, class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void errors(verdict& all) {
  const pqkv::exec::cuda gpu;
  random_source random(1);
  const search_problem problem({1, 1, 2, 4, 64, 16}, table_kind::smooth, code_kind::uniform, random);
  const on_device entries(problem.table().entries);
  const on_device bias(problem.table().bias);
  const on_device codes(problem.codes());
  std::vector<float> scores(64);
  const on_device there(pqkv::make_view(scores.data(), 1, 64));
  const std::string scratch = message_of<pqkv::capacity_error>([&] {
    pqkv::scan(gpu, {entries.view(), bias.view()}, codes.view(), there.view(), pqkv::group_reduction::none, 16);
  });
  all.check(scratch.find("pqkv::scan: policy.scratch must be at least ") == 0 && scratch.find("got 0") != std::string::npos, "%s",
            scratch.c_str());
  const std::string shape = message_of<pqkv::shape_error>([&] {
    pqkv::scan(gpu, {entries.view(), bias.view()}, codes.view().slice(1, 0, 1), there.view(), pqkv::group_reduction::none, 16);
  });
  all.check(shape.find("pqkv::scan: codes.extent(1) must be 2") == 0, "%s", shape.c_str());
  // Half the address space is more than any device has.
  const std::string full = message_of<pqkv::cuda_error>([] { pqkv::device_buffer<std::byte>(std::size_t{1} << 62, nullptr); });
  all.check(full == "pqkv::device_buffer: cudaMalloc: out of memory (cudaErrorMemoryAllocation)", "%s", full.c_str());
  cudaGetLastError();
  // More rows than a grid has.
  pqkv::view<const float, 2, device> many{entries.view().data, {1u << 20, 4}, {0, 1}};
  pqkv::view<std::int32_t, 2, device> lists{reinterpret_cast<std::int32_t*>(there.view().data), {1u << 20, 2}, {0, 1}};
  const std::string grid = message_of<pqkv::cuda_error>([&] { pqkv::top_k(gpu, many, lists); });
  all.check(grid.find("pqkv::top_k: top_k_kernel: ") == 0, "%s", grid.c_str());
  cudaGetLastError();
}

/// One capture, many tables.
void graph(verdict& all) {
  random_source random(2);
  const search_shape shape{4, 4, 2, 6, 30000, 128};
  search_problem problem(shape, table_kind::smooth, code_kind::uniform, random);
  pqkv::cell_index index({shape.h, 128, shape.m, shape.bits}, shape.n);
  fill_index(problem, index, 100);
  const index_on_device index_there(index.mutable_view());
  const on_device<float, 3> entries(problem.mutable_table().entries);
  const on_device bias(problem.table().bias);
  const on_device codes(problem.codes());
  const on_device ranges(problem.ranges());
  const std::size_t k = shape.n / 4;
  std::vector<std::int32_t> indices(shape.h * k);
  std::vector<std::uint32_t> counts(shape.h);
  const on_device indices_there(pqkv::make_view(indices.data(), shape.h, k));
  const on_device counts_there(pqkv::make_view(counts.data(), shape.h));
  const device_scratch scratch(
      device_bytes<pqkv::op::retrieve>({.lists = shape.hq(), .query_heads = shape.hq(), .tokens = shape.n, .cells = index.view().cells()}));
  cudaStream_t stream = nullptr;
  pqkv::detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test", "cudaStreamCreateWithFlags");
  const pqkv::exec::cuda gpu{stream, scratch.policy().scratch};
  for (const pqkv::search_path path : {pqkv::search_path::automatic, pqkv::search_path::scan}) {
    cudaGraph_t recorded = nullptr;
    cudaGraphExec_t step = nullptr;
    pqkv::detail::check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "test", "cudaStreamBeginCapture");
    pqkv::retrieve(gpu, {entries.view(), bias.view()}, codes.view(), index_there.view(), ranges.view(), indices_there.view(),
                   counts_there.view(), {.head_dim = shape.d, .path = path});
    pqkv::detail::check_cuda(cudaStreamEndCapture(stream, &recorded), "test", "cudaStreamEndCapture");
    pqkv::detail::check_cuda(cudaGraphInstantiate(&step, recorded, 0), "test", "cudaGraphInstantiate");
    for (int replay = 0; replay < 5; ++replay) {
      const auto table = problem.mutable_table().entries;
      for (std::size_t i = 0; i < table.size(); ++i) table.data[i] = 11 * random.gaussian();
      pqkv::detail::check_cuda(cudaMemcpyAsync(entries.view().data, table.data, table.size() * sizeof(float), cudaMemcpyDefault, stream),
                               "test", "copy");
      pqkv::detail::check_cuda(cudaGraphLaunch(step, stream), "test", "cudaGraphLaunch");
      pqkv::sync(gpu);
      pqkv::retrieve(pqkv::exec::host<>{}, problem.table(), problem.codes(), index.view(), problem.ranges(),
                     pqkv::make_view(indices.data(), shape.h, k), pqkv::make_view(counts.data(), shape.h), {.head_dim = shape.d});
      all.check(same(indices, indices_there.bytes()) && same(counts, counts_there.bytes()), "replay %d, path %d", replay,
                static_cast<int>(path));
    }
    cudaGraphExecDestroy(step);
    cudaGraphDestroy(recorded);
  }
  cudaStreamDestroy(stream);
}
}  // namespace

int main() {
  if (!has_device()) return 77;
  verdict owners("memory"), refusals("errors"), replays("graph replays");
  memory(owners);
  errors(refusals);
  graph(replays);
  bool passed = owners.passed(2);
  passed &= refusals.passed(4);
  passed &= replays.passed(10);
  return passed ? 0 : 1;
}
