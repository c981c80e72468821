// SPDX-License-Identifier: Apache-2.0
// How clusters of CTAs share the lists of a call, and who has their tokens. retrieve_cluster.cuh has the kernel.
#pragma once

#include <cstdint>

#include "block/bracket.cuh"

namespace pqkv::inline PQKV_MODE::detail {

/// How the CTAs of a call share its lists, and what each has in shared memory.
struct cluster_shape {
  static constexpr unsigned most_ctas = 16;
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

/// A list's tokens are all here. Its CTAs exchange nothing with other devices.
struct one_rank {
  static constexpr bool is_shared = false;
  PQKV_HD static constexpr unsigned other_parts() { return 0; }
};

}  // namespace pqkv::detail
