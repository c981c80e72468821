#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# polars: the sum of Float16 values in a group stops at 2048. The sum of the same column without groups, and the mean in the group, are right.
#
# Guess:  sum() is the same inside and outside of group_by; and as the mean of a group is right, its sum is too.
# Seen:   2.1.0 adds in 32 bits for a whole column and for every mean, and in 16 bits for the sum of a group in group_by: of 40000 ones one
#         thread counts 2048. With two threads, each adding a part, 5048 were seen. sum().over() is right. No warning.
# Hurts:  tables of scores or attention mass kept in 16 bits, summed by head or by prompt: every long group has nearly the same total.
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
table = pl.DataFrame({"head": np.repeat([0, 1], [40000, 1000]), "x": np.ones(41000, np.float16)})
first = table.filter(pl.col("head") == 0)
print("40000 ones, Float16, one thread: Series.sum()", first["x"].sum(), "select(sum)", first.select(x.sum()).item())
for name, one in (("sum", x.sum()), ("mean times len", x.mean().cast(pl.Float32) * pl.len()), ("cast to Float32, sum", x.cast(pl.Float32).sum())):
    print(f"group_by, {name}:", table.group_by("head").agg(one.alias("found")).sort("head")["found"].to_list())
print("sum().over():", table.select(x.sum().over("head"))["x"].unique().sort().to_list())
PYTHON
)
expected='40000 ones, Float16, one thread: Series.sum() 40000.0 select(sum) 40000.0
group_by, sum: [5064.0, 1000.0]
group_by, mean times len: [40000.0, 1000.0]
group_by, cast to Float32, sum: [40000.0, 1000.0]
sum().over(): [1000.0, 40000.0]'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
