# SPDX-License-Identifier: Apache-2.0
"""ggml's flash attention on the CPU, one query of each head, without a mask: through ctypes, from an installed llama.cpp. Its context grows a
little with every run, by ggml's work buffer; the room for that is enough for thousands."""
from __future__ import annotations

import ctypes
import math
import os
import pathlib
from typing import Any, Callable

import numpy as np

types = {"float16": 1, "bfloat16": 30}  # GGML_TYPE_F16, GGML_TYPE_BF16


class init_params(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def folder() -> pathlib.Path | None:
    """Where libggml lies: PQKV_GGML, or what examples/llama_cpp/run.sh has installed."""
    cache = os.environ.get("PQKV_MODELS") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pqkv-models")
    wanted = [pathlib.Path(os.environ["PQKV_GGML"])] if "PQKV_GGML" in os.environ else sorted(pathlib.Path(cache).glob("llama.cpp-*/lib"))
    return next((path for path in wanted if (path / "libggml-cpu.so").exists()), None)


class ggml:
    """Its two libraries, and their functions with the types of ggml.h."""

    def __init__(self, path: pathlib.Path):
        self.name = path.parent.name
        base = ctypes.CDLL(str(path / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        cpu = ctypes.CDLL(str(path / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        pointer, size, whole, real = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_float
        for where, name, result, arguments in (
                (base, "ggml_init", pointer, [init_params]), (base, "ggml_free", None, [pointer]),
                (base, "ggml_new_tensor_4d", pointer, [pointer, ctypes.c_int] + [whole] * 4),
                (base, "ggml_view_4d", pointer, [pointer, pointer] + [whole] * 4 + [size] * 4),
                (base, "ggml_flash_attn_ext", pointer, [pointer] * 5 + [real] * 3),
                (base, "ggml_get_data", pointer, [pointer]), (base, "ggml_new_graph", pointer, [pointer]),
                (base, "ggml_build_forward_expand", None, [pointer, pointer]),
                (cpu, "ggml_graph_compute_with_ctx", ctypes.c_int, [pointer, pointer, ctypes.c_int])):
            function = getattr(where, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


class attention:
    """One query of each head over all rows: rows [h, n, 2, d] of 16 bits, K and V of a token side by side; queries [h * g, d] float."""

    def __init__(self, library: ggml, kind: str, rows: np.ndarray, queries: np.ndarray):
        h, n, _, d = rows.shape
        heads = len(queries)
        self.library, self.out = library, np.empty((heads, d), np.float32)
        self.context = library.ggml_init(init_params(rows.nbytes + queries.nbytes * 64 + (64 << 20), None, False))
        if not self.context:
            raise MemoryError("ggml_init")
        stored = library.ggml_new_tensor_4d(self.context, types[kind], d, 2, n, h)
        asked = library.ggml_new_tensor_4d(self.context, 0, d, 1, heads, 1)
        ctypes.memmove(library.ggml_get_data(stored), rows.ctypes.data, rows.nbytes)
        ctypes.memmove(library.ggml_get_data(asked), queries.ctypes.data, queries.nbytes)
        row, head = 2 * d * 2, n * 2 * d * 2
        keys, values = (library.ggml_view_4d(self.context, stored, d, n, h, 1, row, head, h * head, offset) for offset in (0, d * 2))
        self.result = library.ggml_flash_attn_ext(self.context, asked, keys, values, None, 1 / math.sqrt(d), 0.0, 0.0)
        self.graph = library.ggml_new_graph(self.context)
        library.ggml_build_forward_expand(self.graph, self.result)

    def run(self) -> None:
        if self.library.ggml_graph_compute_with_ctx(self.context, self.graph, 1) != 0:
            raise RuntimeError("ggml_graph_compute_with_ctx")

    def read(self) -> np.ndarray:
        self.run()
        ctypes.memmove(self.out.ctypes.data, self.library.ggml_get_data(self.result), self.out.nbytes)  # [1, heads, d]
        return self.out

    def close(self) -> None:
        self.library.ggml_free(self.context)


def installed() -> Callable[[], Any] | None:
    path = folder()
    return ggml(path) if path else None
