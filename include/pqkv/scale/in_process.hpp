// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of one process, for tests and for engines that drive several devices from one process. The caller starts the
// threads. They meet at a barrier with a time limit, and read each other's buffers.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <vector>

#include "communicator.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// What the ranks of one process share. It must outlive its communicators.
class in_process_group {
 public:
  /// @param ranks  how many threads make the calls
  /// @param limit  how long a rank waits for the others in one exchange
  explicit in_process_group(std::size_t ranks, std::chrono::milliseconds limit = std::chrono::seconds(30)) : posts_(ranks), limit_(limit) {
    require_ok(pqkv::detail::checks("in_process_group").at_least("ranks", ranks, 1, "threads"));
  }
  std::size_t size() const { return posts_.size(); }

 private:
  friend class in_process;
  /// What a rank has brought to an exchange.
  struct post {
    const void* data = nullptr;
    std::size_t bytes = 0;
    const char* call = "";
    std::vector<std::uint64_t> result;  // of the rank's all_reduce
  };

  /// Waits until every rank has come. @throws communication_error, in every rank, when one does not
  void meet(const char* call) {
    std::unique_lock lock(mutex_);
    if (broken_) fail(call);
    const std::size_t turn = turn_;
    if (++come_ == posts_.size()) {
      come_ = 0;
      ++turn_;
      all_came_.notify_all();
      return;
    }
    const bool came = all_came_.wait_for(lock, limit_, [&] { return turn_ != turn || broken_; });
    if (came && turn_ != turn) return;
    broken_ = true;
    all_came_.notify_all();
    fail(call);
  }
  [[noreturn]] void fail(const char* call) const {
    detail::raise_communication("in_process", call, "a rank did not come within " + std::to_string(limit_.count()) + " ms");
  }

  std::mutex mutex_;
  std::condition_variable all_came_;
  std::vector<post> posts_;
  std::chrono::milliseconds limit_;
  std::size_t come_ = 0, turn_ = 0;
  bool broken_ = false;
};

/// One rank's communicator, used by one thread. Copyable; models communicator_for every host policy.
class in_process {
 public:
  /// @param rank  below group.size(), another one for every thread
  in_process(in_process_group& group, std::size_t rank) : group_(&group), rank_(rank) {
    require_ok(pqkv::detail::checks("in_process")
                   .that(rank < group.size(), status::code::value, "rank", relation::below, "ranks of the group", group.size(), rank));
  }
  std::size_t rank() const { return rank_; }
  std::size_t size() const { return group_->size(); }
  /// Takes memory for sums of up to so many bytes. @throws std::bad_alloc
  void reserve(std::size_t sent, std::size_t) const {
    auto& result = group_->posts_[rank_].result;
    if (result.size() * sizeof result[0] < sent) result.resize((sent + sizeof result[0] - 1) / sizeof result[0]);
  }

  template <class P>
  void all_gather(const P&, const void* own, void* all, std::size_t bytes) const {
    exchange("all_gather", own, bytes, [&] {
      for (std::size_t from = 0; from < size(); ++from) copy(all, from, group_->posts_[from].data, 0, bytes);
    });
  }
  template <class P>
  void all_to_all(const P&, const void* to, void* from, std::size_t bytes) const {
    exchange("all_to_all", to, bytes, [&] {
      for (std::size_t other = 0; other < size(); ++other) copy(from, other, group_->posts_[other].data, rank_, bytes);
    });
  }
  template <class P>
  void all_reduce(const P&, std::uint64_t* numbers, std::size_t count, reduction how) const {
    reserve(count * sizeof *numbers, 0);
    std::uint64_t* const result = group_->posts_[rank_].result.data();
    std::fill_n(result, count, std::uint64_t{0});
    exchange(how == reduction::sum ? "all_reduce of sums" : "all_reduce of maxima", numbers, count * sizeof *numbers, [&] {
      for (std::size_t from = 0; from < size(); ++from) {
        const auto* const theirs = static_cast<const std::uint64_t*>(group_->posts_[from].data);
        for (std::size_t i = 0; i < count; ++i)
          result[i] = how == reduction::sum ? result[i] + theirs[i] : result[i] > theirs[i] ? result[i] : theirs[i];
      }
    });
    std::copy_n(result, count, numbers);
  }

 private:
  static void copy(void* to, std::size_t to_piece, const void* from, std::size_t from_piece, std::size_t bytes) {
    if (bytes != 0)
      std::memcpy(static_cast<std::byte*>(to) + to_piece * bytes, static_cast<const std::byte*>(from) + from_piece * bytes, bytes);
  }
  /// @param read  reads the others' buffers, while nobody changes one
  template <class Read>
  void exchange(const char* call, const void* own, std::size_t bytes, Read read) const {
    auto& mine = group_->posts_[rank_];
    mine.data = own, mine.bytes = bytes, mine.call = call;
    group_->meet(call);
    bool same = true;
    for (const auto& post : group_->posts_) same &= post.bytes == bytes && std::strcmp(post.call, call) == 0;
    if (same) read();
    group_->meet(call);
    if (!same) detail::raise_communication("in_process", call, "the ranks make different calls");
  }

  in_process_group* group_;
  std::size_t rank_;
};

}  // namespace pqkv::scale
