#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# voyager 2.2.3, Space.InnerProduct: of the ten best keys a third is found, unless the keys were added in the order of their norms.
#
# Guess:  the order of adding hardly matters, as in other graphs: 3000 normal keys with norms that vary, M 16, 200 candidates for building and for
#         searching, give a recall near 1.
# Seen:   33 % of the ten best keys in random order, near 100 % when sorted by norm, up or down; 64 % with 1000 candidates of 3000 keys. usearch
#         with the same numbers finds all, in every order. voyager gives each vector another dimension that makes all norms equal, and links by
#         distance: keys of large norm, the answers, are then far from all others. usearch finds as few when it is given that dimension. Scores
#         are right; no error.
# Hurts:  maximum inner product search over keys of attention, which come in the order of tokens, and every comparison with voyager as a rival.
# Mend:   usearch with metric "ip"; or sort by norm before adding, with ids of one's own.
#
# Needs x86-64 Linux and python3 (3.10 or newer) with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install --only-binary :all: numpy==2.2.6 voyager==2.2.3 usearch==2.26.6 >/dev/null
cat >order.py <<'PYTHON'
import sys
import numpy as np
import usearch.index
import voyager
random, n, d, metric = np.random.default_rng(0), 3000, 64, "ip"
keys = random.standard_normal((n, d)).astype(np.float32) * np.exp(0.7 * random.standard_normal((n, 1))).astype(np.float32)
queries = random.standard_normal((100, d)).astype(np.float32)
def found(search, ef):
    """The share of the ten best keys that are found, in percent, with the keys added in three orders."""
    norms, shares = np.linalg.norm(keys, axis=1), []
    for order in (np.arange(n), np.argsort(norms), np.argsort(-norms)):
        right = np.argsort(-(queries @ keys[order].T), axis=1)[:, :10]
        shares.append(100 * np.mean([len(set(a) & set(b)) / 10 for a, b in zip(right.tolist(), search(keys[order], ef))]))
    print(" ".join(f"{share:.0f}" for share in shares), file=sys.stderr)
    random_order, *by_norm = shares
    return f"{'less' if random_order < 80 else 'more'} than 80 % in random order, {'less' if min(by_norm) < 95 else 'more'} than 95 % by norm"
def in_voyager(rows, ef):
    index = voyager.Index(voyager.Space.InnerProduct, num_dimensions=d, M=16, ef_construction=200)
    index.add_items(rows, ids=np.arange(n), num_threads=1)
    return index.query(queries, 10, num_threads=1, query_ef=ef)[0].tolist()
def in_usearch(rows, ef):
    index = usearch.index.Index(ndim=d, metric=metric, dtype="f32", connectivity=16, expansion_add=200, expansion_search=ef)
    index.add(np.arange(n), rows, threads=1)
    return index.search(queries, 10, threads=1).keys.tolist()
for ef in (50, 200, 1000):
    print(f"voyager, ef {ef}: {found(in_voyager, ef)}")
print(f"usearch, ef 200: {found(in_usearch, 200)}")
missing = np.sqrt(np.square(keys).sum(1).max() - np.square(keys).sum(1))
keys, queries = np.c_[keys, missing], np.c_[queries, np.zeros(100, np.float32)]
metric, d = "l2sq", d + 1
print(f"usearch with another dimension, by distance, ef 200: {found(in_usearch, 200)}")
PYTHON
seen=$(v/bin/python -B order.py)
expected='voyager, ef 50: less than 80 % in random order, more than 95 % by norm
voyager, ef 200: less than 80 % in random order, more than 95 % by norm
voyager, ef 1000: less than 80 % in random order, more than 95 % by norm
usearch, ef 200: more than 80 % in random order, more than 95 % by norm
usearch with another dimension, by distance, ef 200: less than 80 % in random order, less than 95 % by norm'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
