#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a page of results from the JSON files of a run: every row of the host's targets with what was measured, in targets.json's order.

    report.py DIR PAGE [--figures FOLDER]     e.g. report.py results docs/results.md

DIR has what bench/run.sh, bench/peers/run.sh and bench/decoder_speed.py wrote. What is missing there is printed as "not measured".
--figures: the folder of plot.py's figures as the page links it; default: the page's own.
"""
from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
from typing import Any

import step_lines
from measured import isas, read, refuse, results, shown, values_of, verdict

here = pathlib.Path(__file__).resolve().parent


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def microseconds(seconds: float) -> str:
    us = seconds * 1e6
    return f"{us:.1f} us" if us < 100 else f"{us:.0f} us" if us < 1e4 else f"{us * 1e-3:.1f} ms"


def circumstances(measured: results) -> list[str]:
    def all_of(key: str) -> str:
        return ", ".join(sorted({str(context[key]) for context in measured.contexts.values() if key in context})) or "not recorded"
    dates = sorted(context["date"] for context in measured.contexts.values() if "date" in context)
    rows = [["processor", all_of("cpu")], ["compiler", all_of("compiler")], ["date", f"{dates[0]} to {dates[-1]}" if dates else "not recorded"]]
    repetitions = sorted({len(runs) for runs in measured.runs.values()})
    if repetitions:
        rows.append(["repetitions", f"{repetitions[0]}" if len(repetitions) == 1 else f"{repetitions[0]} to {repetitions[-1]}"])
    if measured.peers:
        context, settings = measured.peers["context"], measured.peers["settings"]
        versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items() if name != "ours")
        rows += [["rivals", f"{versions}; {context['date']}; {context['cpu']}; {settings['rounds']} rounds; one thread each"]]
    return table(["", ""], rows)


def ceilings(measured: results) -> list[str]:
    rows = []
    for name, values in measured.ceilings().items():
        numbers = sorted(value for value, _ in values)
        rows.append([name, f"{statistics.median(numbers):.1f} {values[0][1]}", f"{numbers[0]:.1f} to {numbers[-1]:.1f}"])
    if not rows:
        return ["Not measured.", ""]
    return table(["ceiling of one core", "median", "range over the files"], rows)


def targets(rows: list[dict[str, Any]], measured: results) -> tuple[list[str], int, int, int]:
    own = [(row, measure, values_of(measure, measured)) for row in rows for measure in row["measures"] if "contest" not in measure]
    columns = [isa for isa in isas if isa != "scalar" and any(isa in values for _, _, values in own)]
    lines = []
    for row, measure, values in own:
        values = {isa: value for isa, value in values.items() if isa != "scalar"}
        bound = "at least " if "at_least" in measure else "at most "
        cells = [shown(measure, values[isa]) if isa in values else shown(measure, values[""]) if "" in values and isa == columns[-1] else ""
                 for isa in columns] or ([shown(measure, values[""])] if "" in values else [""])
        lines.append([f"{row['what']}: {row['shape']}", bound + measure["target"], *cells, verdict(measure, values)])
    verdicts = [verdict(measure, values_of(measure, measured)) for row in rows for measure in row["measures"]]
    met, missing = verdicts.count("met"), verdicts.count("not measured")
    return table(["what", "target", *(columns or ["measured"]), ""], lines), met, len(verdicts) - met - missing, missing


def has_shares(rows: list[dict[str, Any]], measured: results) -> bool:
    return any(values_of(measure, measured) for row in rows for measure in row["measures"] if measure.get("unit") == "share")


def rivals(rows: list[dict[str, Any]], measured: results) -> list[str]:
    lines = []
    contests = (measured.peers or {}).get("contests", {})
    for row in rows:
        for measure in row["measures"]:
            if "contest" not in measure:
                continue
            values = values_of(measure, measured)
            times = ["", ""]
            if values:
                sides = contests[measure["contest"]]["sides"]
                times = [microseconds(sides[name]["median_seconds"]) for name in (measure.get("ours", "ours"), measure["rival"])]
            lines.append([row["what"], measure["rival"] if measure["rival"] != "ours" else "our f32", *times, shown(measure, values[""]) if values else "",
                          f"{measure['at_least']} x", verdict(measure, values)])
    return table(["what", "rival", "ours", "theirs", "ratio", "target", ""], lines)


def side_by_side(measured: results) -> list[str]:
    lines = []
    for contest in (measured.peers or {}).get("contests", {}).values():
        shape = ", ".join(f"{name} {value}" for name, value in contest["shape"].items())
        lines += [f"**{contest['what']}** ({shape}). Compared: {contest['check']}.", ""]
        lines += table(["side", "median", "range", "times ours"],
                       [[side["call"], microseconds(side["median_seconds"]), f"{microseconds(min(side['seconds']))} to {microseconds(max(side['seconds']))}",
                         f"{side['times_ours']:.2f}"] for side in contest["sides"].values()])
    for name, reason in (measured.peers or {}).get("left_out", {}).items():
        lines += [f"{name}: {reason}, left out.", ""]
    return lines or ["Not measured.", ""]


def notes(rows: list[dict[str, Any]]) -> list[str]:
    return table(["what", "what binds it, and what was tried"], [[row["what"], " ".join(filter(None, [row.get("binds"), row.get("tried")])) or "not said"]
                                                                   for row in rows])


def step(measured: results, figures: str) -> list[str]:
    lines = step_lines.lines_of(measured)
    if not lines:
        return ["Not measured.", ""]
    out = [f"![A decode step by context length: dense, a tenth of the tokens, {step_lines.budget_text}, one core]({figures}step_by_length.svg)", ""]
    lengths = sorted({n for line in lines.values() for n in line})
    out += table(["tokens", *(step_lines.label(*key) for key in lines)],
                 [[step_lines.name_of_length(n), *(microseconds(line[n]) if n in line else "" for line in lines.values())] for n in lengths])
    for (policy, threads), crossing in step_lines.crossings(lines).items():
        where = "nowhere in this range" if crossing is None else f"from {crossing:,.0f} tokens on" if crossing > min(lengths) else "at every length measured"
        out.append(f"- {step_lines.label(policy, threads)}: faster than dense {where}.")
    return out + [""]


def speed(measured: results) -> list[str]:
    if not measured.speed:
        return ["Not measured.", ""]
    found = measured.speed["results"]
    policies = list(dict.fromkeys(name for result in found for name in result["decode_tokens_per_second"]))
    out = table(["context", "prefill, tokens/s", *(f"{name}, tokens/s" for name in policies)],
                [[step_lines.name_of_length(result["length"]), f"{result['prefill_tokens_per_second']:.0f}",
                  *(f"{result['decode_tokens_per_second'][name]:.0f}" if name in result["decode_tokens_per_second"] else "" for name in policies)]
                 for result in found])
    return [f"`{measured.speed['command']}`, {measured.speed['threads']} threads; minillama-ask as `examples/demo.sh` builds it, for this CPU.", "", *out]


def page(measured: results, rows: list[dict[str, Any]], figures: str) -> str:
    first, met, short, missing = targets(rows, measured)
    lines = ["# Results of the host kernels", "",
             "Written by `bench/report.py` from the files of one run; no number here was typed by hand. Every time is a median. A ratio with a rival",
             "is the median over rounds in which both ran by turns in one process. [Another page](results_gpu.md) is about the GPU. To repeat it:", "", "```sh",
             "bench/run.sh results --benchmark_repetitions=5", "bench/peers/run.sh results", "python3 bench/report.py results docs/results.md", "```", "",
             *circumstances(measured), f"Of {met + short + missing} targets {met} are met, {short} are not, {missing} were not measured.", "",
             "## Ceilings", "", *ceilings(measured), "## Targets", "",
             "A share is that of the ceiling that limits the kernel, measured in the same process. The widest instruction set decides; all are shown.", "", *first,
             *([f"![Shares of ceilings, by instruction set]({figures}ceilings.svg)", ""] if has_shares(rows, measured) else []),
             "## Rivals", "", *rivals(rows, measured), "## What binds, what was tried", "", *notes(rows),
             "## A step by context length", "", "One layer: 8 KV heads, 32 query heads, head dimension 128, bfloat16; append, attend, maintain. pq: the library's defaults, codes of 4 x 8 bits.", "",
             *step(measured, figures), "## The decoder's speed", "", *speed(measured), "## Side by side", "", *side_by_side(measured)]
    for name, why in measured.failed.items():
        lines.append(f"`{name}` failed: {why}")
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a page of results from the JSON files of a run.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--targets", type=pathlib.Path, default=here / "targets.json")
    parser.add_argument("--figures", default="", help="folder of the figures as the page links it")
    args = parser.parse_args()
    rows = read(args.targets)["rows"]
    measured = results(args.folder)
    if not measured.runs and not measured.peers:
        refuse(f"{args.folder}: has no results of bench/run.sh or bench/peers/run.sh")
    for row in rows:
        for measure in row["measures"]:
            if not values_of(measure, measured):
                print(f"report: not measured: {row['what']}: {measure['target']}", file=sys.stderr)
    args.page.write_text(page(measured, rows, args.figures), encoding="utf-8")


if __name__ == "__main__":
    main()
