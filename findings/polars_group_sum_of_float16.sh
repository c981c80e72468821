#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# polars: the sum of Float16 values in a group stops at 2048, or somewhere behind, by the order of the rows. The mean of the group is right.
#
# Guess:  sum() is the same inside and outside of group_by; and as the mean of a group is right, its sum is too.
# Seen:   2.1.0 adds in 32 bits for a whole column, for every mean and for sum().over(), and in 16 bits for the sum of a group in group_by.
#         Of 40000 ones one thread counts 2048; 5000 or so if a second group follows; nearly all if the two are mixed, since the runs in
#         which it adds are then short. With two threads other numbers came out, from call to call. No warning.
# Hurts:  tables of scores or attention mass kept in 16 bits, summed by head or by prompt: they are sorted, and the totals of long groups are
#         a fraction of what they should be. A test on shuffled rows passes.
# Mend:   pl.col(...).cast(pl.Float32).sum().
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 polars==2.1.0
seen=$(POLARS_MAX_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import polars as pl

x = pl.col("x")

def sums(table, one=x.sum()):
    return table.group_by("head").agg(one.alias("found")).sort("head")["found"].to_list()

first = pl.DataFrame({"head": np.zeros(40000, np.int64), "x": np.ones(40000, np.float16)})
both = pl.concat([first, pl.DataFrame({"head": np.ones(1000, np.int64), "x": np.ones(1000, np.float16)})])
print("40000 ones, Float16, one thread: Series.sum()", first["x"].sum(), "select(sum)", first.select(x.sum()).item(), "group_by, sum", *sums(first))
long, short = sums(both)
print(f"and a group of 1000: sums {short}, below 10000 of 40000: {long < 10000}; with Float32", sums(both, x.cast(pl.Float32).sum()))
print("means", sums(both, x.mean()), "sum().over()", both.select(x.sum().over("head"))["x"].unique().sort().to_list())
print("mixed: over 39000 of 40000:", sums(both.sample(fraction=1, shuffle=True, seed=1))[0] > 39000)
PYTHON
)
expected='40000 ones, Float16, one thread: Series.sum() 40000.0 select(sum) 40000.0 group_by, sum 2048.0
and a group of 1000: sums 1000.0, below 10000 of 40000: True; with Float32 [40000.0, 1000.0]
means [1.0, 1.0] sum().over() [1000.0, 40000.0]
mixed: over 39000 of 40000: True'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
