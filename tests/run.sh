#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and tests everything; installs what is missing first with apt (docs/platforms.md: where it was run).
#
#   tests/run.sh         g++: all tests, consumers of the installed package, nvcc's compile of the CUDA files where nvcc is,
#                        canonical bits of g++ and clang at baseline and native flags, the tests under address and
#                        undefined-behaviour sanitizers, what threads share under the thread sanitizer. Operations and the
#                        tests of canonical arithmetic are fully optimised, other tests are not; device code is if there is a device;
#                        tests of caches and of minillama that are the same under the sanitizers run only there, and tests that start
#                        minillama only elsewhere; the sanitizers check pointers for null and alignment only in operations
#   tests/run.sh --all   the same without these exceptions, all fully optimised, all tests built by clang 19 too, the operations' tests for
#                        AArch64 under an emulator, and the CUDA backend compiled for every architecture of tests/cuda/architectures.sh
#
# PQKV_REQUIRE_CUDA=ON in the environment makes a missing nvcc a failure, PQKV_TRAIN_PYTHON names the Python that tests the training
# scripts, PQKV_FUZZ_SECONDS says how long each reader of files is fuzzed (4 unless given; .ci/run gives 60),
# CMAKE_CXX_COMPILER_LAUNCHER=ccache makes a second run from scratch shorter. The sanitizers' builds and tests run beside the others;
# build/logs/sanitized.txt and fuzz.log are what they print. Exits with 0 when everything passed; the last line is ctest's own.
set -euo pipefail
cd "$(dirname "$0")/.."

all=OFF
for argument in "$@"; do
  case $argument in
    --all) all=ON ;;
    -h | --help) sed -n '3,17s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "tests/run.sh: unknown argument $argument; --help lists them" >&2; exit 2 ;;
  esac
done
jobs=$(nproc)
logs=build/logs
mkdir -p "$logs"
rm -f "$logs"/*.log
started=$SECONDS

step() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

build() {  # PRESET [cmake arguments]
  local preset=$1
  shift
  step "$preset: configure and build"
  cmake --preset "$preset" "$@"
  cmake --build --preset "$preset" --parallel "$jobs"
}

run_tests() {  # PRESET [ctest arguments]
  step "$1: tests"
  ctest --preset "$1" --parallel "$jobs" "${@:2}" | tee "$logs/$1.log"
}

left_out=()
without() { command -v "$1" >/dev/null || [ -x "/usr/local/cuda/bin/$1" ] || left_out+=("$2"); }

if [ $all = ON ]; then cmake/install_deps.sh all; else cmake/install_deps.sh test; fi
without nvcc "CUDA: no nvcc found, CUDA files not compiled"
without doxygen "doxygen: not here, the API pages were not built and checked"
without aarch64-linux-gnu-g++ "AArch64: no cross compiler, NEON code not compiled (--all installs it)"
without qemu-aarch64-static "AArch64: no emulator, NEON code not run (--all installs it)"
without clang++-14 "clang 14: not here, it did not compile the headers"
without clang++-19 "clang 19: not here, its canonical bits were not compared"

# clang compiles the sanitizers' checks in half of g++'s time. Warnings are the other builds' business: this may be any version.
sanitizing=()
for compiler in clang++ clang++-{14..22}; do
  if command -v "$compiler" && "$compiler" -x c++ -fsanitize=address,undefined - -o "$logs/sanitized" <<<'int main() {}' && "$logs/sanitized"; then
    sanitizing=(-DCMAKE_CXX_COMPILER="$compiler" -DPQKV_WERROR=OFF)
    break
  fi
done >/dev/null 2>&1

quick=ON
if [ $all = ON ]; then quick=OFF; fi
has_nvcc() { command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; }

# Two chains beside each other, each with as many jobs as there are cores: where one has a single job left (a long compile, a configuration),
# the other has work. On many cores memory is what a job needs most of, so the second has half. The fuzz targets run until their time is
# over, so all of them at once, beside both chains: with fewer cores than targets each gets fewer runs, of which every_target.cpp has a least
# number, and they take less of the processors' time.
sanitized() {
  if [ "$jobs" -gt 4 ]; then jobs=$((jobs / 2)); fi
  build asan --fresh -DPQKV_QUICK_TESTS=$quick "${sanitizing[@]}" ${PQKV_FUZZ_SECONDS:+"-DPQKV_FUZZ_SECONDS=$PQKV_FUZZ_SECONDS"}
  ctest --test-dir build/asan/tests/fuzz --no-tests=error --output-on-failure --parallel 8 >"$logs/fuzz.log" 2>&1 &
  local fuzzing=$!
  build tsan
  run_tests asan --label-exclude fuzz
  run_tests tsan
  step "fuzz targets, which ran beside"
  wait $fuzzing || { cat "$logs/fuzz.log"; return 1; }
}
optimised() {
  build release -DPQKV_REQUIRE_CUDA="${PQKV_REQUIRE_CUDA:-OFF}" -DPQKV_BENCH_STARTS_ONLY=ON -DPQKV_QUICK_TESTS=$quick \
    ${PQKV_TRAIN_PYTHON:+"-DPQKV_TRAIN_PYTHON=$PQKV_TRAIN_PYTHON"}
  if [ $all = ON ]; then
    build clang19
    run_tests clang19
    if has_nvcc; then
      step "CUDA for other architectures"
      tests/cuda/architectures.sh
    fi
  fi
  run_tests release
}
set -m  # a process group of its own, which goes with this script
(sanitized) >"$logs/sanitized.txt" 2>&1 &
beside=$!
set +m
trap 'kill -- -$beside 2>/dev/null || true' EXIT
optimised
step "the sanitizers' builds and tests, which ran beside"
ok=0
wait $beside || ok=$?
cat "$logs/sanitized.txt"
[ $ok -eq 0 ] || exit $ok
trap - EXIT

[ $all = ON ] ||
  left_out+=("sanitizers in programs' tests, optimised tests but for canonical arithmetic's, all tests built by clang 19, other CUDA architectures than sm_90 (--all has them)")
[[ $(ctest --preset release -N) == *' train.smoke'* ]] ||
  left_out+=("training: no Python with PyTorch 2.6, numpy and safetensors (PQKV_TRAIN_PYTHON names one)")

step "summary"
grep -h 'pqkv.hpp>: ' build/release/Testing/Temporary/LastTest.log || true
grep -h ' runs in ' build/asan/tests/fuzz/Testing/Temporary/LastTest.log
for reason in "${left_out[@]}"; do echo "left out: $reason"; done
for log in "$logs"/*.log; do echo "$(basename "$log" .log): $(grep 'tests passed' "$log")"; done
grep 'tests passed' "$logs/release.log"
