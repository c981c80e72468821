#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds every benchmark and writes one JSON file each, machine's ceilings included; installs what is missing first.
#
#   bench/run.sh DIR [flags of Google Benchmark]     e.g. bench/run.sh results --benchmark_repetitions=5
#
# DIR/<operation>.json for bench/<operation>.cpp. Benchmarks run one after the other, on one core each.
set -euo pipefail

if [ $# -lt 1 ] || [ "${1:0:1}" = - ]; then
  sed -n '3,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."

cmake/install_deps.sh test
build=build/bench
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_EXAMPLES=OFF >&2
cmake --build $build --parallel "$(nproc)" >&2

for source in bench/*.cpp; do
  name=$(basename "$source" .cpp)
  echo "== $name" >&2
  "$build/bench/pqkv_bench_$name" --benchmark_out="$out/$name.json" --benchmark_out_format=json "$@"
  [ -s "$out/$name.json" ] || rm -f "$out/$name.json"  # a filter that left nothing to run
done
