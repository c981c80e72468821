# SPDX-License-Identifier: Apache-2.0
"""Reads what bench/run.sh, bench/peers/run.sh and bench/decoder_speed.py wrote into one folder."""
from __future__ import annotations

import json
import pathlib
import re
import statistics
from typing import Any, NoReturn

isas = ["scalar", "avx2", "avx512", "avx512_vbmi", "avx512_bf16", "neon"]  # as benchmark names say them, narrow ones first


def refuse(what: str) -> NoReturn:
    raise SystemExit(f"report: {what}")


def read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(f"{path}: cannot be read as JSON: {' '.join(str(error).split())}")


def axis(name: str, which: str) -> str | None:
    found = re.search(rf"/{which}:([^/]+)", name)
    return found[1] if found else None


class results:
    """Benchmarks by name, all repetitions together; `peers` and `speed` are None where their files are missing."""

    def __init__(self, folder: pathlib.Path):
        if not folder.is_dir():
            refuse(f"{folder}: no such folder")
        self.contexts: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.failed: dict[str, str] = {}
        self.peers = self.speed = None
        for path in sorted(folder.glob("*.json")):
            if path.name == "gpu.json":  # lines of bench/gpu.sh, gpu_report.py's business
                continue
            value = read(path)
            if path.name == "peers.json":
                self.peers = value
            elif path.name == "decoder_speed.json":
                self.speed = value
            elif isinstance(value, dict) and "benchmarks" in value:
                self.contexts[path.stem] = value["context"]
                for run in value["benchmarks"]:
                    if run.get("error_occurred"):
                        self.failed[run["name"]] = run.get("error_message", "failed")
                    elif run.get("run_type", "iteration") == "iteration":
                        self.runs.setdefault(run["name"], []).append(run)

    def matching(self, start: str) -> dict[str, list[dict[str, Any]]]:
        """Runs by ISA of the benchmark whose name is `start`, or begins with it before another axis; "" where it has no such axis."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name, runs in self.runs.items():
            if name == start or name.startswith(start + "/"):
                found.setdefault(axis(name, "isa") or "", []).extend(runs)
        return found

    def counters(self, start: str, counter: str) -> dict[str, list[float]]:
        return {isa: [float(run[counter]) for run in runs if counter in run] for isa, runs in self.matching(start).items()
                if any(counter in run for run in runs)}

    def seconds(self, start: str) -> dict[str, list[float]]:
        """Processor time of one iteration: the benchmarks have one thread; the clock's for those with an axis `threads`."""
        scale = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
        return {isa: [run["real_time" if axis(run["name"], "threads") else "cpu_time"] * scale[run["time_unit"]] for run in runs]
                for isa, runs in self.matching(start).items()}

    def ceilings(self) -> dict[str, list[tuple[float, str]]]:
        """Every ceiling's values, one of each file, in the unit they were printed with."""
        found: dict[str, list[tuple[float, str]]] = {}
        for context in self.contexts.values():
            for key, text in context.items():
                if key.startswith("ceiling "):
                    number, unit = text.split(" ", 1)
                    found.setdefault(key.removeprefix("ceiling "), []).append((float(number), unit))
        return found


def values_of(measure: dict[str, Any], measured: results) -> dict[str, float]:
    """The median value by ISA; "" for what has no such axis. Empty: not measured."""
    if "contest" in measure:
        contest = (measured.peers or {}).get("contests", {}).get(measure["contest"])
        if contest is None or measure["rival"] not in contest["sides"] or measure.get("ours", "ours") not in contest["sides"]:
            return {}
        ours, rival = (contest["sides"][name]["seconds"] for name in (measure.get("ours", "ours"), measure["rival"]))
        return {"": statistics.median(b / a for a, b in zip(ours, rival))}
    if "counter" in measure:
        scale = 1e-9 if measure.get("unit") == "giga" else 1.0
        return {isa: statistics.median(values) * scale for isa, values in measured.counters(measure["benchmark"], measure["counter"]).items()}
    above, below = measured.seconds(measure["benchmark"]), measured.seconds(measure["over"])
    return {isa: statistics.median(above[isa]) / statistics.median(below[isa]) for isa in above if isa in below}


def verdict(measure: dict[str, Any], values: dict[str, float]) -> str:
    """met, or by how much it is short; the widest instruction set that was measured decides."""
    if not values:
        return "not measured"
    value = values[max(values, key=lambda isa: isas.index(isa) if isa in isas else -1)]
    if "at_least" in measure:
        return "met" if value >= measure["at_least"] else f"short by {100 * (1 - value / measure['at_least']):.0f} %"
    return "met" if value <= measure["at_most"] else f"over by {100 * (value / measure['at_most'] - 1):.0f} %"


def shown(measure: dict[str, Any], value: float) -> str:
    unit = measure.get("unit", "times")
    if unit == "share":
        return f"{100 * value:.0f} %" if value >= 0.095 else f"{100 * value:.2f} %"
    if unit == "giga":
        return f"{value:.1f} G/s"
    digits = f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return digits if unit == "readings" else f"{digits} x"
