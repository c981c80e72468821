#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compares minillama's metrics with LongBench's and RULER's functions, as the Python package lm_eval has them, over the packages rouge,
# fuzzywuzzy and python-Levenshtein. Not part of the tests: it installs these packages, 25 MB, in a temporary folder. Half a minute.
#
#   tests/peers/reference_metrics.sh
#
# PQKV_METRICS_PYTHON names a Python that has the packages already. CXX is the compiler, default g++. Needs nlohmann's JSON library
# (cmake/install_deps.sh demo). Exit code 1: a score differs.
set -euo pipefail
case ${1-} in
  -h | --help) sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
esac
[ $# = 0 ] || { echo "reference_metrics.sh: expected no argument, got $1" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python=${PQKV_METRICS_PYTHON-}
if [ -z "$python" ]; then
  python3 -m venv "$scratch/python" || { echo "reference_metrics.sh: no venv; Debian calls it python3-venv" >&2; exit 2; }
  python=$scratch/python/bin/python
  "$python" -m pip install --quiet --no-cache-dir --no-deps --disable-pip-version-check lm_eval==0.4.13 rouge==1.0.1 six==1.17.0 \
    fuzzywuzzy==0.18.0 python-Levenshtein==0.27.1 Levenshtein==0.27.1 rapidfuzz==3.14.6 >&2
fi
minillama=$root/examples/minillama
"${CXX:-g++}" -std=c++20 -O2 -I"$minillama" "$root/tests/peers/score_texts.cpp" "$minillama/metrics.cpp" "$minillama/unicode_text.cpp" \
  -o "$scratch/score_texts"
"$python" -B "$root/tests/peers/reference_metrics.py" "$scratch/score_texts"
