#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# mlx 0.32.4: mx.load() of a GGUF file stops at the first tensor in MXFP4, NVFP4 or a ternary type. It and all behind it are missing.
#
# Guess:  a type that mx.load() does not know raises, as Q5_0 and IQ4_NL do; and BF16 stays bfloat16, as it does in safetensors files.
# Seen:   a type newer than the reader's table ends the list of tensors, as if the file had no more: of four tensors one comes back, and a file whose
#         first tensor is in MXFP4 is an empty dictionary. No error, no warning. BF16 becomes float16: 1e5 and 3e38
#         are infinite, 1e-9 is 0. (The documentation says that of quantized types that have no counterpart.)
# Hurts:  weights of models in MXFP4 (gpt-oss) and activations or caches kept in GGUF: a loader that goes through the dictionary, or load_weights(...,
#         strict=False), leaves layers as they were made. Outlier channels of bfloat16 become infinite.
# Mend:   compare the names with those of gguf.GGUFReader; write BF16 as F32, or into a safetensors file.
#
# Needs x86-64 Linux and python3 (3.10 or newer) with venv and pip.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install --only-binary :all: numpy==2.4.6 gguf==0.19.0 "mlx[cpu]==0.32.4" >/dev/null
cat >loaded.py <<'PYTHON'
import gguf
import mlx.core as mx
import numpy as np
kinds = gguf.GGMLQuantizationType
rows = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
def load(*tensors):
    writer = gguf.GGUFWriter("file.gguf", "llama")
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert [t.name for t in gguf.GGUFReader("file.gguf").tensors] == [t[0] for t in tensors]
    return mx.load("file.gguf")
for kind in (kinds.Q8_0, kinds.BF16, kinds.Q5_0, kinds.MXFP4, kinds.NVFP4, kinds.TQ2_0):
    try:
        stored = gguf.quants.quantize(rows, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = np.zeros((4, 256 // block * size), np.uint8)
    try:
        found = load(("a", rows, None), ("b", stored, kind), ("c", rows, None), ("d", rows, None))
        print(f"a, b in {kind.name}, c, d: loaded {', '.join(name for name in 'abcd' if name in found)}")
    except RuntimeError as error:
        print(f"a, b in {kind.name}, c, d: {error}")
found = load(("b", gguf.quants.quantize(np.array([1e5, 3e38, 1e-9, 1.5] * 8, np.float32), kinds.BF16), kinds.BF16))["b"]
print(f"1e5, 3e38, 1e-9 and 1.5 in BF16: {', '.join(map(str, found[:4].tolist()))} in {found.dtype}")
PYTHON
seen=$(v/bin/python -B loaded.py 2>/dev/null)
expected='a, b in Q8_0, c, d: loaded a, b, c, d
a, b in BF16, c, d: loaded a, b, c, d
a, b in Q5_0, c, d: [load_gguf] gguf_tensor_to_f16 failed
a, b in MXFP4, c, d: loaded a
a, b in NVFP4, c, d: loaded a
a, b in TQ2_0, c, d: loaded a
1e5, 3e38, 1e-9 and 1.5 in BF16: inf, inf, 0.0, 1.5 in mlx.core.float16'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
