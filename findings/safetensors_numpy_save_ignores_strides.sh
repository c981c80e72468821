#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# safetensors for numpy: save() and save_file() of a transposed array write its numbers in another order, without a word.
#
# Guess:  an array that is not in C order is copied, as numpy's own save does, or refused, as safetensors for PyTorch does ("You are trying
#         to save a non contiguous tensor").
# Seen:   0.8.0 writes the array's memory from its first number on, and the array's shape beside it. Read again, w.T has the right shape and
#         the numbers of w in the order of memory. The docstring asks for contiguous arrays; nothing checks it.
# Hurts:  converters of models, which transpose weights and split fused matrices: the file loads everywhere, and the model talks nonsense.
#         A square matrix is simply not transposed. Statistics over all numbers do not see it.
# Mend:   np.ascontiguousarray() on everything before save().
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 safetensors==0.8.0
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from safetensors.numpy import load, save

w = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, array in (("w", w), ("w.T", w.T), ("w[:, ::2]", w[:, ::2]), ("np.asfortranarray(w)", np.asfortranarray(w)),
                    ("np.ascontiguousarray(w.T)", np.ascontiguousarray(w.T))):
    again = load(save({"w": array}))["w"]
    print(f"{name}: is {array.tolist()}, comes back {'equal' if np.array_equal(again, array) else again.tolist()}")
PYTHON
)
expected='w: is [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], comes back equal
w.T: is [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], comes back [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
w[:, ::2]: is [[0.0, 2.0], [3.0, 5.0]], comes back [[0.0, 1.0], [2.0, 3.0]]
np.asfortranarray(w): is [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], comes back [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
np.ascontiguousarray(w.T): is [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], comes back equal'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
