// SPDX-License-Identifier: Apache-2.0
// Keys and values in pinned host memory under a GPU: a cache over tiers beside one with all rows in device memory. The same lists, the same
// bits of attention, the same bytes of every slot's file, in lives with prompts in chunks, steps of 0 to 16 tokens a row, cuts, forks,
// files and resets, for every policy, blocks of 1 to 128 tokens, and caches from nothing to everything; and the counts of tiers on the
// host. Then steps in a CUDA graph, replayed while the sequences grow. Ends with 77 where there is no GPU.
//
//   tiered_rows                all of it
//   tiered_rows --seconds S    shorter lives while the time lasts, for compute-sanitizer
//   tiered_rows --long STEPS   so many replayed steps, e.g. 20000
#include <string>

#include "cache_life.cuh"

namespace {
using namespace pqkv_cases;

using stored = pqkv::bfloat16;
template <class T>
using dense_life = life<pqkv::pqcache<pqkv::owned_rows<T>>, pqkv::pqcache<pqkv::owned_rows<T, device>>>;
template <class Eviction, class T = stored>
using tier_cache = pqkv::pqcache<pqkv::tiered_rows<pqkv::owned_rows<T, pqkv::space::pinned>, device, Eviction>>;
template <class Eviction, class T>
using tier_life = life<pqkv::pqcache<pqkv::tiered_rows<pqkv::owned_rows<T>, pqkv::space::host, Eviction>>, tier_cache<Eviction, T>>;

/// Sizes of fast memory, in tokens.
struct tier_sizes {
  std::size_t block, cache, sinks, recent, admit;
  pqkv::block_scope scope = pqkv::block_scope::layer;
};
constexpr auto of_head = pqkv::block_scope::head;
constexpr tier_sizes every_size[] = {
    {16, 160, 8, 64, 4},    {1, 40, 8, 64, 32, of_head},   {128, 128, 4, 20, 32}, {16, 0, 0, 1, 1},
    {1, 4000, 16, 300, 64}, {5, 5, 3, 64, 2, of_head},     {128, 1024, 8, 40, 8}, {256, 6144, 8, 64, 32, of_head},
    {16, 16, 8, 7, 32},     {1, 1, 8, 64, 1024, of_head}, {16, 6000, 40, 64, 32}};

pqkv::pqcache<pqkv::dense_rows<stored>>::params settings(std::size_t which) {
  pqkv::pqcache<pqkv::dense_rows<stored>>::params p{};
  p.batch = 2 + which % 2;
  p.kv_heads = 2;
  p.query_heads = which % 2 == 0 ? 8 : 4;
  p.head_dim = which % 4 == 3 ? 64 : 128;
  p.capacity = 4000;
  p.budget.sinks = which % 5 == 1 ? 0 : 8;
  p.budget.min_tokens = 60;
  p.selector.bits = which % 3 == 0 ? 6 : 4;
  p.selector.train.iterations = 4;
  p.selector.tail_tokens = 48;
  if (which % 4 == 1) p.selector.reduction = pqkv::group_reduction::none;
  if (which % 4 == 2) p.step_queries = 5;
  if (which % 5 == 2) p.selection = pqkv::draft_selection::first_query;
  if (which % 3 == 2) p.selector.axes = pqkv::axis_order::contiguous;
  return p;
}
template <class Cache>
typename Cache::params of_cache(const pqkv::pqcache<pqkv::dense_rows<stored>>::params& p) {
  typename Cache::params all{};
  static_cast<pqkv::cache_shape&>(all) = p;
  all.budget = p.budget, all.selector = p.selector;
  return all;
}
template <class Cache>
typename Cache::params with_tiers(const pqkv::pqcache<pqkv::dense_rows<stored>>::params& p, const tier_sizes& sizes) {
  typename Cache::params all = of_cache<Cache>(p);
  all.rows.scope = sizes.scope;
  all.rows.block_tokens = sizes.block, all.rows.cache_tokens = sizes.cache, all.rows.admit_blocks = sizes.admit;
  all.rows.sink_tokens = sizes.sinks, all.rows.recent_tokens = sizes.recent;
  return all;
}

/// A cache with all rows in device memory and one over tiers that are given the same calls.
template <class Eviction, class T = stored>
struct twins {
  dense_life<T> dense;
  tier_life<Eviction, T> tiers;

  twins(std::size_t which, std::uint64_t seed, cudaStream_t stream = nullptr)
      : twins(settings(which), every_size[which % std::size(every_size)], seed, stream) {}
  twins(const pqkv::pqcache<pqkv::dense_rows<stored>>::params& p, const tier_sizes& sizes, std::uint64_t seed, cudaStream_t stream)
      : dense(of_cache<typename dense_life<T>::host_type>(p), seed),
        tiers(with_tiers<typename tier_life<Eviction, T>::host_type>(p, sizes), seed, stream) {}

  template <class F>
  void both(F f) {
    f(dense);
    f(tiers);
  }
  void same_results(verdict& all, std::size_t tokens, const char* what, std::size_t step) {
    all.check(same(dense.results(tokens), tiers.results(tokens)), "%s: attention differs in its bits, step %zu", what, step);
  }
  void same_files(verdict& all, std::size_t slot, const char* what, std::size_t step) {
    all.check(saved(dense.gpu(), dense.on_gpu(), slot) == saved(tiers.gpu(), tiers.on_gpu(), slot),
              "%s: files of slot %zu differ, step %zu", what, slot, step);
  }
  /// Of lives in which both caches over tiers have answered the same.
  void same_counts(verdict& all, std::size_t batch, const char* what, std::size_t step) {
    cudaDeviceSynchronize();
    // In the first of several passes of a step, a host has copies of the newest tokens up to there, a device up to the step's end.
    for (std::size_t slot = 0; slot < batch; ++slot) {
      const pqkv::tier_statistics there = tiers.on_gpu().rows().statistics(slot), here = tiers.on_host().rows().statistics(slot);
      const std::uint64_t more = there.misses - here.misses;
      const bool same_hits = there.misses >= here.misses && more <= (here.hits + here.misses) / 20 && there.hits + more == here.hits;
      // A device has what it appends in both memories at once, and need not read it back; in the first passes more of a window is gone.
      const bool same_bytes = there.slow_bytes <= here.slow_bytes + here.slow_bytes / 8;
      all.check(same_hits && same_bytes && there.admissions == here.admissions && there.evictions == here.evictions &&
                    (there.misses == 0 || there.slow_bytes > 0),
                "%s: slot %zu has hits %zu of %zu, misses %zu of %zu, bytes %zu of %zu, admissions %zu of %zu, step %zu", what, slot,
                static_cast<std::size_t>(there.hits), static_cast<std::size_t>(here.hits), static_cast<std::size_t>(there.misses),
                static_cast<std::size_t>(here.misses), static_cast<std::size_t>(there.slow_bytes),
                static_cast<std::size_t>(here.slow_bytes), static_cast<std::size_t>(there.admissions),
                static_cast<std::size_t>(here.admissions), step);
      hits += step == counted_last ? there.hits : 0;
      evictions += step == counted_last ? there.evictions : 0;
    }
  }
  std::size_t counted_last = 0, hits = 0, evictions = 0;
};

template <class Eviction, class T = stored>
void lives(workload& work, verdict& bits, verdict& counts, std::size_t first, std::size_t& hits, std::size_t& evictions) {
  for (std::size_t which = first; which < first + std::size(every_size); ++which) {
    if (!work.another()) continue;
    twins<Eviction, T> both(which, 500 + which);
    const std::size_t batch = settings(which).batch, steps = work.small() ? 12 : 28;
    both.counted_last = steps;
    for (std::size_t slot = 0; slot < batch; ++slot)
      both.both([&](auto& one) { one.prefill(slot, (work.small() ? 200 : 1100) + 41 * slot, 1 + slot, 1u << 20); });
    for (std::size_t step = 1; step <= steps; ++step) {
      both.both([&](auto& one) {
        one.draw_step(step % 5 == 0 ? step_kind::some : step % 4 == 0 ? step_kind::all : step_kind::ragged);
        one.draw_tokens();
        one.append_host(), one.append_device();
      });
      both.dense.attend_device();
      both.tiers.compare(counts, "a life", which * 1000 + step);
      both.same_results(bits, both.dense.tokens(), "a life", which * 1000 + step);
      both.both([&](auto& one) {
        one.draw_lengths();
        if (step % 3 == 0) one.truncate_host(), one.truncate_device();
        if (step % 7 == 0) one.truncate(step % batch);
        if (step % 10 == 0) one.maintain();
        if (step % 11 == 0) one.fork(step % batch, (step + 1) % batch);
        if (step % 9 == 4) one.exchange(bits, step % batch, (step + 1) % batch);
        if (step % 17 == 0) one.reset(step % batch), one.prefill(step % batch, 300 + step, 2, 1u << 20);
      });
      if (step % 8 == 0) both.same_files(bits, step % batch, "a life", which * 1000 + step);
      if (step % 11 != 0) both.same_counts(counts, batch, "a life", step);
    }
    hits += both.hits, evictions += both.evictions;
  }
}

/// A captured step of append and attend, replayed while both sequences grow, beside the dense cache's eager one.
template <class Eviction, class T = stored>
void replay(workload& work, cudaStream_t stream, const tier_sizes& sizes, std::size_t steps, verdict& all) {
  auto p = settings(0);
  p.batch = 2, p.kv_heads = 4, p.query_heads = 16;
  p.capacity = 6000 + steps;
  twins<Eviction, T> both(p, sizes, 21, stream);
  both.both([&](auto& one) {
    one.prefill(0, work.small() ? 300 : 3000, 1, 1u << 20);
    one.prefill(1, work.small() ? 200 : 1800, 2, 1u << 20);
    one.draw_tokens();
  });
  cudaDeviceSynchronize();
  const captured_step step(stream, [&] { both.tiers.append_device(), both.tiers.attend_device(); });
  for (std::size_t n = 1; n <= steps; ++n) {
    if (!work.another()) continue;
    both.both([&](auto& one) { one.draw_tokens(); });
    cudaDeviceSynchronize();
    step.launch();
    both.dense.append_device(), both.dense.attend_device();
    cudaDeviceSynchronize();
    both.same_results(all, 2, "replay", n);
    if (n % 256 == 255) {
      both.dense.on_gpu().maintain(both.dense.gpu());
      both.tiers.on_gpu().maintain(both.tiers.gpu());
    }
    if (n % 200 == 0) both.same_files(all, n / 200 % 2, "replay", n);
  }
  if (work.small()) return;
  const pqkv::tier_statistics last = both.tiers.on_gpu().rows().statistics(0);
  all.check(sizes.cache == 0 || last.hits > 0, "a replayed step has no hit");
  all.check(last.misses > 0 && last.slow_bytes > 0, "a replayed step counts nothing");
}

/// Numbers around directions of the head, other ones in every step.
template <class Stream>
__global__ void draw_numbers_kernel(Stream draws, const std::uint32_t* step, pqkv::view<float, 3, device> to) {
  const std::size_t size = to.size(), i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const std::uint64_t at = std::uint64_t{*step} * size + i;
  const std::uint32_t wave = draws.below((std::uint64_t{1} << 40) + *step * 7, 6) + static_cast<std::uint32_t>(i % to.extent(2)) * 5;
  to.data[i] = static_cast<float>(wave % 11) * 0.4f - 2 + static_cast<float>(draws.below(at, 2001)) * 0.001f;
}
/// grid.x: KV heads of all slots. Counts differences: the newest token's row in slow memory, its copy in fast memory, and attention.
template <class Dense, class Tiers>
__global__ void compare_step_kernel(Dense dense, Tiers tiers, std::size_t prompt, const std::uint32_t* step, unsigned heads,
                                    pqkv::view<const float, 3, device> wanted, pqkv::view<const float, 3, device> found,
                                    std::uint32_t* differ) {
  const std::size_t head = blockIdx.x, slot = head / heads, n = prompt + *step;
  const auto same_row = [&](const auto* a, const auto* b) {
    bool same = true;
    for (std::size_t i = threadIdx.x; i < 2 * dense.head_dim(); i += blockDim.x)
      same &= static_cast<float>(a[i]) == static_cast<float>(b[i]);
    return same;
  };
  const auto* const row = dense.key(head, n - 1).data;
  if (!same_row(row, tiers.all.key(head, n - 1).data)) atomicAdd(&differ[0], 1u);
  const bool is_there = tiers.residents(slot).last == n;
  if (!is_there || !same_row(row, tiers.recent_row(head, static_cast<std::uint32_t>(n - 1)))) atomicAdd(&differ[1], 1u);
  for (std::size_t i = head * blockDim.x + threadIdx.x; i < wanted.size(); i += gridDim.x * blockDim.x)
    if (pqkv::float_bits(wanted.data[i]) != pqkv::float_bits(found.data[i])) atomicAdd(&differ[2], 1u);
}
template <class Count>
__global__ void next_step_kernel(Count* step) {
  ++*step;
}

/// Many replays of one step, drawn and compared on the device: the newest rows and attention in every step, lists every 500 and files every
/// 5000 steps and at the end.
template <class Eviction>
void long_replay(cudaStream_t stream, const tier_sizes& sizes, std::size_t steps, verdict& all) {
  auto p = settings(0);
  p.batch = 2, p.kv_heads = 4, p.query_heads = 16;
  p.capacity = 6000 + steps;
  using dense_type = pqkv::pqcache<pqkv::owned_rows<stored, device>>;
  const pqkv::exec::cuda gpu{stream, {}};
  dense_type dense(gpu, of_cache<dense_type>(p));
  tier_cache<Eviction, stored> tiers(gpu, with_tiers<tier_cache<Eviction, stored>>(p, sizes));
  const std::size_t h = p.kv_heads, hq = p.query_heads, d = p.head_dim, b = p.batch, prompt = 3000;
  const pqkv::device_buffer<std::uint32_t> step(1, nullptr), differ(3, nullptr), listed(2 * b * h, nullptr);
  pqkv::zero_bytes(gpu, step.data(), step.size_bytes());
  pqkv::zero_bytes(gpu, differ.data(), differ.size_bytes());
  const pqkv::device_buffer<float> key(h * prompt * d, nullptr), value(h * prompt * d, nullptr), query(b * hq * d, nullptr),
      out(2 * b * hq * d, nullptr);
  const auto draw = [&](std::uint64_t seed, const pqkv::device_buffer<float>& to, std::size_t rows, std::size_t heads) {
    const std::size_t size = rows * heads * d;
    draw_numbers_kernel<<<static_cast<unsigned>((size + 255) / 256), 256, 0, stream>>>(
        pqkv::random_stream{seed, 1}, step.data(), pqkv::make_view<device>(to.data(), rows, heads, d));
  };
  const auto shown = [&](const pqkv::device_buffer<float>& of, std::size_t rows, std::size_t heads) {
    return pqkv::as_const(pqkv::make_view<device>(of.data(), rows, heads, d));
  };
  const auto both = [&](auto f) { f(dense), f(tiers); };
  for (std::size_t slot = 0; slot < b; ++slot) {
    draw(1 + slot, key, h, prompt), draw(11 + slot, value, h, prompt);
    both([&](auto& one) { one.prefill(gpu, slot, shown(key, h, prompt), shown(value, h, prompt)); });
    pqkv::sync(gpu);
  }
  const auto results = [&](std::size_t which) { return pqkv::make_view<device>(out.data() + which * b * hq * d, b, hq, d); };
  const captured_step whole(stream, [&] {
    next_step_kernel<<<1, 1, 0, stream>>>(step.data());
    draw(21, key, b, h), draw(22, value, b, h), draw(23, query, b, hq);
    std::size_t which = 0;
    both([&](auto& one) {
      one.append(gpu, shown(key, b, h), shown(value, b, h));
      one.attend(gpu, shown(query, b, hq), results(which++));
    });
    compare_step_kernel<<<static_cast<unsigned>(b * h), 256, 0, stream>>>(dense.rows().view(), tiers.rows().view(), prompt, step.data(),
                                                                          static_cast<unsigned>(h), pqkv::as_const(results(0)),
                                                                          pqkv::as_const(results(1)), differ.data());
  });
  const std::size_t room = p.capacity, numbers = b * h * room;  // of all lists
  const pqkv::device_buffer<std::int32_t> lists(2 * numbers, nullptr);
  std::vector<std::int32_t> list(2 * numbers);
  for (std::size_t n = 1; n <= steps; ++n) {
    whole.launch();
    if (n % 500 != 0 && n != steps) continue;
    std::uint32_t counted[3] = {};
    differ.download(counted, stream);
    pqkv::sync(gpu);
    const char* const what[] = {"rows in slow memory", "copies of newest rows", "numbers of attention"};
    for (int i = 0; i < 3; ++i) all.check(counted[i] == 0, "long replay: %u %s differ, step %zu", counted[i], what[i], n);
    pqkv::zero_bytes(gpu, lists.data(), lists.size_bytes());
    std::size_t which = 0;
    both([&](auto& one) {
      one.retrieve(gpu, shown(query, b, hq), pqkv::make_view<device>(lists.data() + which * numbers, b, h, room),
                   pqkv::make_view<device>(listed.data() + which * b * h, b, h));
      ++which;
    });
    lists.download(list.data(), stream);
    pqkv::sync(gpu);
    all.check(list[0] >= 0 && std::equal(&list[0], &list[numbers], &list[numbers]), "long replay: lists differ, step %zu", n);
    both([&](auto& one) { one.maintain(gpu); });
    if (n % 5000 == 0 || n == steps)
      for (std::size_t slot = 0; slot < b; ++slot)
        all.check(saved(gpu, dense, slot) == saved(gpu, tiers, slot), "long replay: files of slot %zu differ, step %zu", slot, n);
  }
  const pqkv::tier_statistics last = tiers.rows().statistics(0);
  all.check(last.hits > steps && last.misses > steps && last.admissions > 0, "long replay: %zu hits and %zu misses show nothing",
            static_cast<std::size_t>(last.hits), static_cast<std::size_t>(last.misses));
}

/// Append, attend and cut in one captured step, with counts and lengths that change between replays.
template <class Eviction>
void replay_drafts(workload& work, cudaStream_t stream, const tier_sizes& sizes, verdict& all) {
  constexpr std::uint32_t drafts = 5;
  auto p = settings(0);
  p.batch = 3;
  p.step_queries = p.batch * drafts;
  twins<Eviction> both(p, sizes, 31, stream);
  both.both([&](auto& one) {
    for (std::size_t slot = 0; slot < p.batch; ++slot) one.prefill(slot, (work.small() ? 300 : 1500) + 100 * slot, 1, 1u << 20);
    one.draw_step(step_kind::ragged, 3);
    one.draw_tokens();
  });
  cudaDeviceSynchronize();
  const std::size_t room = p.step_queries;
  const captured_step step(stream, [&] {
    both.tiers.append_device(room), both.tiers.attend_device(room);
    both.tiers.truncate_device();
  });
  for (std::size_t n = 0; n < (work.small() ? 20u : 150u); ++n) {
    if (!work.another()) continue;
    both.both([&](auto& one) { one.draw_tokens(), one.draw_counts(drafts), one.draw_rejections(); });
    cudaDeviceSynchronize();
    step.launch();
    both.dense.append_device(room), both.dense.attend_device(room);
    both.dense.truncate_device();
    both.both([&](auto& one) { one.append_host(), one.truncate_host(); });
    cudaDeviceSynchronize();
    if (both.dense.tokens() != 0) both.same_results(all, both.dense.tokens(), "drafts", n);
    both.tiers.compare_state(all, "drafts", n);
    if (n % 50 == 49) both.same_files(all, n % p.batch, "drafts", n);
  }
}

/// Rows of floats and of half are read by other kernels.
template <class T>
void other_rows(verdict& all) {
  using wanted_life = life<pqkv::pqcache<pqkv::dense_rows<T>>, pqkv::device_pqcache<T>>;
  using life_type = life<pqkv::pqcache<pqkv::tiered_rows<pqkv::dense_rows<T>, pqkv::space::host, pqkv::eviction::lru>>,
                         tier_cache<pqkv::eviction::lru, T>>;
  const auto of = [](auto& params) {
    static_cast<pqkv::cache_shape&>(params) = settings(0);
    params.head_dim = 72;
    params.budget.min_tokens = 60;
    params.selector.bits = 4;
    return params;
  };
  typename wanted_life::params p{};
  typename life_type::params q{};
  of(p), of(q);
  q.rows.block_tokens = 4, q.rows.cache_tokens = 400, q.rows.recent_tokens = 40;
  wanted_life wanted(p, 9);
  life_type tiers(q, 9);
  const auto both = [&](auto f) { f(wanted), f(tiers); };
  for (std::size_t slot = 0; slot < p.batch; ++slot) both([&](auto& one) { one.prefill(slot, 700, 1, 1u << 20); });
  for (std::size_t step = 0; step < 20; ++step) {
    both([](auto& one) {
      one.draw_step(step_kind::all), one.draw_tokens();
      one.append_device(), one.attend_device();
    });
    cudaDeviceSynchronize();
    all.check(same(wanted.results(p.batch), tiers.results(p.batch)), "rows of %zu bytes, step %zu", sizeof(T), step);
  }
}
}  // namespace

int main(int argc, char** argv) {
  if (!has_device()) return 77;
  cudaStream_t stream = nullptr;
  pqkv::detail::check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test", "cudaStreamCreateWithFlags");
  if (argc == 3 && std::string(argv[1]) == "--long") {
    verdict all("long replays over tiers");
    long_replay<pqkv::eviction::tiny_lfu>(stream, {16, 1024, 8, 64, 8}, std::stoul(argv[2]), all);
    cudaStreamDestroy(stream);
    return all.passed(1) ? 0 : 1;
  }
  workload work(argc, argv, 1);
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what failed is seen where a program is ended
  verdict bits("lives over tiers"), counts("counts of tiers"), graphs("graph replays over tiers"), types("other rows over tiers");
  std::size_t hits = 0, evictions = 0;
  work.part(0.5);
  lives<pqkv::eviction::lfu>(work, bits, counts, 0, hits, evictions);
  lives<pqkv::eviction::lru>(work, bits, counts, 1, hits, evictions);
  lives<pqkv::eviction::tiny_lfu>(work, bits, counts, 2, hits, evictions);
  lives<pqkv::eviction::lfu, pqkv::scaled_int8>(work, bits, counts, 3, hits, evictions);
  work.part(0.9);
  const std::size_t steps = work.small() ? 20 : 600;
  replay<pqkv::eviction::lfu>(work, stream, {16, 512, 8, 64, 8}, steps, graphs);
  replay<pqkv::eviction::lru>(work, stream, {1, 300, 8, 30, 32}, steps, graphs);
  replay<pqkv::eviction::tiny_lfu>(work, stream, {128, 128, 0, 64, 2}, steps, graphs);
  replay<pqkv::eviction::lfu>(work, stream, {16, 512, 8, 64, 8, of_head}, steps, graphs);
  replay<pqkv::eviction::lfu, pqkv::scaled_int8>(work, stream, {16, 512, 8, 64, 8, of_head}, steps, graphs);
  if (!work.small()) long_replay<pqkv::eviction::tiny_lfu>(stream, {16, 1024, 8, 64, 8}, 2000, graphs);
  replay_drafts<pqkv::eviction::lfu>(work, stream, {16, 256, 8, 64, 8}, graphs);
  work.part(1);
  other_rows<float>(types);
  other_rows<pqkv::half>(types);
  work.print();
  cudaStreamDestroy(stream);
  const bool whole = !work.small();
  bits.check(!whole || (hits > 10000 && evictions > 100), "%zu hits and %zu evictions are too few to show anything", hits, evictions);
  bool passed = bits.passed(whole ? 1000 : 1);
  passed &= counts.passed(whole ? 4000 : 1);
  passed &= graphs.passed(whole ? 2000 : 1);
  passed &= types.passed(40);
  return passed ? 0 : 1;
}
