// SPDX-License-Identifier: Apache-2.0
// Step 7: a second backend. A policy names its backend; a backend is a set of specialisations of pqkv::kernel, one per operation
// that it offers. This one counts calls and hands them to the host; an operation it lacks would not compile, and say so.
#include <cstdio>
#include <pqkv/pqkv.hpp>

#include "example_data.hpp"

namespace my {
struct counting {};  // the backend's tag

struct counting_policy {
  using backend_type = counting;
  using space_type = pqkv::space::host;
  int* calls;
};
}  // namespace my

template <>
struct pqkv::kernel<pqkv::op::top_k, my::counting> {
  static void run(const my::counting_policy& policy, view<const float, 2> scores, view<std::int32_t, 2> indices) {
    ++*policy.calls;
    kernel<op::top_k, backend::host>::run(exec::host<>{}, scores, indices);
  }
};

int main() {
  const std::vector<float> scores = clustered_rows(4, 1000, 1);
  std::vector<std::int32_t> best(4 * 10);
  int calls = 0;
  // The public function validates, then calls the kernel of the policy's backend.
  pqkv::top_k(my::counting_policy{&calls}, pqkv::make_view(scores.data(), 4, 1000), pqkv::make_view(best.data(), 4, 10));
  std::printf("%d call went through the new backend; row 0 begins with token %d\n", calls, best[0]);
  return calls == 1 && best[0] >= 0 ? 0 : 1;
}
