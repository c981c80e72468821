# SPDX-License-Identifier: Apache-2.0
"""What the contests are timed on: the shaped keys of bench/data.hpp, made by numpy for all sides alike."""
from __future__ import annotations

import numpy as np


def clustered(heads: int, n: int, d: int, seed: int) -> np.ndarray:
    """Keys [heads, n, d] float32 in 256 clusters a head, spread 1 between and 0.7 inside them, offset of spread 2 per dimension."""
    out = np.empty((heads, n, d), np.float32)
    for head in range(heads):
        random = np.random.default_rng([seed, head])
        centres = 2 * random.standard_normal(d, np.float32) + random.standard_normal((256, d), np.float32)
        which = (np.arange(n, dtype=np.uint64) * 2654435761 >> 8) % 256
        random.standard_normal(out=out[head], dtype=np.float32)
        out[head] *= 0.7
        out[head] += centres[which]
    return out


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def bfloat16(numbers: np.ndarray) -> np.ndarray:
    """The bits [...] int16 of finite numbers, rounded to nearest even."""
    out = np.empty(numbers.shape, np.int16)
    for i in range(numbers.shape[0]):  # in parts: the numbers may fill gigabytes
        bits = numbers[i].view(np.uint32)
        out[i] = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)
    return out


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32."""
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
