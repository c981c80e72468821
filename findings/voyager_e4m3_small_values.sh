#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# voyager: StorageDataType.E4M3 stores every value from 0.0069 to 0.0156 as one of these two numbers, often the farther one.
#
# Guess:  E4M3 is the 8-bit float of that name: below 2^-6 its values are the multiples of 2^-9, and a number goes to the nearest, as in
#         ml_dtypes.
# Seen:   2.2.3 stores 0.0075 as 0.0156, twice its size, and 0.011 as 0.0068. Four numbers of the format, 4/512 to 7/512, cannot be stored
#         at all: they come back as 3.5/512 or 8/512. From 8/512 on values are rounded as one expects. Nothing warns.
# Hurts:  unit vectors, which embeddings and normalised keys are: of 1024 dimensions two fifths of all coordinates are below 8/512. The
#         error of such vectors is twice that of the format.
# Mend:   multiply vectors by 16 before they are added: inner products keep their order. With Space.Cosine it does not help, since voyager
#         divides by the length itself.
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 ml_dtypes==0.6.0 voyager==2.2.3
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import ml_dtypes
import numpy as np
from voyager import Index, Space, StorageDataType

def stored(rows):
    index = Index(Space.InnerProduct, num_dimensions=rows.shape[1], storage_data_type=StorageDataType.E4M3)
    return index.get_vectors(index.add_items(rows))

def rounded(rows):
    return rows.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)

print("stored      by ml_dtypes   by voyager")
for value in (0.005, 0.0075, 0.008, 0.0105, 0.011, 0.014, 0.02, 0.3):
    one = np.array([[value]], np.float32)
    print(f"{value:<11g} {rounded(one).item():<14.5f} {stored(one).item():.5f}")
grid = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
print("numbers of the format that do not come back, times 512:", [int(x) for x in 512 * grid[stored(grid[:, None])[:, 0] != grid]])
rows = np.random.default_rng(1).standard_normal((500, 1024), np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
error = lambda again: f"{np.linalg.norm(again - rows) / np.linalg.norm(rows):.3f}"
print(f"unit vectors of 1024 dimensions, relative error: format {error(rounded(rows))}, voyager {error(stored(rows))}, "
      f"voyager with vectors times 16 {error(stored(16 * rows) / 16)}")
PYTHON
)
expected='stored      by ml_dtypes   by voyager
0.005       0.00586        0.00488
0.0075      0.00781        0.01562
0.008       0.00781        0.00684
0.0105      0.00977        0.01562
0.011       0.01172        0.00684
0.014       0.01367        0.01562
0.02        0.01953        0.01953
0.3         0.31250        0.31250
numbers of the format that do not come back, times 512: [4, 5, 6, 7]
unit vectors of 1024 dimensions, relative error: format 0.029, voyager 0.063, voyager with vectors times 16 0.027'
printf 'voyager 2.2.3, E4M3:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
