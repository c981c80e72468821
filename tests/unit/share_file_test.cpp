// SPDX-License-Identifier: Apache-2.0
// Shares of a saved slot: any number of ranks with any layout reads them and selects the same tokens; what is cut, altered, swapped or of
// another save is refused on every rank, and the slot stays empty.
#include <doctest/doctest.h>

#include "cases/rank_lives.hpp"

namespace {
using namespace pqkv_cases;
using namespace pqkv::scale;
using player = rank_player<float>;
using files = std::vector<std::vector<std::byte>>;
const pqkv::exec::host<> cpu;
constexpr std::size_t h = 2, hq = 4, d = 16, n = 333;

player::cache_type::params layout_of(std::size_t block, std::size_t run) {
  player::cache_type::params p;
  p.batch = 2, p.kv_heads = h, p.query_heads = hq, p.head_dim = d, p.capacity = 400;
  p.budget.ratio = 0.2, p.selector.subspaces = 2, p.selector.bits = 5;
  p.block = block, p.run = run;
  return p;
}
rows<float> drawn(std::size_t a, std::size_t b, std::uint64_t seed) {
  random_source random(seed);
  rows<float> made(a, b, d);
  fill(made.view(), content::clustered, random);
  return made;
}
/// Each rank's list of the next query of slot 1, and its output.
answer asked(player& one) {
  const auto query = drawn(1, hq, 9);
  rows<float> out(1, hq, d);
  std::vector<std::int32_t> indices(h * 400);
  std::vector<std::uint32_t> sizes(h);
  const std::uint32_t slot = 1;
  pqkv::cache_step step;
  step.slots = pqkv::make_view(&slot, 1);
  one.cache().retrieve(cpu, query.view(), pqkv::make_view(indices.data(), 1, h, 400), pqkv::make_view(sizes.data(), 1, h), step);
  one.cache().attend(cpu, query.view(), out.view(), {}, step);
  answer found;
  for (std::size_t list = 0; list < h; ++list) found.lists.emplace_back(&indices[list * 400], &indices[list * 400] + sizes[list]);
  for (std::size_t q = 0; q < hq; ++q)
    for (std::size_t i = 0; i < d; ++i) found.out.push_back(out(0, q, i));
  return found;
}

/// Saves slot 1 of so many ranks; `parts` gets what they answer.
files save_from(std::size_t ranks, const player::cache_type::params& p, std::uint64_t seed, std::vector<answers>& parts) {
  files all(ranks);
  parts.assign(ranks, {});
  in_process_group group(ranks);
  const auto keys = drawn(h, n, seed), values = drawn(h, n, seed + 1);
  const auto thrown = run_ranks(ranks, [&](std::size_t rank) {
    player one(in_process(group, rank), p);
    one.prefill(1, keys.view(), values.view(), pqkv::chunk::last);
    all[rank] = saved(cpu, one.cache(), 1);
    parts[rank].push_back(asked(one));
  });
  REQUIRE(thrown == std::vector<std::string>(ranks));
  return all;
}
/// Loads on so many ranks; each is given files[rank], or all of them.
std::vector<std::string> load_into(std::size_t ranks, const player::cache_type::params& p, const std::vector<files>& given,
                                   std::vector<answers>& parts) {
  parts.assign(ranks, {});
  in_process_group group(ranks);
  return run_ranks(ranks, [&](std::size_t rank) {
    player one(in_process(group, rank), p);
    std::vector<file_source> sources;
    for (const auto& file : given[rank]) sources.push_back({file, 1000});
    try {
      one.cache().load(cpu, 1, sources);
    } catch (...) {
      CHECK(one.cache().size(1) == 0);
      throw;
    }
    parts[rank].push_back(asked(one));
  });
}
std::vector<std::vector<std::int32_t>> joined(const std::vector<answers>& parts) {
  return {joined_list(parts, 0, 0), joined_list(parts, 0, 1)};
}
}  // namespace

TEST_CASE("share_file: as many ranks read their own files") {
  std::vector<answers> before, after;
  const files all = save_from(3, layout_of(8, 20), 1, before);
  CHECK(load_into(3, layout_of(8, 20), {{all[0]}, {all[1]}, {all[2]}}, after) == std::vector<std::string>(3));
  CHECK(joined(after) == joined(before));
  CHECK(after[0][0].out == before[0][0].out);
}

TEST_CASE("share_file: other numbers of ranks, and other layouts, read all files") {
  std::vector<answers> before, after;
  const files all = save_from(3, layout_of(8, 20), 1, before);
  for (const std::size_t ranks : std::initializer_list<std::size_t>{1, 2, 3, 5}) {
    const auto thrown = load_into(ranks, layout_of(5, ranks == 2 ? 100 : 0), std::vector<files>(ranks, all), after);
    CHECK(thrown == std::vector<std::string>(ranks));
    CHECK(joined(after) == joined(before));
    CHECK(distance(after[0][0].out, before[0][0].out) < 1e-5f);
  }
}

TEST_CASE("share_file: what does not fit is refused on every rank") {
  std::vector<answers> parts;
  const auto p = layout_of(8, 20);
  const files all = save_from(2, p, 1, parts), others = save_from(2, p, 5, parts);
  const auto refused = [&](const std::vector<files>& given, std::size_t by, const std::string& why) {
    const auto thrown = load_into(2, p, given, parts);
    CHECK(thrown[by].find(why) != std::string::npos);
    CHECK(!thrown[1 - by].empty());
  };
  refused({{all[0]}, {all[0]}}, 1, "sources must be the files of all ranks that wrote");
  refused({all, {all[1], all[0]}}, 1, "file.rank must be 0 (in the order of ranks), got 1");
  refused({{all[0], others[1]}, all}, 0, "with the codebooks of the first");
  refused({{all[0]}, {others[1]}}, 0, "the call must be the same on all ranks");
  refused({{}, all}, 0, "sources must be at least 1 (files), got 0");
  files cut = all, altered = all;
  cut[1].resize(cut[1].size() - 1);
  altered[0][altered[0].size() - 50] ^= std::byte{1};
  refused({all, cut}, 1, "it ends early");
  refused({altered, all}, 0, "file.checksum");
  files whole = all;
  whole[0][3] = std::byte{'x'};
  refused({whole, all}, 0, "it does not begin with \"pqkvpart\"");
}
