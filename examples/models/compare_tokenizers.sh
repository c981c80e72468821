#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compares minillama's tokens with those of the library `tokenizers`, for every tokenizer that `tokenizers.sh --cases` has made: with and
# without the token that begins a sequence.
#
#   examples/models/compare_tokenizers.sh PROGRAM      PROGRAM is minillama_tokenize, which the tests build
#
# One line for each tokenizer. Exit code 1: some text's tokens differ, or there is nothing to compare.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/package_cache.sh"

case ${1-} in
  -h | --help) sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
esac
[ $# = 1 ] || fail 2 "expected one argument, the program minillama_tokenize"
program=$1
[ -x "$program" ] || fail 2 "$program is no program"

wrong=0 compared=0
for folder in "$cache/tokenizers"/*/; do
  cases=${folder}cases.jsonl
  [ -f "$cases" ] || fail 1 "$cases is not there: run tokenizers.sh --cases"
  compared=$((compared + 1))
  "${PQKV_PYTHON:-python3}" - "$program" "$cases" <<'PYTHON' || wrong=$((wrong + 1))
import json, pathlib, subprocess, sys

program, file = sys.argv[1], pathlib.Path(sys.argv[2])
lines = file.read_text(encoding="utf-8").splitlines()
cases = [json.loads(line) for line in lines]
equal = [True] * len(cases)
for key, arguments in (("ids", []), ("ids_special", ["--start"])):
    ran = subprocess.run([program, str(file.parent / "tokenizer.json"), *arguments], input="\n".join(lines) + "\n", text=True,
                         stdout=subprocess.PIPE)
    made = [json.loads(line)["ids"] for line in ran.stdout.splitlines()]
    if ran.returncode or len(made) != len(cases):
        sys.exit(f"{file.parent.name}: {len(made)} of {len(cases)} texts came back, exit code {ran.returncode}")
    for i, (case, ids) in enumerate(zip(cases, made)):
        if case[key] == ids:
            continue
        if equal[i]:
            print(f"{file.parent.name}: {json.dumps(case['text'][:60])}: {key} {case[key][:12]}, got {ids[:12]}", file=sys.stderr)
        equal[i] = False
print(f"{file.parent.name}: {sum(equal)} of {len(cases)} texts equal")
sys.exit(not all(equal))
PYTHON
done
[ "$wrong" = 0 ] || fail 1 "$wrong of $compared tokenizers differ"
