// SPDX-License-Identifier: Apache-2.0
// Calls that one rank refuses while the others go on, for ranks that are threads (unit/scale_refusals_test.cpp) or processes
// (unit/mpi_test.cpp). What must hold is the same for all: the rank throws its own error, every other one rank_error with its number and
// its reason, no slot changes, and the next right call works.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "rank_lives.hpp"

namespace pqkv_cases {

/// The shape of these tests' layers; slot 0 holds `prompt` tokens.
struct refusal_shape {
  static constexpr std::size_t h = 2, hq = 4, d = 16, batch = 2, prompt = 300, capacity = 340, most = capacity;
};

template <class Params>
Params refusal_params(pqkv::scale::agreement_mode agreement, pqkv::scale::selection_mode mode, pqkv::group_reduction reduction,
                      std::size_t step_queries) {
  using of = refusal_shape;
  Params p;
  p.batch = of::batch, p.kv_heads = of::h, p.query_heads = of::hq, p.head_dim = of::d, p.capacity = of::capacity, p.block = 8;
  p.step_queries = step_queries;
  p.budget.sinks = 4, p.budget.retrieve = 60, p.budget.window = 20;
  p.selector.subspaces = 2, p.selector.bits = 4, p.selector.train.iterations = 2, p.selector.reduction = reduction;
  p.agreement = agreement, p.selection_over_ranks = mode;
  return p;
}

/// Rows that depend on the seed alone.
inline rows<float> refusal_rows(std::size_t a, std::size_t b, std::size_t d, std::uint64_t seed) {
  random_source random(seed);
  rows<float> made(a, b, d);
  fill(made.view(), content::clustered, random);
  return made;
}

/// One step's arguments, which a refusal changes.
struct refused_step {
  std::size_t tokens = 1, heads = refusal_shape::hq, out_tokens = 1, room = refusal_shape::most, lists = refusal_shape::h;
  std::vector<std::uint32_t> slots{0}, counts{1};

  pqkv::cache_step step() const {
    pqkv::cache_step made;
    made.slots = pqkv::make_view(slots), made.counts = pqkv::make_view(counts);
    return made;
  }
};

enum class step_verb { attend, retrieve, append };
/// A step that is wrong: what the rank says, and how it differs from the right one.
struct wrong_step {
  const char* name;
  step_verb verb;
  const char* reason;
  std::function<void(refused_step&)> change;
};
inline const std::vector<wrong_step>& every_wrong_step() {
  static const std::vector<wrong_step> all{
      {"heads of a query", step_verb::attend, "query.extent(1)", [](refused_step& of) { ++of.heads; }},
      {"more queries than the step has", step_verb::attend, "query.extent(0)", [](refused_step& of) { of.tokens = of.out_tokens = 2; }},
      {"many more queries", step_verb::attend, "query.extent(0)", [](refused_step& of) { of.tokens = of.out_tokens = 9; }},
      {"no queries", step_verb::attend, "query.extent(0)", [](refused_step& of) { of.tokens = of.out_tokens = 0; }},
      {"outputs", step_verb::attend, "out.extent(0)", [](refused_step& of) { of.out_tokens = 3; }},
      {"slots that are not there", step_verb::attend, "step.slots", [](refused_step& of) { of.slots = {7}; }},
      {"too many slots", step_verb::attend, "step.slots",
       [](refused_step& of) {
         of.slots = {0, 1, 2}, of.counts = {1, 0, 0};
       }},
      {"a slot named twice", step_verb::attend, "step.slots",
       [](refused_step& of) {
         of.slots = {0, 0}, of.counts = {1, 0};
       }},
      {"heads of a query to retrieve for", step_verb::retrieve, "query.extent(1)", [](refused_step& of) { ++of.heads; }},
      {"room for a list", step_verb::retrieve, "indices.extent(2)", [](refused_step& of) { of.room = 1; }},
      {"heads of a new token", step_verb::append, "keys.extent(1)", [](refused_step& of) { ++of.heads; }},
      {"new tokens that do not fit", step_verb::append, "step", [](refused_step& of) { of.tokens = of.out_tokens = 41, of.counts = {41}; }},
  };
  return all;
}

/// Makes the step's call. Keys of a new token have `heads` - hq + h heads.
template <class Player>
void make_step(Player& one, step_verb verb, const refused_step& of) {
  using shape = refusal_shape;
  const auto& on = one.policy();
  if (verb == step_verb::append) {
    const auto keys = refusal_rows(of.tokens, of.heads - shape::hq + shape::h, shape::d, 5);
    one.cache().append(on, keys.view(), keys.view(), of.step());
    return;
  }
  const auto query = refusal_rows(of.tokens, of.heads, shape::d, 6);
  if (verb == step_verb::attend) {
    rows<float> out(of.out_tokens, shape::hq, shape::d);
    std::vector<float> lse(of.out_tokens * shape::hq);
    one.cache().attend(on, query.view(), out.view(), pqkv::make_view(lse.data(), of.out_tokens, shape::hq), of.step());
    return;
  }
  std::vector<std::int32_t> indices(of.tokens * of.lists * of.room);
  std::vector<std::uint32_t> counts(of.tokens * of.lists);
  one.cache().retrieve(on, query.view(), pqkv::make_view(indices.data(), of.tokens, of.lists, of.room),
                       pqkv::make_view(counts.data(), of.tokens, of.lists), of.step());
}

/// What call() ends with: "" if it returns; "rank 2: TEXT" for a rank_error; its own error's text otherwise.
template <class Call>
std::string ended(const Call& call) {
  try {
    call();
  } catch (const pqkv::scale::rank_error& error) {
    return "rank " + std::to_string(error.rank) + ": " + error.what();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

/// Whether a rank's call ended as it must where rank `refuses` refused it for that reason. "" or what is wrong.
inline std::string unless_all_refused(const std::string& end, std::size_t rank, std::size_t refuses, const std::string& reason) {
  const std::string named = "rank " + std::to_string(refuses) + ": ";
  const bool is_named = end.compare(0, named.size(), named) == 0 && end.find(reason) != std::string::npos &&
                        end.find("rank " + std::to_string(refuses) + " refused: ") != std::string::npos;
  const bool is_own = end.compare(0, 6, "pqkv::") == 0 && end.find(reason) != std::string::npos;
  return (rank == refuses ? is_own : is_named) ? "" : "ended with '" + end + "'";
}

/// Every wrong step on rank `refuses`, and after each the right one, of as many tokens as given. No call changes slot 0, the prompt's.
/// @param one      a player in host memory
/// @param asked    the right step
/// @param is_sent  is_sent(verb): whether the ranks exchange anything, so that all can refuse
/// @return "" or the first thing that is wrong
template <class Player, class Sent>
std::string every_refusal(Player& one, std::size_t rank, std::size_t refuses, const refused_step& asked, const Sent& is_sent) {
  for (const wrong_step& of : every_wrong_step()) {
    if (!is_sent(of.verb)) continue;
    refused_step step = asked;
    if (rank == refuses) of.change(step);
    const std::string wrong = unless_all_refused(ended([&] { make_step(one, of.verb, step); }), rank, refuses, of.reason);
    if (!wrong.empty()) return std::string(of.name) + ": " + wrong;
    const std::string after = ended([&] { make_step(one, step_verb::attend, asked); });
    if (!after.empty()) return std::string(of.name) + ": the next call ended with '" + after + "'";
  }
  return "";
}

}  // namespace pqkv_cases
