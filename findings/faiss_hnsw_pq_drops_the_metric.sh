#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# faiss: index_factory(d, "HNSW16,PQ4x4", METRIC_INNER_PRODUCT) gives an index that searches by L2. Flat and SQ behind HNSW keep the metric.
#
# Guess:  the metric given to the factory is that of the index, as with "PQ4x4", "HNSW16,Flat", "HNSW16,SQ8"; or an error, as "LSH" gives.
# Seen:   1.15.1 makes an IndexHNSWPQ whose metric_type is METRIC_L2. What it finds are near neighbours, and its scores are distances, in
#         ascending order, where inner products descend. No error, no warning.
# Hurts:  maximum inner product search over quantized keys: of the ten best keys next to none is found. A recall near zero looks like a
#         product quantizer with too few bits.
# Mend:   look at index.metric_type after the factory; for inner products put "HNSW16,SQ8" there, or an IVF index, or "PQ4x4" alone.
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 faiss-cpu==1.15.1 packaging==26.4
seen=$("$folder/venv/bin/python" 2>/dev/null - <<'PYTHON'
import faiss
import numpy as np

faiss.omp_set_num_threads(1)
draw = np.random.default_rng(1)
rows = draw.standard_normal((1000, 16), np.float32) * np.exp(0.5 * draw.standard_normal((1000, 1), np.float32))
queries = draw.standard_normal((20, 16), np.float32)
best = np.argsort(-queries @ rows.T, axis=1)[:, :10]
nearest = np.argsort(((queries[:, None] - rows) ** 2).sum(axis=2), axis=1)[:, :10]

def share(found, wanted):
    return np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), wanted.tolist())]) / 10

for name in ("PQ4x4", "HNSW16,Flat", "HNSW16,SQ8", "HNSW16,PQ4x4"):
    index = faiss.index_factory(16, name, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    scores, found = index.search(queries, 10)
    metric = {faiss.METRIC_INNER_PRODUCT: "inner product", faiss.METRIC_L2: "L2"}[index.metric_type]
    print(f"{name}: metric_type {metric}; scores {'descend' if (np.diff(scores) <= 0).all() else 'ascend'}; "
          f"more of the best than of the nearest: {share(found, best) > share(found, nearest)}; "
          f"a tenth of the best or fewer: {share(found, best) <= 0.1}")
PYTHON
)
expected='PQ4x4: metric_type inner product; scores descend; more of the best than of the nearest: True; a tenth of the best or fewer: False
HNSW16,Flat: metric_type inner product; scores descend; more of the best than of the nearest: True; a tenth of the best or fewer: False
HNSW16,SQ8: metric_type inner product; scores descend; more of the best than of the nearest: True; a tenth of the best or fewer: False
HNSW16,PQ4x4: metric_type L2; scores ascend; more of the best than of the nearest: False; a tenth of the best or fewer: True'
printf 'faiss 1.15.1, index_factory with METRIC_INNER_PRODUCT:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
