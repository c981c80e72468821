#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# numpy.sort of bfloat16 and float8 arrays (ml_dtypes): one NaN, and the other numbers stay out of order.
#
# Guess:  NaN goes to the end and the rest is sorted, as numpy promises for floats and does for float16; or there is an error.
# Seen:   numpy 2.4.6 asks ml_dtypes to compare two elements, and NaN counts as equal to everything. sort and argsort, stable or not, then
#         leave runs that are each sorted. unique returns the same number twice.
# Hurts:  exact top-k by argsort over scores kept in 16 or 8 bits: a masked or broken row costs good tokens of its neighbours, which are
#         finite and look like a poor selector.
# Mend:   astype(np.float32) before anything that sorts.
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

small = [3, 1, np.nan, 2, 1, 0]
scores = np.arange(1000, dtype=np.float32) * 7 % 199  # ten NaN among 1000
scores[50::100] = np.nan
for kind in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    row = np.array(small, kind)
    line = scores.astype(kind)
    exact = np.sort(-line.astype(np.float32)[~np.isnan(scores)])[:100].sum()
    found = np.argsort(-line, kind="stable")[:100]
    got = np.nansum(-line[found].astype(np.float32))
    print(f"{np.dtype(kind).name}: sort {np.sort(row).astype(float).tolist()}, unique {np.unique(row).astype(float).tolist()}; "
          f"sum of the 100 best of 1000 scores {-exact:.0f}, of the first 100 by argsort {-got:.0f}")
PYTHON
)
expected='float16: sort [0.0, 1.0, 1.0, 2.0, 3.0, nan], unique [0.0, 1.0, 2.0, 3.0, nan]; sum of the 100 best of 1000 scores 18849, of the first 100 by argsort 18849
bfloat16: sort [1.0, 3.0, nan, 0.0, 1.0, 2.0], unique [1.0, 3.0, nan, 0.0, 1.0, 2.0]; sum of the 100 best of 1000 scores 18849, of the first 100 by argsort 14573
float8_e4m3fn: sort [1.0, 3.0, nan, 0.0, 1.0, 2.0], unique [1.0, 3.0, nan, 0.0, 1.0, 2.0]; sum of the 100 best of 1000 scores 18800, of the first 100 by argsort 14232'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
