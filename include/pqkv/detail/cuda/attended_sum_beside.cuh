// SPDX-License-Identifier: Apache-2.0
// Sums of attended tokens in the launch that ranks: some clusters sum the sinks and windows of all lists while the others scan. A list's
// CTAs wait for its sums once they have the sums over their own tokens.
//
// The clusters that sum are the first of the grid, so those that wait for them only wait for CTAs that have begun: a GPU begins the CTAs of
// a launch in the order of their numbers. CUB's scans rely on that too (cub/agent/agent_scan.cuh: a CTA waits for those with lower
// numbers).
#pragma once

#include <algorithm>

#include "attended_sum.cuh"
#include "retrieve_cluster_shape.cuh"

namespace pqkv::inline PQKV_MODE::detail {

/// What cluster_kernel's clusters do beside ranking.
template <class Store, class Spans>
struct sums_beside {
  static constexpr bool sums = true;
  attended_call<Store, Spans> call;
  unsigned clusters = 0;  // 0: nothing is summed

  /// How long look-ups and sums would take in clusters of so many CTAs, in microseconds: an estimate, by which to choose.
  /// @param resident  clusters that the device runs at a time, at least so many as there are lists
  /// @param n         the most tokens of a list
  float time(unsigned ctas, unsigned resident, std::size_t n) const {
    const float scan = look_up_time(ctas, n), spare = time_after_spare(ctas, resident, n);
    return scan + std::min(spare, time_before_all(ctas, resident));
  }
  /// The same where the CTAs of a list are spread over the device; more than any time if so many clusters cannot share the lists.
  /// @param parts       CTAs of a list
  /// @param ctas        of a cluster
  /// @param of_clusters  that sum
  float time_spread(unsigned parts, unsigned ctas, unsigned of_clusters, std::size_t n) const {
    if (lists_together(of_clusters) > ctas || used(of_clusters, ctas) != of_clusters) return 1e30f;
    const float scan = look_up_time(parts, n);
    return scan + std::max(0.0f, time_of_sums(ctas, of_clusters) - 10.0f - scan / 2);
  }
  /// Has so many clusters sum, with those that rank beside them. @return false: a CTA has too little shared memory
  bool divide_spread(unsigned ctas, unsigned of_clusters, std::size_t room) {
    share(ctas, of_clusters);
    return call.shape.fit(room);
  }
  /// Decides how many clusters sum.
  /// @param room  bytes of shared memory of a CTA
  /// @return false: it is too little
  bool divide(unsigned ctas, unsigned resident, std::size_t n, std::size_t room) {
    if (call.lists == 0) return true;
    const bool is_spare = time_after_spare(ctas, resident, n) <= time_before_all(ctas, resident);
    const unsigned most = std::min(is_spare ? resident - call.lists : resident, call.lists);
    share(ctas, most);
    return call.shape.fit(room);
  }

 private:
  /// Lists of a cluster if so many share them.
  unsigned lists_together(unsigned of_clusters) const { return (call.lists + of_clusters - 1) / of_clusters; }
  /// How many of so many clusters get a list.
  unsigned used(unsigned of_clusters, unsigned ctas) const {
    const unsigned together = std::min(lists_together(of_clusters), ctas);
    return std::min(of_clusters, (call.lists + together - 1) / together);
  }
  /// Divides the lists among at most so many clusters.
  void share(unsigned ctas, unsigned most) {
    call.shape.ctas = ctas;
    call.shape.side_by_side = std::min(lists_together(most), ctas);
    call.shape.tiles_at_once = attended_shape::most_tiles;
    clusters = used(most, ctas);
  }
  // measured: clock stamps of a step, 8 lists of 4 x 8 bits and 16 tiles, 8-bit rows, H200, 2026-11-30: a list's sums are there 8 us after
  // the launch has begun and 1.1 us more for each tile of a CTA; look-ups take 1.2 us for 4096 tokens of a CTA, and there are two; the sums
  // are needed after the first and 10 us more; a cluster that begins when another has ended loses 3 us
  float time_of_sums(unsigned ctas, unsigned of_clusters) const {
    constexpr float tiles = 16;
    return 8.0f + 1.1f * tiles * static_cast<float>(call.lists) / static_cast<float>(std::min(of_clusters, call.lists) * ctas);
  }
  /// What sums in clusters that would otherwise be idle add to the launch.
  float time_after_spare(unsigned ctas, unsigned resident, std::size_t n) const {
    if (resident <= call.lists) return 1e30f;
    return std::max(0.0f, time_of_sums(ctas, resident - call.lists) - 10.0f - look_up_time(ctas, n) / 2);
  }
  /// The same where all clusters begin with sums.
  float time_before_all(unsigned ctas, unsigned resident) const { return time_of_sums(ctas, resident) + 3.0f; }
};

}  // namespace pqkv::detail
