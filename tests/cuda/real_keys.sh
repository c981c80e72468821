#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compares host and device on keys and queries of the example's model: writes them to a file, builds real_keys.cu, runs it.
#
#   tests/cuda/real_keys.sh [FILE]    FILE: where the keys are, or are to be; a file that is there is used as it is
#
# The model's run needs what minillama needs (cmake/install_deps.sh test) and takes seconds; the comparison needs nvcc and a GPU.
# PQKV_CUDA_ARCH names the device's architecture, sm_90 unless given. Exits with 77 where there is no GPU.
set -euo pipefail

case ${1:-} in -*) sed -n '3,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
root=$(cd "$(dirname "$0")/../.." && pwd)
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
file=${1:-$build/keys.bin}
if [ ! -e "$file" ]; then
  cmake -S "$root" -B "$build/host" -DCMAKE_BUILD_TYPE=Release -DPQKV_BUILD_BENCH=OFF >"$build/log"
  cmake --build "$build/host" --target minillama_dump_keys --parallel "$(nproc)" >>"$build/log" || { cat "$build/log" >&2; exit 1; }
  "$build/host/tests/minillama/minillama_dump_keys" -m "$root/examples/minillama/model" -o "$file"
fi
"$nvcc" -std=c++20 -O3 -arch="${PQKV_CUDA_ARCH:-sm_90}" -I"$root/include" -I"$root/tests" "$root/tests/cuda/real_keys.cu" -o "$build/real_keys"
"$build/real_keys" "$file"
