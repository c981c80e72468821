#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# faiss: PCA in front of an index for inner products finds other neighbours, the more so the further the keys' mean is from zero.
#
# Guess:  "PCA64,Flat" for vectors of 64 dimensions is a rotation, which keeps inner products: it finds what "Flat" finds, as "OPQ16,Flat" and
#         "RR64,Flat" do. With fewer dimensions it loses what the small components hold.
# Seen:   1.15.1 subtracts the keys' mean from keys and from queries. Distances do not change. Inner products do: a key's score is less by its
#         product with the mean, so a key loses by what it has in common with the others. Normal keys whose means are normal too: a tenth of
#         the ten best are found, four tenths with means half as large, seven with a quarter. No warning, although the factory is told the metric; a
#         report of such recalls is open (faiss issue 2636).
# Hurts:  maximum inner product search over keys of attention, whose mean is far from zero in some channels: an index with PCA looks like one with
#         too few dimensions.
# Mend:   set the transform's bias to zero after training, as below; or subtract the keys' mean from the keys alone, which moves all scores of a
#         query by the same number; or use OPQ.
#
# Needs python3 (3.10 or newer) with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install --only-binary :all: numpy==2.4.6 faiss-cpu==1.15.1 >/dev/null
cat >neighbours.py <<'PYTHON'
import faiss
import numpy as np
random, d = np.random.default_rng(0), 64
faiss.omp_set_num_threads(1)
def search(how, keys, metric, bias=True):
    index = faiss.index_factory(d, how, metric)
    index.train(keys)
    if not bias:
        faiss.copy_array_to_vector(np.zeros(d, np.float32), faiss.downcast_VectorTransform(index.chain.at(0)).b)
    index.add(keys)
    return index.search(queries, 10)[1]
def found(how, keys, metric=faiss.METRIC_INNER_PRODUCT, **more):
    """The share of the ten best keys that are found."""
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(search("Flat", keys, metric), search(how, keys, metric, **more))])
normal, mean, queries = (random.standard_normal(shape).astype(np.float32) for shape in ((20000, d), d, (100, d)))
print("faiss", faiss.__version__)
for times in (0, 0.25, 0.5, 1):
    keys = normal + times * mean
    print(f"mean times {times}: PCA64 {found('PCA64,Flat', keys):.1f}, by L2 {found('PCA64,Flat', keys, faiss.METRIC_L2):.1f}, "
          f"RR64 {found('RR64,Flat', keys):.1f}, PCA64 without its bias {found('PCA64,Flat', keys, bias=False):.1f}")
PYTHON
seen=$(v/bin/python -B neighbours.py 2>/dev/null)
expected='faiss 1.15.1
mean times 0: PCA64 1.0, by L2 1.0, RR64 1.0, PCA64 without its bias 1.0
mean times 0.25: PCA64 0.7, by L2 1.0, RR64 1.0, PCA64 without its bias 1.0
mean times 0.5: PCA64 0.4, by L2 1.0, RR64 1.0, PCA64 without its bias 1.0
mean times 1: PCA64 0.1, by L2 1.0, RR64 1.0, PCA64 without its bias 1.0'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
