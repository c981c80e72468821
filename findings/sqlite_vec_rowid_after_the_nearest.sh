#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# sqlite-vec: "rowid > 15" and "rowid = 18" are checked after the k nearest were taken, and find nothing; "rowid IN (17, 18)" before.
#
# Guess:  a condition on a column of the vec0 table is met first, and the k nearest of the rest come back: k of them, if there are k. Or no
#         condition is, and all are checked afterwards.
# Seen:   0.1.9 meets comparisons of metadata and distance first, and "rowid IN" if the list has two numbers: a list of one SQLite makes a
#         "=". Other conditions on rowid, "NOT IN" and sums, and joins with another table are checked on the k rows found: fewer rows
#         than there are, or none, and no error.
# Hurts:  retrieval that leaves out old or new tokens by their number, which is the rowid: "the 3 nearest behind token 15" is empty while
#         the nearest of all are in front.
# Mend:   a metadata column with the number once more; or rowid IN (SELECT ...).
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder; apsw brings an SQLite that loads extensions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: apsw==3.54.1.0 sqlite-vec==0.1.9
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import struct

import apsw
import sqlite_vec

db = apsw.Connection(":memory:")
db.enable_load_extension(True)
db.load_extension(sqlite_vec.loadable_path())
place = lambda x: struct.pack("4f", x, 0, 0, 0)
db.execute("CREATE VIRTUAL TABLE rows USING vec0(v float[4], number integer)")
db.execute("CREATE TABLE tokens(id integer primary key, number integer)")
for i in range(1, 21):
    db.execute("INSERT INTO rows(rowid, v, number) VALUES (?, ?, ?)", (i, place(i), i))
    db.execute("INSERT INTO tokens VALUES (?, ?)", (i, i))
for condition in ("rowid > 15", "number > 15", "rowid = 18", "number = 18", "rowid IN (18)", "rowid IN (17, 18)", "rowid BETWEEN 16 AND 18",
                  "number BETWEEN 16 AND 18", "rowid IN (SELECT id FROM tokens WHERE number > 15)", "distance > 15",
                  "number NOT IN (1, 2)", "number + 0 > 15"):
    found = db.execute(f"SELECT rowid FROM rows WHERE v MATCH ? AND k = 3 AND {condition}", (place(0),))
    print(f"k = 3 AND {condition}:", [row[0] for row in found])
found = db.execute("SELECT rows.rowid FROM rows JOIN tokens ON tokens.id = rows.rowid WHERE v MATCH ? AND k = 3 AND tokens.number > 15",
                   (place(0),))
print("k = 3 and a join, tokens.number > 15:", [row[0] for row in found])
PYTHON
)
expected='k = 3 AND rowid > 15: []
k = 3 AND number > 15: [16, 17, 18]
k = 3 AND rowid = 18: []
k = 3 AND number = 18: [18]
k = 3 AND rowid IN (18): []
k = 3 AND rowid IN (17, 18): [17, 18]
k = 3 AND rowid BETWEEN 16 AND 18: []
k = 3 AND number BETWEEN 16 AND 18: [16, 17, 18]
k = 3 AND rowid IN (SELECT id FROM tokens WHERE number > 15): [16, 17, 18]
k = 3 AND distance > 15: [16, 17, 18]
k = 3 AND number NOT IN (1, 2): [3]
k = 3 AND number + 0 > 15: []
k = 3 and a join, tokens.number > 15: []'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
