#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demonstration: installs what is missing (Debian, Ubuntu), builds the
# example decoder for this machine and lets it answer ten questions about a long
# text, with all of its tokens attended and with a fraction of them.
#
#   examples/demo.sh [--length TOKENS] [any other option of minillama-ask]
#
# --length is the length of the text, --seed another text with other questions,
# --threads the threads of the host. The program is then
# build/demo/examples/minillama/minillama-ask; its --help has the other options.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/demo

for argument in "$@"; do
  case $argument in
    -h | --help)  # answered at once: nothing is installed or built for it
      sed -n '3,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
  esac
done

"$root/cmake/install_deps.sh" demo
{
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMINILLAMA_NATIVE=ON -DMINILLAMA_CUDA=OFF -DPQKV_WERROR=OFF \
    -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_BENCH=OFF
  cmake --build "$build" --parallel "$(nproc)" --target minillama-ask
} >&2
program=$(find "$build" -type f -name minillama-ask -perm -u+x -print -quit)
exec "$program" --demo -m "$root/examples/minillama/model" "$@"
