#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The quality laboratory: builds minillama for this machine, makes the real model, and measures what docs/quality.md shows. A run that was
# ended goes on where it stopped.
#
#   bench/quality/run.sh FOLDER [--size tiny|small|whole] [--seeds 1 2 3] [--parts selectors answers ...] [other options of laboratory.py]
#
# FOLDER/report.md has the tables, quality.json and quality.csv every figure in them, *.svg the pictures. The default size takes
# about an hour of two cores. --no-real-model leaves the real model out; then only missing packages are downloaded.
# PQKV_PROGRAMS names a folder that has minillama and minillama-ask already; nothing is built or installed then.
set -euo pipefail
if [ $# -lt 1 ] || [ "${1:0:1}" = - ]; then
  sed -n '3,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
real=yes
arguments=()
for argument in "$@"; do
  if [ "$argument" = --no-real-model ]; then real=no; else arguments+=("$argument"); fi
done
cd "$(dirname "$0")/../.."

programs=${PQKV_PROGRAMS:-}
python=python3
if [ -z "$programs" ]; then
  cmake/install_deps.sh demo
  build=build/native
  cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DMINILLAMA_NATIVE=ON -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_BENCH=OFF >&2
  cmake --build $build --parallel "$(nproc)" --target minillama minillama-ask >&2
  programs=$build/examples/minillama
  python=$(bench/python.sh build/plot matplotlib)
fi
if [ $real = yes ]; then
  model=$(examples/models/smollm2.sh)
  arguments+=(--real-model "$model")
fi
python3 -B bench/quality/laboratory.py --programs "$programs" --folder "$out" ${arguments[@]+"${arguments[@]}"}
if "$python" -c 'import matplotlib' 2>/dev/null; then
  "$python" -B bench/quality/figures.py "$out/quality.json" "$out"
else
  echo "run.sh: no matplotlib, figures are not drawn" >&2
fi
