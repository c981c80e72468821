#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A Python environment with some packages, made where it is missing; prints the path of its python.
#
#   bench/python.sh FOLDER PACKAGE...     e.g. bench/python.sh build/plot matplotlib
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '3,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
folder=$1
shift
if [ ! -x "$folder/bin/pip" ]; then
  python3 -m venv "$folder" >&2 || { echo "python.sh: no venv; Debian calls it python3-venv" >&2; exit 1; }
fi
"$folder/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "$@" >&2
echo "$(cd "$folder" && pwd)/bin/python"
