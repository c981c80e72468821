// SPDX-License-Identifier: Apache-2.0
// The answers of a life as bytes, for ranks that are processes and hand them to their parent.
#pragma once

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cases/rank_lives.hpp"

namespace pqkv_cases {

/// Answers as bytes in shared memory, and back.
class answer_bytes {
 public:
  answer_bytes(std::byte* at, std::size_t room) : at_(at), end_(at + room) {}
  void write(const answers& all) {
    put(all.size());
    for (const answer& one : all) {
      put(one.lists.size());
      for (const auto& list : one.lists) put(list);
      put(one.out), put(one.lse);
    }
  }
  answers read() {
    answers all(get());
    for (answer& one : all) {
      one.lists.resize(get());
      for (auto& list : one.lists) get(list);
      get(one.out), get(one.lse);
    }
    return all;
  }

 private:
  void move(void* to, const void* from, std::size_t bytes) {
    if (static_cast<std::size_t>(end_ - at_) < bytes) throw std::length_error("answer_bytes: no room");
    if (bytes != 0) std::memcpy(to, from, bytes);
    at_ += bytes;
  }
  void put(std::size_t number) { move(at_, &number, sizeof number); }
  std::size_t get() {
    std::size_t number = 0;
    move(&number, at_, sizeof number);
    return number;
  }
  template <class T>
  void put(const std::vector<T>& all) {
    put(all.size());
    move(at_, all.data(), all.size() * sizeof(T));
  }
  template <class T>
  void get(std::vector<T>& all) {
    all.resize(get());
    move(all.data(), at_, all.size() * sizeof(T));
  }
  std::byte *at_, *end_;
};

}  // namespace pqkv_cases
