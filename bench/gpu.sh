#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds, checks and times the CUDA backend on this machine's GPU; needs nvcc, g++ and python3, no network. Rivals are timed in the same
# run where python3 has torch.
#
#   bench/gpu.sh FOLDER [NAME PREFIX] [--no-checks] [--no-peers]     e.g. bench/gpu.sh results, or bench/gpu.sh results retrieve/joint
#
# FOLDER/gpu.json    a JSON line for the machine, each ceiling and each measurement: bench/cuda/*.cu, then bench/peers/gpu.py
# FOLDER/checks.txt  a line for each program of tests/cuda, which compare the device with the host; what a failed one printed below it
# FOLDER/gpu.md      the targets of bench/targets_gpu.json with what was measured, and every measurement, by bench/gpu_report.py
#
# With a NAME PREFIX only the measurements that begin with it are taken, and the ceilings; rivals are left out then.
# PQKV_CUDA_ARCH names the device's architecture, sm_90 unless given, PQKV_JOBS the number of compilers at a time, PQKV_TORCH_PYTHON a
# python3 that has torch. Exits with 0 when everything passed and was measured, 1 after a failure, 2 for bad arguments, 77 without a GPU.
set -euo pipefail

usage() {
  sed -n '3,15s/^# \{0,1\}//p' "$0"
}
refuse() {
  echo "gpu.sh: $1" >&2
  exit "${2:-2}"
}
folder='' prefix='' with_checks=1 with_peers=1
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    --no-checks) with_checks=0 ;;
    --no-peers) with_peers=0 ;;
    -*) refuse "unknown option $argument; --help lists them" ;;
    '') refuse "an empty argument" ;;
    *) if [ -z "$folder" ]; then folder=$argument; elif [ -z "$prefix" ]; then prefix=$argument; else refuse "unexpected argument $argument"; fi ;;
  esac
done
if [ -z "$folder" ]; then
  usage >&2
  exit 2
fi
if [ -n "$prefix" ]; then with_peers=0; fi
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || refuse "no nvcc, neither in PATH nor in /usr/local/cuda/bin" 1
command -v python3 >/dev/null || refuse "no python3, which writes the report" 1
mkdir -p "$folder" || refuse "$folder: cannot be made" 1
out=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."
architecture=${PQKV_CUDA_ARCH:-sm_90}
jobs=${PQKV_JOBS:-$(nproc)}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
failed=0

say() { echo "== $1 ($SECONDS s)" >&2; }

compile() {  # PROGRAM SOURCE [flags]
  "$nvcc" -std=c++20 -O3 -arch="$architecture" -Iinclude -Itests "${@:3}" "$2" -o "$build/$1" >"$build/$1.log" 2>&1 && return
  {
    echo "gpu.sh: $2 does not compile:"
    cat "$build/$1.log"
  } >&2
  return 1
}

check() {  # PROGRAM; runs it and keeps its line, with all it printed after a failure
  local began=$SECONDS status=0
  timeout 400 "$build/check_$1" >"$build/$1.said" 2>&1 || status=$?
  case $status in
    0) echo "$1: passed, $((SECONDS - began)) s: $(paste -sd ';' "$build/$1.said" | sed 's/;/; /g')" >"$build/$1.verdict" ;;
    124) { echo "$1: FAILED, not done after 400 s" && sed 's/^/    /' "$build/$1.said"; } >"$build/$1.verdict" ;;
    *) { echo "$1: FAILED, status $status" && sed 's/^/    /' "$build/$1.said"; } >"$build/$1.verdict" ;;
  esac
  return $status
}

# Waits until fewer than $1 of the jobs that were begun run; a failure among them is remembered.
running=0
await_fewer_than() {
  while [ "$running" -ge "$1" ]; do
    wait -n || failed=1
    running=$((running - 1))
  done
}
begin() {
  await_fewer_than "$jobs"
  "$@" &
  running=$((running + 1))
}

say "building for $architecture, $jobs at a time"
begin compile ceilings bench/cuda/ceilings.cu
checks=()
if [ $with_checks = 1 ]; then
  for source in tests/cuda/*.cu; do
    grep -q '^int main(' "$source" || continue
    name=$(basename "$source" .cu)
    checks+=("$name")
    begin compile "check_$name" "$source"
    if grep -q '^//.*fast.math' "$source"; then
      checks+=("${name}_fast_math")
      begin compile "check_${name}_fast_math" "$source" --use_fast_math
    fi
  done
fi
benches=()
for source in bench/cuda/*.cu; do
  name=$(basename "$source" .cu)
  if [ "$name" = ceilings ]; then continue; fi
  benches+=("$name")
  begin compile "$name" "$source"
done
await_fewer_than 1
if [ $failed = 1 ]; then exit 1; fi

status=0
"$build/ceilings" nothing >/dev/null || status=$?
if [ $status != 0 ]; then exit $status; fi

if [ $with_checks = 1 ]; then
  say "checks: ${checks[*]}"
  for name in "${checks[@]}"; do begin check "$name"; done
  await_fewer_than 1
  for name in "${checks[@]}"; do cat "$build/$name.verdict"; done >"$build/checks.txt"
  cat "$build/checks.txt" >&2
fi

# What the programs cannot know of the run.
PQKV_RUN_NVCC=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p') PQKV_RUN_ARCHITECTURE=$architecture PQKV_RUN_PREFIX=$prefix \
PQKV_RUN_DRIVER=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader -i 0 2>/dev/null || true) \
PQKV_RUN_REVISION=$(git describe --always --dirty --abbrev=9 2>/dev/null || true) python3 - >"$build/gpu.json" <<'PYTHON'
import datetime, json, os
run = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
for key in ("driver", "nvcc", "architecture", "revision", "prefix"):
    if os.environ.get(f"PQKV_RUN_{key.upper()}"):
        run[key] = os.environ[f"PQKV_RUN_{key.upper()}"]
print(json.dumps({"run": run}))
PYTHON

measured() {  # PROGRAM COMMAND...; keeps what it printed, and a line of its own after a failure
  local status=0
  say "$1"
  "${@:2}" >>"$build/gpu.json" || status=$?
  if [ $status != 0 ]; then
    echo "gpu.sh: $1 ended with status $status" >&2
    printf '\n{"failed": "%s", "status": %d}\n' "$1" $status >>"$build/gpu.json"
    failed=1
  fi
}
measured ceilings "$build/ceilings"
for name in "${benches[@]}"; do measured "$name" "$build/$name" ${prefix:+"$prefix"}; done
if [ -n "$prefix" ] && ! grep -qF "\"name\": \"$prefix" "$build/gpu.json"; then
  refuse "no measurement's name begins with $prefix" 1
fi
python=${PQKV_TORCH_PYTHON:-python3}
if [ $with_peers = 1 ] && "$python" -c 'import torch' 2>/dev/null; then
  measured bench/peers/gpu.py "$python" -B bench/peers/gpu.py
elif [ $with_peers = 1 ]; then
  echo "left out: bench/peers/gpu.py: $python has no torch" >&2
  printf '{"left_out": "bench/peers/gpu.py", "why": "%s has no torch"}\n' "${python##*/}" >>"$build/gpu.json"
fi

say "report"
arguments=("$build/gpu.json" "$build/gpu.md")
if [ $with_checks = 1 ]; then arguments+=(--checks "$build/checks.txt"); fi
python3 -B bench/gpu_report.py "${arguments[@]}" || failed=1
for file in gpu.json checks.txt gpu.md; do
  rm -f "$out/$file"  # none of an earlier run beside this one's
  if [ -s "$build/$file" ]; then cp "$build/$file" "$out/$file.part" && mv "$out/$file.part" "$out/$file"; fi
done
exit $failed
