#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fuzzywuzzy 0.18.0: fuzz.ratio gives other scores where python-Levenshtein happens to be installed.
#
# Guess:  the optional package is a fast path; the score is the same with and without it.
# Seen:   without it the ratio is difflib's (matching blocks, found greedily, longest first), with it that of an optimal alignment. Of 400
#         random pairs of lines of code tokens 27 differ; the pair below by 21 of 100 points. A warning speaks of speed alone.
# Hurts:  scores of code completion suites that use fuzz.ratio (LongBench's lcc and repobench-p do) are not comparable between two
#         machines, or with a table somebody else printed, unless both say whether the package was there.
#
# Needs Python 3 with pip, and the network. Packages go to a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
pip install --quiet --no-deps --target "$folder/without" fuzzywuzzy==0.18.0
pip install --quiet --no-deps --target "$folder/with" fuzzywuzzy==0.18.0 python-Levenshtein==0.27.1 Levenshtein==0.27.1 rapidfuzz==3.14.6
cat >"$folder/compare.py" <<'PY'
import random
import warnings

warnings.simplefilter("ignore")
from fuzzywuzzy import fuzz

print("one pair:", fuzz.ratio("len i value for", "not i len for"))
draw = random.Random(1)
words = ["return", "self.", "x", "value", "=", "(", ")", "if", "not", "None", ":", "len", "[i]", "for", "i", "in", "range", "+ 1", "name", "data"]
for _ in range(400):
    line = [draw.choice(words) for _ in range(draw.randint(4, 14))]
    other = list(line)
    for _ in range(draw.randint(1, 5)):
        other[draw.randrange(len(other))] = draw.choice(words)
    print(fuzz.ratio(" ".join(line), " ".join(other)))
PY
for kind in without with; do PYTHONPATH=$folder/$kind python3 -s "$folder/compare.py" >"$folder/$kind.txt"; done
seen="without python-Levenshtein, $(head -1 "$folder/without.txt")
with it, $(head -1 "$folder/with.txt")
of 400 pairs $(paste "$folder/without.txt" "$folder/with.txt" | tail -n +2 | awk '$1 != $2' | wc -l) differ"
expected='without python-Levenshtein, one pair: 50
with it, one pair: 71
of 400 pairs 27 differ'
printf 'fuzzywuzzy 0.18.0, fuzz.ratio:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
