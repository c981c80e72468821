// SPDX-License-Identifier: Apache-2.0
// Ranks of one host, each with a CUDA device of its own that reaches the others' memory (NVLink, or PCIe with peer access). The library's
// kernels write their messages straight into the other devices' memory, raise a flag behind them, and wait for the flags of the others: a
// decode step has no kernel that only carries messages. Opt-in. Not between hosts: see adapt/nccl.cuh.
//
// Better a process for each rank than a thread: a thread that allocates or frees memory may wait for the devices of other threads, and
// these may be waiting for its messages.
//
// A message has parts, each written and awaited by one CTA, and two places in every rank's memory, which take turns: a rank writes a part
// for the third time only after it has got every rank's second, and no rank sends its second before it has read the first. Numbers of 32
// bits travel with their message's number in one store of 64, so that they need neither a fence nor a flag; other words have a flag.
// Source: NCCL's low-latency protocol, and NVSHMEM's put with signal.
#pragma once

#include <cuda_runtime.h>

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "../device_context_parallel.cuh"

namespace pqkv::inline PQKV_MODE::scale {

/// The most ranks: the devices of one host.
inline constexpr unsigned most_peers = 8;

/// One exchange, as kernels see it; passed by value. Members as those of gathered_mail.
struct peer_mail {
  static constexpr bool travels_in_kernels = true;

  std::uint64_t* inbox[most_peers];  // of each rank: [2, ranks, words]
  std::uint32_t* flags[most_peers];  // of each rank: [ranks, parts] number of the last message that has come
  std::uint32_t* sent;               // [parts] of this rank: number of its last message
  std::uint32_t* gave_up;            // of this rank: 1 once a rank did not come in time
  std::uint64_t limit_ns;
  std::size_t words;  // of a message
  unsigned parts, ranks, rank;
  bool advances = true;  // whether this exchange numbers the messages, or another one of the same parts that always comes later
  unsigned part = 0;
  std::uint32_t number = 0;  // of this message, from 1

  /// The same exchange, numbered by another one, which follows it in every step.
  peer_mail before(const peer_mail& later) const {
    peer_mail numbered = *this;
    numbered.sent = later.sent;
    numbered.advances = false;
    return numbered;
  }

  __device__ peer_mail open(unsigned which) const {
    peer_mail opened = *this;
    opened.part = which;
    opened.number = sent[which] + 1;
    return opened;
  }
  /// The same with a number that the caller counts.
  __device__ peer_mail open(unsigned which, std::uint32_t of_caller) const {
    peer_mail opened = *this;
    opened.part = which;
    opened.number = of_caller;
    opened.advances = false;
    return opened;
  }
  __device__ unsigned targets() const { return ranks; }
  __device__ std::uint64_t* to(unsigned target) const { return inbox[target] + (number % 2 * ranks + rank) * words; }
  __device__ std::uint64_t word(unsigned r, std::size_t i) const { return __ldcg(from(r) + i); }
  __device__ float value(unsigned r, std::size_t i) const { return __ldcg(reinterpret_cast<const float*>(from(r) + 1) + i); }
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
  /// Counts the message whose numbers this CTA has taken. By all threads, after a barrier.
  __device__ void taken() const {
    if (threadIdx.x == 0) sent[part] = number;
  }
  __device__ void post() const {
    __syncthreads();
    if (threadIdx.x >= ranks) return;
    __threadfence_system();
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flags[threadIdx.x] + rank * parts + part), "r"(number) : "memory");
  }
  __device__ void await() const {
    if (threadIdx.x < ranks) {
      const std::uint32_t* const flag = flags[rank] + threadIdx.x * parts + part;
      std::uint64_t begin = 0;
      for (unsigned tries = 0; static_cast<std::int32_t>(load(flag) - number) < 0; ++tries)
        if (tries % 1024 == 1023 && is_late(begin)) break;
    }
    __syncthreads();
    if (threadIdx.x == 0 && advances) sent[part] = number;
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
  __device__ const std::uint64_t* from(unsigned r) const { return inbox[rank] + (number % 2 * ranks + r) * words; }
  __device__ static std::uint32_t load(const std::uint32_t* flag) {
    std::uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
  }
  /// Whether the time is over; later messages are then not awaited any more.
  __device__ bool is_late(std::uint64_t& begin) const {
    std::uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    if (begin == 0) begin = now;
    if (load(gave_up) == 0 && now - begin < limit_ns) return false;
    *gave_up = 1;
    return true;
  }
};

namespace detail {
enum class peer_exchange { gather, sum, maximum, transpose };

/// Carries a piece of a buffer: each CTA some of its bytes, in words. @param words  of the piece; a multiple of 4 bytes at the end is cut
template <peer_exchange What>
PQKV_HIDDEN __global__ void __launch_bounds__(512)
    peer_exchange_kernel(peer_mail given, const std::byte* own, std::byte* all, std::size_t stride, std::size_t bytes) {
  const peer_mail mail = given.open(blockIdx.x);
  const std::size_t words = (bytes + 7) / 8, share = (words + gridDim.x - 1) / gridDim.x, begin = share * blockIdx.x,
                    end = begin + share < words ? begin + share : words;
  const bool is_aligned =
      ((reinterpret_cast<std::uintptr_t>(own) | reinterpret_cast<std::uintptr_t>(all) | stride | bytes) & 7u) == 0;
  const auto read = [&](const std::byte* from, std::size_t word) {
    if (is_aligned) return reinterpret_cast<const std::uint64_t*>(from)[word];
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < 8 && word * 8 + i < bytes; ++i)
      value |= static_cast<std::uint64_t>(from[word * 8 + i]) << 8 * i;
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

/// One rank's communicator, used where the rank's device is current. Copies share their memory, which must last until all ranks' steps are
/// done.
class peer_ranks {
 public:
  using kernel_mail = peer_mail;

  static constexpr std::size_t least_bytes = std::size_t{4} << 20;

  /// Takes memory of the current device, and tells the other ranks where it is.
  /// @param meeting  a communicator of host memory, with one rank for each of these: mpi_ranks, or in_process for threads. Used here alone
  /// @param bytes    for mail; a cache takes about 4 ranks * (k + d) * 8 bytes for each list of a query token
  /// @param limit    how long a rank waits for the others in one exchange
  /// @throws value_error, cuda_error; communication_error when a rank does not come, or devices do not reach each other
  template <class Meeting>
  peer_ranks(const Meeting& meeting, std::size_t bytes, std::chrono::milliseconds limit = std::chrono::seconds(30))
      : state_(std::make_shared<shared>()) {
    const auto check = [](cudaError_t error, const char* call) { pqkv::detail::check_cuda(error, "peer_ranks", call); };
    const std::size_t ranks = meeting.size();
    require_ok(pqkv::detail::checks("peer_ranks")
                   .at_most("meeting.size()", ranks, most_peers, "devices of a host")
                   .at_least("bytes", bytes, least_bytes, "of each device"));
    shared& own = *state_;
    own.memory = device_buffer<std::byte>(bytes, nullptr);
    own.rank = meeting.rank(), own.limit = limit;
    sync(exec::cuda{});  // its zeros are there
    introduction mine{{}, static_cast<std::uint64_t>(getpid()), own.memory.data(), 0};
    check(cudaGetDevice(&mine.device), "cudaGetDevice");
    check(cudaIpcGetMemHandle(&mine.handle, own.memory.data()), "cudaIpcGetMemHandle");
    std::vector<introduction> all(ranks);
    const auto meet = [&] {
      meeting.all_gather(exec::host<>{}, reinterpret_cast<const std::byte*>(&mine), reinterpret_cast<std::byte*>(all.data()), sizeof mine);
    };
    meet();
    for (std::size_t r = 0; r < ranks; ++r) {
      const introduction& other = all[r];
      own.reached.push_back(static_cast<std::byte*>(other.memory));
      if (r == own.rank) continue;
      void* memory = nullptr;
      if (other.process != mine.process) {
        check(cudaIpcOpenMemHandle(&memory, other.handle, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
        own.reached[r] = static_cast<std::byte*>(memory);
        own.opened.push_back(memory);
      } else if (other.device != mine.device) {
        const cudaError_t error = cudaDeviceEnablePeerAccess(other.device, 0);
        if (error == cudaErrorPeerAccessAlreadyEnabled)
          static_cast<void>(cudaGetLastError());  // by the program
        else
          check(error, "cudaDeviceEnablePeerAccess");
      }
    }
    meet();  // nobody writes before all have access
    own.gave_up = reinterpret_cast<std::uint32_t*>(own.memory.data() + take(sizeof(std::uint32_t)));
    const std::size_t words = bytes / 4 / 2 / sizeof(std::uint64_t) / ranks;
    own.piece_words = words < most_piece_words ? words : most_piece_words;
    own.carrier = mail(own.piece_words, carriers);
  }
  std::size_t rank() const { return state_->rank; }
  std::size_t size() const { return state_->reached.size(); }

  /// Takes memory for one exchange of a step. The same calls on every rank, in the same order.
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
    made.sent = reinterpret_cast<std::uint32_t*>(state_->memory.data() + sent);
    made.gave_up = state_->gave_up;
    made.limit_ns = static_cast<std::uint64_t>(state_->limit.count()) * 1000000;
    made.words = words;
    made.parts = static_cast<unsigned>(parts), made.ranks = static_cast<unsigned>(ranks), made.rank = static_cast<unsigned>(rank());
    return made;
  }

  /// Enqueued on the policy's stream, here and below; buffers in this device's memory. @throws cuda_error
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

  /// Waits for the stream, in place of sync(). @throws cuda_error; communication_error when a rank did not come in time: the communicator
  /// cannot be used any more
  void finish(const exec::cuda& policy) const {
    std::uint32_t late = 0;
    copy_bytes(policy, &late, state_->gave_up, sizeof late);
    sync(policy);
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
    device_buffer<std::byte> memory;
    std::vector<std::byte*> reached;  // [ranks] the memory of each, as this device reaches it
    std::vector<void*> opened;        // those of other processes
    std::chrono::milliseconds limit{};
    std::size_t rank = 0, used = 0, piece_words = 0;
    std::uint32_t* gave_up = nullptr;
    peer_mail carrier{};

    shared() = default;
    shared(const shared&) = delete;
    shared& operator=(const shared&) = delete;
    ~shared() {
      for (void* other : opened) cudaIpcCloseMemHandle(other);
    }
  };

  /// The place of `bytes` bytes, the same on every rank.
  std::size_t take(std::size_t bytes) {
    const std::size_t at = (state_->used + cache_line_bytes - 1) / cache_line_bytes * cache_line_bytes;
    require_ok(pqkv::detail::checks("peer_ranks")
                   .that(at + bytes <= state_->memory.size(), status::code::capacity, "bytes", relation::at_least, "for this mail",
                         at + bytes, state_->memory.size()));
    state_->used = at + bytes;
    return at;
  }
  template <detail::peer_exchange What>
  void carry(const exec::cuda& policy, const std::byte* own, std::byte* all, std::size_t stride, std::size_t bytes) const {
    const pqkv::detail::launcher launch(policy, "peer_ranks");
    const std::size_t most = state_->piece_words * sizeof(std::uint64_t);
    for (std::size_t done = 0; done < bytes; done += most)
      launch("peer_exchange_kernel", detail::peer_exchange_kernel<What>, {dim3(static_cast<unsigned>(carriers)), 512}, state_->carrier,
             own + done, all + done, stride, bytes - done < most ? bytes - done : most);
  }

  std::shared_ptr<shared> state_;
};
static_assert(communicator_for<peer_ranks, exec::cuda>);

}  // namespace pqkv::scale
