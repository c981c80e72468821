#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# numpy's mean of bfloat16 arrays (ml_dtypes) adds in bfloat16: the mean of 100000 ones is 0.0026. That of float16 ones is 1.
#
# Guess:  mean() of a 16-bit type adds in 32 bits, as numpy does for float16 and PyTorch for both; the result is 1, or nearly.
# Seen:   numpy 2.4.6 widens float16 alone, by name. A sum of bfloat16 ones stays at 256, where one more is lost in rounding, and mean()
#         divides that by the count. Over an axis too. No warning.
# Hurts:  centroids, means and scales computed from keys or activations kept in bfloat16, by numpy: they shrink with the number of rows.
# Mend:   mean(..., dtype=np.float32), also for sum().
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 ml_dtypes==0.6.0
seen=$("$folder/venv/bin/python" -W ignore - <<'PYTHON'
import ml_dtypes
import numpy as np

for kind in (np.float16, ml_dtypes.bfloat16):
    ones, columns = np.ones(100000, kind), np.ones((4096, 2), kind)
    print(f"{np.dtype(kind).name}: mean of 100000 ones {float(ones.mean()):.4f}, of 4096 in each of two columns "
          f"{[float(x) for x in columns.mean(axis=0)]}, with dtype=np.float32 {float(ones.mean(dtype=np.float32)):.4f}")
PYTHON
)
expected='float16: mean of 100000 ones 1.0000, of 4096 in each of two columns [1.0, 1.0], with dtype=np.float32 1.0000
bfloat16: mean of 100000 ones 0.0026, of 4096 in each of two columns [0.0625, 0.0625], with dtype=np.float32 1.0000'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
