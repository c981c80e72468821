// SPDX-License-Identifier: Apache-2.0
// A context that neither of two GPUs can hold, as main.cpp's, here with a thread and a device for each half. Memory is taken on
// both GPUs until little is free; then one cache of the whole context does not fit. A decode step is captured once, exchanges included, and
// replayed. Then a question is asked whose answer one GPU holds, and another whose answer the other holds: both GPUs get both answers.
//
//   nvcc -std=c++20 -O3 -arch=sm_90 -Iinclude examples/two_processes/two_gpus.cu -o two_gpus      exit code 77 with fewer than two GPUs
#include <pqkv/adapt/peer.cuh>
#include <pqkv/device_context_parallel.cuh>
#include <pqkv/scale/in_process.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {
using device = pqkv::space::device;
using shared_cache = pqkv::scale::context_parallel<pqkv::dense_rows<float, device>, pqkv::scale::peer_ranks>;

constexpr std::size_t gpus = 2, h = 4, hq = 8, d = 64, n = 262144, chunk = 32768;
constexpr std::size_t facts[] = {80000, 200000};      // one on each GPU
constexpr std::size_t room = std::size_t{448} << 20;  // bytes that stay free on each GPU: the whole context's rows take 512 MiB

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
/// The key of a token and head, as in main.cpp: a fact's key is four times as long as others, so that its query finds nothing else.
void write_key(std::size_t head, std::size_t t, float* key) {
  std::minstd_rand random(static_cast<unsigned>(t * h + head + 1));
  random.discard(2);
  const bool is_fact = t == facts[0] || t == facts[1];
  for (std::size_t i = 0; i < d; ++i) key[i] = (static_cast<float>(random() % 2048) / 1024 - 1) * (is_fact ? 4.0f : 1.0f);
}
/// The value is 1 for the first fact, 2 for the second, 0 elsewhere.
float value_of(std::size_t t) { return t == facts[0] ? 1.0f : t == facts[1] ? 2.0f : 0.0f; }

void copy(const std::vector<float>& from, const pqkv::device_buffer<float>& to, cudaStream_t stream) {
  to.upload(from.data(), stream);
  check(cudaStreamSynchronize(stream));
}

template <class Params>
Params settings() {
  Params params;
  params.kv_heads = h, params.query_heads = hq, params.head_dim = d, params.capacity = n + 64;
  params.budget.tokens = 1024;
  params.selector.subspaces = 4, params.selector.bits = 6;
  params.selector.train.rows_per_centroid = 64;
  return params;
}
/// Takes the current device's memory but for `room`, and shows that the whole context does not fit that.
pqkv::device_buffer<std::byte> limit_memory(const pqkv::exec::cuda& gpu, std::size_t rank) {
  std::size_t free_bytes = 0, all_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &all_bytes));
  if (free_bytes < room) throw std::runtime_error("the device has less free memory than the example leaves");
  pqkv::device_buffer<std::byte> taken(free_bytes - room, gpu.stream);
  try {
    using one_cache = pqkv::device_pqcache<float>;
    const one_cache whole(gpu, settings<one_cache::params>());
  } catch (const pqkv::cuda_error&) {
    static_cast<void>(cudaGetLastError());  // it was reported
    std::printf("GPU %zu with %zu MiB free: no room for %zu tokens\n", rank, room >> 20, n);
    return taken;
  }
  throw std::runtime_error("the whole context fits one GPU: nothing is shown");
}

/// What each GPU's thread does. @return how far its answers are from the facts' values
float answer(pqkv::scale::in_process_group& threads, std::size_t rank) {
  check(cudaSetDevice(static_cast<int>(rank)));
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const pqkv::exec::cuda gpu{stream, {}};
  const pqkv::scale::in_process meeting(threads, rank);
  const pqkv::scale::peer_ranks ranks(meeting, std::size_t{64} << 20);  // with more than one host: pqkv::scale::nccl_ranks(comm)

  const pqkv::device_buffer<std::byte> taken = limit_memory(gpu, rank);
  auto params = settings<shared_cache::params>();
  params.run = n / gpus;                                          // the first half of the context to the first GPU
  params.agreement = pqkv::scale::agreement_mode::with_exchange;  // a step then waits for nothing on the host
  shared_cache cache(gpu, ranks, params);

  std::vector<float> keys(h * chunk * d), values(h * chunk * d);
  const pqkv::device_buffer<float> own_keys(keys.size(), stream), own_values(keys.size(), stream), k(h * d, stream), v(h * d, stream),
      q(hq * d, stream), out(hq * d, stream);
  meeting.all_gather(pqkv::exec::host<>{}, "", nullptr, 0);  // nobody allocates while another GPU waits
  for (std::size_t first = 0; first < n; first += chunk) {
    const std::size_t before = cache.layout().held(rank, first), own = cache.layout().held(rank, first + chunk) - before;
    for (std::size_t head = 0; head < h; ++head)
      for (std::size_t i = 0; i < own; ++i) {
        const std::size_t t = cache.layout().position(rank, before + i), row = (head * own + i) * d;
        write_key(head, t, &keys[row]);
        for (std::size_t e = 0; e < d; ++e) values[row + e] = value_of(t);
      }
    copy(keys, own_keys, stream), copy(values, own_values, stream);
    cache.prefill(gpu, 0, pqkv::make_view<device>(own_keys.data(), h, own, d), pqkv::make_view<device>(own_values.data(), h, own, d), chunk,
                  first + chunk == n ? pqkv::chunk::last : pqkv::chunk::more);
    pqkv::sync(gpu);  // the next chunk overwrites these keys
  }

  cudaGraph_t graph;
  cudaGraphExec_t step;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cache.append(gpu, pqkv::make_view<device>(k.data(), 1, h, d), pqkv::make_view<device>(v.data(), 1, h, d));
  cache.attend(gpu, pqkv::make_view<device>(q.data(), 1, hq, d), pqkv::make_view<device>(out.data(), 1, hq, d));
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&step, graph, 0));

  float apart = 0;
  for (const std::size_t fact : facts) {
    std::vector<float> query(hq * d), found(hq * d);
    for (std::size_t head = 0; head < hq; ++head) write_key(head / (hq / h), fact, &query[head * d]);
    copy(query, q, stream);
    check(cudaGraphLaunch(step, stream));
    out.download(found.data(), stream);
    ranks.finish(gpu);
    for (const float element : found) apart = std::max(apart, std::fabs(element - value_of(fact)));
  }
  check(cudaGraphExecDestroy(step));
  check(cudaGraphDestroy(graph));
  meeting.all_gather(pqkv::exec::host<>{}, "", nullptr, 0);  // both are done before memory ends
  return apart;
}
}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < static_cast<int>(gpus)) {
    std::puts("fewer than two GPUs");
    return 77;
  }
  pqkv::scale::in_process_group threads(gpus);
  float apart[gpus] = {9, 9};
  std::string failed[gpus];
  std::vector<std::thread> running;
  for (std::size_t rank = 0; rank < gpus; ++rank)
    running.emplace_back([&, rank] {
      try {
        apart[rank] = answer(threads, rank);
      } catch (const std::exception& error) {
        failed[rank] = error.what();
      }
    });
  for (std::thread& one : running) one.join();
  bool passed = true;
  for (std::size_t rank = 0; rank < gpus; ++rank) {
    if (!failed[rank].empty()) std::printf("GPU %zu: %s\n", rank, failed[rank].c_str());
    std::printf("GPU %zu: answers are %g from the facts' values\n", rank, static_cast<double>(apart[rank]));
    passed = passed && apart[rank] < 1e-2f;
  }
  return passed ? 0 : 1;
}
