// SPDX-License-Identifier: Apache-2.0
// How clusters of CTAs share the lists of a call, and who has their tokens. retrieve_cluster.cuh has the kernel.
#pragma once

#include <cstdint>

#include "block/bracket.cuh"
#include "block/cluster.cuh"

namespace pqkv::inline PQKV_MODE::detail {

/// How the CTAs of a call share its lists, and what each has in shared memory.
struct cluster_shape {
  static constexpr unsigned most_ctas = 16;   // of a cluster
  static constexpr unsigned most_parts = 32;  // CTAs of a list
  unsigned ctas;        // per list
  unsigned log_copies;  // of the table
  unsigned kept;        // tokens inside the bracket that one CTA has room for
  unsigned copied;      // kept tokens of all CTAs together whose keys fit into the memory of the table
  unsigned words;       // of each bitmap

  /// With this room, a CTA can keep all its tokens of a list that is no longer than the sample.
  static constexpr unsigned least_kept(unsigned of_ctas) { return of_ctas == 1 ? block::bracket_sample : block::bracket_sample / 2 + 512; }
  /// How many positions one CTA takes: a multiple of the 256 that a warp reads in one turn.
  __host__ __device__ static std::uint32_t share(std::uint32_t tokens, unsigned of_ctas) {
    constexpr std::uint32_t granule = 256;
    return ((tokens + of_ctas - 1) / of_ctas + granule - 1) / granule * granule;
  }
};

/// How long the look-ups of a call take, in microseconds: an estimate, by which to choose.
// measured: clock stamps of a step, 4 x 8 bits, H200, 2026-11-30: look-ups take 1.2 us for 4096 tokens of a CTA, and there are two where no
// rounded products are used
inline float look_up_time(unsigned ctas, std::size_t n) { return 2.4f * static_cast<float>(n) / (4096.0f * static_cast<float>(ctas)); }

/// A list's tokens are all here. Its CTAs are a cluster and exchange nothing with other devices.
struct one_rank {
  using team_type = block::cluster_team;
  static constexpr bool is_shared = false, is_spread = false;
  PQKV_HD static constexpr unsigned other_parts() { return 0; }
  __device__ static team_type team(unsigned ctas) { return team_type(ctas); }
};

/// The scratch by which the CTAs of lists exchange numbers where they are no cluster.
struct spread_memory {
  std::uint32_t* arrived = nullptr;  // [lists, words] zeros, and zeros after the launch
  unsigned char* bytes = nullptr;    // [lists, stride]
  std::size_t stride = 0;
  unsigned clusters = 0;  // of a list; 0: its CTAs are a cluster

  static constexpr unsigned words = 2;  // of `arrived`, for a list
  /// Bytes of a list. @param totals  numbers of one CTA
  static constexpr std::size_t needed(unsigned parts, std::size_t totals) {
    return parts * (totals * sizeof(std::uint64_t) + sizeof(uint4)) + block::bracket_sample * sizeof(std::uint32_t);
  }
};

/// A list's CTAs are spread over the device, and exchange numbers through its memory.
class spread_parts {
 public:
  using team_type = block::spread_team;
  static constexpr bool is_shared = false, is_spread = true;

  /// @param keys  [retrieve_device_positions()] scratch of the list
  __device__ spread_parts(const spread_memory& memory, unsigned list, unsigned part, std::uint32_t* keys)
      : arrived_(memory.arrived + list * spread_memory::words), bytes_(memory.bytes + list * memory.stride), keys_(keys), part_(part) {}

  PQKV_HD static constexpr unsigned other_parts() { return 0; }
  __device__ team_type team(unsigned ctas) const { return {arrived_, ctas, part_}; }
  /// [parts] what each has found.
  __device__ uint4* counts() const { return reinterpret_cast<uint4*>(bytes_); }
  /// [bracket_sample] keys.
  __device__ std::uint32_t* sample(unsigned parts) const { return reinterpret_cast<std::uint32_t*>(bytes_ + parts * sizeof(uint4)); }
  /// Numbers of query heads, of all rounds.
  __device__ std::uint64_t* totals(unsigned parts) const { return reinterpret_cast<std::uint64_t*>(sample(parts) + block::bracket_sample); }
  /// Keys inside the bracket: those of a part from the position of its first token on, where its rounded products are no longer needed.
  __device__ std::uint32_t* keys() const { return keys_; }

 private:
  std::uint32_t* arrived_;
  unsigned char* bytes_;
  std::uint32_t* keys_;
  unsigned part_;
};

}  // namespace pqkv::detail
