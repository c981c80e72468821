// SPDX-License-Identifier: Apache-2.0
// A temporary Ref<const ...> may hold a copy of what it was made from, so it is refused like a matrix.
// expect: pqkv: this Eigen matrix is a temporary, a view of it would dangle; give it a name first
#include <pqkv/adapt/eigen.hpp>

Eigen::MatrixXf keys;

int main() { return static_cast<int>(pqkv::make_view(Eigen::Ref<const Eigen::MatrixXf>(keys)).extent(1)); }
