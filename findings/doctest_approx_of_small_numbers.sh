#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# doctest 2.4.9: Approx takes small numbers for equal, whatever their ratio.
#
# Guess:  CHECK(x == doctest::Approx(y)) bounds the relative error, by 1.2e-5, or by what epsilon() says, as Catch2's Approx does.
# Seen:   the bound is epsilon * (1 + max(|x|, |y|)): absolute where numbers are below 1. So 1e-6 equals 5e-6, -3e-6 equals 3e-6, 0 equals
#         1e-5; with epsilon(1e-3) 0.0002 equals 0.0009.
# Hurts:  tests of kernels whose results are small: probabilities of thousands of tokens, softmax tails, outputs before a scale. A wrong sign
#         passes, and so does zero.
# Mend:   Approx(y).scale(0) is relative; or compare the error with a bound of one's own.
#
# Needs Debian 12 with apt-get, dpkg-deb and g++. doctest-dev is taken apart in a temporary folder; nothing is installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -o APT::Sandbox::User=root download -qq doctest-dev=2.4.9~ds-1 >/dev/null
dpkg-deb -x ./doctest-dev_*.deb .
cat >approx.cpp <<'CPP'
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <cstdio>
int main() {
  using doctest::Approx;
  const struct { double x, y; } pairs[] = {{1e-6, 5e-6}, {-3e-6, 3e-6}, {0, 1e-5}, {2e-4, 9e-4}, {200, 900}};
  for (const auto& [x, y] : pairs)
    std::printf("%g and %g: default %d, epsilon 1e-3 %d, epsilon 1e-3 and scale 0 %d\n", x, y, x == Approx(y), x == Approx(y).epsilon(1e-3),
                x == Approx(y).epsilon(1e-3).scale(0));
}
CPP
g++ -std=c++17 -O0 -Iusr/include approx.cpp -o approx
seen=$(./approx)
expected='1e-06 and 5e-06: default 1, epsilon 1e-3 1, epsilon 1e-3 and scale 0 0
-3e-06 and 3e-06: default 1, epsilon 1e-3 1, epsilon 1e-3 and scale 0 0
0 and 1e-05: default 1, epsilon 1e-3 1, epsilon 1e-3 and scale 0 0
0.0002 and 0.0009: default 0, epsilon 1e-3 1, epsilon 1e-3 and scale 0 0
200 and 900: default 0, epsilon 1e-3 0, epsilon 1e-3 and scale 0 0'
printf 'doctest 2.4.9, 1: taken for equal:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
