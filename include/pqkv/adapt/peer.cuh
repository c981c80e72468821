// SPDX-License-Identifier: Apache-2.0
// Ranks of one host, each with a CUDA device of its own that reaches the others' memory (NVLink, or PCIe with peer access). The library's
// kernels write their messages straight into the other devices' memory, then raise a flag, and wait for the flags of the others: a decode
// step has no kernel that only carries messages. Opt-in. Not between hosts: see adapt/nccl.cuh.
//
// Run each rank in a process of its own rather than in a thread. A call that allocates or frees memory may wait for the device of another
// thread; if that device's kernels wait for a message which this thread has not sent yet, neither goes on.
//
// A message has parts, each written and awaited by one CTA, and two places in every rank's memory, which take turns. A rank reuses a place
// only for the message after next. By then it has received the message in between from every other rank, which each sends only after it has
// read the place. A 32-bit number is stored together with its message's number as one 64-bit word, so it needs neither a fence nor a flag;
// other words have a flag.
// Source: NCCL's low-latency protocol, and NVSHMEM's put with signal.
#pragma once

#include <cuda_runtime.h>

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "../exec/cuda.hpp"
#include "../exec/host.hpp"
#include "../scale/communicator.hpp"

namespace pqkv::inline PQKV_MODE::scale {

/// The most ranks: the devices of one host.
inline constexpr unsigned most_peers = 8;

class peer_message;

/// One exchange, as kernels get it, by value.
struct peer_mail {
  static constexpr bool travels_in_kernels = true;
  using message = peer_message;

  std::uint64_t* inbox[most_peers];  // of each rank: [2, ranks, words]
  std::uint32_t* flags[most_peers];  // of each rank: [ranks, parts] number of the last message that has arrived
  std::uint32_t* sent;               // [parts] of this rank: number of its last message
  std::uint32_t* gave_up;            // of this rank: 1 once a message has not arrived in time, 2 + r once rank r has refused a step
  std::uint64_t limit_ns;
  std::size_t words;  // of a message
  unsigned parts, ranks, rank;
  bool advances = true;  // whether this exchange counts the messages; otherwise a later exchange of the same step does

  /// The same exchange, numbered by another one, which follows it in every step.
  peer_mail before(const peer_mail& later) const {
    peer_mail numbered = *this;
    numbered.sent = later.sent;
    numbered.advances = false;
    return numbered;
  }
  /// A CTA's part of the next message, once the kernels before this one have ended.
  __device__ peer_message open(unsigned part) const;
  /// The same with a number that the caller counts.
  __device__ peer_message open(unsigned part, std::uint32_t number) const;
};

/// One part of one message. It holds a reference to the exchange, since a copy in every thread would be in local memory, which is slow.
class peer_message {
 public:
  static constexpr bool travels_in_kernels = true;
  unsigned ranks, rank, part;
  std::uint32_t number;  // from 1

  __device__ peer_message(const peer_mail& mail, unsigned which, std::uint32_t of, bool advances)
      : ranks(mail.ranks), rank(mail.rank), part(which), number(of), mail_(mail), advances_(advances) {}

  /// Where a word of this rank's message is to be written, in the memory of rank `target`.
  __device__ std::uint64_t* to(unsigned target) const { return mail_.inbox[target] + (number % 2 * ranks + rank) * mail_.words; }
  /// A word that post() sent.
  __device__ std::uint64_t word(unsigned r, std::size_t i) const { return __ldcg(from(r) + i); }
  /// post(): this rank's part is written, and the other ranks may read it. await(): waits for the same part of every rank's message. Each
  /// by all threads of a CTA.
  __device__ void post() const {
    __syncthreads();
    if (threadIdx.x >= ranks) return;
    __threadfence_system();
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(mail_.flags[threadIdx.x] + rank * mail_.parts + part), "r"(number) : "memory");
  }
  __device__ void await() const {
    if (threadIdx.x < ranks) {
      const std::uint32_t* const flag = mail_.flags[rank] + threadIdx.x * mail_.parts + part;
      std::uint64_t begin = 0;
      for (unsigned tries = 0; static_cast<std::int32_t>(load(flag) - number) < 0; ++tries)
        if (tries % 1024 == 1023 && is_late(begin)) break;
    }
    __syncthreads();
    taken();
  }

  /// Sends a number to the other ranks, at an index of its own; take() waits for it. Not for words that post() sends.
  __device__ void give(std::size_t i, std::uint32_t value) const {
    for (unsigned target = 0; target < ranks; ++target)
      if (target != rank) give_to(target, i, value);
  }
  /// The same, to this rank's other CTAs too.
  __device__ void give_all(std::size_t i, std::uint32_t value) const {
    for (unsigned target = 0; target < ranks; ++target) give_to(target, i, value);
  }
  /// What a rank gave.
  __device__ std::uint32_t take(unsigned r, std::size_t i) const {
    std::uint64_t begin = 0;
    for (unsigned tries = 0;; ++tries) {
      const std::uint64_t found = look(r, i);
      if (found >> 32 == number) return static_cast<std::uint32_t>(found);
      if (tries % 1024 == 1023 && is_late(begin)) return 0;
    }
  }
  /// The same for `i`, i + step, ... below `end`, whose loads are issued together.
  template <unsigned Count>
  __device__ void take(unsigned r, std::size_t i, std::size_t step, std::size_t end, std::uint32_t (&values)[Count]) const {
    std::uint64_t found[Count];
#pragma unroll
    for (unsigned a = 0; a < Count; ++a) found[a] = i + a * step < end ? look(r, i + a * step) : std::uint64_t{number} << 32;
#pragma unroll
    for (unsigned a = 0; a < Count; ++a)
      values[a] = found[a] >> 32 == number ? static_cast<std::uint32_t>(found[a]) : take(r, i + a * step);
  }
  /// The same of several ranks: place(a).rank and place(a).word say which, or a rank that does not exist for none.
  template <unsigned Count, class Place>
  __device__ void take(Place place, std::uint32_t (&values)[Count]) const {
    std::uint64_t found[Count];
#pragma unroll
    for (unsigned a = 0; a < Count; ++a) {
      const auto at = place(a);
      found[a] = at.rank < ranks ? look(at.rank, at.word) : std::uint64_t{number} << 32;
    }
#pragma unroll
    for (unsigned a = 0; a < Count; ++a) {
      const auto at = place(a);
      values[a] = found[a] >> 32 == number ? static_cast<std::uint32_t>(found[a]) : take(at.rank, at.word);
    }
  }
  /// Counts the message whose numbers this CTA has taken. By all threads, after a barrier.
  __device__ void taken() const {
    if (threadIdx.x == 0 && advances_) mail_.sent[part] = number;
  }

 private:
  __device__ void give_to(unsigned target, std::size_t i, std::uint32_t value) const {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to(target) + i), "l"(std::uint64_t{number} << 32 | value) : "memory");
  }
  __device__ std::uint64_t look(unsigned r, std::size_t i) const {
    std::uint64_t found;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(found) : "l"(from(r) + i) : "memory");
    return found;
  }
  __device__ const std::uint64_t* from(unsigned r) const { return mail_.inbox[rank] + (number % 2 * ranks + r) * mail_.words; }
  __device__ static std::uint32_t load(const std::uint32_t* flag) {
    std::uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
  }
  /// Whether the time limit has passed, or a rank has refused a step. After that, no message is awaited any more.
  __device__ bool is_late(std::uint64_t& begin) const {
    std::uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    if (begin == 0) begin = now;
    if (load(mail_.gave_up) != 0) return true;
    if (now - begin < mail_.limit_ns) return false;
    atomicCAS_system(mail_.gave_up, 0u, 1u);  // unless a rank's refusal came in between
    return true;
  }

  const peer_mail& mail_;
  bool advances_;
};

__device__ inline peer_message peer_mail::open(unsigned part) const { return {*this, part, sent[part] + 1, advances}; }
__device__ inline peer_message peer_mail::open(unsigned part, std::uint32_t number) const { return {*this, part, number, false}; }

namespace detail {
enum class peer_exchange { gather, sum, maximum, transpose };

/// Exchanges a piece of a buffer among the ranks. Each CTA carries a share of its words.
/// @param stride  from one rank's bytes to the next's in `all`, or in `own` where ranks get different ones
/// @param bytes   of the piece of one rank
template <peer_exchange What>
PQKV_HIDDEN __global__ void __launch_bounds__(512) peer_exchange_kernel(const __grid_constant__ peer_mail given, const std::byte* own,
                                                                        std::byte* all, std::size_t stride, std::size_t bytes) {
  const peer_message mail = given.open(blockIdx.x);
  const std::size_t words = (bytes + 7) / 8, share = (words + gridDim.x - 1) / gridDim.x, begin = share * blockIdx.x,
                    end = begin + share < words ? begin + share : words;
  const bool is_aligned = ((reinterpret_cast<std::uintptr_t>(own) | reinterpret_cast<std::uintptr_t>(all) | stride | bytes) & 7u) == 0;
  const auto read = [&](const std::byte* from, std::size_t word) {
    if (is_aligned) return reinterpret_cast<const std::uint64_t*>(from)[word];
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < 8 && word * 8 + i < bytes; ++i) value |= static_cast<std::uint64_t>(from[word * 8 + i]) << 8 * i;
    return value;
  };
  for (std::size_t i = begin + threadIdx.x; i < end; i += blockDim.x)
    for (unsigned target = 0; target < mail.ranks; ++target)
      mail.to(target)[i] = read(What == peer_exchange::transpose ? own + target * stride : own, i);
  mail.post();
  mail.await();
  for (std::size_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    if constexpr (What == peer_exchange::sum || What == peer_exchange::maximum) {
      std::uint64_t result = 0;
      for (unsigned rank = 0; rank < mail.ranks; ++rank) {
        const std::uint64_t one = mail.word(rank, i);
        result = What == peer_exchange::sum ? result + one : one > result ? one : result;
      }
      reinterpret_cast<std::uint64_t*>(all)[i] = result;
    } else {
      for (unsigned rank = 0; rank < mail.ranks; ++rank) {
        const std::uint64_t one = mail.word(rank, i);
        if (is_aligned) reinterpret_cast<std::uint64_t*>(all + rank * stride)[i] = one;
        for (std::size_t byte = 0; !is_aligned && byte < 8 && i * 8 + byte < bytes; ++byte)
          all[rank * stride + i * 8 + byte] = static_cast<std::byte>(one >> 8 * byte);
      }
    }
  }
}
}  // namespace detail

/// One rank's communicator. The rank's device must be the current one in every call. Copies share their memory, which must last until the
/// steps of all ranks are done.
class peer_ranks {
 public:
  using kernel_mail = peer_mail;

  static constexpr std::size_t least_bytes = std::size_t{4} << 20;

  /// Takes memory of the current device, and tells the other ranks where it is.
  /// @param meeting  a communicator of host memory, with one rank for each of these: mpi_ranks, or in_process for threads. This
  ///                 constructor alone uses it
  /// @param bytes    device memory for messages. A quarter of it is for the three collectives below. A cache takes, for each list of a
  ///                 query token, about 32 * ranks * (k + cells / 2) bytes: k is the largest at its capacity, and cells those of its
  ///                 joint-code index, or 0. A cache without such an index takes up to 16 * ranks * (30000 + 100 * query heads of the list)
  ///                 bytes more (scale::token_message)
  /// @param limit    how long a rank waits for the others in one exchange
  /// @throws value_error; communication_error when a rank does not make this call, when devices cannot reach each other's memory, and for
  ///         CUDA's errors
  template <class Meeting>
  peer_ranks(const Meeting& meeting, std::size_t bytes, std::chrono::milliseconds limit = std::chrono::seconds(30))
      : state_(std::make_shared<shared>()) {
    const std::size_t ranks = meeting.size();
    require_ok(pqkv::detail::checks("peer_ranks")
                   .at_most("meeting.size()", ranks, most_peers, "devices of a host")
                   .at_least("bytes", bytes, least_bytes, "of each device"));
    shared& own = *state_;
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    own.memory = static_cast<std::byte*>(memory), own.bytes = bytes;
    own.rank = meeting.rank(), own.limit = limit;
    check(cudaMemset(memory, 0, bytes), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // the zeros are written
    introduction mine{{}, static_cast<std::uint64_t>(getpid()), memory, 0};
    check(cudaGetDevice(&mine.device), "cudaGetDevice");
    check(cudaIpcGetMemHandle(&mine.handle, memory), "cudaIpcGetMemHandle");
    std::vector<introduction> all(ranks);
    const auto meet = [&] {
      meeting.all_gather(exec::host<>{}, reinterpret_cast<const std::byte*>(&mine), reinterpret_cast<std::byte*>(all.data()), sizeof mine);
    };
    meet();
    for (std::size_t r = 0; r < ranks; ++r) own.reached.push_back(r == own.rank ? own.memory : reach(all[r], mine));
    meet();  // nobody writes before all have access
    own.gave_up_at = take(sizeof(std::uint32_t)), own.refusal_at = take(sizeof(std::uint32_t));
    own.gave_up = reinterpret_cast<std::uint32_t*>(own.memory + own.gave_up_at);
    const auto refusal = static_cast<std::uint32_t>(2 + own.rank);
    check(cudaMemcpy(own.memory + own.refusal_at, &refusal, sizeof refusal, cudaMemcpyHostToDevice), "cudaMemcpy");
    const std::size_t words = bytes / 4 / 2 / sizeof(std::uint64_t) / ranks;
    own.piece_words = words < most_piece_words ? words : most_piece_words;
    own.carrier = mail(own.piece_words, carriers);
  }
  std::size_t rank() const { return state_->rank; }
  std::size_t size() const { return state_->reached.size(); }

  /// Takes memory for one exchange of a step. Every rank must make the same calls in the same order.
  /// @throws capacity_error when the communicator's bytes do not suffice
  kernel_mail mail(std::size_t words, std::size_t parts) {
    const std::size_t ranks = size();
    const std::size_t sent = take(parts * sizeof(std::uint32_t)), flags = take(ranks * parts * sizeof(std::uint32_t)),
                      inbox = take(2 * ranks * words * sizeof(std::uint64_t));
    kernel_mail made{};
    for (std::size_t r = 0; r < ranks; ++r) {
      made.inbox[r] = reinterpret_cast<std::uint64_t*>(state_->reached[r] + inbox);
      made.flags[r] = reinterpret_cast<std::uint32_t*>(state_->reached[r] + flags);
    }
    made.sent = reinterpret_cast<std::uint32_t*>(state_->memory + sent);
    made.gave_up = state_->gave_up;
    made.limit_ns = static_cast<std::uint64_t>(state_->limit.count()) * 1000000;
    made.words = words;
    made.parts = static_cast<unsigned>(parts), made.ranks = static_cast<unsigned>(ranks), made.rank = static_cast<unsigned>(rank());
    return made;
  }

  /// Enqueued on the policy's stream, here and below; buffers in this device's memory. @throws communication_error
  void all_gather(const exec::cuda& policy, const std::byte* own, std::byte* all, std::size_t bytes) const {
    carry<detail::peer_exchange::gather>(policy, own, all, bytes, bytes);
  }
  void all_reduce(const exec::cuda& policy, std::uint64_t* numbers, std::size_t count, reduction how) const {
    std::byte* const data = reinterpret_cast<std::byte*>(numbers);
    if (how == reduction::sum)
      carry<detail::peer_exchange::sum>(policy, data, data, 0, count * sizeof *numbers);
    else
      carry<detail::peer_exchange::maximum>(policy, data, data, 0, count * sizeof *numbers);
  }
  void all_to_all(const exec::cuda& policy, const std::byte* to, std::byte* from, std::size_t bytes) const {
    carry<detail::peer_exchange::transpose>(policy, to, from, bytes, bytes);
  }

  /// Tells the other ranks, once what is on the stream is done, that this one refuses a step: their kernels stop waiting, and finish()
  /// throws on every rank. Only enqueues. @throws communication_error
  void refuse(const exec::cuda& policy) const {
    for (std::byte* const other : state_->reached)
      check(cudaMemcpyAsync(other + state_->gave_up_at, state_->memory + state_->refusal_at, sizeof(std::uint32_t), cudaMemcpyDefault,
                            static_cast<cudaStream_t>(policy.stream)),
            "cudaMemcpyAsync");
  }

  /// Waits for the stream. Use it in place of sync(), which does not report late ranks: after the time limit kernels go on with wrong
  /// numbers. @throws communication_error when a rank's message did not arrive in time, rank_error when a rank has refused a step; the
  /// communicator cannot be used any more
  void finish(const exec::cuda& policy) const {
    std::uint32_t late = 0;
    const auto stream = static_cast<cudaStream_t>(policy.stream);
    check(cudaMemcpyAsync(&late, state_->gave_up, sizeof late, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    if (late >= 2) detail::raise_refusal("peer_ranks", late - 2, " a step");
    if (late != 0)
      detail::raise_communication("peer_ranks", "finish", "a rank did not come within " + std::to_string(state_->limit.count()) + " ms");
  }

 private:
  static constexpr std::size_t carriers = 64;  // CTAs of an exchange; not measured
  static constexpr std::size_t most_piece_words = std::size_t{1} << 18;
  struct introduction {
    cudaIpcMemHandle_t handle;
    std::uint64_t process;
    void* memory;
    int device;
  };
  struct shared {
    std::byte* memory = nullptr;
    std::size_t bytes = 0;
    std::vector<std::byte*> reached;  // [ranks] the memory of each, as this device reaches it
    std::vector<void*> opened;        // those of other processes
    std::chrono::milliseconds limit{};
    std::size_t rank = 0, used = 0, piece_words = 0, gave_up_at = 0, refusal_at = 0;
    std::uint32_t* gave_up = nullptr;
    peer_mail carrier{};

    shared() = default;
    shared(const shared&) = delete;
    shared& operator=(const shared&) = delete;
    ~shared() {
      for (void* other : opened) cudaIpcCloseMemHandle(other);
      cudaFree(memory);
    }
  };

  /// Takes `bytes` bytes and returns their offset, the same on every rank.
  std::size_t take(std::size_t bytes) {
    const std::size_t at = (state_->used + cache_line_bytes - 1) / cache_line_bytes * cache_line_bytes;
    require_ok(pqkv::detail::checks("peer_ranks")
                   .that(at + bytes <= state_->bytes, status::code::capacity, "bytes", relation::at_least, "for this mail", at + bytes,
                         state_->bytes));
    state_->used = at + bytes;
    return at;
  }
  template <detail::peer_exchange What>
  void carry(const exec::cuda& policy, const std::byte* own, std::byte* all, std::size_t stride, std::size_t bytes) const {
    const std::size_t most = state_->piece_words * sizeof(std::uint64_t);
    for (std::size_t done = 0; done < bytes; done += most)
      detail::peer_exchange_kernel<What><<<static_cast<unsigned>(carriers), 512, 0, static_cast<cudaStream_t>(policy.stream)>>>(
          state_->carrier, own + done, all + done, stride, bytes - done < most ? bytes - done : most);
    check(cudaGetLastError(), "peer_exchange_kernel");
  }
  static void check(cudaError_t error, const char* call) {
    if (error != cudaSuccess) detail::raise_communication("peer_ranks", call, cudaGetErrorString(error));
  }
  /// The memory of another rank, as this device reaches it.
  std::byte* reach(const introduction& other, const introduction& mine) const {
    if (other.process != mine.process) {
      void* memory = nullptr;
      check(cudaIpcOpenMemHandle(&memory, other.handle, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
      state_->opened.push_back(memory);
      return static_cast<std::byte*>(memory);
    }
    if (other.device != mine.device) {
      const cudaError_t error = cudaDeviceEnablePeerAccess(other.device, 0);
      if (error == cudaErrorPeerAccessAlreadyEnabled)
        static_cast<void>(cudaGetLastError());  // the program has enabled it
      else
        check(error, "cudaDeviceEnablePeerAccess");
    }
    return static_cast<std::byte*>(other.memory);
  }

  std::shared_ptr<shared> state_;
};
static_assert(communicator_for<peer_ranks, exec::cuda>);

}  // namespace pqkv::scale
