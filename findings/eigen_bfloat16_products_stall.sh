#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Eigen 3.4.1: a product of bfloat16 matrices adds in bfloat16, and one with a vector does not.
#
# Guess:  products of Eigen::bfloat16 add in float and round once, as its matrix-vector product, BLAS libraries, torch and GPUs do.
# Seen:   for x86-64 without further flags, rows and columns of 1000 ones: the sum, the dot product, the squared norm and the product of two
#         matrices give 256 (256 + 1 rounds to 256), the mean 0.26. The matrix-vector product gives 1000. Eigen::half stalls at 2048 in the same
#         way. With longer vector registers (-march) partial sums are more, so values are larger, and may be right. No warning.
# Hurts:  who keeps keys or activations in Eigen::bfloat16 and multiplies them: a batch of queries gives other logits than one query, and other
#         flags other logits again.
# Mend:   cast first: a.cast<float>() * b.cast<float>(). Eigen casts while it packs, so no copy of the matrix is needed in memory of its own.
#
# Needs g++ and python3 with pip. Debian's Eigen 3.4.0 and 5.0.1 print the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m pip download -q --no-deps --only-binary=:all: -d . cmeel-eigen==3.4.1
python3 -m zipfile -e cmeel_eigen-*.whl eigen
include=$(dirname "$(dirname "$(find eigen -path '*/Eigen/Core' -type f)")")
cat >products.cpp <<'CPP'
#include <Eigen/Core>
#include <cstdio>
template <class T>
void show(const char* name, int n) {
  using matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
  using vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;
  const vector ones = vector::Constant(n, T(1.0f));
  const matrix rows = matrix::Constant(64, n, T(1.0f)), columns = matrix::Constant(n, 64, T(1.0f));
  const vector by_vector = rows * ones;
  const matrix by_matrix = rows * columns;
  const Eigen::MatrixXf in_float = rows.template cast<float>() * columns.template cast<float>();
  std::printf("%s, %d ones: sum %g, dot %g, squared norm %g, matrix by vector %g, matrix by matrix %s, cast to float first %g\n", name, n,
              static_cast<double>(ones.sum()), static_cast<double>(ones.dot(ones)), static_cast<double>(ones.squaredNorm()),
              static_cast<double>(by_vector(0)), static_cast<double>(by_matrix(0, 0)) < 0.6 * n ? "too small" : "right",
              static_cast<double>(in_float(0, 0)));
}
int main() {
  show<Eigen::bfloat16>("bfloat16", 1000);
  show<Eigen::half>("half", 10000);
}
CPP
g++ -std=c++17 -O2 -march=x86-64 -I"$include" products.cpp -o products
seen=$(./products)
expected='bfloat16, 1000 ones: sum 256, dot 256, squared norm 256, matrix by vector 1000, matrix by matrix too small, cast to float first 1000
half, 10000 ones: sum 2048, dot 2048, squared norm 2048, matrix by vector 10000, matrix by matrix right, cast to float first 10000'
printf 'Eigen 3.4.1:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
