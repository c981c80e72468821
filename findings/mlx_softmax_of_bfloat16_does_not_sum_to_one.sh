#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# mlx 0.32.4 on a CPU: the softmax of 4096 bfloat16 logits adds up to 2.4, that of equal ones to 16.
#
# Guess:  softmax adds in float and rounds at the end, as sum(), mean(), logsumexp() and matmul of mlx do, so the weights add up to 1 within a
#         few thousandths.
# Seen:   without precise=True the sum of the exponentials is a bfloat16 too, and stalls. Its documentation says that this "can lose precision
#         over long reduction axes"; the loss is a factor: 1.4 for 1000 normal logits, 2.4 for 4096, n / 256 for n equal ones. float16 follows
#         from some 2000 on. fast.scaled_dot_product_attention is right.
# Hurts:  attention written out as products and a softmax, as in ports and tests of long contexts: outputs are too large by a factor that grows
#         with the context, and short tests pass.
# Mend:   softmax(x, axis, precise=True), or fast.scaled_dot_product_attention.
#
# Needs x86-64 Linux and python3 with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install "mlx[cpu]==0.32.4" >/dev/null
cat >sums.py <<'PYTHON'
import mlx.core as mx
for n in (256, 1000, 4096):
    logits = mx.random.normal((n,), key=mx.random.key(1)).astype(mx.bfloat16)
    total = lambda x, **how: mx.softmax(x, **how).astype(mx.float32).sum().item()
    ones = mx.ones((1, 1, n, 64), dtype=mx.bfloat16)
    attended = mx.fast.scaled_dot_product_attention(ones[:, :, :1], mx.random.normal((1, 1, n, 64), key=mx.random.key(2)).astype(mx.bfloat16), ones, scale=0.125)
    print(f"{n}: equal logits {total(mx.zeros((n,), dtype=mx.bfloat16)):.1f}, normal ones {total(logits):.1f}, precise {total(logits, precise=True):.1f}, "
          f"attention to ones {attended[0, 0, 0, 0].item():.1f}")
PYTHON
seen=$(v/bin/python -B sums.py)
expected='256: equal logits 1.0, normal ones 1.0, precise 1.0, attention to ones 1.0
1000: equal logits 3.9, normal ones 1.4, precise 1.0, attention to ones 1.0
4096: equal logits 16.0, normal ones 2.4, precise 1.0, attention to ones 1.0'
printf 'mlx 0.32.4, CPU, sums of the weights:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
