#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demonstration: installs what is missing (Debian, Ubuntu), builds the example decoder for this machine and lets it
# answer ten questions about a long text, with all of its tokens attended and with a fraction of them.
#
#   examples/demo.sh [--length TOKENS] [any other option of minillama-ask]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/demo

"$root/cmake/install_deps.sh" demo
{
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMINILLAMA_NATIVE=ON -DMINILLAMA_CUDA=OFF -DPQKV_WERROR=OFF \
    -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_BENCH=OFF
  cmake --build "$build" --parallel "$(nproc)" --target minillama-ask
} >&2
program=$(find "$build" -type f -name minillama-ask -perm -u+x -print -quit)
exec "$program" --demo -m "$root/examples/minillama/model" "$@"
