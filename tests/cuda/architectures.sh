#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles every operation of the CUDA backend for several GPU architectures with warnings as errors; needs nvcc and no GPU.
#
#   tests/cuda/architectures.sh [--all] [ARCHITECTURE...]     e.g. tests/cuda/architectures.sh, or tests/cuda/architectures.sh sm_100
#
# Takes sm_80, sm_90, sm_100 and sm_120 unless told otherwise, and the files of tests/cuda without a main(), which instantiate the library
# as engines do; --all: every test and benchmark too. One compiler a core, PQKV_JOBS says otherwise. Exits with 0 when all compiled, 1 when
# one did not, 2 for bad arguments.
set -euo pipefail

refuse() {  # SENTENCE [exit code]
  echo "architectures.sh: $1" >&2
  exit "${2:-2}"
}
all=0 architectures=()
for argument in "$@"; do
  case $argument in
    -h | --help) sed -n '3,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --all) all=1 ;;
    sm_[0-9]*) architectures+=("$argument") ;;
    *) refuse "unknown argument $argument; --help lists them" ;;
  esac
done
if [ ${#architectures[@]} = 0 ]; then architectures=(sm_80 sm_90 sm_100 sm_120); fi
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || refuse "no nvcc, neither in PATH nor in /usr/local/cuda/bin" 1
cd "$(dirname "$0")/../.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

compile() {  # ARCHITECTURE FILE
  local began=$SECONDS object=$build/$1-${2//\//-}
  if "$nvcc" -std=c++20 -arch="$1" -Xcompiler=-Wall,-Wextra,-Werror -Werror all-warnings -Iinclude -Itests -c "$2" -o "$object.o" >"$object.log" 2>&1; then
    echo "$1 $2: compiled, $((SECONDS - began)) s"
    rm "$object.o"
  else
    printf '%s %s: FAILED\n%s\n' "$1" "$2" "$(cat "$object.log")"
    return 1
  fi
}
export -f compile
export nvcc build

units=()
for architecture in "${architectures[@]}"; do
  for file in tests/cuda/*.cu; do
    if [ $all = 1 ] || ! grep -q '^int main(' "$file"; then units+=("$architecture $file"); fi
  done
  for file in bench/cuda/*.cu; do
    if [ $all = 1 ]; then units+=("$architecture $file"); fi
  done
done
failed=0
printf '%s\n' "${units[@]}" | xargs -P "${PQKV_JOBS:-$(nproc)}" -L 1 bash -c 'compile "$@"' compile || failed=1
exit $failed
