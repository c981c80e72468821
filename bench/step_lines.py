# SPDX-License-Identifier: Apache-2.0
"""The lines of bench/step_by_length.cpp: seconds by length, for each policy and number of threads, and where they cross the dense one."""
from __future__ import annotations

import math
import statistics

from measured import axis, results

policies = {"full": "dense", "pq_tenth": "pq, a tenth of the tokens", "pq_2048": "pq, 2048 tokens",
            "pq_2x6_tenth": "2 x 6 bits, a tenth", "pq_2x6_2048": "2 x 6 bits, 2048"}
budget_text = "2048 tokens"


def label(policy: str, threads: int) -> str:
    return f"{policies.get(policy, policy)}, {threads} core{'s' if threads > 1 else ''}"


def name_of_length(n: int) -> str:
    return f"{n >> 20} M" if n % (1 << 20) == 0 else f"{n >> 10} K" if n % 1024 == 0 else str(n)


def lines_of(measured: results) -> dict[tuple[str, int], dict[int, float]]:
    lines: dict[tuple[str, int], dict[int, float]] = {}
    for name, runs in measured.runs.items():
        policy, threads, n = axis(name, "policy"), axis(name, "threads"), axis(name, "n")
        if name.startswith("step_by_length/") and policy and threads and n:
            scale = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}[runs[0]["time_unit"]]
            lines.setdefault((policy, int(threads)), {})[int(n)] = statistics.median(run["real_time"] for run in runs) * scale
    order = list(policies)
    return {key: dict(sorted(lines[key].items())) for key in sorted(lines, key=lambda key: (key[1], order.index(key[0]) if key[0] in order else 9))}


def crossings(lines: dict[tuple[str, int], dict[int, float]]) -> dict[tuple[str, int], float | None]:
    """The length from which on a policy stays faster than dense at as many threads, by 3 % at least, since equal work differs by as much
    from run to run; between two lengths by straight lines in logarithms."""
    found: dict[tuple[str, int], float | None] = {}
    for (policy, threads), line in lines.items():
        dense = lines.get(("full", threads))
        if policy == "full" or not dense:
            continue
        both = [n for n in line if n in dense]
        ahead = [math.log(dense[n] / line[n] / 1.03) for n in both]
        slower = [i for i, gain in enumerate(ahead) if gain <= 0]
        if not both or (slower and slower[-1] == len(both) - 1):
            found[policy, threads] = None
        elif not slower:
            found[policy, threads] = both[0]
        else:
            i = slower[-1]
            share = -ahead[i] / (ahead[i + 1] - ahead[i])
            found[policy, threads] = math.exp(math.log(both[i]) + share * math.log(both[i + 1] / both[i]))
    return found
