// SPDX-License-Identifier: Apache-2.0
// The bounds of keys on the host: the largest and the least value of each coordinate.
#pragma once

#include <algorithm>
#include <limits>

#include "../../exec/host.hpp"
#include "../../selector/quest.hpp"
#include "simd/rows.hpp"

namespace pqkv::inline PQKV_MODE {

template <>
struct kernel<op::bound_keys, backend::host> {
  /// @param keys_of  keys_of(task, bound) calls bound(bounded_keys) for each run of keys of the task
  template <class P, class Rows, class KeysOf>
  static void run(const P& policy, const Rows& rows, std::size_t tasks, const KeysOf& keys_of) {
    isa::with<typename P::isa_type, isa::avx512>([&](auto isa) {
      detail::run_tasks(policy, tasks, [&](std::size_t task) {
        keys_of(task, [&](const selector::bounded_keys& keys) { bound<detail::simd_kernels<decltype(isa)>>(rows, keys); });
      });
    });
  }

 private:
  /// A key with an infinity or a NaN takes no part, so that it hides no other key of its page.
  template <class Kernels, class Rows>
  static void bound(const Rows& rows, const selector::bounded_keys& keys) {
    const std::size_t d = rows.head_dim();
    alignas(cache_line_bytes) float copy[max_head_dim] = {};  // g++ 16 cannot see that a kernel fills it
    float *const most = keys.out, *const least = keys.out + d;
    bool is_first = true;
    for (std::uint32_t t = keys.first; t < keys.last; ++t) {
      const float* key = detail::load_row<Kernels>(rows.key(keys.head, t), d, copy);
      if (!Kernels::all_finite(key, d)) continue;
      for (std::size_t i = 0; i < d; ++i) {
        most[i] = is_first || key[i] > most[i] ? key[i] : most[i];
        least[i] = is_first || key[i] < least[i] ? key[i] : least[i];
      }
      is_first = false;
    }
    if (is_first) std::fill_n(keys.out, 2 * d, std::numeric_limits<float>::quiet_NaN());
  }
};

}  // namespace pqkv
