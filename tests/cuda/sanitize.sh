#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the device tests under compute-sanitizer: one line a tool and program, exit code 1 when a tool found anything, a program failed or
# one did not end in time. Needs a GPU and the CUDA toolkit, nothing else.
#
#   tests/cuda/sanitize.sh [options] [tool...]     memcheck racecheck initcheck synccheck, all four unless given
#
#   --programs "A B"   of tests/cuda only these; all that ask for a GPU unless given
#   --seconds S        how long search, quantize, half_shortlist, device_pqcache, sliding_window, step_sums and repeat run; 60 unless given
#   --limit S          a program that runs longer counts as not finished; 300 unless given
#   --jobs N           programs built and run at once; 4 unless given
#   --keys FILE        keys for real_keys (real_keys.sh makes them); without, real_keys is left out
#   --logs FOLDER      where every run's output goes; a temporary folder, removed at the end, unless given
#
# PQKV_CUDA_ARCH names the device's architecture, sm_90 unless given.
set -euo pipefail

usage() { sed -n '3,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
tools=() programs=() seconds=60 limit=300 jobs=4 keys= logs=
while [ $# -gt 0 ]; do
  case $1 in
    memcheck | racecheck | initcheck | synccheck) tools+=("$1"); shift; continue ;;
    --programs | --seconds | --limit | --jobs | --keys | --logs) [ $# -ge 2 ] || usage ;;
    *) usage ;;
  esac
  case $1 in
    --programs) read -ra programs <<<"$2" ;;
    --seconds) seconds=$2 ;;
    --limit) limit=$2 ;;
    --jobs) jobs=$2 ;;
    --keys) keys=$(realpath "$2") ;;
    --logs) mkdir -p "$2"; logs=$(cd "$2" && pwd) ;;
  esac
  shift 2
done
[ ${#tools[@]} -gt 0 ] || tools=(racecheck memcheck initcheck synccheck)  # the slowest first
if [ ${#programs[@]} -eq 0 ]; then
  for file in $(grep -l '^int main(' "$here"/*.cu | xargs grep -l 'return 77;'); do programs+=("$(basename "$file" .cu)"); done
fi
for program in "${programs[@]}"; do
  [ -f "$here/$program.cu" ] || { echo "sanitize.sh: no program $program in tests/cuda" >&2; exit 2; }
done
find_tool() { command -v "$1" || ls "/usr/local/cuda/bin/$1" 2>/dev/null || { echo "sanitize.sh: $1 is not here" >&2; return 1; }; }
nvcc=$(find_tool nvcc)
sanitizer=$(find_tool compute-sanitizer)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
logs=${logs:-$build}
export nvcc sanitizer build logs here root seconds limit keys arch="${PQKV_CUDA_ARCH:-sm_90}"

compile() {  # PROGRAM
  "$nvcc" -std=c++20 -O3 -lineinfo -arch="$arch" -I"$root/include" -I"$root/tests" "$here/$1.cu" -o "$build/$1" >"$logs/build.$1" 2>&1 &&
    rm "$logs/build.$1" && return
  echo "build $1: FAILED"
  cat "$logs/build.$1"
  return 1
}

examine() {  # TOOL PROGRAM: prints its line
  local arguments=() options=() log="$logs/$1.$2" started=$SECONDS code=0 verdict=clean
  case $2 in
    search | quantize | half_shortlist | device_pqcache | sliding_window | step_sums | repeat) arguments=(--seconds "$seconds") ;;
    attention) arguments=(5) ;;
    merge) arguments=(4) ;;
    real_keys) arguments=("$keys" 1) ;;
    seam) if [ "$1" = memcheck ]; then options=(--report-api-errors no); fi ;;  # it makes calls fail, and checks how
  esac
  timeout --kill-after=10 "$limit" "$sanitizer" --tool "$1" --error-exitcode 99 "${options[@]}" "$build/$2" "${arguments[@]}" \
    >"$log" 2>&1 || code=$?
  local found=$(grep -E '^=+ .*SUMMARY:' "$log" | grep -vE 'SUMMARY: 0 ' | sed -E 's/^=+ +//' | head -1)
  if [ $code -eq 124 ] || [ $code -eq 137 ]; then
    verdict="DID NOT FINISH in $limit s"
  elif grep -q '^no CUDA device' "$log"; then
    verdict="no GPU"
  elif [ -n "$found" ]; then
    verdict="FOUND: $found"
  elif [ $code -ne 0 ]; then
    verdict="FAILED with exit code $code"
  elif ! grep -qE '^=+ .*SUMMARY: 0 ' "$log"; then
    verdict="FAILED: the tool printed no summary"
  fi
  local cases=$(sed -nE 's/^.*: ([0-9]+) cases, .*$/\1/p' "$log" | awk '{ all += $1 } END { print all + 0 }')
  local left_out=$(sed -nE 's/^small: .*s, ([1-9][0-9]*) left out$/, \1 problems left out/p' "$log")
  local line="$1 $2: $verdict ($cases cases$left_out, $((SECONDS - started)) s)"
  case $verdict in
    clean) touch "$build/clean.$1.$2" ;;
    "no GPU") touch "$build/absent.$1.$2" ;;
    *) line+=$'\n'$(tail -n 40 "$log" | sed 's/^/    /') ;;
  esac
  printf '%s\n' "$line"  # at once, since others print too
}
export -f compile examine

if [ -z "$keys" ]; then  # nothing to read for real_keys
  kept=()
  for program in "${programs[@]}"; do [ "$program" = real_keys ] || kept+=("$program"); done
  programs=("${kept[@]}")
fi
[ ${#programs[@]} -gt 0 ] || { echo "sanitize.sh: real_keys needs --keys" >&2; exit 2; }
printf '%s\n' "${programs[@]}" | xargs -P "$jobs" -I{} bash -c 'compile "$1"' _ {} || exit 1
for tool in "${tools[@]}"; do for program in "${programs[@]}"; do echo "$tool $program"; done; done |
  xargs -P "$jobs" -L 1 bash -c 'examine "$@"' _ || true  # what ended badly left no mark

count() { find "$build" -maxdepth 1 -name "$1.*" | wc -l; }
runs=$((${#tools[@]} * ${#programs[@]}))
echo "$(count clean) of $runs runs are clean"
[ "$(count absent)" -eq 0 ] || exit 77
[ "$(count clean)" -eq "$runs" ]
