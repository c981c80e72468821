#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# transformers' QuantizedCache: crop(-10) of 45 tokens removes the five that are not quantized yet, and get_seq_length() stays 45.
#
# Guess:  crop() and batch_select_indices() act on all tokens, as those of DynamicCache and StaticCache do, or raise.
# Seen:   5.24.0 with optimum-quanto 0.2.7 inherits both from the plain cache: they change the unquantized rest, at most residual_length - 1
#         tokens. crop(-10) leaves the 40 quantized ones, and the positions of what follows go on behind 45. batch_select_indices([1, 0])
#         exchanges the newest tokens of the two sequences and leaves the old ones, so each continues the other. No error, no warning.
#         is_croppable is False, which generate() heeds; crop() does not look at it. reorder_cache(), for beams, is right.
# Hurts:  code that goes back to a shared prompt, rejects draft tokens or drops finished sequences by its own loop: text that drifts, and
#         looks like the price of 4 bits.
# Mend:   copy the cache before (copy.deepcopy); or look at is_croppable, and build the cache again.
#
# Needs python3 with venv, and 8 GB of disk: PyPI's torch comes with the libraries of CUDA. The packages are installed from PyPI in a
# temporary folder. No GPU is used.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: numpy==2.4.6 torch==2.15.0 transformers==5.24.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --no-deps optimum-quanto==0.2.7
seen=$("$folder/venv/bin/python" -W ignore 2>/dev/null - <<'PYTHON'
import torch
from transformers import DynamicCache, LlamaConfig, QuantizedCache

config = LlamaConfig(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=128, head_dim=64)
draw = torch.Generator().manual_seed(1)
rows = lambda n: torch.randn(2, 2, n, 64, generator=draw)  # [sequences, heads, tokens, head dimension]
prompt, new, later = rows(40), rows(5), rows(1)

def filled(cache):
    cache.update(prompt, prompt, 0)
    for t in range(5):
        cache.update(new[:, :, t:t + 1], new[:, :, t:t + 1], 0)
    return cache

for name, make in (("DynamicCache", DynamicCache), ("QuantizedCache", lambda: QuantizedCache("quanto", config, residual_length=16))):
    cropped = filled(make())
    cropped.crop(-10)
    length = cropped.get_seq_length()
    keys = cropped.update(later, later, 0)[0]
    print(f"{name}: of 45 tokens crop(-10) leaves, by get_seq_length() {length}, in the keys of the next step {keys.shape[2] - 1}; "
          f"is_croppable {cropped.is_croppable}")
    selected = filled(make())
    selected.batch_select_indices(torch.tensor([1, 0]))
    keys = selected.update(later, later, 0)[0]
    of = lambda part, whole: [min((0, 1), key=lambda s: (row - whole[s]).norm().item()) for row in part]
    print(f"  after batch_select_indices([1, 0]) the prompts are those of sequences {of(keys[:, :, :40], prompt)}, "
          f"the new tokens those of {of(keys[:, :, 40:45], new)}")
PYTHON
)
expected='DynamicCache: of 45 tokens crop(-10) leaves, by get_seq_length() 35, in the keys of the next step 35; is_croppable True
  after batch_select_indices([1, 0]) the prompts are those of sequences [1, 0], the new tokens those of [1, 0]
QuantizedCache: of 45 tokens crop(-10) leaves, by get_seq_length() 45, in the keys of the next step 40; is_croppable False
  after batch_select_indices([1, 0]) the prompts are those of sequences [0, 1], the new tokens those of [1, 0]'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
