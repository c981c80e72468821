#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# DuckDB: of a Parquet file with ten NaN, count(*) WHERE isnan(x) is 0, and WHERE NOT isnan(x) gives all rows.
#
# Guess:  the minimum and maximum that a Parquet file keeps leave NaN out, as its format says; so an engine that calls NaN the largest
#         number does not skip a row group because of its maximum. A query has one answer, from the file and from a table.
# Seen:   DuckDB 2.0.1 takes the file's statistics as bounds of all values: "x > 0.5" and isnan(x) lose the NaN that the same rows in a
#         table have, and a query for count_if(isnan(x)) and max(x) answers 0 and NaN. pyarrow's own filter on reading loses them where
#         the condition is negated; polars is right. For float16, float and double alike.
# Hurts:  checks of exported keys, scales or scores: the query that looks for NaN says that there are none.
# Mend:   write the file with write_statistics=False; or CREATE TABLE from it, and ask the table.
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 duckdb==2.0.1 pyarrow==26.0.1 polars==2.1.0
cd "$folder"
seen=$(venv/bin/python - <<'PYTHON'
import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.dataset as dataset
import pyarrow.parquet as parquet

x = np.arange(1000, dtype=np.float32) / 1000
x[::100] = np.nan
for kind in (np.float16, np.float32, np.float64):
    table = pa.table({"x": pa.array(x.astype(kind))})
    parquet.write_table(table, "rows.parquet", row_group_size=100)
    parquet.write_table(table, "bare.parquet", row_group_size=100, write_statistics=False)
    db = duckdb.connect()
    db.execute("CREATE TABLE rows AS SELECT * FROM 'rows.parquet'")
    ask = lambda what: db.execute(what).fetchone()[0]
    print(f"{np.dtype(kind).name}, DuckDB, from file, file without statistics, table; polars from file:")
    for condition, same in (("isnan(x)", polars.col.x.is_nan()), ("NOT isnan(x)", polars.col.x.is_not_nan()), ("x > 0.5", polars.col.x > 0.5)):
        counts = [ask(f"SELECT count(*) FROM {source} WHERE {condition}") for source in ("'rows.parquet'", "'bare.parquet'", "rows")]
        print(f"  {condition}:", *counts, "polars", polars.scan_parquet("rows.parquet").filter(same).collect().height)
    both = db.execute("SELECT count_if(isnan(x)), max(x) FROM 'rows.parquet'").fetchone()
    print(f"  from file, one query: count_if(isnan(x)) {int(both[0])}, max(x) {both[1]}")
    if kind != np.float16:
        negated = ~(dataset.field("x") < 0.95)
        print("  pyarrow, ~(x < 0.95), filtered on reading and after:", parquet.read_table("rows.parquet", filters=negated).num_rows,
              parquet.read_table("rows.parquet").filter(negated).num_rows)
PYTHON
)
expected='float16, DuckDB, from file, file without statistics, table; polars from file:
  isnan(x): 0 10 10 polars 10
  NOT isnan(x): 1000 990 990 polars 990
  x > 0.5: 500 505 505 polars 505
  from file, one query: count_if(isnan(x)) 0, max(x) nan
float32, DuckDB, from file, file without statistics, table; polars from file:
  isnan(x): 0 10 10 polars 10
  NOT isnan(x): 1000 990 990 polars 990
  x > 0.5: 500 505 505 polars 505
  from file, one query: count_if(isnan(x)) 0, max(x) nan
  pyarrow, ~(x < 0.95), filtered on reading and after: 50 59
float64, DuckDB, from file, file without statistics, table; polars from file:
  isnan(x): 0 10 10 polars 10
  NOT isnan(x): 1000 990 990 polars 990
  x > 0.5: 500 505 505 polars 505
  from file, one query: count_if(isnan(x)) 0, max(x) nan
  pyarrow, ~(x < 0.95), filtered on reading and after: 50 59'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
