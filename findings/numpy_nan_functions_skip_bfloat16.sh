#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# numpy.nan_to_num of a bfloat16 or float8 array (ml_dtypes) changes nothing. nanmean gives NaN, nanargmax the place of a NaN.
#
# Guess:  isnan, nanmax and nanmin are right for bfloat16, so the other functions that treat NaN are too; or they raise.
# Seen:   numpy 2.4.6 asks first whether the type is one of its own inexact ones. Types of ml_dtypes are not, so they count as integers,
#         which have no NaN: nan_to_num returns its input, nansum and nanmean are NaN. nanargmax says 1 where nanmax is right. No error.
#         testing.assert_array_equal fails on two equal arrays, where array_equal(equal_nan=True) does not.
# Hurts:  whoever cleans keys, values or scores in bfloat16 before an index is trained: the line is there and does nothing.
# Mend:   astype(np.float32) first, or x[np.isnan(x)] = 0.
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

def outcome(check, *arrays):
    try:
        check(*arrays)
        return "passes"
    except AssertionError:
        return "fails"

for kind in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2):
    row = np.array([3, np.nan, 1, np.inf], kind)
    finite = row[:3]
    print(f"{np.dtype(kind).name}: isnan {np.isnan(row).tolist()}")
    print(f"  nan_to_num(nan=0, posinf=9) {np.nan_to_num(row, nan=0, posinf=9).astype(float).tolist()}")
    print(f"  of 3, nan, 1: nanmax {np.nanmax(finite):g}, nanargmax {np.nanargmax(finite)}, nanmin {np.nanmin(finite):g}, "
          f"nanargmin {np.nanargmin(finite)}, nansum {np.nansum(finite):g}, nanmean {np.nanmean(finite):g}")
    print(f"  array_equal(equal_nan=True) {np.array_equal(row, row, equal_nan=True)}, assert_array_equal "
          f"{outcome(np.testing.assert_array_equal, row, row)}")
PYTHON
)
expected='float16: isnan [False, True, False, False]
  nan_to_num(nan=0, posinf=9) [3.0, 0.0, 1.0, 9.0]
  of 3, nan, 1: nanmax 3, nanargmax 0, nanmin 1, nanargmin 2, nansum 4, nanmean 2
  array_equal(equal_nan=True) True, assert_array_equal passes
bfloat16: isnan [False, True, False, False]
  nan_to_num(nan=0, posinf=9) [3.0, nan, 1.0, inf]
  of 3, nan, 1: nanmax 3, nanargmax 1, nanmin 1, nanargmin 1, nansum nan, nanmean nan
  array_equal(equal_nan=True) True, assert_array_equal fails
float8_e5m2: isnan [False, True, False, False]
  nan_to_num(nan=0, posinf=9) [3.0, nan, 1.0, inf]
  of 3, nan, 1: nanmax 3, nanargmax 1, nanmin 1, nanargmin 1, nansum nan, nanmean nan
  array_equal(equal_nan=True) True, assert_array_equal fails'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
