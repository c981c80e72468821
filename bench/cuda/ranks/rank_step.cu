// SPDX-License-Identifier: Apache-2.0
// A decode step of one layer on two GPUs, each with half of the tokens, append and attend with all exchanges in one CUDA graph, over peers
// and over NCCL, exact and local; beside it one GPU's step on all tokens and on half of them, the same step on one rank that exchanges with
// nobody and retrieves as many tokens as both or as one of them, dense context-parallel attention, and the exchanges alone. 8 KV heads, 32
// query heads, head dimension 128, bfloat16; 2048 tokens retrieved or more, 64 sinks, 960 window tokens: the layer of docs/scale.md, with
// keys around 512 directions a head.
//
// Before each timed step the caches are flushed, and an exchange that is not timed lets all GPUs begin together. Times are of the slower
// rank. One JSON line each, as bench/cuda; the cold time is the one of docs/results_gpu.md.
//
//   rank_step [name prefix | --names]    needs libnccl; exit code 77 where there are fewer than two GPUs: bench/gpu_scale.sh runs it
#include "../../../tests/cuda/ranks/rank_devices.cuh"
#include "../data.cuh"
#include "../timing.cuh"

#include <exception>

namespace {
using namespace bench;
using pqkv::exec::cuda;
using stored = pqkv::bfloat16;
constexpr std::size_t ranks = 2, h = 8, g = 4, d = 128, hq = h * g, room = 1024, sinks = 64, window = 960, retrieved = 2048;
constexpr std::size_t lengths[] = {262144, 524288, 1048576, 2097152};

struct codes {
  const char* name;
  std::size_t subspaces;
  unsigned bits;
};
constexpr codes every_code[] = {{"pq_2x6", 2, 6}, {"pq_4x8", 4, 8}};

/// One process, with its device.
struct process {
  const pqkv_cases::forked_group& group;
  std::size_t rank;
  const stopwatch& watch;
  const l2_flush& flush;

  cuda policy() const { return {watch.stream(), {}}; }
  /// The largest of all ranks' numbers.
  float slowest(float us) const {
    float all[pqkv::scale::most_peers] = {};
    pqkv_cases::forked_ranks(group, rank)
        .all_gather(0, reinterpret_cast<const std::byte*>(&us), reinterpret_cast<std::byte*>(all), sizeof us);
    return *std::max_element(all, all + group.size());
  }
};

/// Times call(policy), captured `calls` times in a graph. meet(policy) is enqueued before each timed graph, and is not timed.
template <class Call, class Meet>
void measure_together(const process& own, const std::string& name, bool alone, int calls, Call call, Meet meet) {
  const auto enqueue = [&](void* stream, int) { call(cuda{stream, {}}); };
  pqkv::sync(own.policy());
  if (!alone) own.group.meet();
  const auto of = [&](int count, int replays, auto before) {
    const call_graph graph(own.watch.stream(), count, enqueue);
    std::vector<float> times;
    for (int i = 0; i < replays + 3; ++i) {
      const float us = own.watch.time(
          [&] {
            before();
            meet(own.policy());
          },
          [&] { graph.launch(own.watch.stream()); });
      const float slower = alone ? us : own.slowest(us);
      if (i >= 3) times.push_back(slower / static_cast<float>(count));
    }
    std::sort(times.begin(), times.end());
    return times;
  };
  for (int i = 0; i < 50; ++i) own.flush(own.watch.stream());  // clocks rise
  const auto cold = of(1, 40, [&] { own.flush(own.watch.stream()); });
  const auto warm = of(calls, 40, [&] {
    wait_kernel<long long><<<1, 1, 0, own.watch.stream()>>>(200000);  // longer than the host takes to enqueue what follows
    stopwatch::check(cudaGetLastError(), "wait_kernel");
  });
  if (own.rank == 0) print_line(name, {.calls = calls, .replays = 40, .cold_replays = 40}, warm, cold);
}
inline void nobody(const cuda&) {}

/// The keys of a rank: the directions of all ranks, but its own choices and noise.
pqkv::device_buffer<stored> keys_of(std::size_t rank, std::size_t n) {
  return filled<stored>(h * n * d, clustered_keys<stored>{{20, 1}, {21, 2 + rank}, {22, 2 + rank}, n, d});
}
pqkv::device_buffer<stored> values_of(std::size_t rank, std::size_t n) {
  return filled<stored>(h * n * d, normal_numbers<stored>{{23, 2 + rank}, 1});
}
/// A step's inputs, the same on every rank.
struct step_inputs {
  pqkv::device_buffer<float> key = numbers(h * d, 0, 1), value = numbers(h * d, 1, 1), query = numbers(hq * d, 2, 2), out{hq * d, nullptr};

  static pqkv::device_buffer<float> numbers(std::size_t count, std::uint64_t stream, float size) {
    return filled<float>(count, normal_numbers<float>{{24, stream}, size});
  }
  auto asked() const { return pqkv::make_view<device>(std::as_const(query).data(), 1, hq, d); }
  auto answered() const { return pqkv::make_view<device>(out.data(), 1, hq, d); }
  template <class Cache>
  void step(const cuda& policy, Cache& cache) const {
    cache.append(policy, pqkv::make_view<device>(std::as_const(key).data(), 1, h, d),
                 pqkv::make_view<device>(std::as_const(value).data(), 1, h, d));
    cache.attend(policy, asked(), answered());
  }
};

template <class Params>
Params settings(const codes& of, std::size_t n, std::size_t k = retrieved) {
  Params p{};
  p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = n + room;
  p.budget.sinks = sinks, p.budget.window = window, p.budget.retrieve = k;
  p.selector.subspaces = of.subspaces, p.selector.bits = of.bits;
  p.selector.train = {.iterations = 10, .seed = 1, .rows_per_centroid = 256};
  return p;
}
auto rows_of(const pqkv::device_buffer<stored>& of, std::size_t n) { return pqkv::make_view<device>(std::as_const(of).data(), h, n, d); }

/// One GPU with n tokens, in the process of rank 0; the others wait.
void one_gpu(const process& own, const codes& of, std::size_t n) {
  const std::string name = named(std::string("rank_step/one_gpu/") + of.name, {{"n", n}});
  if (!is_wanted(name)) return;
  if (own.rank == 0) {
    using cache_type = pqkv::device_pqcache<stored>;
    cache_type cache(own.policy(), settings<cache_type::params>(of, n));
    cache.prefill(own.policy(), 0, rows_of(keys_of(0, n), n), rows_of(values_of(0, n), n));
    pqkv::sync(own.policy());
    const step_inputs in;
    measure_together(
        own, name, true, 1, [&](const cuda& on) { in.step(on, cache); }, nobody);
  }
  own.group.meet();
}

/// n tokens over all ranks.
template <class Ranks>
void over_ranks(const process& own, const char* how, const Ranks& communicator, const codes& of, std::size_t n,
                pqkv::scale::selection_mode mode, bool alone = false, std::size_t k = retrieved) {
  const char* const selected = mode == pqkv::scale::selection_mode::exact ? "exact" : "local";
  const std::string name = named(std::string("rank_step/") + how + "/" + selected + "/" + of.name, {{"n", n}});
  if (!is_wanted(name)) return;
  using cache_type = pqkv::scale::context_parallel<pqkv::dense_rows<stored, device>, Ranks>;
  auto p = settings<typename cache_type::params>(of, n, k);
  p.selection_over_ranks = mode;
  p.agreement = pqkv::scale::agreement_mode::with_exchange;
  p.run = n / communicator.size();
  cache_type cache(own.policy(), communicator, p);
  {
    const auto keys = keys_of(own.rank, p.run), values = values_of(own.rank, p.run);
    cache.prefill(own.policy(), 0, rows_of(keys, p.run), rows_of(values, p.run), n);
  }
  const step_inputs in;
  const pqkv::device_buffer<std::byte> message(64 * 8, nullptr);
  measure_together(
      own, name, alone, 1, [&](const cuda& on) { in.step(on, cache); },
      [&](const cuda& on) { communicator.all_gather(on, message.data(), message.data() + 64, 8); });
  communicator.finish(own.policy());
}

/// Dense attention to each rank's half of n tokens, merged over all ranks.
void dense(const process& own, pqkv::scale::peer_ranks communicator, std::size_t n) {
  const std::string name = named("rank_step/peer/dense", {{"n", n}});
  if (!is_wanted(name)) return;
  const std::size_t share = n / ranks;
  const pqkv::cache_shape shape{.batch = 1, .kv_heads = h, .query_heads = hq, .head_dim = d, .capacity = share};
  const pqkv::dense_rows<stored, device> rows(own.policy(), shape);
  const auto view = rows.view();
  {
    const auto keys = keys_of(own.rank, share), values = values_of(own.rank, share);
    const pqkv::device_buffer<std::uint32_t> nonfinite(2, nullptr);
    pqkv::detail::run_operation<pqkv::op::store_tokens>(own.policy(), view,
                                                        pqkv::stored_tokens<device>{0, 0, pqkv::make_view<device>(nonfinite.data(), 2)},
                                                        rows_of(keys, share), rows_of(values, share));
    pqkv::sync(own.policy());
  }
  const pqkv::device_buffer<pqkv::token_span> spans = upload(std::vector<pqkv::token_span>(h, {static_cast<std::uint32_t>(share), 0, 0}));
  const pqkv::device_buffer<std::byte> scratch(device_bytes<pqkv::op::attention>({hq, hq, d, share}), nullptr);
  const pqkv::device_buffer<float> out(hq * d, nullptr), lse(hq, nullptr);
  const pqkv::device_buffer<std::uint32_t> disagreed(1, nullptr);
  const step_inputs in;
  using merged = pqkv::scale::merged_shares<device>;
  const auto mail = communicator.mail(1 + merged::kernel_words(hq, d), hq);
  const auto matrix = [](const pqkv::device_buffer<float>& of) { return pqkv::make_view<device>(of.data(), hq, d); };
  const auto column = [](const pqkv::device_buffer<float>& of) { return pqkv::make_view<device>(of.data(), hq); };
  const pqkv::device_buffer<std::byte> message(64 * 8, nullptr);
  measure_together(
      own, name, false, 1,
      [&](const cuda& on) {
        const pqkv::token_set<device> all{pqkv::make_view<device>(std::as_const(spans).data(), h), {}, {}};
        pqkv::detail::run_operation<pqkv::op::attend_share>(cuda{on.stream, pqkv::arena(scratch)}, pqkv::as_const(matrix(in.query)), view,
                                                            all, 0.0f, merged{matrix(out), column(lse), 0, disagreed.data()}, mail);
      },
      [&](const cuda& on) { communicator.all_gather(on, message.data(), message.data() + 64, 8); });
  communicator.finish(own.policy());
}

/// The messages of an exact step, one all_gather after the other: normalisers, their centred sums (NCCL alone, which sends them always),
/// candidates, partial outputs.
template <class Ranks>
void exchanges(const process& own, const char* how, const Ranks& communicator, bool sends_centred) {
  const std::string name = named(std::string("rank_step/") + how + "/exchanges", {{"k", retrieved}});
  if (!is_wanted(name)) return;
  using ranking = pqkv::scale::ranked_share<device>;
  const std::size_t words[] = {ranking::sum_words(hq), ranking::centred_words(hq), ranking::candidate_words(h, retrieved),
                               pqkv::scale::merged_shares<device>::words(hq, d)};
  const std::size_t most = 8 * (1 + *std::max_element(words, words + 4));
  const pqkv::device_buffer<std::byte> message(most, nullptr), all(ranks * most, nullptr);
  measure_together(
      own, name, false, 8,
      [&](const cuda& on) {
        for (int i = 0; i < 4; ++i)
          if (i != 1 || sends_centred) communicator.all_gather(on, message.data(), all.data(), 8 * (1 + words[i]));
      },
      [&](const cuda& on) { communicator.all_gather(on, message.data(), all.data(), 8); });
  communicator.finish(own.policy());
}

void measure_rank(const pqkv_cases::forked_group& group, std::size_t rank) {
  using pqkv::scale::selection_mode;
  const pqkv_cases::rank_device gpu(rank);
  const pqkv_cases::forked_ranks meeting(group, rank);
  const stopwatch watch;
  const l2_flush flush(l2_bytes());
  const process own{group, rank, watch, flush};
  const pqkv_cases::forked_group alone_group(1, 1);
  const pqkv_cases::with_peers nobody_else(pqkv_cases::forked_ranks(alone_group, 0));
  const pqkv_cases::with_peers peers(meeting);
  const pqkv_cases::with_nccl nccl(meeting);
  exchanges(own, "peer", peers.communicator(), false);
  exchanges(own, "nccl", nccl.communicator(), true);
  for (const std::size_t n : lengths) {
    for (const codes& of : every_code) {
      one_gpu(own, of, n / 2);
      if (n == lengths[std::size(lengths) - 1]) one_gpu(own, of, n);
      if (rank == 0) {
        over_ranks(own, "alone", nobody_else.communicator(), of, n / 2, selection_mode::exact, true);
        over_ranks(own, "alone_half", nobody_else.communicator(), of, n / 2, selection_mode::exact, true, retrieved / ranks);
      }
      group.meet();
      for (const selection_mode mode : {selection_mode::exact, selection_mode::local}) {
        over_ranks(own, "peer", peers.communicator(), of, n, mode);
        over_ranks(own, "nccl", nccl.communicator(), of, n, mode);
      }
    }
    dense(own, peers.communicator(), n);
  }
  stopwatch::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  group.meet();
}

void name_all() {
  const char* const modes[] = {"exact", "local"};
  is_wanted(named("rank_step/peer/exchanges", {{"k", retrieved}})), is_wanted(named("rank_step/nccl/exchanges", {{"k", retrieved}}));
  for (const std::size_t n : lengths) {
    for (const codes& of : every_code) {
      is_wanted(named(std::string("rank_step/one_gpu/") + of.name, {{"n", n / 2}}));
      for (const char* how : {"alone", "alone_half"})
        is_wanted(named(std::string("rank_step/") + how + "/exact/" + of.name, {{"n", n / 2}}));
      for (const char* mode : modes)
        for (const char* how : {"peer", "nccl"}) is_wanted(named(std::string("rank_step/") + how + "/" + mode + "/" + of.name, {{"n", n}}));
    }
    is_wanted(named("rank_step/peer/dense", {{"n", n}}));
  }
  for (const codes& of : every_code)
    is_wanted(named(std::string("rank_step/one_gpu/") + of.name, {{"n", lengths[std::size(lengths) - 1]}}));
}
}  // namespace

int main(int argc, char** argv) {
  wanted = argc > 1 ? argv[1] : "";
  if (argc > 2 || (wanted != "--names" && wanted.compare(0, 1, "-") == 0)) {
    std::fprintf(stderr, "%s: takes the prefix of the names to measure, or --names; got '%s'\n", argv[0], argv[argc - 1]);
    return 2;
  }
  if (wanted == "--names") {
    lists_names = true;
    name_all();
    return 0;
  }
  if (pqkv_cases::count_devices() < ranks) {
    std::fprintf(stderr, "%s: needs %zu CUDA devices\n", argv[0], ranks);
    return 77;
  }
  const pqkv_cases::forked_group group(ranks, 1);
  return group.run([&](std::size_t rank) {
    try {
      measure_rank(group, rank);
      return 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "rank %zu: %s\n", rank, error.what());
      return 1;
    }
  });
}
