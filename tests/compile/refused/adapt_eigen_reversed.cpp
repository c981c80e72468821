// SPDX-License-Identifier: Apache-2.0
// A reversed matrix would need negative strides, which views do not have.
// expect: pqkv: this Eigen expression has no memory that a view could point into
#include <pqkv/adapt/eigen.hpp>

Eigen::MatrixXf a;

int main() {
  auto reversed = a.colwise().reverse();
  return static_cast<int>(pqkv::make_view(reversed).extent(1));
}
