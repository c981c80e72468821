#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usearch: an index of 8-bit integers with metric="ip" or "l2sq" ranks by cosine. Vectors lose their lengths when they are added.
#
# Guess:  dtype="i8" scales all vectors by one number, or asks for one, so that inner products and distances keep their order but for
#         rounding, as with f16, bf16 and the 8-bit floats of the same library.
# Seen:   2.26.6 scales each vector to length one before rounding, also the query. The best match for (2, 0) by inner product is (10, 10)
#         with every float type; with i8 and u8 it is (1, 0), under "ip" and under "l2sq". Nothing warns.
# Hurts:  maximum inner product search over 8-bit keys, which is what attention asks for: keys with large norms, the ones that get the
#         probability, are no longer preferred.
# Mend:   scale to integers yourself with one factor for all vectors, and add them as int8 arrays: those are stored as they are.
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 usearch==2.26.6
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from usearch.index import Index

rows = np.array([[10, 10, 0, 0], [1, 0, 0, 0], [0.5, 0, 0.1, 0], [-3, 0, 0, 0]], np.float32)
query = np.array([2, 0, 0, 0], np.float32)
print("by hand: ip", np.argsort(-rows @ query).tolist(), "l2sq", np.argsort(((rows - query) ** 2).sum(1)).tolist())
for dtype in ("f32", "bf16", "e5m2", "i8", "u8"):
    order = {}
    for metric in ("ip", "l2sq"):
        index = Index(ndim=4, metric=metric, dtype=dtype)
        index.add(np.arange(4), rows)
        order[metric] = index.search(query, 4, exact=True).keys.tolist()
    print(f"{dtype}: ip {order['ip']} l2sq {order['l2sq']}")
index = Index(ndim=4, metric="ip", dtype="i8")
index.add(np.arange(4), np.rint(10 * rows).astype(np.int8))
print("i8, integers by hand: ip", index.search(np.rint(10 * query).astype(np.int8), 4, exact=True).keys.tolist())
PYTHON
)
expected='by hand: ip [0, 1, 2, 3] l2sq [1, 2, 3, 0]
f32: ip [0, 1, 2, 3] l2sq [1, 2, 3, 0]
bf16: ip [0, 1, 2, 3] l2sq [1, 2, 3, 0]
e5m2: ip [0, 1, 2, 3] l2sq [1, 2, 3, 0]
i8: ip [1, 2, 0, 3] l2sq [1, 2, 0, 3]
u8: ip [1, 2, 0, 3] l2sq [1, 2, 0, 3]
i8, integers by hand: ip [0, 1, 2, 3]'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
