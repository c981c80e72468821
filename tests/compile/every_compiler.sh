#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks what must be true with every compiler, with each g++ (12 and later) and clang (14 and later) that is installed. Outside tests/run.sh,
# which has the compilers of Debian 12.
#
#   tests/compile/every_compiler.sh [--quick] [COMPILER...]
#
# For each: no warning at -O0, -Og, -O1, -O2 and -O3 in the programs that use the headers, nor in each header alone, and
# at -O2 and -O3 none from headers of the system either (-isystem), since optimisers warn there too; the digest of canonical arithmetic is
# everyone's; the tests of float environments pass at -O3, and the code of the host's operations has no float arithmetic outside of them at
# -O2 and -O3 (environment_code.py). --quick: only -O2 and -O3, and no header alone.
# Prints a line for each check and exits with 1 when one failed. Needs doctest; it installs nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."

levels=(-O0 -Og -O1 -O2 -O3)
alone=yes
compilers=()
for argument in "$@"; do
  case $argument in
    -h | --help) sed -n '3,13s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --quick) levels=(-O2 -O3) alone=no ;;
    -*) echo "every_compiler.sh: unknown option $argument; --help lists them" >&2; exit 2 ;;
    *) compilers+=("$argument") ;;
  esac
done
if [ ${#compilers[@]} -eq 0 ]; then
  for name in g++-{12..17} clang++-{14..23}; do if command -v "$name" >/dev/null; then compilers+=("$name"); fi; done
  [ ${#compilers[@]} -gt 0 ] || compilers=(g++)
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags=(-std=c++20 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
ours=(-Iinclude -Itests -Iexamples)
programs=(examples/0*.cpp tests/compile/accepted/front_page.cpp)
consumers=(tests/package/consumer.cpp tests/package/second_unit.cpp)  # their own globals have names that g++ says our locals shadow
environment=(tests/unit/float_environment_test.cpp tests/unit/float_environment_cache_test.cpp tests/unit/scan_test.cpp)
failed=0
digest=

check() {  # WHAT COMMAND...: one line, and the command's output where it fails
  local what=$1
  shift
  if "$@" >"$work/log" 2>&1; then
    echo "ok      $what"
  else
    echo "FAILED  $what"
    grep -E "warning|error|^in |expected" "$work/log" | cut -c1-300 | head -n 20 || true
    failed=1
  fi
}
compile() { "$@" -o "$work/object.o" -c; }
all_of() {  # FILES -- COMMAND...
  local files=()
  while [ "$1" != -- ]; do files+=("$1"); shift; done
  shift
  for file in "${files[@]}"; do "$@" "$file" || { echo "in $file"; return 1; }; done
}
header_alone() { echo "#include \"$2\"" >"$work/alone.cpp" && "$1" "${flags[@]}" "${ours[@]}" -fsyntax-only "$work/alone.cpp"; }
each_header() {
  for header in $(cd include && find pqkv -name '*.hpp' -not -path '*/detail/*' -not -path '*/adapt/*' | sort); do
    header_alone "$1" "$header" || { echo "in $header"; return 1; }
  done
}
build() {  # COMPILER PROGRAM FLAGS-AND-FILES...: a program of an earlier compiler does not stay
  local compiler=$1 program=$2
  shift 2
  rm -f "$work/$program"
  "$compiler" "${ours[@]}" "$@" tests/cases/*.cpp -o "$work/$program" -lpthread
}
same_digest() {  # COMPILER LEVEL
  local found
  build "$1" digest "${flags[@]}" "$2" tests/property/canonical_digest.cpp && found=$("$work/digest") || return 1
  [ -n "$digest" ] || digest=$found
  echo "$found, expected $digest"
  [ "$found" = "$digest" ]
}
environments() {  # COMPILER
  build "$1" environments -std=c++20 -O3 "${environment[@]}" tests/main.cpp && "$work/environments" --no-colors >"$work/tests" || return 1
  grep -q 'test cases: *[1-9]' "$work/tests"
}

environment_code() {  # COMPILER LEVEL
  for file in cmake/compiled/{attention,index,quantize,search}.cpp; do
    "$1" -std=c++20 "$2" -DPQKV_COMPILED -Iinclude -S "$file" -o "$work/code.s" && python3 -B tests/compile/environment_code.py "$work/code.s" ||
      { echo "in $file"; return 1; }
  done
}

for compiler in "${compilers[@]}"; do
  echo "== $("$compiler" --version | head -n 1)"
  if [ $alone = yes ]; then check "each public header alone" each_header "$compiler"; fi
  for level in "${levels[@]}"; do
    check "programs at $level" all_of "${programs[@]}" -- compile "$compiler" "${flags[@]}" "$level" "${ours[@]}"
  done
  for level in -O2 -O3; do
    check "programs at $level, headers of the system" all_of "${programs[@]}" "${consumers[@]}" -- \
      compile "$compiler" "${flags[@]}" "$level" -isystem include -Itests -Iexamples
  done
  for level in -O0 -O3; do check "digest at $level" same_digest "$compiler" "$level"; done
  check "float environments at -O3" environments "$compiler"
  for level in -O2 -O3; do check "code of float environments at $level" environment_code "$compiler" "$level"; done
done
echo "${#compilers[@]} compilers, digest $digest, $([ $failed = 0 ] && echo no fault || echo FAULTS)"
exit $failed
