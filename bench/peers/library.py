# SPDX-License-Identifier: Apache-2.0
"""ours.cpp's functions for Python: numpy arrays in, exceptions out."""
from __future__ import annotations

import ctypes
import pathlib
from typing import Any

handles = {"ours_search", "ours_layer"}
texts = {"ours_error", "ours_version", "ours_compiler"}


def address(array: Any) -> ctypes.c_void_p:
    assert array.flags["C_CONTIGUOUS"], "a C array has no strides"
    return ctypes.c_void_p(array.ctypes.data)


class library:
    """library(path).top_k(scores, n, k, indices, times): arrays become pointers, whole numbers size_t; handles are passed as they are."""

    def __init__(self, path: pathlib.Path):
        self.loaded = ctypes.CDLL(str(path.resolve()))
        for name in texts:
            getattr(self.loaded, name).restype = ctypes.c_char_p
        for name in handles:
            getattr(self.loaded, name).restype = ctypes.c_void_p
            getattr(self.loaded, name + "_free").restype = None

    def text(self, name: str) -> str:
        return getattr(self.loaded, "ours_" + name)().decode()

    def bound(self, name: str, *arguments: Any) -> Any:
        """The call with its arguments made ready, so that a timed loop only calls; append more whole numbers when calling."""
        function = getattr(self.loaded, "ours_" + name)
        ready = [x if isinstance(x, ctypes.c_void_p) else ctypes.c_size_t(x) if isinstance(x, int) else address(x) for x in arguments]

        def call(*more: int) -> None:
            if function(*ready, *map(ctypes.c_size_t, more)) != 0:
                raise RuntimeError(f"{name}: {self.text('error')}")
        call.arrays = arguments  # they must live as long as the call
        return call

    def make(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        ready = [ctypes.c_size_t(x) if isinstance(x, int) else address(x) for x in arguments]
        handle = getattr(self.loaded, "ours_" + name)(*ready)
        if not handle:
            raise RuntimeError(f"{name}: {self.text('error')}")
        return ctypes.c_void_p(handle)

    def free(self, name: str, handle: ctypes.c_void_p) -> None:
        getattr(self.loaded, f"ours_{name}_free")(handle)
