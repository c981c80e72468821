#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws a laboratory's results; needs matplotlib.

    figures.py quality.json FOLDER

selectors.svg and real-selectors.svg: right answers by budget and selector, a picture a family, with intervals. answers.svg: what a real
model keeps, by setting. divergence.svg: how far its distributions part from dense attention's. A part that was not measured is not drawn.
The same bytes for the same results: fixed ids, no date, text as text.
"""
from __future__ import annotations

import pathlib
import sys
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from intervals import wilson
from kept_runs import read_json, refuse
from tables import families, in_order

# Colours of Okabe and Ito, which colour-blind readers tell apart; the mark says it once more.
colours = ["#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#F0E442"]
marks = "os^vDP*Xh"
matplotlib.rcParams.update({"svg.hashsalt": "pqkv", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9})


def draw_lines(axes: Any, lines: dict[str, dict[int, tuple[float, float, float]]]) -> None:
    """Lines over budgets; a point is (value, lowest, highest)."""
    budgets = sorted({one_in for line in lines.values() for one_in in line})
    for i, (name, line) in enumerate(lines.items()):
        at = [budgets.index(one_in) + 0.03 * (i - len(lines) / 2) for one_in in line]  # apart, so that bars do not hide one another
        value = [point[0] for point in line.values()]
        bars = [[max(point[0] - point[1], 0) for point in line.values()], [max(point[2] - point[0], 0) for point in line.values()]]
        axes.errorbar(at, value, yerr=bars, color=colours[i % len(colours)], marker=marks[i % len(marks)], markersize=4, linewidth=1.2,
                      elinewidth=0.6, label=name)
    axes.set_xticks(range(len(budgets)), [f"1/{one_in}" for one_in in budgets])
    axes.set_xlabel("share of the tokens that attend")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def share(of: dict[str, Any], right: str, asked: str) -> tuple[float, float, float]:
    low, high = wilson(of[right], of[asked])
    return 100 * of[right] / max(of[asked], 1), 100 * low, 100 * high


def selectors(records: list[dict[str, Any]]) -> Any:
    found = in_order(records, "family")
    figure, all_axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found) + 1.6, 3.8), layout="constrained", squeeze=False)
    for axes, family in zip(all_axes[0], found):
        own = [r for r in records if r["family"] == family and r["policy"] != "full"]
        draw_lines(axes, {policy: {r["one_in"]: share(r, "right", "asked") for r in own if r["policy"] == policy}
                          for policy in in_order(own, "policy")})
        axes.set_title(families[family])
    all_axes[0][0].set_ylabel("right answers, %")
    all_axes[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def answers(records: list[dict[str, Any]]) -> Any:
    figure, axes = pyplot.subplots(figsize=(7.2, 4), layout="constrained")
    lines: dict[str, dict[int, tuple[float, float, float]]] = {}
    lengths = len(in_order(records, "length"))
    for setting in in_order(records, "setting"):
        for one_in in sorted(in_order(records, "one_in")):
            own = [r for r in records if (r["setting"], r["one_in"]) == (setting, one_in)]
            sums = {name: sum(r[name] for r in own) for name in ("kept", "dense")}
            if len(own) == lengths:  # else it was asked other questions than the rest
                lines.setdefault(setting, {})[one_in] = share(sums, "kept", "dense")
    draw_lines(axes, lines)
    axes.set_ylabel("right of what dense attention gets right, %")
    axes.legend(frameon=False, fontsize=7, loc="lower left")
    return figure


def divergence(records: list[dict[str, Any]]) -> Any:
    figure, axes = pyplot.subplots(figsize=(7.2, 4), layout="constrained")
    draw_lines(axes, {setting: {r["one_in"]: (r["divergence"], min(r["texts"].values()), r["highest"])
                                for r in records if r["setting"] == setting} for setting in in_order(records, "setting")})
    axes.set_yscale("log")
    axes.set_ylabel("divergence from dense, nats a token")
    axes.legend(frameon=False, fontsize=7)
    return figure


def main() -> None:
    if len(sys.argv) != 3:
        refuse("figures", "usage: figures.py quality.json FOLDER")
    measured, folder = read_json("figures", pathlib.Path(sys.argv[1]))["parts"], pathlib.Path(sys.argv[2])
    for part, draw in (("selectors", selectors), ("real-selectors", selectors), ("answers", answers), ("divergence", divergence)):
        if part not in measured:
            continue
        figure = draw(measured[part])
        figure.savefig(folder / f"{part}.svg", format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


if __name__ == "__main__":
    main()
