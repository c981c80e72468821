#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what run.sh --bench printed: tokens a second by the prompt's length, llama.cpp and pqkv; needs matplotlib.

    plot.py FIGURE.svg TITLE=OUTPUT...     e.g. plot.py docs/llama_cpp_speed.svg "SmolLM2-135M=smollm2.txt" "Gemma 3 270M=gemma.txt"
"""
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

matplotlib.rcParams.update({"svg.hashsalt": "pqkv", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})


def rows_of(output: pathlib.Path) -> list[tuple[int, int, float, float]]:
    """(tokens of the prompt, sequences, llama.cpp's rate, pqkv's rate)"""
    rows = []
    for line in output.read_text().splitlines():
        words = line.split()
        if len(words) == 8 and words[4].endswith("x"):
            rows.append((int(words[0]), int(words[1]), float(words[2]), float(words[3])))
    if not rows:
        sys.exit(f"plot.py: {output} has no line of a table of --bench")
    return rows


def main() -> None:
    if len(sys.argv) < 3 or any("=" not in argument for argument in sys.argv[2:]):
        sys.exit(__doc__)
    named = [argument.split("=", 1) for argument in sys.argv[2:]]
    figure, panels = pyplot.subplots(1, len(named), figsize=(4.6 * len(named), 3.6), layout="constrained", squeeze=False)
    for axes, (title, output) in zip(panels[0], named):
        rows = rows_of(pathlib.Path(output))
        for sequences in sorted({row[1] for row in rows}):
            line = [row for row in rows if row[1] == sequences]
            style, together = ("-" if sequences == 1 else "--"), ("one sequence" if sequences == 1 else f"{sequences} together")
            for name, colour, mark, column in (("llama.cpp", "#000000", "o", 2), ("pqkv", "#0072B2", "s", 3)):
                axes.plot([row[0] for row in line], [row[column] for row in line], style, color=colour, marker=mark, markersize=4,
                          linewidth=1.5, label=f"{name}, {together}")
        lengths = sorted({row[0] for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel="tokens of the prompt", ylabel="tokens a second")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(sys.argv[1], format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
