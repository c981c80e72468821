// SPDX-License-Identifier: Apache-2.0
// The control of refused/adapt_eigen_*: the same calls with the fault of each taken out.
#include <pqkv/adapt/eigen.hpp>

Eigen::MatrixXf keys();
Eigen::MatrixXf a, b;

int main() {
  const Eigen::MatrixXf named = keys();
  const Eigen::Ref<const Eigen::MatrixXf> reference(a);
  const Eigen::MatrixXf product = a * b, reversed = a.colwise().reverse();
  return static_cast<int>(pqkv::split_heads(named, 2).extent(1) + pqkv::make_view(reference).extent(1) +
                          pqkv::make_view(Eigen::Ref<Eigen::MatrixXf>(a)).extent(1) + pqkv::make_view(product).extent(1) +
                          pqkv::make_view(reversed).extent(1));
}
