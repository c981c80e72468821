#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fuzzes the readers of files with clang's libFuzzer, address and undefined-behaviour sanitizers: coverage finds what mutations alone do not.
# Inputs grow up to a megabyte.
#
#   tests/fuzz/fuzz.sh [SECONDS] [TARGET ...]     a minute for each target, and all of them, unless given
#
# CLANG in the environment names the compiler. What libFuzzer learns stays in build/fuzz/corpus/, a found input in build/fuzz/crash-*;
# `pqkv_fuzz TARGET FILE 0` of the asan preset runs one again. Prints a line a target: runs and seconds.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] || { echo "fuzz.sh: expected seconds, got $seconds" >&2; exit 2; }
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(config index jsonl llama2c llama2c_tokenizer safetensors slot tokenizer_json)
clang=${CLANG:-}
for name in clang++-19 clang++-14 clang++; do [ -n "$clang" ] || clang=$(command -v "$name" || true); done
[ -n "$clang" ] || { echo "fuzz.sh: no clang++ found; CLANG names one. ctest --preset asan -L fuzz needs none" >&2; exit 2; }

build=build/fuzz
for target in "${targets[@]}"; do
  [ -f "tests/fuzz/${target}_fuzz.cpp" ] || { echo "fuzz.sh: no target $target" >&2; exit 2; }
done
cmake -S . -B $build -G Ninja -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" \
  -DPQKV_SANITIZE=fuzzer-no-link,address,undefined -DPQKV_BUILD_BENCH=OFF > /dev/null
cmake --build $build --target "${targets[@]/#/fuzz_}"

failed=0
for target in "${targets[@]}"; do
  mkdir -p "$build/corpus/$target"
  log=$build/$target.log
  if "$build/tests/fuzz/fuzz_$target" "$build/corpus/$target" "tests/fuzz/corpus/$target" -max_total_time="$seconds" \
      -max_len=$((1 << 20)) -timeout=20 -rss_limit_mb=2048 \
      -artifact_prefix="$build/crash-$target-" -print_final_stats=1 > "$log" 2>&1; then
    echo "$target: $(sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\) second.*/\1 runs in \2 seconds/p' "$log")"
  else
    failed=1
    echo "$target: a finding, see $log"
  fi
done
exit $failed
