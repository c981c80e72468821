// SPDX-License-Identifier: Apache-2.0
// A policy whose backend was not included gets the sentence that names the headers to include.
// expect: pqkv: this backend's implementation is not included; include <pqkv/pqkv.hpp> for the host, <pqkv/cuda.cuh> (nvcc) or <pqkv/cuda_
#include <pqkv/pqkv.hpp>

using pqkv::space::device;
float scores[8];
std::int32_t indices[4];

int main() { pqkv::top_k(pqkv::exec::cuda{}, pqkv::make_view<device>(scores, 1, 8), pqkv::make_view<device>(indices, 1, 4)); }
