// SPDX-License-Identifier: Apache-2.0
// Lists of several ranks whose tokens mislead the sample that all ranks draw together.
#pragma once

#include "../on_device.cuh"
#include "answer_bytes.cuh"
#include "cases/device_rank_player.hpp"
#include "rank_devices.cuh"

namespace pqkv_cases {

/// The tokens of the middle that are in the sample of all ranks (detail/cuda/share_steps_tokens.cuh), by their positions.
inline std::vector<std::size_t> sampled_tokens(const pqkv::scale::token_layout& layout, std::size_t begin, std::size_t end) {
  constexpr std::size_t all = pqkv::detail::block::bracket_sample;
  std::vector<std::size_t> positions;
  std::size_t before = 0;
  for (std::size_t rank = 0; rank < layout.ranks; ++rank) {
    const std::size_t first = layout.held(rank, begin), own = layout.held(rank, end) - first, from = all * before / (end - begin),
                      count = all * (before + own) / (end - begin) - from;
    for (std::size_t i = 0; i < count; ++i)
      positions.push_back(
          layout.position(rank, first + pqkv::detail::block::sample_place(static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(count),
                                                                          static_cast<std::uint32_t>(own))));
    before += own;
  }
  return positions;
}

/// A sequence whose sampled tokens are alike, and all others unlike them: the sample has the best tokens of all, or the worst.
struct misled_sample {
  static constexpr std::size_t hq = 4, d = 64, prompt = 40000, sinks = 4, window = 32;
  bool are_best;
  std::size_t k;
  rows<pqkv::bfloat16> keys{1, prompt, d}, values{1, prompt, d};
  rows<float> query{1, hq, d};
  pqkv::scale::token_layout layout;

  misled_sample(std::size_t ranks, bool best, std::size_t retrieved)
      : are_best(best), k(retrieved), layout{ranks, 7, best ? 0 : prompt / ranks} {
    random_source random(5);
    fill(keys.view(), content::gaussian, random), fill(values.view(), content::gaussian, random);
    fill(query.view(), content::gaussian, random);
    for (std::size_t q = 0; q < hq; ++q)
      for (std::size_t i = 0; i < d; ++i) query(0, q, i) = 1 + 0.1f * query(0, q, i);
    for (const std::size_t t : sampled_tokens(layout, sinks, prompt - window))
      for (std::size_t i = 0; i < d; ++i) keys(0, t, i) = static_cast<pqkv::bfloat16>(best ? 1.0f : -1.0f);
  }
  template <class Params>
  Params params() const {
    Params p{};
    p.kv_heads = 1, p.query_heads = hq, p.head_dim = d, p.capacity = prompt + 10;
    p.budget.sinks = sinks, p.budget.window = window, p.budget.retrieve = k;
    p.selector.subspaces = 4, p.selector.bits = 8;
    p.selector.train.iterations = 2, p.selector.train.rows_per_centroid = 16;
    return p;
  }
  template <class Player>
  answer ask_all(Player& player) const {
    const std::vector<std::uint32_t> slots{0}, counts{1};
    pqkv::cache_step step;
    step.slots = pqkv::make_view(slots), step.counts = pqkv::make_view(counts);
    player.prefill(0, keys.view(), values.view(), pqkv::chunk::last);
    return ask(player, pqkv::as_const(query.view()), 1, k, step);
  }
};

/// With few retrieved tokens, some of many equal ones are selected, over all ranks; otherwise the bracket does not hold.
template <class With>
void misled(std::size_t ranks, verdict& all) {
  using pqkv::exec::cuda;
  using T = pqkv::bfloat16;
  using player = device_rank_player<T, cuda, typename With::ranks>;
  using params = typename player::cache_type::params;
  std::vector<misled_sample> drawn;
  for (const bool are_best : {true, false})
    for (const std::size_t k : {100u, 2500u, 6000u}) drawn.emplace_back(ranks, are_best, k);
  const std::size_t room = std::size_t{1} << 18;
  const forked_group group(ranks, room * drawn.size());
  const int code = group.run([&](std::size_t rank) {
    return as_rank<With>(group, rank, [&](const rank_device& gpu, const typename With::ranks& communicator) {
      for (std::size_t i = 0; i < drawn.size(); ++i) {
        params p = drawn[i].template params<params>();
        p.block = drawn[i].layout.block, p.run = drawn[i].layout.run;
        player one(gpu.policy(), communicator, p);
        answer_bytes(group.result(rank) + i * room, room).write(answers{drawn[i].ask_all(one)});
      }
      return 0;
    });
  });
  all.check(code == 0, "%s, %zu ranks, misled: a rank ended with %d", With::name, ranks, code);
  if (code != 0) return;
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    whole_player<T> whole(drawn[i].template params<typename whole_player<T>::cache_type::params>());
    const answer wanted = drawn[i].ask_all(whole);
    std::vector<answers> parts;
    for (std::size_t rank = 0; rank < ranks; ++rank) parts.push_back(answer_bytes(group.result(rank) + i * room, room).read());
    all.check(wanted.lists[0].size() == drawn[i].k && joined_list(parts, 0, 0) == wanted.lists[0],
              "%s, %zu ranks, misled, best %d, k %zu: the list differs", With::name, ranks, static_cast<int>(drawn[i].are_best),
              drawn[i].k);
  }
}

}  // namespace pqkv_cases
