#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# g++ 12: a function with target("avx2") returns without vzeroupper at -O0, -Og and -O1.
#
# Guess:  -mvzeroupper is on by default, so every function that uses 256-bit registers and returns to SSE code ends with vzeroupper.
# Seen:   only from -O2 on. The pass that inserts it also asks for -fexpensive-optimizations, which -O1 and -Og do not set. No warning, and
#         -mvzeroupper on the command line changes nothing.
# Hurts:  libraries with kernels chosen at run time (target attributes in a baseline build), in debug builds. After the first kernel all
#         SSE code of the thread, libm's too, may wait for the upper halves at every instruction. Such a build looks hung.
# Mend:   -fexpensive-optimizations beside -O1 or -Og; or an explicit vzeroupper where the library returns to its caller.
#
# Needs Debian 12 (amd64) with apt-get and dpkg-deb. g++-12 is taken apart in a temporary folder; nothing is installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -o APT::Sandbox::User=root download -qq g++-12=12.2.0-14+deb12u1 >/dev/null
dpkg-deb -x ./g++-12_*.deb .
compiler=$(find . -name cc1plus -type f)
cat >kernel.cpp <<'CPP'
typedef float eight __attribute__((vector_size(32), aligned(4)));
__attribute__((target("avx2"))) void twice(float* x) { *reinterpret_cast<eight*>(x) *= 2; }
CPP
seen=
for flags in -O0 -Og -O1 "-O1 -mvzeroupper" "-O1 -fexpensive-optimizations" -O2 -O3; do
  # shellcheck disable=SC2086
  "$compiler" -quiet $flags kernel.cpp -o kernel.s
  grep -q ymm kernel.s || { echo "no 256-bit register at $flags: the example says nothing" >&2; exit 1; }
  seen+="$flags: $(grep -c vzeroupper kernel.s || true)"$'\n'
done
expected='-O0: 0
-Og: 0
-O1: 0
-O1 -mvzeroupper: 0
-O1 -fexpensive-optimizations: 1
-O2: 1
-O3: 1
'
printf 'g++ 12.2.0-14+deb12u1, vzeroupper instructions in the function:\n%s' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s' "$expected" >&2; exit 1; }
