// SPDX-License-Identifier: Apache-2.0
// A cache in device memory that lives long: 20 000 steps replayed from two graphs on the backend that queues, beside the host's cache,
// with cuts, forks, new prompts, and slots that are saved by one cache and loaded by the other.
// No step takes memory, from the heap or from the device; resident memory is at the end what it was at the beginning; the lists stay
// the host's.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "cases/allocation_count.hpp"
#include "cases/inputs.hpp"
#include "cases/queued_backend.hpp"
#include "cases/sanitized.hpp"
#include "cases/slot_bytes.hpp"

namespace {
using namespace pqkv_cases;

#if defined(PQKV_TEST_SANITIZED)
constexpr std::size_t all_steps = quick_step == 1 ? 2000 : 700;  // every event at least once
constexpr bool memory_is_returned = false;  // a sanitizer keeps freed memory back, so resident memory says nothing
#else
constexpr std::size_t all_steps = 20000;
constexpr bool memory_is_returned = true;
#endif

/// Pages of memory that the program has now; asks without taking any.
long resident_pages() {
  char text[128] = {};
  const int file = ::open("/proc/self/statm", O_RDONLY);
  const bool read = file >= 0 && ::read(file, text, sizeof text - 1) > 0;
  if (file >= 0) ::close(file);
  char* second = nullptr;
  return read ? (std::strtol(text, &second, 10), std::strtol(second, nullptr, 10)) : 0;
}

class long_life {
 public:
  explicit long_life(const pqkv::pqcache<>::params& p)
      : p_(p),
        here_(p),
        there_(dev_, of_device(p)),
        keys_(dev_, most * p.kv_heads * p.head_dim),
        queries_(dev_, most * p.query_heads * p.head_dim),
        out_(dev_, most * p.query_heads * p.head_dim),
        indices_(dev_, most * p.kv_heads * p.capacity),
        listed_(dev_, most * p.kv_heads),
        slots_(dev_, p.batch),
        counts_(dev_, p.batch),
        lengths_(dev_, p.batch),
        host_keys_(most * p.kv_heads * p.head_dim),
        host_queries_(most * p.query_heads * p.head_dim),
        host_out_(host_queries_.size()),
        device_out_(host_queries_.size()),
        host_indices_(most * p.kv_heads * p.capacity),
        device_indices_(host_indices_.size()),
        host_listed_(most * p.kv_heads),
        device_listed_(host_listed_.size()),
        slot_list_(p.batch),
        count_list_(p.batch),
        length_list_(p.batch) {
    const auto k = keys_.const_view(most, p.kv_heads, p.head_dim);
    const auto q = queries_.const_view(most, p.query_heads, p.head_dim);
    const pqkv::basic_step<pqkv::space::device> step{slots_.const_view(p.batch), counts_.const_view(p.batch)};
    queue_.begin_capture();
    there_.append(dev_, k, k, step);
    there_.retrieve(dev_, q, indices_.view(most, p.kv_heads, p.capacity), listed_.view(most, p.kv_heads), step);
    there_.attend(dev_, q, out_.view(most, p.query_heads, p.head_dim), {}, step);
    step_graph_ = queue_.end_capture();
    queue_.begin_capture();
    there_.truncate(dev_, lengths_.const_view(p.batch), slots_.const_view(p.batch));
    cut_graph_ = queue_.end_capture();
    for (std::size_t i = 0; i < p.batch; ++i) slot_list_[i] = static_cast<std::uint32_t>(i);
  }

  void prefill(std::size_t slot, std::size_t n) {
    const auto prompt = make_rows<float>(content::clustered, p_.kv_heads, n, p_.head_dim, slot + 5);
    const queued_array<float> device(dev_, std::vector<float>(prompt.view().data, prompt.view().data + prompt.view().size()));
    here_.prefill(cpu_, slot, prompt.view(), prompt.view());
    const auto rows = device.const_view(p_.kv_heads, n, p_.head_dim);
    there_.prefill(dev_, slot, rows, rows);
    pqkv::sync(dev_);
  }

  /// A random row of every slot in a random order; a slot that is nearly full is cut first. Takes no memory.
  void step() {
    std::size_t tokens = 0;
    for (std::size_t i = p_.batch; i > 1; --i) std::swap(slot_list_[i - 1], slot_list_[random_.below(i)]);
    bool cuts = false;
    for (std::size_t row = 0; row < p_.batch; ++row) {
      const std::size_t n = here_.size(slot_list_[row]);
      const bool full = n + 4 > p_.capacity;
      length_list_[row] = static_cast<std::uint32_t>(full ? 100 + random_.below(n - 100) : n);
      cuts = cuts || full;
      count_list_[row] = static_cast<std::uint32_t>(random_.below(8) == 0 ? 2 : random_.below(3) != 0 ? 1 : 0);
      tokens += count_list_[row];
    }
    for (float& x : host_keys_) x = random_.gaussian();
    for (float& x : host_queries_) x = 2 * random_.gaussian();
    copy(slots_, slot_list_), copy(counts_, count_list_), copy(lengths_, length_list_), copy(keys_, host_keys_),
        copy(queries_, host_queries_);
    const pqkv::cache_step rows{pqkv::make_view(slot_list_.data(), p_.batch), pqkv::make_view(count_list_.data(), p_.batch)};
    if (cuts) {
      queue_.launch(cut_graph_);
      here_.truncate(cpu_, pqkv::make_view(length_list_.data(), p_.batch), rows.slots);
    }
    queue_.launch(step_graph_);
    const auto k = pqkv::make_view(host_keys_.data(), tokens, p_.kv_heads, p_.head_dim);
    here_.append(cpu_, k, k, rows);
    pqkv::sync(dev_);
    last_tokens_ = tokens;
  }

  /// What the last step came to, on both.
  bool is_same() {
    const std::size_t t = last_tokens_, h = p_.kv_heads, hq = p_.query_heads, d = p_.head_dim;
    const pqkv::cache_step rows{pqkv::make_view(slot_list_.data(), p_.batch), pqkv::make_view(count_list_.data(), p_.batch)};
    const auto q = pqkv::make_view(host_queries_.data(), t, hq, d);
    here_.retrieve(cpu_, q, pqkv::make_view(host_indices_.data(), t, h, p_.capacity), pqkv::make_view(host_listed_.data(), t, h), rows);
    here_.attend(cpu_, q, pqkv::make_view(host_out_.data(), t, hq, d), {}, rows);
    const auto read = [&](const auto& from, auto& to) { pqkv::copy_bytes(dev_, to.data(), from.data(), to.size() * sizeof to[0]); };
    read(out_, device_out_), read(indices_, device_indices_), read(listed_, device_listed_);
    pqkv::sync(dev_);
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < t * hq * d; ++i) {
      difference += std::pow(static_cast<double>(host_out_[i]) - static_cast<double>(device_out_[i]), 2);
      norm += std::pow(static_cast<double>(host_out_[i]), 2);
    }
    const auto end = [](auto& of, std::size_t size) { return of.begin() + static_cast<std::ptrdiff_t>(size); };
    for (std::size_t slot = 0; slot < p_.batch; ++slot)
      if (there_.at(dev_, slot).n != here_.at(slot).n || there_.statistics(dev_, slot).refused != 0) return false;
    return difference <= 1e-10 * norm && std::equal(host_listed_.begin(), end(host_listed_, t * h), device_listed_.begin()) &&
           std::equal(host_indices_.begin(), end(host_indices_, t * h * p_.capacity), device_indices_.begin());
  }
  /// Each cache's slot goes into the other cache, through a file; or over another slot of its own cache.
  void exchange(std::size_t from, std::size_t to) {
    const std::vector<std::byte> mine = saved(cpu_, here_, from), theirs = saved(dev_, there_, from);
    here_.reset(to), there_.reset(dev_, to);
    load(cpu_, here_, to, theirs), load(dev_, there_, to, mine);
  }
  void fork(std::size_t from, std::size_t to) { here_.fork(cpu_, from, to), there_.fork(dev_, from, to); }
  /// A new prompt in a slot that is emptied for it.
  void begin_again(std::size_t slot, std::size_t n) {
    here_.reset(slot), there_.reset(dev_, slot);
    prefill(slot, n);
  }
  void maintain() {
    here_.maintain(cpu_);
    there_.maintain(dev_);
    pqkv::sync(dev_);  // a training that was enqueued takes its memory here
  }
  const queue& work() const { return queue_; }

 private:
  static constexpr std::size_t most = 10;  // tokens of a step; two of every slot

  static pqkv::device_pqcache<float>::params of_device(const pqkv::pqcache<>::params& p) {
    pqkv::device_pqcache<float>::params all;
    static_cast<pqkv::cache_shape&>(all) = p;
    all.budget = p.budget, all.selector = p.selector;
    return all;
  }
  template <class T>
  void copy(const queued_array<T>& to, const std::vector<T>& from) {
    pqkv::copy_bytes(dev_, to.data(), from.data(), from.size() * sizeof(T));
  }

  pqkv::pqcache<>::params p_;
  random_source random_{77};
  queue queue_;
  queued_policy dev_{&queue_};
  pqkv::exec::host<> cpu_;
  pqkv::pqcache<> here_;
  pqkv::device_pqcache<float> there_;
  queued_array<float> keys_, queries_, out_;
  queued_array<std::int32_t> indices_;
  queued_array<std::uint32_t> listed_, slots_, counts_, lengths_;
  std::vector<float> host_keys_, host_queries_, host_out_, device_out_;
  std::vector<std::int32_t> host_indices_, device_indices_;
  std::vector<std::uint32_t> host_listed_, device_listed_, slot_list_, count_list_, length_list_;
  work_list step_graph_{0}, cut_graph_{0};
  std::size_t last_tokens_ = 0;
};
}  // namespace

TEST_CASE("queued long life: 20 000 replayed steps take no memory and select the host's tokens") {
  pqkv::pqcache<>::params p;
  p.batch = 5, p.kv_heads = 2, p.query_heads = 4, p.head_dim = 16, p.capacity = 700;
  p.budget = {.ratio = 0.1, .min_tokens = 40, .sinks = 4};
  p.selector.bits = 4, p.selector.train.iterations = 3, p.selector.tail_tokens = 64;
  long_life life(p);
  for (std::size_t slot = 0; slot < p.batch; ++slot) life.prefill(slot, 300 + 50 * slot);
  life.step();

  std::vector<long> resident;
  resident.reserve(all_steps);
  std::size_t taken = 0, device_blocks = 0, wrong = 0;
  for (std::size_t step = 0; step < all_steps; ++step) {
    const std::size_t before = allocations(), blocks_before = life.work().allocations();
    life.step();
    taken += allocations() - before;
    device_blocks += life.work().allocations() - blocks_before;
    if (step % 97 == 0) wrong += life.is_same() ? 0 : 1;
    if (step % 150 == 149) life.maintain();
    if (step % 500 == 77) life.exchange(step % p.batch, step / 7 % p.batch);
    if (step % 500 == 177) life.fork(step % p.batch, step / 7 % p.batch);
    if (step % 1000 == 277) life.begin_again(step % p.batch, 200 + step % 300);
    resident.push_back(resident_pages());
  }
  CHECK(taken == 0);
  CHECK(device_blocks == 0);
  CHECK(wrong == 0);
  const auto quarter = static_cast<std::ptrdiff_t>(all_steps / 4);
  const long first = *std::max_element(resident.begin(), resident.begin() + quarter);
  const long last = *std::max_element(resident.end() - quarter, resident.end());
  CHECK(first > 0);
  if constexpr (memory_is_returned) CHECK(last <= first + 64);  // pages: what the program's other parts touch for the first time
}
