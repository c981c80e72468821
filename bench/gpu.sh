#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds, checks and times the CUDA backend on this machine's GPU; needs nvcc, g++ and python3, no network. Rivals are timed in the same
# run where python3 has torch.
#
#   bench/gpu.sh FOLDER [NAME_PREFIX] [--no-checks] [--no-peers] [--programs DIR]
#                                            e.g. bench/gpu.sh results, or bench/gpu.sh results retrieve/joint
#   bench/gpu.sh --programs DIR              only compiles, on a machine with or without a GPU
#
# FOLDER/gpu.json    a JSON line for the run, the device, each ceiling and each measurement: bench/cuda/*.cu, then bench/peers/gpu.py
# FOLDER/checks.txt  a line for each program of tests/cuda, which compare the device with the host, and where NCCL is, of ranks on it; below
#                    it what a failed program printed
# FOLDER/gpu.md      the targets of bench/targets_gpu.json with what was measured, and every measurement, by bench/gpu_report.py
#
# --programs DIR keeps the compiled programs, and takes those that are there; programs of other sources or another architecture are refused.
# Compiling takes most of the time, so where a GPU is lent by the minute, compile elsewhere and bring DIR along.
#
# With a NAME_PREFIX only measurements whose names begin with it are taken, and the ceilings; rivals are left out. A run that was ended
# leaves FOLDER/gpu.json.part. PQKV_CUDA_ARCH names the device's architecture, sm_90 unless given; PQKV_JOBS the number of compilers at a
# time; PQKV_TORCH_PYTHON a python3 that has torch; PQKV_KEYS a file of keys for real_keys (tests/cuda/real_keys.sh makes it);
# PQKV_CHECK_SECONDS how long a check may take, 400 unless given. Exits with 0 when all passed and was measured, 1 after a failure (the
# rest is still measured, unless something does not compile), 2 for bad arguments, 77 where there is no GPU.
set -euo pipefail

refuse() {  # SENTENCE [exit code]
  echo "gpu.sh: $1" >&2
  exit "${2:-2}"
}
say() { echo "== $1 ($SECONDS s)" >&2; }

folder='' prefix='' programs='' nccl_path='' with_checks=1 with_peers=1
while [ $# -gt 0 ]; do
  argument=$1
  shift
  case $argument in
    -h | --help) sed -n '3,24s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --programs)
      programs=${1:-}
      [ -n "$programs" ] || refuse "--programs: no folder given"
      shift
      ;;
    --no-checks) with_checks=0 ;;
    --no-peers) with_peers=0 ;;
    -*) refuse "unknown option $argument; --help lists them" ;;
    '') refuse "an argument is empty" ;;
    *)
      if [ -z "$folder" ]; then
        folder=$argument
      elif [ -z "$prefix" ]; then
        prefix=$argument with_peers=0
      else
        refuse "one argument too many: $argument"
      fi
      ;;
  esac
done
[ -n "$folder$programs" ] || refuse "no FOLDER given; --help says more"
[[ $prefix != *[^A-Za-z0-9_/:.-]* ]] || refuse "$prefix: no benchmark's name begins like that"
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || refuse "no nvcc, neither in PATH nor in /usr/local/cuda/bin" 1
command -v python3 >/dev/null || refuse "no python3, which writes the report" 1
architecture=${PQKV_CUDA_ARCH:-sm_90}
. "$(dirname "$0")/kept_programs.sh"
out=$(made_folder "$folder")
programs=$(made_folder "$programs")
cd "$(dirname "$0")/.."
check_programs "$architecture"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

compile() {  # PROGRAM SOURCE [flags]
  if take_program "$1" "$build/$1"; then return; fi
  if ! "$nvcc" -std=c++20 -O3 -arch="$architecture" -Xptxas -v -Iinclude -Itests "$2" "${@:3}" -o "$build/$1" >"$build/$1.log" 2>&1; then
    printf 'gpu.sh: %s does not compile:\n%s\n' "$2" "$(cat "$build/$1.log")" >&2
    return 1
  fi
  if grep -A1 'properties for .*token_loops' "$build/$1.log" | grep -q ' [1-9][0-9]* bytes stack frame'; then
    printf 'gpu.sh: %s: look-ups have a stack, which costs 13 us a step (tests/cuda/stack_test.py)\n' "$2" >&2
  fi
  keep_program "$1" "$build/$1"
}
check() {  # PROGRAM; keeps its line, with what it printed, and says it at once: a run may be ended before its last check
  local status=0
  check_quietly "$1" || status=$?
  cat "$build/$1.verdict" >&2
  return $status
}
check_quietly() {
  local began=$SECONDS status=0 seconds=${PQKV_CHECK_SECONDS:-400}
  local arguments=()
  if [ "$1" = real_keys ] && [ -n "${PQKV_KEYS:-}" ]; then arguments=("$PQKV_KEYS"); fi
  local libraries=${LD_LIBRARY_PATH:-}
  if [ "$1" = context_parallel ]; then arguments=(6) libraries=$nccl_path; fi  # lives
  LD_LIBRARY_PATH=$libraries timeout "$seconds" "$build/check_$1" "${arguments[@]}" >"$build/$1.said" 2>&1 || status=$?
  if [ "$1" = real_keys ] && [ $status = 77 ]; then  # the GPU is there
    echo "$1: left out: $(cat "$build/$1.said")" >"$build/$1.verdict"
    return
  fi
  if [ $status = 0 ]; then
    echo "$1: passed, $((SECONDS - began)) s: $(tr '\n' ';' <"$build/$1.said" | sed 's/;$//; s/;/; /g')" >"$build/$1.verdict"
    return
  fi
  {
    echo "$1: FAILED, $([ $status = 124 ] && echo "not done after $seconds s" || echo "exit code $status")"
    tail -n 40 "$build/$1.said" | sed 's/^/    /'
  } >"$build/$1.verdict"
  return 1
}
export -f compile check check_quietly
export nvcc architecture build programs nccl_path

units=("ceilings bench/cuda/ceilings.cu") checks=() benches=()
for source in tests/cuda/*.cu; do
  name=$(basename "$source" .cu)
  if [ $with_checks = 0 ] || ! grep -q '^int main(' "$source"; then continue; fi
  checks+=("$name") units+=("check_$name $source")
  if grep -q '^//.*fast.math' "$source"; then
    checks+=("${name}_fast_math") units+=("check_${name}_fast_math $source --use_fast_math")
  fi
done
# Ranks: with one GPU they share it. Its figures are gpu_scale.sh's.
if [ $with_checks = 1 ] && find_nccl; then
  checks+=(context_parallel)
  units+=("check_context_parallel tests/cuda/ranks/context_parallel.cu ${nccl_flags[*]}")
fi
for source in bench/cuda/*.cu; do
  name=$(basename "$source" .cu)
  if [ "$name" != ceilings ]; then benches+=("$name") units+=("$name $source"); fi
done
say "${#units[@]} programs for $architecture"
printf '%s\n' "${units[@]}" | xargs -P "${PQKV_JOBS:-$(nproc)}" -L 1 bash -c 'compile "$@"' compile || exit 1
if [ -z "$out" ]; then
  say "compiled"
  exit 0
fi

status=0
"$build/ceilings" nothing >/dev/null || status=$?
[ $status = 0 ] || exit $status

if [ -n "$prefix" ]; then
  for name in "${benches[@]}"; do "$build/$name" --names; done >"$build/names"
  grep -q "^$prefix" "$build/names" || refuse "$prefix: no benchmark's name begins like that"
fi

failed=0
if [ $with_checks = 1 ]; then
  say "checks: ${checks[*]}"
  printf '%s\n' "${checks[@]}" | xargs -P "$(nproc)" -L 1 bash -c 'check "$@"' check || failed=1
  for name in "${checks[@]}"; do cat "$build/$name.verdict"; done >"$build/checks.txt"
fi

json=$out/gpu.json.part
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader -i 0 2>/dev/null | grep -xE "[0-9.]+" || echo unknown)
printf '{"run": {"date": "%s", "driver": "%s", "nvcc": "%s", "architecture": "%s", "revision": "%s", "prefix": "%s"}}\n' \
  "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$driver" "$("$nvcc" --version | sed -n 's/.*release [0-9.]*, V\([0-9.]*\).*/\1/p')" "$architecture" \
  "$(git describe --always --dirty --abbrev=9 2>/dev/null || echo unknown)" "$prefix" >"$json"
measured() {  # WHAT COMMAND...; keeps what it prints, and a line that says so after a failure
  local status=0
  say "$1"
  timeout 300 "${@:2}" >>"$json" || status=$?
  if [ $status != 0 ]; then
    echo "gpu.sh: $1 ended with exit code $status" >&2
    printf '\n{"failed": "%s", "exit_code": %d}\n' "$1" $status >>"$json"
    failed=1
  fi
}
measured ceilings "$build/ceilings"
for name in "${benches[@]}"; do measured "$name" "$build/$name" ${prefix:+"$prefix"}; done
python=${PQKV_TORCH_PYTHON:-python3}
if [ $with_peers = 1 ] && "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  measured bench/peers/gpu.py "$python" -B bench/peers/gpu.py
else
  printf '{"left_out": "bench/peers/gpu.py", "why": "%s"}\n' "$([ $with_peers = 1 ] && echo "no python3 with torch for CUDA" || echo "not asked for")" >>"$json"
fi

say "report"
cp "$json" "$build/gpu.json"
python3 -B bench/gpu_report.py "$build" "$build/gpu.md" || failed=1
for file in checks.txt gpu.md; do
  rm -f "$out/$file"  # none of an earlier run beside this one's
  if [ -s "$build/$file" ]; then cp "$build/$file" "$out/$file.part" && mv "$out/$file.part" "$out/$file"; fi
done
mv "$json" "$out/gpu.json"
exit $failed
