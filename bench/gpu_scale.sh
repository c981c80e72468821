#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds, checks and times context_parallel on two GPUs of this machine; needs nvcc, g++, python3 and NCCL, no network.
#
#   bench/gpu_scale.sh FOLDER [NAME_PREFIX] [--no-checks] [--programs DIR]
#                                            e.g. bench/gpu_scale.sh results rank_step/peer
#   bench/gpu_scale.sh --programs DIR        only compiles, on a machine with or without GPUs
#
# FOLDER/scale.json        a JSON line for the run and for each measurement of bench/cuda/ranks/rank_step.cu
# FOLDER/scale_checks.txt  what tests/cuda/ranks/context_parallel.cu and examples/two_processes/two_gpus.cu printed
# FOLDER/scale.md          the table of docs/scale.md, measured beside the model on paper, by bench/scale_model.py
#
# --programs DIR keeps the compiled programs, and takes those that are there; programs of other sources or another architecture are refused.
# They find NCCL where the script finds it when it runs them.
#
# NCCL is looked for in PQKV_NCCL (a folder with include/ and lib/), in python3's nvidia.nccl, in /usr/local, /usr and beside nvcc. PQKV_CUDA_ARCH
# names the devices' architecture, sm_90 unless given. Exits with 0 when all passed and was measured, 1 after a failure, 2 for bad
# arguments, 77 where there are fewer than two GPUs.
set -euo pipefail

refuse() {  # SENTENCE [exit code]
  echo "gpu_scale.sh: $1" >&2
  exit "${2:-2}"
}
say() { echo "== $1 ($SECONDS s)" >&2; }

folder='' prefix='' programs='' with_checks=1
while [ $# -gt 0 ]; do
  argument=$1
  shift
  case $argument in
    -h | --help) sed -n '3,19s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --programs)
      programs=${1:-}
      [ -n "$programs" ] || refuse "--programs: no folder given"
      shift
      ;;
    --no-checks) with_checks=0 ;;
    -*) refuse "unknown option $argument; --help lists them" ;;
    *)
      if [ -z "$folder" ]; then folder=$argument
      elif [ -z "$prefix" ]; then prefix=$argument
      else refuse "one argument too many: $argument"; fi
      ;;
  esac
done
[ -n "$folder$programs" ] || refuse "no FOLDER given; --help says more"
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || refuse "no nvcc, neither in PATH nor in /usr/local/cuda/bin" 1
. "$(dirname "$0")/kept_programs.sh"
out=$(made_folder "$folder")
programs=$(made_folder "$programs")
cd "$(dirname "$0")/.."
architecture=${PQKV_CUDA_ARCH:-sm_90}
check_programs "$architecture"

find_nccl || refuse "$([ -n "$nccl" ] && echo "no libnccl.so under $nccl/lib" ||
  echo "no NCCL: no nccl.h in PQKV_NCCL, python3's nvidia.nccl, /usr/local, /usr or beside nvcc")" 1

split=''
if "$nvcc" --help | grep -q -- --split-compile; then split=--split-compile=0; fi  # several threads optimise one program

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
compile() {  # PROGRAM SOURCE
  if take_program "$1" "$build/$1"; then return; fi
  if ! "$nvcc" -std=c++20 -O3 $split -arch="$architecture" -Iinclude -Itests "$2" -o "$build/$1" "${nccl_flags[@]}" >"$build/$1.log" 2>&1; then
    printf 'gpu_scale.sh: %s does not compile:\n%s\n' "$2" "$(cat "$build/$1.log")" >&2
    return 1
  fi
  keep_program "$1" "$build/$1"
}
export LD_LIBRARY_PATH=$nccl_path
say "programs, NCCL of $nccl"
compile rank_step bench/cuda/ranks/rank_step.cu &
first=$!
if [ $with_checks = 1 ]; then
  compile two_gpus examples/two_processes/two_gpus.cu &
  second=$!
  compile check tests/cuda/ranks/context_parallel.cu || { wait; exit 1; }
  wait $second || { wait; exit 1; }
fi
wait $first || exit 1
if [ -z "$out" ]; then
  say compiled
  exit 0
fi

failed=0
if [ $with_checks = 1 ]; then
  say checks
  timeout 400 "$build/check" >"$out/scale_checks.txt" 2>&1 || failed=$?
  [ $failed != 77 ] || exit 77
  timeout 120 "$build/two_gpus" >>"$out/scale_checks.txt" 2>&1 || failed=1
  cat "$out/scale_checks.txt" >&2
fi
say "rank_step $prefix"
json=$out/scale.json.part
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader -i 0 2>/dev/null | grep -xE "[0-9.]+" || echo unknown)
printf '{"run": {"date": "%s", "driver": "%s", "revision": "%s", "prefix": "%s"}}\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$driver" \
  "$(git describe --always --dirty --abbrev=9 2>/dev/null || echo unknown)" "$prefix" >"$json"
status=0
timeout 400 "$build/rank_step" ${prefix:+"$prefix"} >>"$json" || status=$?
[ $status != 77 ] || exit 77
if [ $status != 0 ]; then
  echo "gpu_scale.sh: rank_step ended with exit code $status" >&2
  failed=1
fi
mv "$json" "$out/scale.json"
python3 -B bench/scale_model.py --measured "$out/scale.json" >"$out/scale.md" || failed=1
cat "$out/scale.md"
[ $failed = 0 ] || exit 1
