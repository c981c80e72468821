// SPDX-License-Identifier: Apache-2.0
// A view of a vector that dies with the statement; ../adapt_thrust.cu has the same calls of vectors with a name.
// expect: pqkv: this Thrust vector is a temporary, a view of it would dangle; give it a name first
#include <pqkv/adapt/thrust.cuh>

thrust::device_vector<float> keys();

int main() { return static_cast<int>(pqkv::make_view(keys(), 2, 3).extent(1)); }
