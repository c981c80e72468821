#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the CUDA benchmarks with nvcc and writes one JSON line a measurement; needs a GPU and the toolkit, nothing else.
#
#   bench/gpu.sh FILE [name prefix]     e.g. bench/gpu.sh gpu.json retrieve/joint
#
# PQKV_CUDA_ARCH names the device's architecture, sm_90 unless given.
set -euo pipefail

if [ $# -lt 1 ] || [ "${1:0:1}" = - ]; then
  sed -n '3,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
for program in operations decode_step; do
  "$nvcc" -std=c++20 -O3 -arch="${PQKV_CUDA_ARCH:-sm_90}" -I"$root/include" "$root/bench/cuda/$program.cu" -o "$build/$program"
  "$build/$program" "${@:2}" >>"$build/json"
done
mv "$build/json" "$1"
