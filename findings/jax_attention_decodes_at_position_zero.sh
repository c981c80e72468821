#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# jax.nn.dot_product_attention: a decoding step's query counts as token 0. With a window, or is_causal, it attends to the first key alone.
#
# Guess:  one query and nine keys are a decoding step: the query stands at the end, or at the end of the keys in use, where
#         query_seq_lengths and key_value_seq_lengths give them. local_window_size=(3, 0) means the last four keys.
# Seen:   jax 0.10.2 on a CPU counts queries and keys from 0, and no length moves them. The documentation describes the window around a
#         token, and names no position. A query whose keys are all masked gets the plain mean of all values, padding included.
# Hurts:  decoding with a cache, above all models with sliding windows: the result is the value row of the prompt's first token, finite and
#         of the right shape. Prefill and training are right, so that tests of the whole prompt pass.
# Mend:   give the mask by hand (mask=). Where rows may have no key, set them to zero, or weigh them by the log-sum-exp of return_residual.
#
# Needs python3 with venv. The packages are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import numpy as np
from jax.nn import dot_product_attention

draw = np.random.default_rng(1)
query, keys, values = (draw.standard_normal((1, n, 1, 8), np.float32) for n in (1, 9, 9))  # [batch, tokens, heads, head dimension]
logits = keys[0, :, 0] @ query[0, 0, 0] / 8**0.5

def by_hand(first, last, logits=logits):
    p = np.exp(logits[first:last + 1])
    return (p / p.sum()) @ values[0, first:last + 1, 0]

def attended(**options):  # which run of keys gives the result
    out = np.asarray(dot_product_attention(query, keys, values, **options))[0, 0, 0]
    found = [f"{first}..{last}" for last in range(9) for first in range(last + 1) if np.allclose(out, by_hand(first, last), atol=1e-5)]
    found += ["none, the mean of all values"] if np.allclose(out, values[0, :, 0].mean(0), atol=1e-5) else []
    return " or ".join(found) or "something else"

one, five, none = (jnp.array([n], jnp.int32) for n in (1, 5, 0))
print("no option:", attended())
print("local_window_size=(3, 0):", attended(local_window_size=(3, 0)))
print("is_causal:", attended(is_causal=True))
print("key_value_seq_lengths=5:", attended(key_value_seq_lengths=five))
print("key_value_seq_lengths=5, window (3, 0):", attended(key_value_seq_lengths=five, local_window_size=(3, 0)))
print("both lengths, 1 and 5, window (3, 0):", attended(query_seq_lengths=one, key_value_seq_lengths=five, local_window_size=(3, 0)))
window = (np.arange(9) > 0) & (np.arange(9) < 5)
print("key_value_seq_lengths=5, mask of tokens 1 to 4:", attended(key_value_seq_lengths=five, mask=window[None, None, None]))
print("key_value_seq_lengths=0:", attended(key_value_seq_lengths=none))
print("mask without a key:", attended(mask=np.zeros((1, 1, 1, 9), bool)))
PYTHON
)
expected='no option: 0..8
local_window_size=(3, 0): 0..0
is_causal: 0..0
key_value_seq_lengths=5: 0..4
key_value_seq_lengths=5, window (3, 0): 0..0
both lengths, 1 and 5, window (3, 0): 0..0
key_value_seq_lengths=5, mask of tokens 1 to 4: 1..4
key_value_seq_lengths=0: none, the mean of all values
mask without a key: none, the mean of all values'
printf 'jax 0.10.2, CPU, the keys that one query attends to, of nine:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
