// SPDX-License-Identifier: Apache-2.0
// A decode step that one of two ranks refuses while the other's kernels already exchange: nobody waits for the time limit.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "../on_device.cuh"
#include "cases/placed_array.hpp"
#include "rank_devices.cuh"

namespace pqkv_cases {

/// Rank `refuses` gives attend() a query of too many heads. It throws its own error; then all ranks are told so within 5 s of a limit
/// of 20. Over NCCL the next step works; over peers the communicator has ended.
template <class With>
void refused_step(std::size_t refuses, pqkv::scale::selection_mode mode, verdict& all) {
  using cache_type = pqkv::scale::context_parallel<pqkv::dense_rows<float, device>, typename With::ranks>;
  constexpr std::size_t h = 1, hq = 4, d = 64, prompt = 3000;
  constexpr bool recovers = !pqkv::scale::carries_mail_in_kernels<typename With::ranks>;
  const forked_group group(2, 1);
  const int code = group.run([&](std::size_t rank) {
    const rank_device gpu(rank);
    const auto policy = gpu.policy();
    const forked_ranks meeting(group, rank);
    With with(meeting, std::chrono::seconds(20));
    typename cache_type::params p;
    p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = prompt + 10, p.run = prompt / 2;
    p.budget.retrieve = 300, p.selector.train.iterations = 1;
    p.agreement = pqkv::scale::agreement_mode::with_exchange, p.selection_over_ranks = mode;
    auto cache = std::make_unique<cache_type>(policy, with.communicator(), p);
    random_source random(3);
    rows<float> keys(h, prompt / 2, d);
    fill(keys.view(), content::gaussian, random);
    const std::vector<float> own(keys.view().data, keys.view().data + keys.view().size());
    using array = placed_array<float, pqkv::exec::cuda>;
    const array there(policy, own), query(policy, std::vector<float>((hq + 1) * d, 0.1f)), out(policy, hq * d);
    cache->prefill(policy, 0, there.const_view(h, prompt / 2, d), there.const_view(h, prompt / 2, d), prompt);
    const auto attend = [&](std::size_t heads) { cache->attend(policy, query.const_view(1, heads, d), out.view(1, hq, d)); };
    attend(hq);
    with.communicator().finish(policy);
    group.meet();
    const auto begin = std::chrono::steady_clock::now();
    int result = rank == refuses ? 4 : 0;
    try {
      attend(rank == refuses ? hq + 1 : hq);
    } catch (const pqkv::shape_error&) {
      result = rank == refuses ? 0 : 5;
    }
    try {
      cache->maintain(policy);
      result = 6;
    } catch (const pqkv::scale::rank_error& error) {
      if (error.rank != refuses) result = 7;
      if (recovers && std::string(error.what()).find("query.extent(1)") == std::string::npos) result = 8;
    }
    if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(5)) result = 9;
    if (recovers && result == 0) {
      attend(hq);
      cache->maintain(policy);
    }
    group.meet();
    if (!recovers) with.abandon();
    cache.reset();
    group.meet();
    return result;
  });
  all.check(code == 0, "%s: a step that rank %zu refuses: a rank ended with %d", With::name, refuses, code);
}

}  // namespace pqkv_cases
