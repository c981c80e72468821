#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compares snapkv, h2o and streaming with what the Python package kvpress has of these methods, on random keys and queries. Not part of the
# tests: it installs kvpress and PyTorch, some gigabytes, in a temporary folder.
#
#   tests/peers/compare_kvpress.sh
#
# PQKV_KVPRESS_PYTHON names a Python that has the packages already. CXX is the compiler, default g++. Exit code 1: a kept position differs.
set -euo pipefail
case ${1-} in
  -h | --help) sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
esac
[ $# = 0 ] || { echo "compare_kvpress.sh: expected no argument, got $1" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python=${PQKV_KVPRESS_PYTHON-}
if [ -z "$python" ]; then
  python3 -m venv "$scratch/python" || { echo "compare_kvpress.sh: no venv; Debian calls it python3-venv" >&2; exit 2; }
  python=$scratch/python/bin/python
  "$python" -m pip install --quiet --no-cache-dir --disable-pip-version-check kvpress==0.5.5 torch==2.15.0 transformers==5.2.0 >&2
fi
"${CXX:-g++}" -std=c++20 -O2 -I"$root/include" "$root/tests/peers/kept_positions.cpp" -o "$scratch/kept_positions" -lpthread
"$python" "$root/tests/peers/compare_kvpress.py" "$scratch/kept_positions"
