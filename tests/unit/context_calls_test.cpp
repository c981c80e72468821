// SPDX-License-Identifier: Apache-2.0
// Files of slots that ranks share, in host memory and in device memory (by the backend that queues): both write the same bytes, and any
// number of ranks of either reads them. A load that one rank cannot make changes nothing on any.
#include <doctest/doctest.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cases/device_rank_player.hpp"
#include "cases/queued_shares.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
using host_player = rank_player<float>;
using device_player = device_rank_player<float, queued_policy, queued_ranks>;
using file = std::vector<std::byte>;
using files = std::vector<file>;
constexpr std::size_t h = 2, hq = 4, d = 16, n = 333, most = 400;
template <class Player>
constexpr bool on_device = std::is_same_v<Player, device_player>;

template <class Player>
typename Player::cache_type::params layout_of(std::size_t block, std::size_t run, std::size_t capacity = most) {
  typename Player::cache_type::params p;
  p.batch = 2, p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = capacity;
  p.budget.ratio = 0.2, p.selector.subspaces = 2, p.selector.bits = 5, p.selector.train.iterations = 3;
  p.block = block, p.run = run;
  return p;
}
auto& cache_of(host_player& one) { return one.cache(); }
auto& cache_of(device_player& one) { return one.device_cache(); }
std::size_t size_of(auto& one, std::size_t slot) { return cache_of(one).size(one.policy(), slot); }

/// Runs task(player, rank) on so many ranks. Returns what each threw.
template <class Player, class Task>
std::vector<std::string> on_ranks(std::size_t ranks, const typename Player::cache_type::params& p, const Task& task) {
  in_process_group group(ranks, std::chrono::seconds(10));
  return run_ranks(ranks, [&](std::size_t rank) {
    if constexpr (on_device<Player>) {
      queue work;
      Player one({&work, {}}, queued_ranks(group, rank), p);
      task(one, rank);
    } else {
      Player one(in_process(group, rank), p);
      task(one, rank);
    }
  });
}
rows<float> drawn(std::size_t a, std::size_t b, std::uint64_t seed) {
  random_source random(seed);
  rows<float> made(a, b, d);
  fill(made.view(), content::clustered, random);
  return made;
}
void prefill(auto& one, std::size_t slot, std::size_t count, std::uint64_t seed, pqkv::chunk which = pqkv::chunk::last) {
  const auto keys = drawn(h, count, seed), values = drawn(h, count, seed + 1);
  one.prefill(slot, keys.view(), values.view(), which);
}
/// This rank's lists of the next query of a slot, and the output.
answer asked(auto& one, std::uint32_t slot) {
  const auto query = drawn(1, hq, 9);
  const std::uint32_t count = 1;
  pqkv::cache_step step;
  step.slots = pqkv::make_view(&slot, 1), step.counts = pqkv::make_view(&count, 1);
  return ask(one, pqkv::as_const(query.view()), h, most, step);
}
bool same(const answer& a, const answer& b) { return a.lists == b.lists && a.out == b.out && a.lse == b.lse; }
void load_from(auto& one, std::size_t slot, const files& given) {
  std::vector<file_source> sources;
  for (const file& each : given) sources.push_back({each, 1000});
  cache_of(one).load(one.policy(), slot, sources);
}

/// Saves slot 1 of so many ranks; `parts` gets what they answer.
template <class Player>
files save_from(std::size_t ranks, std::vector<answers>& parts) {
  files all(ranks);
  parts.assign(ranks, {});
  const auto thrown = on_ranks<Player>(ranks, layout_of<Player>(8, 20), [&](Player& one, std::size_t rank) {
    prefill(one, 1, n, 1);
    all[rank] = saved(one.policy(), cache_of(one), 1);
    parts[rank].push_back(asked(one, 1));
  });
  REQUIRE(thrown == std::vector<std::string>(ranks));
  return all;
}
/// Ranks of that many, and of another layout, load all files and answer the same.
template <class Player>
void load_everywhere(const files& all, const std::vector<answers>& before) {
  for (const std::size_t ranks : std::initializer_list<std::size_t>{1, 2, 4}) {
    std::vector<answers> after(ranks);
    const auto thrown = on_ranks<Player>(ranks, layout_of<Player>(5, ranks == 2 ? 100 : 0), [&](Player& one, std::size_t rank) {
      load_from(one, 1, all);
      after[rank].push_back(asked(one, 1));
    });
    CHECK(thrown == std::vector<std::string>(ranks));
    for (std::size_t list = 0; list < h; ++list) CHECK(joined_list(after, 0, list) == joined_list(before, 0, list));
    CHECK(distance(after[0][0].out, before[0][0].out) < 1e-5f);
  }
}
}  // namespace

TEST_CASE("context_calls: ranks on the host and on devices write the same files, and read each other's") {
  std::vector<answers> of_host, of_device;
  const files from_host = save_from<host_player>(3, of_host), from_device = save_from<device_player>(3, of_device);
  CHECK(from_host == from_device);
  load_everywhere<device_player>(from_host, of_host);
  load_everywhere<host_player>(from_device, of_device);
  const files from_one = save_from<device_player>(1, of_device);
  load_everywhere<device_player>(from_one, of_device);
}

TEST_CASE("context_calls: a device rank reads its own file, and goes on") {
  std::vector<answers> before;
  const files all = save_from<device_player>(2, before);
  const auto thrown = on_ranks<device_player>(2, layout_of<device_player>(8, 20), [&](device_player& one, std::size_t rank) {
    load_from(one, 1, {all[rank]});
    CHECK(same(asked(one, 1), before[rank][0]));
    CHECK(saved(one.policy(), cache_of(one), 1) == all[rank]);
    one.maintain(one.policy());
    one.truncate(one.policy(), 1, 100);
    one.fork(one.policy(), 1, 0);
    CHECK(size_of(one, 0) == 100);
  });
  CHECK(thrown == std::vector<std::string>(2));
}

TEST_CASE("context_calls: a load that one rank cannot make changes nothing on any") {
  std::vector<answers> expected;
  const files all = save_from<device_player>(2, expected);
  file cut = all[1], altered = all[1], wide = all[1];
  cut.resize(cut.size() - 1);
  altered[altered.size() - 50] ^= std::byte{1};
  wide[sizeof(share_file_header) + h * d * 32 * sizeof(float) + h * d * sizeof(float) + h * 2 * sizeof(float)] = std::byte{32};
  const auto thrown = on_ranks<device_player>(2, layout_of<device_player>(8, 20), [&](device_player& one, std::size_t rank) {
    prefill(one, 0, 200, 7);
    const answer before = asked(one, 0);
    const auto refused = [&](const std::string& why, const auto& call) {
      CAPTURE(why);
      std::string what;
      try {
        call();
      } catch (const rank_error& error) {
        what = error.rank == 1 ? "rank 1 refused" : "wrong rank";
      } catch (const std::exception& error) {
        what = error.what();
      }
      CHECK(what.find(rank == 1 ? why : "rank 1 refused") != std::string::npos);
      CHECK(size_of(one, 1) == 0);
    };
    const auto other = [&](const files& of_rank_1) { return rank == 1 ? of_rank_1 : files{all[0]}; };
    refused("it ends early", [&] { load_from(one, 1, other({cut})); });
    refused("it ends early", [&] { load_from(one, 1, other({file{}})); });
    refused("file.checksum", [&] { load_from(one, 1, other({altered})); });
    refused("with codes below c", [&] { load_from(one, 1, other({wide})); });
    refused("sources must be at least 1 (files), got 0", [&] { load_from(one, 1, other({})); });
    refused("sources must be the files of all ranks that wrote", [&] { load_from(one, 1, other({all[0]})); });
    refused("slot must be below 2", [&] { load_from(one, rank == 1 ? 2 : 1, {all[rank]}); });
    refused("the disk is gone", [&] {
      std::size_t given = 0;
      file_source from{all[rank], 1000};
      const auto source = [&](std::byte* data, std::size_t bytes) {
        if (rank == 1 && ++given > 3) throw std::runtime_error("the disk is gone");
        return from(data, bytes);
      };
      const std::vector<std::function<std::size_t(std::byte*, std::size_t)>> sources{source};
      cache_of(one).load(one.policy(), 1, sources);
    });
    CHECK_THROWS_WITH_AS(cache_of(one).load(one.policy(), 1, std::vector<file_source>{{all[rank]}}, pqkv::slot_contents::index),
                         doctest::Contains("file.contents"), pqkv::value_error);
    CHECK_THROWS_WITH_AS(load_from(one, 0, {all[rank]}), doctest::Contains("slot must be empty"), pqkv::value_error);
    CHECK(same(asked(one, 0), before));
    load_from(one, 1, {all[rank]});  // what was refused has left nothing behind
    CHECK(same(asked(one, 1), expected[rank][0]));
    CHECK(same(asked(one, 0), before));
  });
  CHECK(thrown == std::vector<std::string>(2));
}

TEST_CASE("context_calls: a slot that is too small refuses, and one in the middle of a prompt is not saved") {
  std::vector<answers> before;
  const files all = save_from<device_player>(2, before);
  const auto thrown = on_ranks<device_player>(2, layout_of<device_player>(8, 20, 300), [&](device_player& one, std::size_t rank) {
    CHECK_THROWS_WITH_AS(load_from(one, 1, {all[rank]}), doctest::Contains("file.at.n must be at most 300 (tokens of a slot), got 333"),
                         pqkv::capacity_error);
    prefill(one, 1, 50, 3, pqkv::chunk::more);
    CHECK_THROWS_WITH_AS(saved(one.policy(), cache_of(one), 1), doctest::Contains("past its prompt"), pqkv::value_error);
    CHECK_THROWS_WITH_AS(saved(one.policy(), cache_of(one), 2), doctest::Contains("slot must be below 2"), pqkv::value_error);
  });
  CHECK(thrown == std::vector<std::string>(2));
}
