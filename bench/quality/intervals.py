# SPDX-License-Identifier: Apache-2.0
"""How sure a share of right answers is. Imported by the other scripts of this folder."""
from __future__ import annotations

import math

normal_quantile = 1.959964  # of 97.5 %


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score; 0 to 1 of nothing."""
    if of == 0:
        return 0.0, 1.0
    z, p = normal_quantile, right / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    scale = 1 / (1 + z * z / of)
    return (middle - half) * scale, (middle + half) * scale


def percent(right: int, of: int) -> str:
    """The interval in percent, as tables have it."""
    if of == 0:
        return "-"
    low, high = wilson(right, of)
    return f"{100 * low:.0f} to {100 * high:.0f}"


def sign_test(better: int, worse: int) -> float:
    """The probability, two-sided, of so uneven a split or a more uneven one, if either side were as likely: of the questions that exactly
    one of two settings answers, `better` are answered by the first and `worse` by the second. 1 of none."""
    of = better + worse
    tail = sum(math.comb(of, i) for i in range(min(better, worse) + 1)) / 2**of
    return min(1.0, 2 * tail)
