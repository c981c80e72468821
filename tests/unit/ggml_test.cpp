// SPDX-License-Identifier: Apache-2.0
// ggml's tensors as views (contiguous, permuted, transposed, of a part), refusals that name the tensor, and a ggml operation's threads as
// a task runner. Against a small double of ggml (tests/ggml_double); examples/llama_cpp runs the same header against the real one.
#include <pqkv/adapt/ggml.hpp>
#include <pqkv/pqkv.hpp>

#include <doctest/doctest.h>

#include <barrier>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cases/inputs.hpp"

static_assert(pqkv::exec::task_runner<pqkv::ggml_team&> && pqkv::exec::runs_whole_call<pqkv::ggml_team&>);

namespace {

/// A tensor as ggml makes it: contiguous, ne from the innermost axis.
ggml_tensor tensor_of(ggml_type type, std::size_t element_bytes, void* data, const std::vector<std::int64_t>& ne) {
  ggml_tensor t;
  t.type = type;
  t.data = data;
  std::strcpy(t.name, "cache_k_l7");
  for (std::size_t axis = 0; axis < ne.size(); ++axis) t.ne[axis] = ne[axis];
  t.nb[0] = element_bytes;
  for (int axis = 1; axis < GGML_MAX_DIMS; ++axis) t.nb[axis] = t.nb[axis - 1] * static_cast<std::size_t>(t.ne[axis - 1]);
  return t;
}

/// As ggml_permute does: axis i goes to place to[i].
ggml_tensor permuted(const ggml_tensor& t, const int (&to)[4]) {
  ggml_tensor p = t;
  for (int axis = 0; axis < 4; ++axis) p.ne[to[axis]] = t.ne[axis], p.nb[to[axis]] = t.nb[axis];
  return p;
}

/// The element at ggml's own indices, from the definition of nb.
template <class T>
const T& at(const ggml_tensor& t, std::size_t i0, std::size_t i1, std::size_t i2, std::size_t i3 = 0) {
  const auto* bytes = static_cast<const std::byte*>(t.data);
  return *reinterpret_cast<const T*>(bytes + i0 * t.nb[0] + i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3]);
}

/// Whether a view names exactly the tensor's elements.
template <class T>
bool names(const pqkv::view<const T, 3>& v, const ggml_tensor& t) {
  bool same = v.extent(0) == std::size_t(t.ne[2]) && v.extent(1) == std::size_t(t.ne[1]) && v.extent(2) == std::size_t(t.ne[0]);
  for (std::size_t i2 = 0; same && i2 < v.extent(0); ++i2)
    for (std::size_t i1 = 0; i1 < v.extent(1); ++i1)
      for (std::size_t i0 = 0; i0 < v.extent(2); ++i0) same = same && &v(i2, i1, i0) == &at<T>(t, i0, i1, i2);
  return same;
}

/// Runs an operation as ggml does: nth threads call it, and meet afterwards.
void run_operations(int nth, int operations, const std::function<void(int operation, int ith, int nth)>& op) {
  std::barrier<> meeting(nth);
  std::vector<std::thread> threads;
  for (int ith = 0; ith < nth; ++ith)
    threads.emplace_back([&, ith] {
      for (int i = 0; i < operations; ++i) {
        op(i, ith, nth);
        meeting.arrive_and_wait();
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE_TEMPLATE("a tensor's view names its elements, whatever the order of its strides", T, float, pqkv::half, pqkv::bfloat16) {
  constexpr std::int64_t d = 8, h = 3, cells = 5;
  std::vector<T> memory(d * h * cells);
  const ggml_tensor whole = tensor_of(pqkv::ggml_type_of<T>, sizeof(T), memory.data(), {d, h, cells});
  CHECK(names(pqkv::ggml_view<const T, 3>(&whole), whole));
  const ggml_tensor by_head = permuted(whole, {0, 2, 1, 3}), transposed = permuted(whole, {1, 0, 2, 3});
  CHECK(names(pqkv::ggml_view<const T, 3>(&by_head), by_head));
  CHECK(names(pqkv::ggml_view<const T, 3>(&transposed), transposed));
  ggml_tensor part = by_head;  // two cells of it, from the second one on
  part.data = memory.data() + d * h;
  part.ne[1] = 2;
  CHECK(names(pqkv::ggml_view<const T, 3>(&part), part));

  const auto v = pqkv::ggml_view<T, 4>(&whole);
  CHECK((v.extent(0) == 1 && v.extent(1) == cells && v.extent(3) == d && v.data == memory.data()));
  const auto swapped = pqkv::swap_axes<0, 1>(pqkv::ggml_view<const T, 3>(&by_head));  // [cells, h, d] again
  CHECK(names(swapped, whole));
  CHECK(pqkv::visit_ggml_view<3>(&by_head, [&](auto seen) { return sizeof(*seen.data) == sizeof(T) && seen.extent(0) == h; }));
}

TEST_CASE("a tensor that cannot be a view is refused by its name") {
  std::vector<float> memory(64);
  const auto refusal = [](const ggml_tensor& t) {
    try {
      static_cast<void>(pqkv::ggml_view<const float, 2>(&t));
      return std::string("accepted");
    } catch (const std::invalid_argument& refused) {
      CHECK(!pqkv::can_ggml_view<const float, 2>(&t).ok());
      return std::string(refused.what());
    }
  };
  const ggml_tensor good = tensor_of(GGML_TYPE_F32, 4, memory.data(), {8, 8});
  CHECK(refusal(good) == "accepted");
  CHECK(pqkv::can_ggml_view<const float, 2>(&good).ok());

  ggml_tensor bad = good;
  bad.type = GGML_TYPE_Q8_0;
  CHECK(refusal(bad) == "pqkv::ggml_view: cache_k_l7 must be of type f32, ggml's number 0, got 8 (q8_0)");
  CHECK_THROWS_WITH_AS(pqkv::visit_ggml_view<2>(&bad, [](auto) {}),
                       "pqkv::visit_ggml_view: cache_k_l7 must be of type f32, f16 or bf16, got q8_0", pqkv::value_error);
  bad = tensor_of(GGML_TYPE_F32, 4, memory.data(), {4, 4, 3});
  CHECK(refusal(bad) == "pqkv::ggml_view: cache_k_l7 must be 1 (extent of the axes beyond the view's), got 3");
  bad = good;
  bad.nb[1] = 34;
  CHECK(refusal(bad) == "pqkv::ggml_view: cache_k_l7 must be a multiple of 4 (bytes of an element, in each stride), got 34");
  bad = good;
  bad.data = nullptr;
  CHECK(refusal(bad) == "pqkv::ggml_view: cache_k_l7 must be allocated: it has no data");
  ggml_backend_buffer device{false}, host{true};
  bad = good;
  bad.buffer = &device;
  CHECK(refusal(bad) == "pqkv::ggml_view: cache_k_l7 must be in host memory: keep the layer on the CPU");
  bad.buffer = &host;
  CHECK(refusal(bad) == "accepted");
  bad = good;
  bad.name[0] = 0;
  bad.data = nullptr;
  CHECK(refusal(bad) == "pqkv::ggml_view: tensor must be allocated: it has no data");
  CHECK_THROWS_WITH_AS((pqkv::ggml_view<const float, 2>(nullptr)), "pqkv::ggml_view: tensor must be given: it is a null pointer",
                       pqkv::value_error);
}

TEST_CASE("an operation's threads run every task once, call after call and operation after operation") {
  for (const int nth : {1, 2, 4}) {
    pqkv::ggml_team team;
    constexpr int operations = 60;
    std::vector<std::vector<int>> seen(operations);
    run_operations(nth, operations, [&](int operation, int ith, int count) {
      team.lead(ith, count, [&] {
        auto& mine = seen[static_cast<std::size_t>(operation)];
        mine.assign(100, 0);
        for (const std::size_t tasks : {0u, 1u, 2u, 7u, 100u}) team.run(tasks, [&](std::size_t i) { ++mine[i]; });
      });
    });
    for (const auto& mine : seen) {
      CHECK(mine[0] == 4);
      CHECK(mine[1] == 3);
      CHECK(mine[6] == 2);
      CHECK(mine[99] == 1);
    }
  }
}

TEST_CASE("what a task throws reaches the first thread after the others' tasks, and the operation ends") {
  pqkv::ggml_team team;
  int caught = 0, done_after = 0;
  std::atomic<int> done = 0;
  run_operations(3, 20, [&](int, int ith, int nth) {
    team.lead(ith, nth, [&] {
      done = 0;
      try {
        team.run(30, [&](std::size_t i) {
          if (i == 11) throw std::runtime_error("eleven");
          ++done;
        });
      } catch (const std::runtime_error&) {
        ++caught;
      }
      done_after += done;
      team.run(5, [&](std::size_t) { ++done; });
    });
  });
  CHECK(caught == 20);
  CHECK(done_after == 20 * 29);
  int escaped = 0;
  run_operations(2, 3, [&](int, int ith, int nth) {
    try {
      team.lead(ith, nth, [] { throw std::logic_error("out of the operation"); });
    } catch (const std::logic_error&) {
      ++escaped;
    }
  });
  CHECK(escaped == 3);
}

TEST_CASE("a cache in an operation of several threads answers with the bits of one thread") {
  constexpr std::size_t h = 2, hq = 6, d = 32, n = 700;
  using cache_type = pqkv::pqcache<pqkv::dense_rows<pqkv::half>>;
  cache_type::params params;
  params.kv_heads = h, params.query_heads = hq, params.head_dim = d, params.capacity = n + 8;
  params.selector.subspaces = 2, params.selector.bits = 4;
  auto rows = pqkv_cases::make_rows<pqkv::half>(pqkv_cases::content::clustered, 1, n, h * d, 5);  // [n, h, d]
  auto asked = pqkv_cases::make_rows(pqkv_cases::content::gaussian, 1, hq, d, 6);
  // As llama.cpp has them: the cache's rows [d, h, cells] and the query [d, tokens, hq], both seen by head.
  const ggml_tensor cells = permuted(tensor_of(GGML_TYPE_F16, 2, rows.view().data, {d, h, n}), {0, 2, 1, 3});
  const ggml_tensor query = permuted(tensor_of(GGML_TYPE_F32, 4, asked.view().data, {d, hq, 1}), {0, 2, 1, 3});
  const auto answer = [&](const auto& policy, cache_type& cache, std::vector<float>& result) {
    ggml_tensor out = tensor_of(GGML_TYPE_F32, 4, result.data(), {d, hq, 1});
    const auto kv = pqkv::ggml_view<const pqkv::half, 3>(&cells);
    cache.prefill(policy, 0, kv, kv);
    cache.attend(policy, pqkv::swap_axes<0, 1>(pqkv::ggml_view<const float, 3>(&query)), pqkv::ggml_view<float, 3>(&out));
  };
  std::vector<float> alone(hq * d), together(hq * d);
  cache_type one(params), several(params);
  answer(pqkv::exec::host<>{}, one, alone);
  pqkv::ggml_team team;
  run_operations(3, 1, [&](int, int ith, int nth) {
    team.lead(ith, nth, [&] { answer(pqkv::exec::host<pqkv::isa::best, pqkv::ggml_team&>{team, {}}, several, together); });
  });
  CHECK(several.statistics(0).tokens_attended < n / 5);
  CHECK(std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)) == 0);
  CHECK(alone[0] != 0);
}
