// SPDX-License-Identifier: Apache-2.0
// A cache over the devices of this machine, 1 and 2 ranks, each a process with a device of its own, over NCCL and over peers: random lives
// against one cache on the host that holds everything (the same lists to the token, outputs within the rounding of merge()), and a decode
// step with its exchanges captured in one CUDA graph, replayed while the sequence grows; in local mode against as many ranks on the host.
// Slots are saved and loaded in these lives, and what the GPUs saved is loaded on the host. A rank that stays away, and one that refuses a
// step. Head parallel: each rank a pqcache with its heads. Ends with 77 where there is no GPU. With one GPU, two ranks share it by turns,
// over peers; NCCL then refuses two ranks.
//
//   context_parallel [LIVES]      needs libnccl: bench/gpu_scale.sh builds and runs it
#include <chrono>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>

#include "../cache_life.cuh"
#include "answer_bytes.cuh"
#include "cases/device_rank_player.hpp"
#include "cases/rank_params.hpp"
#include "misled_sample.cuh"
#include "rank_devices.cuh"
#include "refused_step.cuh"

namespace {
using namespace pqkv_cases;
using pqkv::exec::cuda;

template <class T, class With>
void lives(std::size_t ranks, std::size_t count, std::uint64_t seed, verdict& all) {
  using player = device_rank_player<T, cuda, typename With::ranks>;
  struct life {
    typename player::cache_type::params params;
    life_script script;
  };
  random_source random(seed);
  std::vector<life> drawn;
  for (std::size_t i = 0; i < count; ++i) {
    auto p = random_rank_params<typename player::cache_type>(random);
    if (i % 4 == 1) p.capacity += 3000;  // lists that several CTAs share
    if (i % 8 == 5) {                    // so many tokens that lists are filtered, and their scores kept for the other ranks
      p.capacity += 40000;
      p.budget.ratio = 0.02;
      p.selector.subspaces = 4, p.selector.bits = 6, p.selector.path = pqkv::search_path::automatic;
      p.selector.reduction = pqkv::group_reduction::probability_sum;
    }
    const content what = every_content[random.below(4)];
    const std::size_t lists = pqkv::score_lists(p.selector.reduction, p.kv_heads, p.query_heads);
    drawn.push_back({p, {p.batch, p.kv_heads, p.query_heads, p.head_dim, lists, p.capacity, 14, what, random.bits()}});
  }
  const std::size_t room = std::size_t{64} << 20;
  const forked_group group(ranks, room * count);
  const int code = group.run([&](std::size_t rank) {
    return as_rank<With>(group, rank, [&](const rank_device& gpu, const typename With::ranks& communicator) {
      for (std::size_t i = 0; i < count; ++i) {
        player one(gpu.policy(), communicator, drawn[i].params);
        answer_bytes(group.result(rank) + i * room, room).write(drawn[i].script.template play<T>(one));
      }
      return 0;
    });
  });
  all.check(code == 0, "%s, %zu ranks: a rank ended with %d", With::name, ranks, code);
  if (code != 0) return;
  std::size_t listed = 0;
  for (std::size_t i = 0; i < count; ++i) {
    whole_player<T> whole(whole_params<typename whole_player<T>::cache_type>(drawn[i].params));
    const answers expected = drawn[i].script.template play<T>(whole);
    std::vector<answers> parts;
    for (std::size_t rank = 0; rank < ranks; ++rank) parts.push_back(answer_bytes(group.result(rank) + i * room, room).read());
    const float bound = drawn[i].script.what == content::offset ? 2e-3f : 5e-5f;
    for (std::size_t step = 0; step < expected.size(); ++step) {
      for (std::size_t list = 0; list < expected[step].lists.size(); ++list) {
        all.check(joined_list(parts, step, list) == expected[step].lists[list], "%s, %zu ranks, life %zu, step %zu, list %zu differs",
                  With::name, ranks, i, step, list);
        listed += expected[step].lists[list].empty() ? 0 : 1;
      }
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        const answer& got = parts[rank][step];
        all.check(distance(got.out, parts[0][step].out) == 0, "%s, life %zu, step %zu: ranks differ", With::name, i, step);
        all.check(distance(got.out, expected[step].out) < bound && distance(got.lse, expected[step].lse) < bound,
                  "%s, %zu ranks, life %zu, step %zu: outputs are %g apart, bound %g", With::name, ranks, i, step,
                  static_cast<double>(distance(got.out, expected[step].out)), static_cast<double>(bound));
      }
    }
  }
  all.check(listed > 20 * count / 4, "%s: only %zu lists were not empty", With::name, listed);
}

/// The inputs of decode steps, the same on every rank.
struct step_inputs {
  std::size_t h, hq, d;
  rows<pqkv::bfloat16> keys, values;
  std::vector<rows<float>> k, v, q;

  step_inputs(std::size_t kv_heads, std::size_t query_heads, std::size_t dims, std::size_t prompt, std::size_t steps)
      : h(kv_heads), hq(query_heads), d(dims), keys(h, prompt, d), values(h, prompt, d) {
    random_source random(77);
    fill(keys.view(), content::gaussian, random), fill(values.view(), content::gaussian, random);
    for (std::size_t i = 0; i < steps; ++i) {
      k.emplace_back(1, h, d), v.emplace_back(1, h, d), q.emplace_back(1, hq, d);
      fill(k.back().view(), content::gaussian, random), fill(v.back().view(), content::gaussian, random);
      fill(q.back().view(), content::gaussian, random);
    }
  }
};
constexpr std::size_t file_room = std::size_t{16} << 20;
std::vector<float> flat(pqkv::view<const float, 3> from) { return {from.data, from.data + from.size()}; }

/// One graph with append, attend and all exchanges, replayed; the outputs of every step, and after the last one retrieve()'s lists.
template <class With>
void captured(std::size_t ranks, unsigned subspaces, unsigned bits, pqkv::scale::selection_mode mode, verdict& all) {
  using T = pqkv::bfloat16;
  using cache_type = pqkv::scale::context_parallel<pqkv::dense_rows<T, device>, typename With::ranks>;
  constexpr std::size_t h = 2, hq = 8, d = 64, prompt = 20000, steps = 150, room = 2000;
  const step_inputs in(h, hq, d, prompt, steps);
  const auto settings = [&](auto p) {
    p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = prompt + steps;
    p.budget.retrieve = room, p.budget.window = 32;
    p.selector.subspaces = subspaces, p.selector.bits = bits;
    p.selector.train.iterations = 3, p.selector.train.rows_per_centroid = 16;
    p.selector.refresh_iterations = 0;
    p.selector.axes = pqkv::axis_order::rotary_halves, p.selector.over = pqkv::selector::normalisation::middle;  // what ranks can do
    return p;
  };
  const std::size_t outputs = steps * hq * d;
  const std::size_t answer_size = outputs * sizeof(float) + h * (room + 1) * sizeof(std::int32_t);
  const forked_group group(ranks, answer_size + sizeof(std::size_t) + file_room);
  const int code = group.run([&](std::size_t rank) {
    return as_rank<With>(group, rank, [&](const rank_device& gpu, const typename With::ranks& communicator) {
      const cuda policy = gpu.policy();
      auto p = settings(typename cache_type::params{});
      p.agreement = pqkv::scale::agreement_mode::with_exchange;
      p.selection_over_ranks = mode;
      p.run = prompt / ranks;
      cache_type cache(policy, communicator, p);
      const std::size_t own = cache.layout().held(rank, prompt), first = rank * p.run;
      const auto share = [&](const rows<T>& of) {
        std::vector<T> made;
        for (std::size_t head = 0; head < h; ++head)
          for (std::size_t t = first; t < first + own; ++t)
            for (std::size_t i = 0; i < d; ++i) made.push_back(of.view()(head, t, i));
        return made;
      };
      const placed_array<T, cuda> keys(policy, share(in.keys)), values(policy, share(in.values));
      cache.prefill(policy, 0, keys.const_view(h, own, d), values.const_view(h, own, d), prompt);
      const placed_array<float, cuda> k(policy, h * d), v(policy, h * d), q(policy, hq * d), out(policy, hq * d);
      pqkv::sync(policy);
      const captured_step graph(gpu.stream(), [&] {
        cache.append(policy, k.const_view(1, h, d), v.const_view(1, h, d));
        cache.attend(policy, q.const_view(1, hq, d), out.view(1, hq, d));
      });
      float* const results = reinterpret_cast<float*>(group.result(rank));
      for (std::size_t step = 0; step < steps; ++step) {
        k.write(flat(in.k[step].view())), v.write(flat(in.v[step].view())), q.write(flat(in.q[step].view()));
        graph.launch();
        communicator.finish(policy);
        const std::vector<float> got = out.read();
        std::memcpy(results + step * hq * d, got.data(), got.size() * sizeof(float));
        if (step % 64 == 63) cache.maintain(policy);
      }
      const placed_array<std::int32_t, cuda> lists(policy, h * room);
      const placed_array<std::uint32_t, cuda> counts(policy, h);
      cache.retrieve(policy, q.const_view(1, hq, d), lists.view(1, h, room), counts.view(1, h));
      communicator.finish(policy);
      const std::vector<std::int32_t> listed = lists.read();
      const std::vector<std::uint32_t> sizes = counts.read();
      std::memcpy(results + outputs, listed.data(), listed.size() * sizeof(std::int32_t));
      std::memcpy(results + outputs + h * room, sizes.data(), sizes.size() * sizeof(std::uint32_t));
      const std::vector<std::byte> file = saved(policy, cache, 0);
      const std::size_t bytes = file.size();
      if (bytes > file_room) throw std::length_error("no room for the file");
      std::memcpy(group.result(rank) + answer_size, &bytes, sizeof bytes);
      std::memcpy(group.result(rank) + answer_size + sizeof bytes, file.data(), bytes);
      return cache.size(policy, 0) == prompt + steps ? 0 : 3;
    });
  });
  all.check(code == 0, "%s, %zu ranks, captured, %u x %u bits: a rank ended with %d", With::name, ranks, subspaces, bits, code);
  if (code != 0) return;
  const pqkv::exec::host<> cpu;
  const auto output_of = [&](std::size_t rank, std::size_t step) {
    const float* const got = reinterpret_cast<const float*>(group.result(rank)) + step * hq * d;
    return std::vector<float>(got, got + hq * d);
  };
  const auto list_of = [&](std::size_t rank, std::size_t head) {
    const auto* const results = reinterpret_cast<const std::int32_t*>(group.result(rank)) + outputs;
    return std::vector<std::int32_t>(results + head * room, results + head * room + results[h * room + head]);
  };
  std::vector<std::int32_t> wanted(h * room);
  std::vector<std::uint32_t> sizes(h);
  if (mode == pqkv::scale::selection_mode::local) {  // each rank's list, and the output of all, are those of a rank on the host
    pqkv::scale::in_process_group threads(ranks);
    for (const std::string& thrown : run_ranks(ranks, [&](std::size_t rank) {
           auto p = settings(typename rank_player<T>::cache_type::params{});
           p.selection_over_ranks = mode, p.run = prompt / ranks;
           rank_player<T> one({threads, rank}, p);
           one.prefill(0, in.keys.view(), in.values.view(), pqkv::chunk::last);
           for (std::size_t step = 0; step < steps; ++step) {
             rows<float> out(1, hq, d);
             one.cache().append(cpu, in.k[step].view(), in.v[step].view());
             one.cache().attend(cpu, in.q[step].view(), out.view());
             const float apart = distance(output_of(rank, step), flat(pqkv::as_const(out.view())));
             if (!(apart < 1e-4f))
               throw std::runtime_error("step " + std::to_string(step) + ": outputs are " + std::to_string(apart) + " apart");
             if (step % 64 == 63) one.cache().maintain(cpu);
           }
           const answer last = ask(one, pqkv::as_const(in.q.back().view()), h, room, {});
           for (std::size_t head = 0; head < h; ++head)
             if (last.lists[head] != list_of(rank, head)) throw std::runtime_error("head " + std::to_string(head) + "'s list differs");
         }))
      all.check(thrown.empty(), "%s, %zu ranks, local: %s", With::name, ranks, thrown.c_str());
    return;
  }
  using whole_cache = pqkv::pqcache<pqkv::dense_rows<T>>;
  whole_cache whole(settings(typename whole_cache::params{}));
  whole.prefill(cpu, 0, in.keys.view(), in.values.view());
  rows<float> out(1, hq, d);
  float apart = 0;
  for (std::size_t step = 0; step < steps; ++step) {
    whole.append(cpu, in.k[step].view(), in.v[step].view());
    whole.attend(cpu, in.q[step].view(), out.view());
    for (std::size_t rank = 0; rank < ranks; ++rank)
      apart = std::max(apart, distance(output_of(rank, step), flat(pqkv::as_const(out.view()))));
    if (step % 64 == 63) whole.maintain(cpu);
  }
  whole.retrieve(cpu, in.q.back().view(), pqkv::make_view(wanted.data(), 1, h, room), pqkv::make_view(sizes.data(), 1, h));
  all.check(apart < 1e-4f, "%s, %zu ranks, captured, %u x %u bits: outputs are %g apart", With::name, ranks, subspaces, bits,
            static_cast<double>(apart));
  for (std::size_t head = 0; head < h; ++head) {
    std::vector<std::int32_t> joined;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const auto part = list_of(rank, head);
      joined.insert(joined.end(), part.begin(), part.end());
    }
    std::sort(joined.begin(), joined.end());
    all.check(joined == std::vector<std::int32_t>(&wanted[head * room], &wanted[head * room] + sizes[head]),
              "%s, %zu ranks, captured, %u x %u bits: head %zu's list differs", With::name, ranks, subspaces, bits, head);
  }
  std::vector<std::vector<std::byte>> files(ranks);
  std::vector<file_source> sources;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const std::byte* const from = group.result(rank) + answer_size;
    std::size_t bytes = 0;
    std::memcpy(&bytes, from, sizeof bytes);
    files[rank].assign(from + sizeof bytes, from + sizeof bytes + bytes);
    sources.push_back({files[rank]});
  }
  using host_cache = pqkv::scale::context_parallel<pqkv::dense_rows<T>, pqkv::scale::in_process>;
  pqkv::scale::in_process_group alone(1);
  host_cache here(cpu, pqkv::scale::in_process(alone, 0), settings(typename host_cache::params{}));
  here.load(cpu, 0, sources);
  std::vector<std::int32_t> loaded(h * room);
  here.retrieve(cpu, in.q.back().view(), pqkv::make_view(loaded.data(), 1, h, room), pqkv::make_view(sizes.data(), 1, h));
  all.check(loaded == wanted, "%s, %zu ranks, captured, %u x %u bits: the host loads another slot than the GPUs saved", With::name, ranks,
            subspaces, bits);
}

/// Rank 1 stays away from a maintain(): rank 0 gives up after the communicator's time limit.
template <class With>
void absent(verdict& all) {
  using cache_type = pqkv::scale::context_parallel<pqkv::dense_rows<float, device>, typename With::ranks>;
  const forked_group group(2, 1);
  const int code = group.run([&](std::size_t rank) {
    const rank_device gpu(rank);
    const forked_ranks meeting(group, rank);
    With with(meeting, std::chrono::seconds(1));
    typename cache_type::params p;
    p.kv_heads = 1, p.query_heads = 1, p.head_dim = 64, p.capacity = 100;
    std::unique_ptr<cache_type> cache(new cache_type(gpu.policy(), with.communicator(), p));
    group.meet();
    cache->maintain(gpu.policy());  // NCCL connects the ranks at the first exchange, and waits for that
    group.meet();
    int result = 0;
    if (rank == 0) {
      const auto begin = std::chrono::steady_clock::now();
      try {
        cache->maintain(gpu.policy());
        result = 4;
      } catch (const pqkv::scale::communication_error&) {
        result = std::chrono::steady_clock::now() - begin < std::chrono::seconds(5) ? 0 : 5;
      }
    }
    group.meet();
    with.abandon();
    cache.reset();
    group.meet();
    return result;
  });
  all.check(code == 0, "%s: a rank that stays away: a rank ended with %d", With::name, code);
}

/// Each rank has a pqcache with its KV heads, and attends for its query heads; nothing is exchanged.
void head_parallel(std::size_t ranks, verdict& all) {
  using T = pqkv::bfloat16;
  using cache_type = pqkv::device_pqcache<T>;
  constexpr std::size_t h = 4, hq = 16, d = 64, prompt = 6000, steps = 20;
  const step_inputs in(h, hq, d, prompt, steps);
  const auto settings = [&](auto p, std::size_t heads) {
    p.kv_heads = heads, p.query_heads = heads * (hq / h), p.head_dim = d, p.capacity = prompt + steps;
    p.budget.retrieve = 500;
    p.selector.train.iterations = 3;
    return p;
  };
  const std::size_t own = h / ranks, own_hq = hq / ranks;
  const forked_group group(ranks, steps * own_hq * d * sizeof(float));
  const int code = group.run([&](std::size_t rank) {
    try {
      const rank_device gpu(rank);
      const cuda policy = gpu.policy();
      cache_type cache(policy, settings(cache_type::params{}, own));
      const auto part = [&](const auto& of, std::size_t axis, std::size_t first, std::size_t count) {
        const auto cut = of.view().slice(axis, first, count);
        std::vector<std::remove_cvref_t<decltype(cut(0, 0, 0))>> made;
        for (std::size_t a = 0; a < cut.extent(0); ++a)
          for (std::size_t b = 0; b < cut.extent(1); ++b)
            for (std::size_t i = 0; i < d; ++i) made.push_back(cut(a, b, i));
        return made;
      };
      const placed_array<T, cuda> keys(policy, part(in.keys, 0, rank * own, own)), values(policy, part(in.values, 0, rank * own, own));
      cache.prefill(policy, 0, keys.const_view(own, prompt, d), values.const_view(own, prompt, d));
      const placed_array<float, cuda> k(policy, own * d), v(policy, own * d), q(policy, own_hq * d), out(policy, own_hq * d);
      for (std::size_t step = 0; step < steps; ++step) {
        k.write(part(in.k[step], 1, rank * own, own)), v.write(part(in.v[step], 1, rank * own, own));
        q.write(part(in.q[step], 1, rank * own_hq, own_hq));
        cache.append(policy, k.const_view(1, own, d), v.const_view(1, own, d));
        cache.attend(policy, q.const_view(1, own_hq, d), out.view(1, own_hq, d));
        const std::vector<float> got = out.read();
        std::memcpy(reinterpret_cast<float*>(group.result(rank)) + step * own_hq * d, got.data(), got.size() * sizeof(float));
      }
      return 0;
    } catch (const std::exception& error) {
      std::printf("rank %zu: %s\n", rank, error.what());
      return 1;
    }
  });
  all.check(code == 0, "head parallel, %zu ranks: a rank ended with %d", ranks, code);
  if (code != 0) return;
  const pqkv::exec::host<> cpu;
  using host_cache = pqkv::pqcache<pqkv::dense_rows<T>>;
  for (std::size_t rank = 0; rank < ranks; ++rank) {  // the same code on the host, with the same views
    host_cache part(settings(host_cache::params{}, own));
    part.prefill(cpu, 0, in.keys.view().slice(0, rank * own, own), in.values.view().slice(0, rank * own, own));
    rows<float> out(1, own_hq, d);
    for (std::size_t step = 0; step < steps; ++step) {
      part.append(cpu, in.k[step].view().slice(1, rank * own, own), in.v[step].view().slice(1, rank * own, own));
      part.attend(cpu, in.q[step].view().slice(1, rank * own_hq, own_hq), out.view());
      const float* const got = reinterpret_cast<const float*>(group.result(rank)) + step * own_hq * d;
      const float apart = distance({got, got + own_hq * d}, flat(pqkv::as_const(out.view())));
      all.check(apart < 1e-4f, "head parallel, %zu ranks, step %zu: rank %zu is %g apart", ranks, step, rank, static_cast<double>(apart));
    }
  }
}

template <class With>
void all_of(std::size_t ranks, std::size_t count, verdict& all) {
  using pqkv::scale::selection_mode;
  captured<With>(ranks, 2, 6, selection_mode::exact, all);
  captured<With>(ranks, 4, 8, selection_mode::exact, all);
  captured<With>(ranks, 2, 6, selection_mode::local, all);
  captured<With>(ranks, 4, 8, selection_mode::local, all);
  if constexpr (std::is_same_v<With, with_peers>) misled<With>(ranks, all);  // over NCCL, ranks draw no sample
  if (ranks == 2) absent<With>(all);
  for (std::size_t refuses = 0; ranks == 2 && refuses < 2; ++refuses)
    for (const auto mode : {selection_mode::exact, selection_mode::local}) refused_step<With>(refuses, mode, all);
  lives<float, With>(ranks, count, 41 + ranks, all);
  lives<pqkv::bfloat16, With>(ranks, count / 2, 51 + ranks, all);
}
}  // namespace

int main(int argc, char** argv) {
  const std::size_t devices = count_devices(), count = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 24;
  if (devices == 0) return std::puts("no CUDA device"), 77;
  bool passed = true;
  for (std::size_t ranks = 1; ranks <= 2; ++ranks) {
    verdict peer("context_parallel over peers"), nccl("context_parallel over NCCL"), heads("head parallel");
    all_of<with_peers>(ranks, count, peer);
    passed = peer.passed() && passed;
    if (ranks > devices) continue;
    all_of<with_nccl>(ranks, count, nccl);
    head_parallel(ranks, heads);
    passed = nccl.passed() && passed;
    passed = heads.passed() && passed;
  }
  return passed ? 0 : 1;
}
