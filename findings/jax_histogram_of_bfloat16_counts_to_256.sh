#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax.numpy.histogram of bfloat16 numbers: no bin counts more than 256.
#
# Guess:  counts are integers, as numpy's are, or float32. Sums by group (segment_sum) and by block (reduce_window) add in float32 and round once, as
#         sum(), mean(), dot() and cumsum() of jax do.
# Seen:   jax 0.10.2 on a CPU counts in the type of the numbers. A bin of bfloat16 stays at 256, one of float16 at 2048, so a normal distribution's
#         histogram is flat. segment_sum, .at[].add() and reduce_window stall in the same way. float32 stops at 16777216. No warning; jit changes
#         nothing.
# Hurts:  quantizers that are calibrated by a histogram of activations: the clipping range comes from a flat distribution. Centroids and means of
#         blocks of keys, by segment_sum or reduce_window, of more than 256 rows: too small.
# Mend:   astype(float32) first; for histogram(), weights=jnp.ones(x.shape, jnp.float32) is enough.
#
# Needs x86-64 Linux and python3 (3.11 or newer) with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install --only-binary :all: numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2 >/dev/null
cat >counts.py <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
print("jax", jax.__version__)
numbers = np.random.default_rng(0).standard_normal(100000)
for kind in ("float32", "float16", "bfloat16"):
    x, ones = jnp.asarray(numbers, kind), jnp.ones(100000, kind)
    counts = jnp.histogram(x, bins=8)[0]
    groups = jax.ops.segment_sum(ones, jnp.zeros(100000, int), num_segments=1)
    block = jax.lax.reduce_window(jnp.ones(10000, kind), jnp.asarray(0, kind), jax.lax.add, (10000,), (10000,), "valid")
    print(f"{kind}: histogram {' '.join(f'{float(c):.0f}' for c in counts)}; segment_sum of 100000 ones {float(groups[0]):.0f}, "
          f"reduce_window of 10000 {float(block[0]):.0f}, sum of 10000 {float(ones[:10000].sum()):.0f}")
PYTHON
seen=$(JAX_PLATFORMS=cpu v/bin/python -B counts.py 2>/dev/null)
expected='jax 0.10.2
float32: histogram 38 1469 13540 39704 35165 9309 746 29; segment_sum of 100000 ones 100000, reduce_window of 10000 10000, sum of 10000 10000
float16: histogram 38 1465 2048 2048 2048 2048 752 29; segment_sum of 100000 ones 2048, reduce_window of 10000 9992, sum of 10000 10000
bfloat16: histogram 37 256 256 256 256 256 256 31; segment_sum of 100000 ones 256, reduce_window of 10000 256, sum of 10000 9984'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
