#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The same work by pqkv and by its rivals, interleaved in one process, one thread each: faiss, scikit-learn, torch, numpy,
# std::nth_element, and ggml where examples/llama_cpp/run.sh has built llama.cpp (or PQKV_GGML names a folder with libggml-cpu.so). Writes
# DIR/peers.json; installs what is missing first, Python packages into build/peers.
#
#   bench/peers/run.sh DIR [--quick] [--fresh] [--only NAME ...]     e.g. bench/peers/run.sh results
#
# torch is the largest part of the download. PQKV_TORCH_PYTHON names a Python of the same version that has it already.
set -euo pipefail

if [ $# -lt 1 ] || [ "${1:0:1}" = - ]; then
  sed -n '3,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."

cmake/install_deps.sh test
build=build/bench
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_EXAMPLES=OFF >&2
cmake --build $build --target pqkv_bench_peers >&2

python=$(bench/python.sh build/peers faiss-cpu numpy scikit-learn)
if [ -n "${PQKV_TORCH_PYTHON:-}" ]; then  # behind the environment's own packages
  "$PQKV_TORCH_PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
    >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
fi
"$python" -c 'import torch' 2>/dev/null || bench/python.sh build/peers torch >/dev/null

OMP_NUM_THREADS=1 "$python" -B bench/peers/contests.py --library $build/bench/libpqkv_bench_peers.so --json "$out/peers.json" "$@"
