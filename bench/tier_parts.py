#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the parts of a decode step take whose rows are in pinned host memory, from the lines of bench/cuda/tiered_step.cu.

    tier_parts.py RESULTS [--figure FILE.svg]    e.g. tier_parts.py bench/results/gpu_h200.jsonl --figure docs/tier_step.svg

Parts are differences of measurements, all with what fits in the GPU's L2 cache there (warm). attend: attention alone to as many rows on the
GPU (attend_on_gpu); score: the step with all rows on the GPU, less attend: the start of the graph, append, plan, selection and counts; fetch:
the step over tiers in which no block enters (without_update), less the step with all rows on the GPU; update: the step over tiers, less that.
Without the third of these, what updates take counts as fetch. Read differences below a microsecond as none. Prints a table and draws it with --figure, which needs matplotlib.
"""
from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from measured import axis, refuse
from step_lines import name_of_length

kinds = {"no_cache": "none cached", "kept:5": "kept:5", "kept:7": "kept:7"}
parts = {"score": "#999999", "attend": "#0072B2", "fetch": "#D55E00", "update": "#009E73"}


def read_steps(path: pathlib.Path) -> tuple[str, dict[int, dict[str, float]], dict[str, float]]:
    """The device; microseconds of each measured part by length; hit rates by benchmark."""
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        refuse(f"{path}: {error}")
    device = "GPU"
    steps: dict[int, dict[str, float]] = {}
    hits: dict[str, float] = {}
    for one in lines:
        device = one.get("device", device)
        if "tier" in one:
            hits[one["tier"]] = one["hit_rate"]
        name = one.get("name", "")
        if name.startswith("tiered_step/"):
            steps.setdefault(int(axis(name, "n") or 0), {})[name.removeprefix("tiered_step/").split("/h:")[0]] = one["us"]
    return device, dict(sorted(steps.items())), {f"{name.split('/')[1]} {axis(name, 'n')}": rate for name, rate in hits.items()}


def split(step: dict[str, float], kind: str) -> dict[str, float] | None:
    names = ("attend_on_gpu", "all_on_gpu", kind)
    if any(name not in step for name in names):
        return None
    attend, on_gpu, whole = (step[name] for name in names)
    fetched = step.get(f"{kind}/without_update", whole)
    return {"score": on_gpu - attend, "attend": attend, "fetch": fetched - on_gpu, "update": whole - fetched}


def draw(device: str, steps: dict[int, dict[str, float]], path: pathlib.Path) -> None:
    try:
        from matplotlib import pyplot

        from plot import save, tidy
    except ImportError:
        refuse("--figure: needs matplotlib")
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(11, 4), layout="constrained", sharey=True)
    highest = 1.0
    for axes, (kind, title) in zip(panels, kinds.items()):
        shown = {n: found for n, step in steps.items() if (found := split(step, kind))}
        bottom = [0.0] * len(shown)
        for part, colour in parts.items():
            heights = [max(found[part], 0) for found in shown.values()]
            axes.bar(range(len(shown)), heights, bottom=bottom, color=colour, width=0.6, label=part)
            bottom = [low + high for low, high in zip(bottom, heights)]
        axes.set_xticks(range(len(shown)), [name_of_length(n) for n in shown])
        dense = [steps[n].get("dense") for n in shown]
        axes.plot(range(len(shown)), [us if us is not None else float("nan") for us in dense], linestyle="none", marker="_", markersize=24, color="#000000",
                  label="dense attention, rows on the GPU")
        highest = max([highest, *bottom])
        axes.set_title(title)
        axes.set_xlabel("context, tokens")
        tidy(axes)
    panels[0].set_ylabel(f"decode step of one layer, {device}, us")
    panels[0].set_ylim(0, 1.1 * highest)  # of all panels. Dense steps of long contexts are far above: the table has them
    panels[-1].legend(frameon=False, fontsize=8, loc="upper right")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Splits decode steps over tiers into score, fetch, attend and update.")
    parser.add_argument("results", type=pathlib.Path, help="lines of bench/gpu.sh, or of tiered_step")
    parser.add_argument("--figure", type=pathlib.Path, help="an SVG file")
    args = parser.parse_args()
    device, steps, hits = read_steps(args.results)
    rows = []
    for n, step in steps.items():
        for kind in kinds:
            found = split(step, kind)
            if found is None:
                continue
            rate = hits.get(f"{kind} {n}")
            cells = ["0" if rate is None else f"{rate:.2f}", *("in fetch" if part == "update" and f"{kind}/without_update" not in step else f"{found[part]:.1f}" for part in parts),
                     f"{step[kind]:.1f}",
                     f"{step['dense']:.1f}" if "dense" in step else "not measured"]
            rows.append(f"| {name_of_length(n)}, {kind} | " + " | ".join(cells) + " |")
    if not rows:
        refuse(f"{args.results}: no step over tiers is in it with all of its parts")
    print(f"| {device}, us | hit rate | " + " | ".join(parts) + " | step | dense step |")
    print("|---" * (len(parts) + 4) + "|")
    print("\n".join(rows))
    if args.figure:
        draw(device, steps, args.figure)


if __name__ == "__main__":
    main()
