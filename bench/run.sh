#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds every benchmark and writes one JSON file each, machine's ceilings included, then a page with figures; installs what is
# missing first.
#
#   bench/run.sh DIR [--quick] [--resume] [flags of Google Benchmark]     e.g. bench/run.sh results --benchmark_repetitions=5
#
# DIR/<operation>.json for bench/<operation>.cpp, DIR/report.md and the figures that it shows. Benchmarks run one after the other, on one
# core each, except those with an axis `threads`. --quick: short runs of the instruction sets of this CPU, without repetitions.
# --resume keeps the files that are there, to continue a run that was stopped.
set -euo pipefail

if [ $# -lt 1 ] || [ "${1:0:1}" = - ]; then
  sed -n '3,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
resume=0
flags=()
for argument in "$@"; do
  case $argument in
    --quick) flags+=(--benchmark_min_time=0.05) ;;
    --resume) resume=1 ;;
    *) flags+=("$argument") ;;
  esac
done
cd "$(dirname "$0")/.."

cmake/install_deps.sh test
build=build/bench
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_EXAMPLES=OFF >&2
cmake --build $build --parallel "$(nproc)" >&2

for source in bench/*.cpp; do
  name=$(basename "$source" .cpp)
  if [ ! -x "$build/bench/pqkv_bench_$name" ] || { [ $resume = 1 ] && [ -s "$out/$name.json" ]; }; then
    echo "== $name: $([ -s "$out/$name.json" ] && echo already measured || echo not built)" >&2
    continue
  fi
  echo "== $name" >&2
  "$build/bench/pqkv_bench_$name" --benchmark_out="$out/$name.part" --benchmark_out_format=json ${flags[@]+"${flags[@]}"}
  if [ -s "$out/$name.part" ]; then mv "$out/$name.part" "$out/$name.json"; else rm -f "$out/$name.part"; fi  # a filter that left nothing to run
done

python3 -B bench/report.py "$out" "$out/report.md"
python=$(bench/python.sh build/plot matplotlib)
"$python" -B bench/plot.py "$out" "$out"
