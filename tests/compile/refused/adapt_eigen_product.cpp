// SPDX-License-Identifier: Apache-2.0
// A product has no memory until it is evaluated.
// expect: pqkv: this Eigen expression has no memory that a view could point into
#include <pqkv/adapt/eigen.hpp>

Eigen::MatrixXf a, b;

int main() { return static_cast<int>(pqkv::make_view(a * b).extent(1)); }
