// SPDX-License-Identifier: Apache-2.0
// Memory of the device under a policy of the host.
// expect: ::space::device>
// expect: no instance of overloaded function "pqkv::top_k" matches the argument list
#include <pqkv/adapt/thrust.cuh>
#include <pqkv/pqkv.hpp>

int main() {
  thrust::device_vector<float> scores(6);
  thrust::host_vector<std::int32_t> best(2);
  pqkv::top_k(pqkv::exec::host<>{}, pqkv::make_view(scores, 2, 3), pqkv::make_view(best, 2, 1));
}
