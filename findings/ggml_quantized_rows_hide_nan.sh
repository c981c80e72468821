#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ggml 0.13.1 (llama.cpp's): a NaN is an ordinary number after quantization, and ggml's own validation finds nothing.
#
# Guess:  a row with a NaN, stored as q8_0 or another of the cache types, comes back with NaN, at least in its block of 32; or
#         ggml_validate_row_data() says that it is broken, as it does for f16 and bf16.
# Seen:   no value is NaN, and the validation passes, in q8_0, q4_0, q4_1, q5_0, q5_1 and iq4_nl. The NaN becomes a value at the end of its
#         block's range; in q8_0 it becomes 0 by the reference code and another number by the CPU's own kernel (AVX2). In iq4_nl the whole block
#         becomes 0. An infinity, in contrast, breaks its block and is found.
# Hurts:  llama.cpp with --cache-type-k q8_0: keys with NaN turn into ordinary keys that attract attention, where an f16 cache would show NaN
#         logits at once.
# Mend:   check activations for NaN before they are stored, or run once with an f16 cache.
#
# Needs x86-64 Linux and python3 with pip. ggml's libraries are those inside the wheel of pywhispercpp, which is not run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64 -d . pywhispercpp==1.5.1
python3 -m zipfile -e pywhispercpp-*.whl ggml
cat >rows.py <<'PYTHON'
import ctypes as c, glob, math, random
base = c.CDLL(glob.glob("ggml/libggml-base.so.0.*")[0])
class traits(c.Structure):
    _fields_ = [("name", c.c_char_p), ("block", c.c_int64), ("interleaved", c.c_int64), ("size", c.c_size_t), ("is_quantized", c.c_bool),
                ("to_float", c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int64))]
base.ggml_version.restype = c.c_char_p
base.ggml_get_type_traits.restype = c.POINTER(traits)
base.ggml_quantize_chunk.argtypes = [c.c_int, c.c_void_p, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.c_void_p]
base.ggml_quantize_chunk.restype = c.c_size_t
base.ggml_validate_row_data.argtypes = [c.c_int, c.c_void_p, c.c_size_t]
base.ggml_validate_row_data.restype = c.c_bool
random.seed(1)
row = [random.gauss(0, 1) for _ in range(64)]
print("ggml", base.ggml_version().decode())
for kind in (1, 8, 2, 3, 6, 7, 20):  # of enum ggml_type
    about = base.ggml_get_type_traits(kind).contents
    said = []
    for what, bad in (("NaN", math.nan), ("infinity", math.inf)):
        floats, stored, back = (c.c_float * 64)(*row), (c.c_ubyte * 512)(), (c.c_float * 64)()
        floats[5] = bad
        size = base.ggml_quantize_chunk(kind, floats, stored, 0, 1, 64, None)
        about.to_float(c.addressof(stored), c.addressof(back), 64)
        valid = base.ggml_validate_row_data(kind, stored, size)
        said.append(f"{what}: {sum(not math.isfinite(x) for x in back)} of 64 not finite, {'valid' if valid else 'not valid'}")
    print(f"{about.name.decode()}: {'; '.join(said)}")
PYTHON
seen=$(LD_LIBRARY_PATH=ggml python3 -B rows.py 2>/dev/null)
expected='ggml 0.13.1
f16: NaN: 1 of 64 not finite, not valid; infinity: 1 of 64 not finite, not valid
q8_0: NaN: 0 of 64 not finite, valid; infinity: 32 of 64 not finite, not valid
q4_0: NaN: 0 of 64 not finite, valid; infinity: 32 of 64 not finite, not valid
q4_1: NaN: 0 of 64 not finite, valid; infinity: 32 of 64 not finite, not valid
q5_0: NaN: 0 of 64 not finite, valid; infinity: 32 of 64 not finite, not valid
q5_1: NaN: 0 of 64 not finite, valid; infinity: 32 of 64 not finite, not valid
iq4_nl: NaN: 0 of 64 not finite, valid; infinity: 32 of 64 not finite, not valid'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s\n' "$expected" >&2; exit 1; }
