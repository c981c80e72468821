// SPDX-License-Identifier: Apache-2.0
// Appends tokens to a cache on the device: stores the new rows and encodes the tokens that leave the windows. Only the last kernel of a
// call writes the sequences, so all kernels before it see the same state. With one token a row it is one launch: each CTA of a row takes a
// ticket once it has read the sequence, and the CTA with the last ticket writes it. Some CTAs then store the new row while others encode
// the key that leaves the window.
#pragma once

#include <type_traits>

#include "../../cache/kv_store.hpp"
#include "../../cache/sequence_steps.hpp"
#include "../../cache/tiered_rows.hpp"
#include "block/cluster.cuh"
#include "block/reduce.cuh"
#include "kernel.cuh"
#include "pq_index.cuh"

namespace pqkv::inline PQKV_MODE {
namespace detail {

/// Adds to a counter that CTAs share.
__device__ inline void add_to(std::uint64_t& counter, std::uint64_t more) {
  if (more != 0) atomicAdd(reinterpret_cast<unsigned long long*>(&counter), static_cast<unsigned long long>(more));
}

/// Where a sequence's tokens are among the rows that a cache has of it: all of them, in order. A cache that has some of them gives another
/// type with these members (share_steps.cuh).
struct whole_sequence {
  static constexpr bool exchanges = false;  // whether lists are ranked together with other ranks
  __device__ bool owns(std::uint32_t) const { return true; }
  template <class T>
  __device__ T local(const T& tokens) const {
    return tokens;
  }
};

/// Converts elements thread, thread + threads, ... of a row. Returns whether they are finite once stored.
template <class From, class To>
__device__ bool store_elements(kv_row<From> from, row_slot<To> to, std::size_t d, unsigned thread, unsigned threads) {
  bool finite = true;
  for (std::size_t i = thread; i < d; i += threads) {
    const To stored = static_cast<To>(static_cast<float>(from.data[i * from.stride]));
    finite &= is_finite(static_cast<float>(stored));  // a finite float may overflow in half
    to.data[i * to.stride] = stored;
  }
  return finite;
}

/// Stores a row as 8-bit integers and a scale. `threads` are whole warps; the first works, the others have nothing to do.
template <class From>
__device__ bool store_elements(kv_row<From> from, row_slot<scaled_int8> to, std::size_t d, unsigned thread, unsigned) {
  if (thread >= 32) return true;
  std::uint32_t largest = 0;
  for (std::size_t i = thread; i < d; i += 32) {
    const std::uint32_t magnitude = float_bits(from[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = __reduce_max_sync(block::all_lanes, largest);
  const float scale = canonical::row_scale(largest), inverse = canonical::inverse_row_scale(scale);
  for (std::size_t i = thread; i < d; i += 32)
    to.data[i] = inverse == 0 ? std::int8_t{0} : static_cast<std::int8_t>(canonical::scaled_integer(from[i], inverse));
  if (thread == 0) *to.scale = scale;
  return is_finite(scale);
}

/// A warp stores one token's key and value. @param bad  bad(which, 1) is called if the row of keys (0) or values (1) is not finite
template <class Rows, class K, class V, class Bad>
__device__ void store_token(const Rows& rows, std::size_t head, std::size_t t, kv_row<K> key, kv_row<V> value, Bad bad) {
  const unsigned lane = threadIdx.x % 32;
  const bool key_is_finite = store_elements(key, rows.key_slot(head, t), rows.head_dim(), lane, 32),
             value_is_finite = store_elements(value, rows.value_slot(head, t), rows.head_dim(), lane, 32);
  const bool bad_key = __all_sync(block::all_lanes, key_is_finite) == 0, bad_value = __all_sync(block::all_lanes, value_is_finite) == 0;
  if (lane == 0 && bad_key) bad(0u);
  if (lane == 0 && bad_value) bad(1u);
}

/// The copies in fast memory of the tokens of a sequence that grows by one. Does nothing if all rows are in one memory.
template <class Rows>
struct newest_copy {
  __device__ newest_copy(const Rows&, std::size_t) {}
  __device__ void grow(const Rows&, std::uint32_t) {}
  template <class K, class V>
  __device__ void store(const Rows&, std::size_t, kv_row<K>, kv_row<V>) const {}
  __device__ auto key(const Rows& rows, std::size_t head, std::uint32_t t) const { return rows.key(head, t); }
  __device__ void commit(const Rows&, unsigned) const {}
};

/// A warp copies a token's row, which is contiguous in host memory: K, then V, then scales if it has any; a whole number of 16 bytes.
template <class T>
__device__ void copy_bus_row(const bus_rows<T>& rows, std::size_t head, std::size_t token, typename token_row<T>::element_type* to) {
  const auto* const from = reinterpret_cast<const uint4*>(rows.all.key(head, token).data);
  const unsigned packs = static_cast<unsigned>(token_row<T>::bytes(rows.head_dim()) / sizeof(uint4));
  for (unsigned at = threadIdx.x % 32; at < packs; at += 32) reinterpret_cast<uint4*>(to)[at] = from[at];
}

/// For rows in host memory: the new row is copied to device memory, and with it the sinks and newest tokens that are not there yet, as
/// after a prompt or a cut. Keys that have a copy are read from it, except the key whose place the new row takes.
template <class T>
struct newest_copy<bus_rows<T>> {
  using row_type = token_row<T>;

  std::size_t slot;
  std::uint32_t n = 0, room;
  resident_tokens now;

  /// Reads what is there. Must come before the barrier after which the slot's last CTA may commit.
  __device__ newest_copy(const bus_rows<T>& rows, std::size_t of)
      : slot(of), room(static_cast<std::uint32_t>(rows.recent.extent(1))), now(rows.residents(of)) {}
  /// @param token  that is appended
  __device__ void grow(const bus_rows<T>&, std::uint32_t token) { n = token; }
  /// By all threads of the CTA.
  template <class K, class V>
  __device__ void store(const bus_rows<T>& rows, std::size_t head, kv_row<K> key, kv_row<V> value) const {
    const auto store_to = [&](auto* row) {
      const std::size_t d = rows.head_dim();
      store_elements(key, row_type::key_slot(row, d), d, threadIdx.x, blockDim.x);
      store_elements(value, row_type::value_slot(row, d), d, blockDim.x - 1 - threadIdx.x, blockDim.x);
    };
    store_to(rows.recent_row(head, n));
    if (n < rows.sinks.extent(1)) store_to(&rows.sinks(head, n, 0));
    if (is_usual(rows)) return;
    const resident_update update = rows.update_of(now, n + 1);
#pragma unroll 4
    for (std::uint32_t i = threadIdx.x / 32; i < update.count(); i += blockDim.x / 32)
      if (update.token(i) != n) copy_bus_row(rows, head, update.token(i), rows.resident_row(update, head, i));
  }
  __device__ kv_row<T> key(const bus_rows<T>& rows, std::size_t head, std::uint32_t t) const {
    return t >= now.first && t < now.last && t + room > n ? row_type::key(rows.recent_row(head, t), rows.head_dim()) : rows.key(head, t);
  }
  /// By one thread. @param heads  of the slot
  __device__ void commit(const bus_rows<T>& rows, unsigned heads) const {
    const resident_update update = rows.update_of(now, n + 1);
    const std::uint32_t stored = n < rows.sinks.extent(1) ? 2 : 1;  // the new token's, as a sink and as one of the newest
    resident_tokens after = update.after;
    after.slow_rows += std::uint64_t{update.count() - stored} * heads;
    rows.residents(slot) = after;
  }

 private:
  /// Whether the new token's is the only row to copy.
  __device__ bool is_usual(const bus_rows<T>& rows) const {
    const auto sinks = static_cast<std::uint32_t>(rows.sinks.extent(1));
    return now.last == n && now.first != now.last && (now.first == 0 || now.first + room <= n + 1) && now.sinks == (sinks < n ? sinks : n);
  }
};

/// grid.x: KV heads; grid.y: rows of a step; grid.z: CTAs that share a head's rows. Copies the sinks and newest tokens of rows in host
/// memory that device memory lacks. The CTA that takes a row's last ticket records what is there: by then all others have read what was.
template <class T>
PQKV_HIDDEN __global__ void __launch_bounds__(256) refresh_residents_kernel(bus_rows<T> rows, appended_tokens<space::device> call) {
  const std::uint32_t row = blockIdx.y, slot = call.step.slot(row);
  if (slot >= call.slots.sequences.extent(0) || call.step.count(row) == 0) return;
  const resident_update update = rows.update_of(rows.residents(slot), call.slots.sequences(slot).n);
  if (update.count() == 0) return;
  __syncthreads();  // all threads have read what is there
  bool is_last = false;
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(&call.slots.tickets(row), 1u) + 1 == gridDim.x * gridDim.z;
  }
  const std::size_t head = std::size_t{slot} * gridDim.x + blockIdx.x;
  const unsigned warps = blockDim.x / 32;
#pragma unroll 4
  for (std::uint32_t at = blockIdx.z * warps + threadIdx.x / 32; at < update.count(); at += gridDim.z * warps)
    copy_bus_row(rows, head, update.token(at), rows.resident_row(update, head, at));
  if (!is_last) return;
  call.slots.tickets(row) = 0;
  resident_tokens after = update.after;
  after.slow_rows += std::uint64_t{update.count()} * gridDim.x;
  rows.residents(slot) = after;
}

/// One warp for each row of a prompt.
template <class Rows, class K, class V, class From>
__global__ void __launch_bounds__(256)
    store_tokens_kernel(Rows rows, stored_tokens<space::device> call, view<K, 3, From> keys, view<V, 3, From> values) {
  const std::size_t row = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32, n = keys.extent(1);
  if (row >= keys.extent(0) * n) return;
  const std::size_t head = row / n, t = row - head * n;
  store_token(rows, call.first_head + head, call.first_token + t, row_of(keys, head, t), row_of(values, head, t),
              [&](unsigned which) { atomicAdd(&call.nonfinite(which), 1u); });
}

/// Whether a sequence has room for this many more tokens.
__device__ inline bool has_room(const appended_tokens<space::device>& call, const sequence& now, std::uint32_t count) {
  return now.prefilling == 0 && std::uint64_t{now.n} + count <= call.capacity;
}

/// Adds token t, which has left the window and been encoded, to the ranked tokens of one head.
__device__ inline void join_ranked(const pq_index_view<space::device>& index, std::size_t head, std::uint32_t t, std::uint32_t cell) {
  if (threadIdx.x != 0 || index.index.empty()) return;
  atomicAdd(&index.index.counts(head, cell), 1u);  // atomic only because, unlike ++, it does not wait for the old count
  grow_range(index.index, head, t, t + 1);
}

/// What an encoder needs for a thread's first coordinate.
__device__ inline key_encoder::coordinate first_coordinate(const pq_index_view<space::device>& index, std::size_t head) {
  return key_encoder::coordinate::first(index.book, index.pairs, head);
}
__device__ inline no_index first_coordinate(const no_index&, std::size_t) { return {}; }

/// grid.x: KV heads; grid.y: rows of a step, one token each; grid.z: CTAs that encode, each some of the subspaces, after one that stores if
/// there are keys; one CTA if there is nothing to encode or store. The key that leaves is never the new one, since no window is empty.
/// @param copies  whether there is shared memory for a CTA's centroids
/// @param keys  [rows, h, d]; without data the rows are in the store already
template <class Rows, class Index, class K, class V, class From, class Places>
__global__ void __launch_bounds__(max_centroids)
    append_token_kernel(Rows rows, Index index, appended_tokens<space::device> call, bool copies, view<K, 3, From> keys,
                        view<V, 3, From> values, Places places) {
  block::release_dependents();
  const std::uint32_t row = blockIdx.y, slot = call.step.slot(row);
  if (slot >= call.slots.sequences.extent(0)) return;
  const bool has_keys = keys.data != nullptr, stores = has_keys && blockIdx.z == 0;
  [[maybe_unused]] const bool encodes = !stores;
  const std::size_t head = std::size_t{slot} * gridDim.x + blockIdx.x;
  slot_statistics& statistics = call.slots.statistics(slot);
  const sequence now = block::read_whole(call.slots.sequences(slot));
  newest_copy<Rows> newest(rows, slot);  // read beside the sequence
  [[maybe_unused]] const float* centroids = nullptr;
  [[maybe_unused]] subspace_share own{};
  if constexpr (!std::is_same_v<Index, no_index>) {
    const unsigned encoders = gridDim.z - (has_keys ? 1 : 0);
    if (encodes) own = subspace_share::of(static_cast<unsigned>(index.book.subspaces()), encoders, blockIdx.z - (has_keys ? 1 : 0));
    if (copies && encodes) centroids = key_encoder::copy_centroids(index.book, head, own);  // while the sequence is read
  }
  [[maybe_unused]] const auto coordinate = first_coordinate(index, head);
  if (!has_room(call, now, 1)) {
    if (blockIdx.x == 0 && blockIdx.z == 0 && threadIdx.x == 0) ++statistics.refused;
    block::wait_copies<0>();
    return;
  }
  newest.grow(rows, now.n);
  __syncthreads();  // all threads have read the sequence
  bool is_last = false;
  if (threadIdx.x == blockDim.x - 1) {  // in a warp with little else to do, since the fence takes as long as a read of memory
    __threadfence();
    is_last = atomicAdd(&call.slots.tickets(row), 1u) + 1 == gridDim.x * gridDim.z;  // then all other CTAs of the row have read it too
  }
  if (stores && places.owns(now.n)) {
    const std::size_t d = rows.head_dim();
    const std::uint32_t to = places.local(now.n);
    const bool key_is_finite = store_elements(row_of(keys, row, blockIdx.x), rows.key_slot(head, to), d, threadIdx.x, blockDim.x),
               value_is_finite = store_elements(row_of(values, row, blockIdx.x), rows.value_slot(head, to), d, blockDim.x - 1 - threadIdx.x,
                                                blockDim.x);  // another warp
    newest.store(rows, head, row_of(keys, row, blockIdx.x), row_of(values, row, blockIdx.x));
    const bool bad_key = __syncthreads_and(key_is_finite ? 1 : 0) == 0, bad_value = __syncthreads_and(value_is_finite ? 1 : 0) == 0;
    if (threadIdx.x == 0 && bad_key) add_to(statistics.nonfinite_keys, 1);
    if (threadIdx.x == 0 && bad_value) add_to(statistics.nonfinite_values, 1);
  }
  if constexpr (!std::is_same_v<Index, no_index>) {
    __shared__ key_encoder::scratch scratch;
    const leaving_tokens leaving =
        encodes && now.learned != 0 ? places.local(leaving_between(slot, now, now.grown(1), call.slots.rule)) : leaving_tokens{};
    const codebook_view<space::device> book = index.book;
    key_encoder encoder(scratch, book, index.pairs, own, centroids);
    for (std::uint32_t t = leaving.first; t < leaving.last; ++t) {
      if (t != leaving.first) __syncthreads();
      join_ranked(index, head, t, encoder.encode(head, coordinate, newest.key(rows, head, t), index.codes, t));
    }
    block::wait_copies<0>();  // also where no key leaves
  }
  if (is_last) {
    if (has_keys) newest.commit(rows, gridDim.x);
    call.slots.tickets(row) = 0;
    call.slots.sequences(slot) = now.grown(1);
  }
}

/// One row of a step with several tokens a row: its slot, its tokens, and whether they are taken. Each kernel of the step computes it
/// again.
struct appended_row {
  std::uint32_t slot = 0, count = 0;
  std::uint64_t first = 0;  // number of its first token in the step; 64 bits, since counts are unchecked
  sequence now{};
  bool has_tokens = false, is_taken = false;  // whether it has tokens for an existing slot; whether these fit

  /// By whole warps.
  __device__ appended_row(const appended_tokens<space::device>& call, std::uint32_t row) {
    std::uint64_t before = 0;
    for (std::uint32_t r = threadIdx.x % 32; r < row; r += 32) before += call.step.count(r);
    first = block::warp_sum(before);
    slot = call.step.slot(row);
    count = call.step.count(row);
    has_tokens = count != 0 && slot < call.slots.sequences.extent(0);
    if (!has_tokens) return;
    now = call.slots.sequences(slot);
    is_taken = has_room(call, now, count) && first + count <= call.tokens;
  }
  __device__ leaving_tokens leaving(const flat_budget_rule& rule) const {
    return is_taken && now.learned != 0 ? leaving_between(slot, now, now.grown(count), rule) : leaving_tokens{};
  }
};

/// grid.x: KV heads; grid.y: rows of a step; grid.z: CTAs that take a row's tokens in turn, a warp for each token.
template <class Rows, class K, class V, class From, class Places>
__global__ void __launch_bounds__(256)
    store_step_kernel(Rows rows, appended_tokens<space::device> call, view<K, 3, From> keys, view<V, 3, From> values, Places places) {
  const appended_row row(call, blockIdx.y);
  if (!row.is_taken) return;
  slot_statistics& statistics = call.slots.statistics(row.slot);
  const std::size_t head = std::size_t{row.slot} * gridDim.x + blockIdx.x;
  const unsigned warps = blockDim.x / 32;
  for (std::uint32_t i = blockIdx.z * warps + threadIdx.x / 32; i < row.count; i += gridDim.z * warps)
    if (places.owns(row.now.n + i))
      store_token(rows, head, places.local(row.now.n + i), row_of(keys, row.first + i, blockIdx.x),
                  row_of(values, row.first + i, blockIdx.x),
                  [&](unsigned which) { add_to(which == 0 ? statistics.nonfinite_keys : statistics.nonfinite_values, 1); });
}

/// The tokens that leave the window of each row's sequence in a step.
template <class Places>
struct step_leaving {
  appended_tokens<space::device> call;
  Places places;
  __device__ leaving_tokens operator()(std::uint32_t row) const { return places.local(appended_row(call, row).leaving(call.slots.rule)); }
};

/// One CTA for each row: the encoded tokens join the ranked ones, then the sequence grows.
template <class Index, class Places>
PQKV_HIDDEN __global__ void __launch_bounds__(256) commit_step_kernel(Index index, appended_tokens<space::device> call, Places places) {
  const appended_row row(call, blockIdx.x);
  if (!row.has_tokens) return;
  if (!row.is_taken) {
    if (threadIdx.x == 0) call.slots.statistics(row.slot).refused += row.count;
    return;
  }
  if constexpr (!std::is_same_v<Index, no_index>) change_ranking<ranking::begins>(index, places.local(row.leaving(call.slots.rule)));
  __syncthreads();  // all threads have read the sequence
  if (threadIdx.x == 0) call.slots.sequences(row.slot) = row.now.grown(row.count);
}

}  // namespace detail
}  // namespace pqkv
