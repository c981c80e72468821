#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# OpenVINO 2026.4.1 on a CPU: the mean of 10000 int8 numbers, all of them 100, is 0.
#
# Guess:  ReduceMean of int8 adds in int32 or float and gives 100; ReduceSum, whose result is an int8, wraps or saturates.
# Seen:   the sum is cut to 127 before it is divided, so the mean of n hundreds is 127 / n: 31 of four, 0 of 10000. uint8 is cut to 255 in the
#         same way. int32 and float16 are right. No warning.
# Hurts:  means and sums of blocks of 8-bit keys or values, by which pages are ranked: every block's mean is near 0, whatever is in it.
# Mend:   Convert to i32 or f32 before the reduction.
#
# Needs x86-64 Linux and python3 (3.10 or newer) with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install openvino==2026.4.1 numpy==2.2.6 >/dev/null
cat >means.py <<'PYTHON'
import numpy as np
import openvino as ov
import openvino.opset15 as op
def reduced(which, x):
    p = op.parameter(list(x.shape), x.dtype)
    return ov.Core().compile_model(ov.Model([which(p, np.array([0]), True)], [p], "m"), "CPU")([x])[0][0]
for name, t in (("int8", np.int8), ("uint8", np.uint8), ("int32", np.int32), ("float16", np.float16)):
    print(f"{name}: " + ", ".join(f"mean of {n} hundreds {reduced(op.reduce_mean, np.full(n, 100, t)):g}" for n in (1, 4, 10000)))
PYTHON
seen=$(v/bin/python -B means.py)
expected='int8: mean of 1 hundreds 100, mean of 4 hundreds 31, mean of 10000 hundreds 0
uint8: mean of 1 hundreds 100, mean of 4 hundreds 63, mean of 10000 hundreds 0
int32: mean of 1 hundreds 100, mean of 4 hundreds 100, mean of 10000 hundreds 100
float16: mean of 1 hundreds 100, mean of 4 hundreds 100, mean of 10000 hundreds 100'
printf 'OpenVINO 2026.4.1, CPU:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
