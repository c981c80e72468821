#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a page of results from what bench/gpu.sh measured on a GPU: every row of targets_gpu.json, and every measurement.

    gpu_report.py DIR PAGE     e.g. gpu_report.py results docs/results_gpu.md

DIR has gpu.json and, where the checks ran, checks.txt. What is missing there is printed as "not measured". gpu.json may hold several runs, one
after the other: a later run's measurements replace those of the same name, and the page says which they are.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

import measured
from report import microseconds, table

here = pathlib.Path(__file__).resolve().parent


class results:
    """The lines of gpu.json. Times are in microseconds."""

    def __init__(self, path: pathlib.Path):
        self.run: dict[str, Any] = {}  # the first
        self.later: list[tuple[dict[str, Any], set[str]]] = []  # other runs, and what each measured
        self.device: dict[str, Any] = {}
        self.peers: list[dict[str, Any]] = []
        self.lines: dict[str, dict[str, Any]] = {}
        self.tiers: dict[str, dict[str, float]] = {}  # what a measurement's cache of two memories has counted
        self.remarks: list[str] = []
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            measured.refuse(f"{path}: cannot be read: {error.strerror}")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                measured.refuse(f"{path}:{number}: is not JSON: {line[:80]}")
            if not isinstance(value, dict):
                measured.refuse(f"{path}:{number}: is no JSON object: {line[:80]}")
            self.take(value)

    def take(self, value: dict[str, Any]) -> None:
        if "run" in value:
            if self.run:
                self.later.append((value["run"], set()))
            else:
                self.run = value["run"]
        elif "device" in value:
            self.device = self.device or value
        elif "peer" in value:
            self.peers.append(value)
        elif "tier" in value:
            self.tiers[value["tier"]] = value
        elif "refused" in value:
            self.remarks.append(f"`{value['name']}` was refused: {value['refused']}.")
        elif "failed" in value:
            self.remarks.append(f"`{value['failed']}` FAILED: exit code {value.get('exit_code')}.")
        elif "left_out" in value:
            self.remarks.append(f"`{value['left_out']}` was left out: {value['why']}.")
        elif "name" in value:
            self.lines[value["name"]] = value
            for run, names in self.later[-1:]:
                names.add(value["name"])

    def times(self, name: str, cache: str = "warm") -> dict[str, float] | None:
        line = self.lines.get(name)
        return line if line is None or cache == "warm" else line.get("cold")

    def median(self, name: str, cache: str = "warm") -> float | None:
        times = self.times(name, cache)
        return None if times is None else times["us"]

    def rate(self, name: str, what: str) -> float | None:
        """Bytes or operations a microsecond."""
        line = self.lines.get(name)
        return line[what] / line["us"] if line and line.get(what) else None

    def fits_l2(self, name: str) -> bool:
        return self.lines[name].get("bytes", 0) <= self.device.get("l2_bytes", 0)


def share(row: dict[str, Any], cache: str, ceilings: dict[str, str], of: results) -> tuple[float, str] | None:
    """What the row uses of the ceiling that it names, and that ceiling. Warm data that fit the L2 cache are compared with reading it."""
    name, us = row["benchmark"], of.median(row["benchmark"], cache)
    if us is None or "ceiling" not in row:
        return None
    if row["ceiling"] == "fma":
        what, ceiling, called = "flops", "fma", "multiply-adds"
    else:
        cached = cache == "warm" and of.fits_l2(name)
        what, ceiling, called = "bytes", "l2_read" if cached else "read", "reading L2" if cached else "reading"
    most, amount = of.rate(ceilings[ceiling], what), of.lines[name].get(what)
    return (amount / us / most, called) if most and amount else None


def value_of(measure: dict[str, Any], row: dict[str, Any], ceilings: dict[str, str], of: results) -> dict[str, float]:
    """As measured.values_of() gives it: by "", empty where something was not measured."""
    name, cache = measure.get("benchmark", row.get("benchmark", "")), measure.get("cache", "warm")
    us = of.median(name, cache)
    if us is None:
        return {}
    if "over" in measure:  # the fastest of them
        below = [time for time in (of.median(other, cache) for other in measure["over"]) if time is not None]
        return {"": us / min(below)} if below else {}
    if measure.get("unit") == "share":
        found = share(row, cache, ceilings, of)
        return {"": found[0]} if found else {}
    return {"": us}


def shown(measure: dict[str, Any], value: float) -> str:
    return microseconds(value * 1e-6) if measure.get("unit") == "us" else measured.shown(measure, value)


def tier_lines(of: results) -> list[str]:
    rows = [[f"`{name}`", f"{100 * tier['hit_rate']:.0f} %", f"{tier['slow_bytes_of_a_step'] * 1e-6:.2f} MB",
             f"{tier['admissions_of_a_step']:.1f}"] for name, tier in of.tiers.items()]
    return ["Of the retrieved tokens, how many were in device memory; what came from host memory in a step; blocks of 16 tokens that entered:", "",
            *table(["measurement", "hits", "from host memory", "blocks"], rows), ""] if rows else []


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.095 else f"{100 * value:.1f} %"


def time_cell(times: dict[str, float] | None, spread: bool = False) -> str:
    if times is None:
        return ""
    median = microseconds(times["us"] * 1e-6)
    return f"{median} ({microseconds(times['us_p10'] * 1e-6)} to {microseconds(times['us_p90'] * 1e-6)})" if spread else median


def beginnings(names: set[str], others: set[str]) -> list[str]:
    """What the names begin with, and none of the others, in whole parts."""
    found = set()
    for name in names:
        parts = name.split("/")
        starts = ["/".join(parts[:count]) + "/" for count in range(1, len(parts))]
        found.add(next((start for start in starts if not any(other.startswith(start) for other in others)), name))
    return [f"`{start}`" for start in sorted(found)]


def circumstances(of: results, checks: str | None) -> list[str]:
    rows = [["device", f"{of.device.get('device', 'not recorded')}, {of.device.get('multiprocessors', '?')} multiprocessors"],
            ["driver, CUDA", f"{of.run.get('driver', 'not recorded')}; runtime {of.device.get('cuda_runtime', '?')}, nvcc {of.run.get('nvcc', '?')}, "
                             f"{of.run.get('architecture', '?')}"],
            ["date, revision", f"{of.run.get('date', 'not recorded')}, {of.run.get('revision', '?')}"]]
    for run, names in of.later:
        rows.append(["of another run", f"{run.get('date', 'not recorded')}, {run.get('revision', '?')}: {', '.join(beginnings(names, set(of.lines) - names))}"])
    rows += [["rivals", f"{peer['peer']} {peer['version']}, CUDA {peer.get('cuda')}, cuDNN {peer.get('cudnn')}"] for peer in of.peers]
    if checks is None:
        rows.append(["checks", "not run"])
    else:
        lines = [line for line in checks.splitlines() if line and not line.startswith(" ")]
        left_out = [line.split(":")[0] for line in lines if ": left out" in line]
        failed = [line.split(":")[0] for line in lines if ": passed" not in line and ": left out" not in line]
        ran = len(lines) - len(left_out)
        rows.append(["checks", f"{ran - len(failed)} of {ran} programs of tests/cuda passed" + (f"; FAILED: {', '.join(failed)}" if failed else "")
                     + (f"; left out: {', '.join(left_out)}" if left_out else "")])
    return table(["", ""], rows)


def ceiling_lines(data: dict[str, Any], of: results) -> list[str]:
    rows = []
    for ceiling in data["ceilings"]:
        line = of.lines.get(ceiling["benchmark"])
        if line is None:
            continue
        rate = of.rate(ceiling["benchmark"], ceiling["rate"]) if "rate" in ceiling else None
        unit = "TB/s" if ceiling.get("rate") == "bytes" else "Tflop/s"
        rows.append([ceiling["what"], f"{rate * 1e-6:.2f} {unit}" if rate else time_cell(line), time_cell(of.times(ceiling["benchmark"], "cold"))])
    return table(["ceiling", "measured", "cold"], rows) if rows else ["Not measured.", ""]


def is_short(row: dict[str, Any], ceilings: dict[str, str], of: results) -> bool:
    return any(measured.verdict(measure, value_of(measure, row, ceilings, of)).startswith(("short", "over")) for measure in row["measures"])


def targets(data: dict[str, Any], ceilings: dict[str, str], of: results) -> tuple[list[str], dict[str, int]]:
    rows, count = [], {"met": 0, "short": 0, "not measured": 0}
    for row in data["rows"]:
        shares, aims, verdicts, values = [], [], [], []
        for cache in ("warm", "cold"):
            if found := share(row, cache, ceilings, of):
                shares.append(f"{percent(found[0])} of {found[1]}" + (", cold" if cache == "cold" else ""))
        for measure in row["measures"]:
            value = value_of(measure, row, ceilings, of)
            said = measured.verdict(measure, value)
            count[said if said in count else "short"] += 1
            aim = ("at least " if "at_least" in measure else "at most ") + measure["target"]
            if aim not in aims:
                aims.append(aim)
            both = len(row["measures"]) > 1 or measure.get("cache") == "cold"
            exact = f"{shown(measure, value[''])}, " if value and measure.get("unit") != "us" else ""
            verdicts.append((f"{measure.get('cache', 'warm')}: " if both else "") + exact + said)
        rivals = [f"{label} {time_cell(of.times(name))}" for label, name in row.get("rivals", {}).items() if of.times(name)]
        rows.append([row["what"], time_cell(of.times(row["benchmark"])), time_cell(of.times(row["benchmark"], "cold")), "; ".join(shares),
                     "; ".join(aims), "; ".join(rivals), "; ".join(verdicts)])
    return table(["what", "warm", "cold", "share of the ceiling", "target", "rival, same run, warm", ""], rows), count


def every_line(of: results) -> list[str]:
    rows = []
    for name, line in of.lines.items():
        rates = []
        for times in (line, line.get("cold")):
            if times and line.get("bytes"):
                rates.append(f"{line['bytes'] / times['us'] * 1e-6:.3f}")
            elif times and line.get("flops") and times is line:
                rates.append(f"{line['flops'] / times['us'] * 1e-6:.1f} Tflop/s")
        rows.append([f"`{name}`", time_cell(line, True), time_cell(line.get("cold"), True), " / ".join(rates)])
    return table(["measurement", "warm: median (tenth to ninetieth percentile)", "cold", "TB/s, warm / cold"], rows)


def page(data: dict[str, Any], of: results, checks: str | None) -> str:
    ceilings = {ceiling["benchmark"].split("/")[1]: ceiling["benchmark"] for ceiling in data["ceilings"]}
    first, count = targets(data, ceilings, of)
    bound = [[row["what"], row.get("binds", "not said")] for row in data["rows"] if row["benchmark"] in of.lines and ("binds" in row or is_short(row, ceilings, of))]
    lines = ["# Results on a GPU", "",
             f"Written by `bench/gpu_report.py` from {'runs' if of.later else 'one run'} of `bench/gpu.sh FOLDER`; no number in its tables of ceilings, targets and",
             "measurements was typed. Times are medians by events. Warm: replays of a CUDA graph of several calls, whatever fits staying in the L2",
             "cache. Cold: a graph of one call after a read of eight times the L2 cache; the start of a graph is in it (`bench/cuda/timing.cuh`).",
             "Data are random, never zeros.", "", *circumstances(of, checks),
             f"Of {sum(count.values())} targets {count['met']} are met, {count['short']} are not, {count['not measured']} were not measured.",
             *(["", f"Only measurements whose names begin with `{of.run['prefix']}` were taken."] if of.run.get("prefix") else []), "",
             "## Ceilings", "", *ceiling_lines(data, of), "## Targets", "",
             "Shares are of the ceiling above that the row names: bytes that a call must move, or operations that it stands for, in its time.", "", *first,
             *[f"Not here: {text}." for text in data["elsewhere"]], ""]
    if bound:
        lines += ["## What binds", "", *table(["what", "what binds it"], bound)]
    lines += ["## Checked beside this run", "", *[line for text in data["beside"] for line in (text, "")]]
    lines += ["## Every measurement", "", *every_line(of), *tier_lines(of), *of.remarks]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a page of results from what bench/gpu.sh measured.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--targets", type=pathlib.Path, default=here / "targets_gpu.json")
    args = parser.parse_args()
    data, of = measured.read(args.targets), results(args.folder / "gpu.json")
    if not of.lines:
        measured.refuse(f"{args.folder / 'gpu.json'}: has no measurement")
    checks = args.folder / "checks.txt"
    for row in data["rows"]:
        if row["benchmark"] not in of.lines and row["benchmark"].startswith(of.run.get("prefix", "")):
            print(f"report: not measured: {row['what']}", file=sys.stderr)
    args.page.write_text(page(data, of, checks.read_text(encoding="utf-8") if checks.is_file() else None), encoding="utf-8")


if __name__ == "__main__":
    main()
