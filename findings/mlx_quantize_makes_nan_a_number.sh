#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# mlx 0.32.4 on a CPU: quantize() turns a NaN into an ordinary number of its group.
#
# Guess:  a group that has a NaN comes back from dequantize() with at least one NaN, in every mode.
# Seen:   no value is NaN afterwards. In affine mode the NaN is a value at the end of the group's range, in mxfp4 and nvfp4 it is 0, in mxfp8
#         larger than every other value of the row. An infinity, in affine mode, makes all 64 values of its group NaN.
# Hurts:  quantized key-value caches: a NaN of an overflow upstream becomes an outlier key that attracts or repels attention, and no check for NaN
#         after the cache finds it.
# Mend:   mx.isfinite(x).all() before quantize().
#
# Needs x86-64 Linux and python3 with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install "mlx[cpu]==0.32.4" >/dev/null
cat >quantized.py <<'PYTHON'
import math
import mlx.core as mx
row = mx.random.normal((1, 64), key=mx.random.key(1))
def not_finite(bad, **how):
    x = row * 1
    x[0, 5] = bad
    back = mx.dequantize(*mx.quantize(x, **how), dtype=mx.float32, **how)
    return 64 - int(mx.isfinite(back).sum().item())
for mode in ("affine", "mxfp4", "mxfp8", "nvfp4"):
    print(f"{mode}: one NaN in, {not_finite(math.nan, mode=mode)} values not finite out")
print(f"affine: one infinity in, {not_finite(math.inf, mode='affine')} values not finite out")
PYTHON
seen=$(v/bin/python -B quantized.py)
expected='affine: one NaN in, 0 values not finite out
mxfp4: one NaN in, 0 values not finite out
mxfp8: one NaN in, 0 values not finite out
nvfp4: one NaN in, 0 values not finite out
affine: one infinity in, 64 values not finite out'
printf 'mlx 0.32.4, CPU, a row of 64:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
