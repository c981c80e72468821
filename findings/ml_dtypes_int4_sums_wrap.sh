#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ml_dtypes 0.6.0, int4 arrays in numpy: the mean of ten sevens is 0.
#
# Guess:  sums and means of int4 arrays are taken in a wider type, as numpy takes those of int8 in int64 and float64.
# Seen:   sum, mean and dot add modulo 16 and return an int4: ten sevens have the sum 6, the mean 0, and the dot product with themselves -6.
#         Their matrix product is an int8, modulo 256 as numpy's products of int8 are: -22. No warning; float32 out of range wraps too (9
#         becomes -7).
# Hurts:  who tries 4-bit keys and values in numpy: zero points, errors and inner products of quantized rows are wrong, and small enough to
#         look right.
# Mend:   astype(np.int32) or astype(np.float32) first, or dtype=np.float32 in sum and mean; clip before astype(int4).
#
# Needs python3 (3.10 or newer) with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install ml_dtypes==0.6.0 numpy==2.2.6 >/dev/null
cat >sums.py <<'PYTHON'
import ml_dtypes
import numpy as np
for name, sevens in (("int8", np.full(10, 7, np.int8)), ("int4", np.full(10, 7, np.int8).astype(ml_dtypes.int4))):
    product = sevens.reshape(1, -1) @ sevens.reshape(-1, 1)
    print(f"{name}: sum {sevens.sum()}, mean {sevens.mean()}, dot {sevens.dot(sevens)}, matrix product {product[0, 0]} {product.dtype}, "
          f"sum in float32 {sevens.sum(dtype=np.float32)}")
print("float32 9 and -9 as int4:", *np.array([9, -9], np.float32).astype(ml_dtypes.int4))
PYTHON
seen=$(v/bin/python -B sums.py)
expected='int8: sum 70, mean 7.0, dot -22, matrix product -22 int8, sum in float32 70.0
int4: sum 6, mean 0, dot -6, matrix product -22 int8, sum in float32 70.0
float32 9 and -9 as int4: -7 7'
printf 'ml_dtypes 0.6.0, ten sevens:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
