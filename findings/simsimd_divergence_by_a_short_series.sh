#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SimSIMD: kullbackleibler() of float32 and float64 arrays is wrong by half to a factor of 30000 on a CPU with AVX2. That of the same
# numbers in float16 is right.
#
# Guess:  wider types are as exact or more: float64 to many digits, float32 to six, float16 to three.
# Seen:   6.5.16 has a vector kernel for float16 there. The plain code, which the wider types get, has the first three terms of the series
#         of the logarithm around 1, for any argument: 0.216 for (0.5, 0.5) and (0.25, 0.75), where 0.144 is right, and 30000 for two
#         random distributions. jensenshannon() is up to a tenth too large. Nothing warns. NumKong 7.8.6, its successor, is right.
# Hurts:  comparisons of attention or token distributions with those of a dense cache: Kullback-Leibler divergences that depend on the
#         type, and grow without bound where one probability is much smaller than the other.
# Mend:   numkong; or scipy.stats.entropy.
#
# Needs python3 with venv, and a CPU with AVX2 (amd64); kernels for newer ones are turned off here. The packages are installed from PyPI in
# a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 scipy==1.17.1 simsimd==6.5.16 numkong==7.8.6
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import numkong
import numpy as np
import simsimd
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

for kernels in ("skylake", "ice", "genoa", "sapphire", "turin", "sierra"):
    simsimd.disable_capability(kernels)
draw = np.random.default_rng(0)
pairs = {"(0.5, 0.5), (0.25, 0.75)": ([0.5, 0.5], [0.25, 0.75])}
for n in (8, 64):
    pairs[f"two random distributions of {n}"] = draw.dirichlet(np.ones(n)), draw.dirichlet(np.ones(n))
for name, (p, q) in pairs.items():
    for kind in (np.float64, np.float32, np.float16):
        a, b = np.array(p, kind), np.array(q, kind)
        wide = a.astype(float), b.astype(float)
        series = sum(x * (y - y**2 / 2 + y**3 / 3) for x, y in zip(wide[0], wide[0] / wide[1] - 1))
        print(f"{name}, {kind.__name__}: KL scipy {entropy(*wide):.2f}, SimSIMD {simsimd.kullbackleibler(a, b):.3g}, NumKong "
              f"{numkong.kullbackleibler(a, b):.2f}, by three terms {series:.3g}; JS scipy {jensenshannon(*wide):.2f}, SimSIMD "
              f"{simsimd.jensenshannon(a, b):.2f}")
PYTHON
)
expected='(0.5, 0.5), (0.25, 0.75), float64: KL scipy 0.14, SimSIMD 0.216, NumKong 0.14, by three terms 0.216; JS scipy 0.18, SimSIMD 0.19
(0.5, 0.5), (0.25, 0.75), float32: KL scipy 0.14, SimSIMD 0.216, NumKong 0.14, by three terms 0.216; JS scipy 0.18, SimSIMD 0.19
(0.5, 0.5), (0.25, 0.75), float16: KL scipy 0.14, SimSIMD 0.144, NumKong 0.14, by three terms 0.216; JS scipy 0.18, SimSIMD 0.18
two random distributions of 8, float64: KL scipy 1.31, SimSIMD 3.17e+04, NumKong 1.31, by three terms 3.17e+04; JS scipy 0.44, SimSIMD 0.48
two random distributions of 8, float32: KL scipy 1.31, SimSIMD 3.17e+04, NumKong 1.31, by three terms 3.17e+04; JS scipy 0.44, SimSIMD 0.48
two random distributions of 8, float16: KL scipy 1.31, SimSIMD 1.31, NumKong 1.31, by three terms 3.17e+04; JS scipy 0.44, SimSIMD 0.44
two random distributions of 64, float64: KL scipy 0.96, SimSIMD 2.96e+04, NumKong 0.96, by three terms 2.96e+04; JS scipy 0.43, SimSIMD 0.47
two random distributions of 64, float32: KL scipy 0.96, SimSIMD 2.96e+04, NumKong 0.96, by three terms 2.96e+04; JS scipy 0.43, SimSIMD 0.47
two random distributions of 64, float16: KL scipy 0.96, SimSIMD 0.957, NumKong 0.96, by three terms 2.96e+04; JS scipy 0.43, SimSIMD 0.43'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
