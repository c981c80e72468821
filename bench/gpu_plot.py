#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws decode steps on a GPU by context length from the lines that bench/gpu.sh wrote; needs matplotlib.

    gpu_plot.py RESULTS FIGURE    e.g. gpu_plot.py bench/results/gpu_h200.jsonl docs/step_by_length_gpu.svg
"""
from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from matplotlib import pyplot

import step_lines
from measured import axis, refuse
from plot import beside_size, save, tidy

policies = {"dense": ("dense attention", "#000000", "o"), "pq_2x6": ("pq, 2 x 6 bits, 2048 tokens", "#D55E00", "^"),
            "pq_4x8_weighted_over_attended_int8": ("pq, defaults over 8-bit rows of as many bytes", "#0072B2", "s")}
budgets = {None, "2048", "3855"}  # attended tokens: none named for dense attention, 2048 rows of 16 bits, as many bytes of 8-bit rows


def lines_of(results: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Microseconds by length for each policy: one sequence, cold caches, as a model's layer finds them."""
    lines: dict[str, dict[int, float]] = {}
    for one in results:
        name = one.get("name", "")
        if name.startswith("decode_step/") and axis(name, "batch") == "1" and axis(name, "attended") in budgets:
            lines.setdefault(name.split("/")[1], {})[int(axis(name, "n") or 0)] = one["cold"]["us"]
    return {policy: dict(sorted(lines[policy].items())) for policy in policies if policy in lines}


def main() -> None:
    if len(sys.argv) != 3:
        refuse("usage: gpu_plot.py RESULTS FIGURE")
    results = [json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
    lines = lines_of(results)
    if not lines:
        refuse(f"{sys.argv[1]}: no decode step is in it")
    device = next(one["device"] for one in results if "device" in one)
    figure, axes = pyplot.subplots(figsize=beside_size, layout="constrained")
    for policy, line in lines.items():
        label, colour, mark = policies[policy]
        axes.plot(list(line), list(line.values()), color=colour, marker=mark, markersize=4, linewidth=1.5, label=label)
    rival = [one for one in results if one.get("name", "").startswith("torch sdpa cudnn/dense/h:")]
    if rival:
        axes.plot([int(axis(one["name"], "n") or 0) for one in rival], [one["cold"]["us"] for one in rival], linestyle="none", marker="X", markersize=8,
                  color="#777777", label="cuDNN, dense attention alone")
    lengths = sorted({n for line in lines.values() for n in line})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [step_lines.name_of_length(n) for n in lengths])
    axes.set_yscale("log")
    axes.minorticks_off()
    every = [us for line in lines.values() for us in line.values()]
    axes.set_ylim(min(every) * 0.7, max(every) * 8)  # room for the legend above the lines
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("context, tokens")
    axes.set_ylabel(f"decode step of one layer, {device}, us")
    tidy(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper left", borderaxespad=0)
    save(figure, pathlib.Path(sys.argv[2]))


if __name__ == "__main__":
    main()
