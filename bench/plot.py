#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of a page of results from the JSON files of a run; needs matplotlib.

    plot.py DIR FIGURES     e.g. plot.py results docs

Writes step_by_length.svg, and ceilings.svg: each target with a ceiling as a share of it. A figure without results is not drawn, and named.
The same bytes for the same figures: fixed ids, no date, no version, text as text.
"""
from __future__ import annotations

import pathlib
import sys
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

import step_lines
from measured import isas, read, refuse, results, values_of

# Colours of Okabe and Ito, which colour-blind readers tell apart; the mark says it once more.
looks = {"full": ("#000000", "o"), "pq_tenth": ("#0072B2", "s"), "pq_2048": ("#D55E00", "^"), "pq_2x6_tenth": ("#56B4E9", "D"),
         "pq_2x6_2048": ("#E69F00", "v")}
isa_colours = {"avx2": "#56B4E9", "avx512": "#0072B2", "avx512_vbmi": "#009E73", "avx512_bf16": "#CC79A7", "neon": "#E69F00"}
beside_size = (5.2, 3.6)  # inches: the README shows two figures beside each other, at which text of this size can be read
matplotlib.rcParams.update({"svg.hashsalt": "pqkv", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})


def save(figure: Any, path: pathlib.Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def tidy(axes: Any) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def step(measured: results) -> Any:
    lines = {key: line for key, line in step_lines.lines_of(measured).items() if key[1] == 1}  # more cores: the page's table
    if not lines:
        return None
    figure, axes = pyplot.subplots(figsize=beside_size, layout="constrained")
    crossings = step_lines.crossings(lines)
    for (policy, threads), line in lines.items():
        colour, mark = looks.get(policy, ("#777777", "x"))
        label = step_lines.policies.get(policy, policy)
        crossing = crossings.get((policy, threads))
        if crossing is not None and crossing > min(line):
            label += f": ahead of dense from {crossing:,.0f}"
            before = max(n for n in line if n <= crossing)
            axes.plot([crossing], [line[before] * 1e3], marker="o", markersize=12, fillstyle="none", color=colour, linestyle="none")
        axes.plot(list(line), [seconds * 1e3 for seconds in line.values()], color=colour, marker=mark, markersize=4, linewidth=1.5,
                  label=label)
    contest = (measured.peers or {}).get("contests", {}).get("attention")
    rivals = [one["median_seconds"] for name, one in contest["sides"].items() if name.startswith("torch")] if contest else []
    if rivals and (contest["shape"]["h"], contest["shape"]["d"]) == (8, 128):  # the shape of the lines
        axes.plot([contest["shape"]["n"]], [min(rivals) * 1e3], linestyle="none", marker="X", markersize=8, color="#777777",
                  label="torch, dense attention alone")
    lengths = sorted({n for line in lines.values() for n in line})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    named = lengths[::2] if len(lengths) > 8 else lengths
    axes.set_xticks(named, [step_lines.name_of_length(n) for n in named])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("decode step of one layer, one core, ms")
    axes.yaxis.set_major_formatter("{x:g}")
    every = [seconds * 1e3 for line in lines.values() for seconds in line.values()] + [seconds * 1e3 for seconds in rivals]
    axes.set_ylim(min(every) * 0.7, max(every) * 60)  # room for the legend above the lines
    tidy(axes)
    axes.legend(frameon=False, fontsize=9, loc="upper left", borderaxespad=0)
    return figure


def ceilings(measured: results) -> Any:
    rows = read(pathlib.Path(__file__).with_name("targets.json"))["rows"]
    bars = [(f"{row['what']}\n{measure['target']}".replace(", ", ",\n"), measure["at_least"], values_of(measure, measured)) for row in rows
            for measure in row["measures"] if measure.get("unit") == "share"]
    bars = [(what, target, {isa: value for isa, value in values.items() if isa != "scalar"}) for what, target, values in bars]
    bars = [bar for bar in bars if bar[2]]
    if not bars:
        return None
    used = [isa for isa in isas if any(isa in values for _, _, values in bars)]
    figure, axes = pyplot.subplots(figsize=(7.2, 1 + 0.8 * len(bars)), layout="constrained")
    height = 0.8 / len(used)
    for i, isa in enumerate(used):
        places = [(at + (i - (len(used) - 1) / 2) * height, 100 * values[isa]) for at, (_, _, values) in enumerate(bars) if isa in values]
        axes.barh([at for at, _ in places], [value for _, value in places], height, color=isa_colours.get(isa, "#777777"), label=isa)
    for at, (_, target, _) in enumerate(bars):
        axes.plot([100 * target] * 2, [at - 0.45, at + 0.45], color="#000000", linewidth=2, label="target" if at == 0 else None)
    axes.set_yticks(range(len(bars)), [what for what, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("share of the ceiling that binds, %")
    tidy(axes)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def main() -> None:
    if len(sys.argv) != 3:
        refuse("usage: plot.py DIR FIGURES")
    measured, folder = results(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2])
    for name, draw in (("step_by_length", step), ("ceilings", ceilings)):
        figure = draw(measured)
        if figure is None:
            print(f"plot: {name}.svg: nothing measured, not drawn", file=sys.stderr)
        else:
            save(figure, folder / f"{name}.svg")


if __name__ == "__main__":
    main()
