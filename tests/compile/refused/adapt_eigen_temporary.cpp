// SPDX-License-Identifier: Apache-2.0
// A view of a matrix that dies with the statement is refused, whichever function makes it.
// expect: pqkv: this Eigen matrix is a temporary, a view of it would dangle; give it a name first
#include <pqkv/adapt/eigen.hpp>

Eigen::MatrixXf keys();

int main() { return static_cast<int>(pqkv::split_heads(keys(), 2).extent(1)); }
