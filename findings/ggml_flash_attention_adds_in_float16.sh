#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ggml 0.13.1 (llama.cpp's) on a CPU: flash attention of a decode step over a float16 cache is wrong from some thousand tokens on.
#
# Guess:  ggml_flash_attn_ext adds weighted values in float, at the latest when GGML_PREC_F32 is asked for. Errors are those of float16 inputs,
#         below 1 %, at every length.
# Seen:   with few queries it adds them in float16, unnormalised. Values of 1 under equal logits give 0.5 at 4096 tokens, 0.25 at 8192 and 0.06 at
#         32768, twice that with two threads. Normal keys, queries and values: 8 % off at 8192, 36 % at 32768. GGML_PREC_F32 changes nothing. 64
#         queries at once, as in a prefill, are right, and so is a bfloat16 cache.
# Hurts:  long contexts on CPUs with llama.cpp's default cache type, in heads that attend broadly; and everyone who takes ggml's attention as the
#         reference of a faster one. A context prefilled densely and then decoded changes arithmetic at the first new token.
# Mend:   --cache-type-k bf16 --cache-type-v bf16; compare with float64.
#
# Needs x86-64 Linux and python3 (3.10 or newer) with venv and pip. ggml's libraries are those inside the wheel of pywhispercpp.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv v
v/bin/pip -q --disable-pip-version-check install numpy==2.2.6 >/dev/null
v/bin/pip -q --disable-pip-version-check download --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64 -d . \
  pywhispercpp==1.5.1 >/dev/null
python3 -m zipfile -e pywhispercpp-*.whl ggml
cat >attend.py <<'PYTHON'
import ctypes as c, glob
import numpy as np
base = c.CDLL(glob.glob("ggml/libggml-base.so.0.*")[0], mode=c.RTLD_GLOBAL)
cpu = c.CDLL(glob.glob("ggml/libggml-cpu.so.0.*")[0], mode=c.RTLD_GLOBAL)
class init_params(c.Structure):
    _fields_ = [("size", c.c_size_t), ("memory", c.c_void_p), ("no_alloc", c.c_bool)]
def function(library, name, result, *arguments):
    f = getattr(library, name)
    f.restype, f.argtypes = result, list(arguments)
    return f
p, f = c.c_void_p, c.c_float
init = function(base, "ggml_init", p, init_params)
tensor = function(base, "ggml_new_tensor_4d", p, p, c.c_int, *[c.c_int64] * 4)
data, size = function(base, "ggml_get_data", p, p), function(base, "ggml_nbytes", c.c_size_t, p)
flash = function(base, "ggml_flash_attn_ext", p, p, p, p, p, p, f, f, f)
precision = function(base, "ggml_flash_attn_ext_set_prec", None, p, c.c_int)
graph, add = function(base, "ggml_new_graph", p, p), function(base, "ggml_build_forward_expand", None, p, p)
compute = function(cpu, "ggml_graph_compute_with_ctx", c.c_int, p, p, c.c_int)
base.ggml_version.restype = c.c_char_p
cpu.ggml_cpu_init()
def bfloat16(x):
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)
stored = {"float16": (1, lambda x: x.astype(np.float16)), "bfloat16": (30, bfloat16)}
def attend(query, keys, values, kind="float16", threads=1, exact=False):
    """The first query's output. query [queries, d], keys and values [n, d]."""
    context = init(init_params(8 * keys.size + (1 << 26), None, False))
    def put(type_, array):
        array = np.ascontiguousarray(array)
        t = tensor(context, type_, array.shape[1], array.shape[0], 1, 1)
        assert size(t) == array.nbytes
        c.memmove(data(t), array.ctypes.data, array.nbytes)
        return t
    type_, convert = stored[kind]
    out = flash(context, put(0, query.astype(np.float32)), put(type_, convert(keys)), put(type_, convert(values)), None, query.shape[1] ** -0.5, 0, 0)
    if exact:
        precision(out, 10)  # GGML_PREC_F32
    g = graph(context)
    add(g, out)
    compute(context, g, threads)
    return np.ctypeslib.as_array((f * query.shape[1]).from_address(data(out))).astype(np.float64)
d, random = 64, np.random.default_rng(0)
print("ggml", base.ggml_version().decode())
for n in (2048, 4096, 8192, 32768):
    zero, keys, ones = np.zeros((1, d)), np.zeros((n, d)), np.ones((n, d))
    found = [("float16", attend(zero, keys, ones)), ("two threads", attend(zero, keys, ones, threads=2)), ("GGML_PREC_F32", attend(zero, keys, ones, exact=True)),
             ("64 queries", attend(np.zeros((64, d)), keys, ones)), ("bfloat16", attend(zero, keys, ones, "bfloat16"))]
    query, keys, values = random.standard_normal((1, d)), random.standard_normal((n, d)), random.standard_normal((n, d)) + 0.5
    logits = keys.astype(np.float16).astype(np.float64) @ query[0] / d ** 0.5
    weights = np.exp(logits - logits.max())
    right = weights / weights.sum() @ values.astype(np.float16).astype(np.float64)
    off = [np.linalg.norm(attend(query, keys, values, kind) - right) / np.linalg.norm(right) for kind in stored]
    print(f"{n}: values of 1 give " + ", ".join(f"{what} {value[0]:.2f}" for what, value in found)
          + "; normal ones are off by " + ", ".join(f"{'more' if x > 0.01 else 'less'} than 1 % in {kind}" for kind, x in zip(stored, off)))
PYTHON
seen=$(LD_LIBRARY_PATH=ggml v/bin/python -B attend.py)
right='64 queries 1.00, bfloat16 1.00; normal ones are off by'
expected="ggml 0.13.1
2048: values of 1 give float16 1.00, two threads 1.00, GGML_PREC_F32 1.00, $right less than 1 % in float16, less than 1 % in bfloat16
4096: values of 1 give float16 0.50, two threads 1.00, GGML_PREC_F32 0.50, $right more than 1 % in float16, less than 1 % in bfloat16
8192: values of 1 give float16 0.25, two threads 0.50, GGML_PREC_F32 0.25, $right more than 1 % in float16, less than 1 % in bfloat16
32768: values of 1 give float16 0.06, two threads 0.12, GGML_PREC_F32 0.06, $right more than 1 % in float16, less than 1 % in bfloat16"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
