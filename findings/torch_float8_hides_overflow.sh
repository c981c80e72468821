#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# PyTorch's conversion to float8_e4m3fn turns what is too large into 448, infinity too. e4m3fnuz, e5m2 and JAX tell.
#
# Guess:  the format has no infinity, so that numbers over 464 become NaN, as in ml_dtypes, whose types JAX uses.
# Seen:   2.15.0: 500 and infinity become 448, of which neither isnan() nor isinf() knows. With e4m3fnuz they are NaN; with e5m2 infinity
#         stays infinity. The script compiles the header that Tensor.to() of the same package converts by on a CPU; there to(), copy_()
#         and torch.tensor(..., dtype=) give the same numbers, while torch.full((2,), 500.) of this type raises an error.
# Hurts:  caches of keys and values in 8 bits without a scale, or with one for the whole tensor: keys with a few large channels are cut off
#         at 448, infinities from an overflow before become ordinary keys, and a check for NaN that works for the other formats passes.
# Mend:   look at the largest absolute value before the conversion, and at the share of 448 after it.
#
# Needs g++, unzip, and python3 with venv. The packages come from PyPI to a temporary folder (PyTorch's wheel alone, 540 MB).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 ml_dtypes==0.6.0
venv/bin/pip download --quiet --disable-pip-version-check --only-binary :all: --no-deps --python-version 3.11 \
  --platform manylinux_2_28_x86_64 --dest . torch==2.15.0
unzip -q torch-2.15.0-*.whl 'torch/include/torch/headeronly/*'
cat >convert.cpp <<'CPP'
#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Float8_e4m3fnuz.h>
#include <torch/headeronly/util/Float8_e5m2.h>

#include <cmath>
#include <cstdio>

template <class Float8>
void show(const char* name) {
  std::printf("torch %s:", name);
  for (const float x : {448.F, 500.F, 1e30F, -INFINITY, INFINITY}) std::printf(" %g", static_cast<double>(static_cast<float>(Float8(x))));
  std::printf("\n");
}
int main() {
  show<c10::Float8_e4m3fn>("e4m3fn");
  show<c10::Float8_e4m3fnuz>("e4m3fnuz");
  show<c10::Float8_e5m2>("e5m2");
}
CPP
g++ -std=c++20 -Itorch/include convert.cpp -o convert
seen=$(./convert; venv/bin/python -W ignore - <<'PYTHON'
import ml_dtypes
import numpy as np

values = np.array([448, 500, 1e30, -np.inf, np.inf], np.float32)
for name in ("e4m3fn", "e4m3fnuz", "e5m2"):
    print(f"ml_dtypes {name}:", *(f"{x:g}" for x in values.astype(getattr(ml_dtypes, "float8_" + name)).astype(np.float32)))
PYTHON
)
expected='torch e4m3fn: 448 448 448 -448 448
torch e4m3fnuz: nan nan nan nan nan
torch e5m2: 448 512 inf -inf inf
ml_dtypes e4m3fn: 448 nan nan nan nan
ml_dtypes e4m3fnuz: nan nan nan nan nan
ml_dtypes e5m2: 448 512 inf -inf inf'
printf '448, 500, 1e30, -inf, inf after conversion:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
