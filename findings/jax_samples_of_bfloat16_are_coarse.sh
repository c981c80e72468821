#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax.random.categorical: from bfloat16 logits, a token of 29 % is drawn in 95 % of all draws, and rare tokens of high ids never.
#
# Guess:  random numbers are made in float32 and rounded, so tokens have their softmax's shares, whatever the logits' type. What the documentation
#         says of bias is about probabilities below 1e-7, in float32.
# Seen:   jax 0.10.2 draws its noise in the type of the logits, from a uniform number with the 7 bits of bfloat16: it has at most 128 values, and of
#         equal sums the lowest id wins. A thousand tokens of together 71 % get 5 %. Of 32000 equal tokens all that are drawn have ids below 1000.
#         float16 is biased too. random.normal() in bfloat16 has 128 values, none beyond 2.9 in a million, and a mean of -0.012. Reported for
#         0.7.0 and closed (jax issue 30879).
# Hurts:  sampling from the logits that a bfloat16 model returns: text is too sure of itself, as if at a lower temperature. Tests of quantization with
#         bfloat16 normal() keys have no outliers.
# Mend:   logits.astype(float32); or mode="high". normal() in float32, then astype.
#
# Needs x86-64 Linux and python3 (3.11 or newer) with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install --only-binary :all: numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2 >/dev/null
cat >draws.py <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
key = jax.random.key(0)
logits = np.array([0.0] + [-6.0] * 1000)  # one token of 28.7 %, and a thousand that share the rest
print("jax", jax.__version__)
for kind in ("float32", "float16", "bfloat16"):
    def drawn(logits, **how):
        return np.asarray(jax.random.categorical(key, jnp.asarray(logits, kind), shape=(4000,), **how))
    equal, tokens, high = drawn(np.zeros(32000)), drawn(logits), drawn(logits, mode="high")
    normal = np.asarray(jax.random.normal(key, (1000000,), kind)).astype(np.float64)
    values = len(np.unique(normal))
    print(f"{kind}: {100 * np.mean(equal < 1000):.0f} % of tokens below 1000 of 32000 equal ones; {100 * np.mean(tokens == 0):.0f} % token 0, "
          f"mode=\"high\" {100 * np.mean(high == 0):.0f} %; normal() has {values if values < 2000 else '2000 or more'} values "
          f"from {normal.min():.1f} to {normal.max():.1f}, mean {normal.mean():.3f}")
PYTHON
seen=$(JAX_PLATFORMS=cpu v/bin/python -B draws.py 2>/dev/null)
expected='jax 0.10.2
float32: 3 % of tokens below 1000 of 32000 equal ones; 29 % token 0, mode="high" 28 %; normal() has 2000 or more values from -4.6 to 4.5, mean 0.000
float16: 63 % of tokens below 1000 of 32000 equal ones; 44 % token 0, mode="high" 30 %; normal() has 1024 values from -3.5 to 3.2, mean -0.002
bfloat16: 100 % of tokens below 1000 of 32000 equal ones; 95 % token 0, mode="high" 28 %; normal() has 128 values from -2.9 to 2.5, mean -0.012'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
