#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the soak and lets caches live random lives for hours: dense, paged, quantized and tiered rows on the host, device memory on the
# backend that queues. Lists and outputs are compared after every step; memory, open files and mapped regions are watched.
#
#   tests/soak.sh HOURS [OPTION ...]             half an hour: 0.5
#   tests/soak.sh --minutes M [OPTION ...]       options: the head of tests/soak/soak.cpp lists them
#   tests/soak.sh --gpu MINUTES                  lives on this machine's GPU; PQKV_CUDA_ARCH names its architecture, sm_90 unless given
#
# Prints a line a minute and, at the end or after Ctrl-C, a report. Exits with 1 at the first difference, and when the process has more than
# its caches explain (tests/soak/watch.hpp says how that is decided). On a GPU the caches are compared with the host's, and free device
# memory is watched too; without a GPU the exit code is 77.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
  --minutes | --seconds | --replay) arguments=("$@") ;;
  [0-9]* | .[0-9]*) arguments=(--hours "$1" "${@:2}") ;;
  --gpu)
    [ $# = 2 ] || { sed -n '8p' "$0" >&2; exit 2; }
    mkdir -p build/soak
    "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)" -std=c++20 -O3 -arch="${PQKV_CUDA_ARCH:-sm_90}" -Iinclude -Itests \
      tests/cuda/device_pqcache.cu -o build/soak/device_pqcache
    exec build/soak/device_pqcache --soak "$2"
    ;;
  *) sed -n '6,8p' "$0" >&2; exit 2 ;;
esac
cmake -S . -B build/soak -G Ninja -DCMAKE_BUILD_TYPE=Release -DPQKV_BUILD_BENCH=OFF -DPQKV_BUILD_EXAMPLES=OFF \
  -DPQKV_SOAK_FLAGS=-O2 >/dev/null
cmake --build build/soak --target pqkv_soak
exec build/soak/tests/soak/pqkv_soak "${arguments[@]}"
