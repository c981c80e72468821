#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the tests of the arithmetic for AArch64 with a cross compiler and runs them under an emulator: canonical bits against the
# digest of this machine's build, then the operations' tests with the NEON kernels. Times measured there mean nothing.
#
#   tests/aarch64.sh BUILD_FOLDER DIGEST     DIGEST: what property/canonical_digest.cpp prints here
#
# Needs aarch64-linux-gnu-g++ and qemu-aarch64-static (cmake/install_deps.sh all).
set -euo pipefail

[ $# -eq 2 ] || { sed -n '6,8p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1/doctest_only" "$1/objects"
build=$(cd "$1" && pwd)
for folder in /usr/include /usr/local/include; do  # doctest alone: the folder's other headers are of another architecture
  [ -e "$folder/doctest/doctest.h" ] && ln -sfn "$folder/doctest" "$build/doctest_only/doctest"
done

tests=(attention canonical cell_index codebook codes distance_table host isa kmeans merge pqcache quantized_scan rerank residual retrieve
       scalar scan top_k)
sources=("$root"/tests/main.cpp "$root"/tests/cases/*.cpp "$root"/tests/property/canonical_digest.cpp)
for test in "${tests[@]}"; do sources+=("$root/tests/unit/${test}_test.cpp"); done
flags=(-std=c++20 -O2 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wno-psabi -Werror -I"$root/include" -I"$root/tests"
       -isystem "$build/doctest_only")
compile() { aarch64-linux-gnu-g++ "${@:2}" -c "$1" -o "$build/objects/$(basename "$1" .cpp).o"; }
export -f compile
export build
printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I{} bash -c 'compile "$@"' _ {} "${flags[@]}"

cases=()
for source in "$root"/tests/cases/*.cpp; do cases+=("$build/objects/$(basename "$source" .cpp).o"); done
operations=("$build/objects/main.o" "${cases[@]}")
for test in "${tests[@]}"; do operations+=("$build/objects/${test}_test.o"); done
aarch64-linux-gnu-g++ -static "$build/objects/canonical_digest.o" "${cases[@]}" -o "$build/digest"
aarch64-linux-gnu-g++ -static "${operations[@]}" -o "$build/operations"

printed=$(qemu-aarch64-static "$build/digest")
echo "digest: $printed, here $2"
[[ $printed == *"$2"* ]]
qemu-aarch64-static "$build/operations" --no-colors
