// SPDX-License-Identifier: Apache-2.0
// A communicator that counts what goes through another one.
#pragma once

#include <cstddef>
#include <cstdint>

#include <pqkv/scale/communicator.hpp>

namespace pqkv_cases {

/// Exchanges, and the bytes of this rank's own messages in them.
struct exchanged {
  std::size_t gathers = 0, gather_bytes = 0, reductions = 0, reduced_bytes = 0, all_to_alls = 0, all_to_all_bytes = 0;

  std::size_t exchanges() const { return gathers + reductions + all_to_alls; }
  std::size_t bytes() const { return gather_bytes + reduced_bytes + all_to_all_bytes; }
};

template <class Communicator>
struct counting_communicator {
  Communicator ranks;
  exchanged* counts;

  std::size_t rank() const { return ranks.rank(); }
  std::size_t size() const { return ranks.size(); }
  void reserve(std::size_t sent, std::size_t received) {
    if constexpr (requires { ranks.reserve(sent, received); }) ranks.reserve(sent, received);
  }
  template <class P>
  void finish(const P& policy) requires requires(const Communicator& all) {
    all.finish(policy);
  }
  { ranks.finish(policy); }
  template <class P>
  void all_gather(const P& policy, const std::byte* own, std::byte* all, std::size_t bytes) {
    ++counts->gathers;
    counts->gather_bytes += bytes;
    ranks.all_gather(policy, own, all, bytes);
  }
  template <class P>
  void all_reduce(const P& policy, std::uint64_t* numbers, std::size_t count, pqkv::scale::reduction how) {
    ++counts->reductions;
    counts->reduced_bytes += count * sizeof *numbers;
    ranks.all_reduce(policy, numbers, count, how);
  }
  template <class P>
  void all_to_all(const P& policy, const std::byte* to, std::byte* from, std::size_t bytes) {
    ++counts->all_to_alls;
    counts->all_to_all_bytes += size() * bytes;
    ranks.all_to_all(policy, to, from, bytes);
  }
};

}  // namespace pqkv_cases
