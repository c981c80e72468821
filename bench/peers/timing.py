# SPDX-License-Identifier: Apache-2.0
"""Times the sides of a contest in turns, round after round, and keeps what was measured in one JSON file."""
from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any, Callable


@dataclasses.dataclass
class side:
    """run(times) does the work so often; call says how, for readers."""
    call: str
    run: Callable[[int], Any]
    divide_by: Callable[[], float] = lambda: 1.0  # units of work in one run, e.g. iterations of a training


@dataclasses.dataclass
class contest:
    what: str
    shape: dict[str, int]
    sides: dict[str, side]  # "ours" is one of them
    check: Callable[[], str]  # raises where results differ, else says what was compared


def repeated(function: Callable[[], Any]) -> Callable[[int], None]:
    def run(times: int) -> None:
        for _ in range(times):
            function()
    return run


def measure(entry: contest, rounds: int, least_seconds: float) -> dict[str, Any]:
    """Seconds per unit of work: processor time of this process, whose every library runs one thread. Sides take turns, and begin in turns."""
    times: dict[str, int] = {}
    for name, one in entry.sides.items():
        one.run(1)  # warm: pages, tables, code
        spent = clocked(one, 1)
        times[name] = max(1, min(1000, round(least_seconds / max(spent, 1e-7))))
    entry_check = entry.check()
    seconds: dict[str, list[float]] = {name: [] for name in entry.sides}
    names = list(entry.sides)
    for turn in range(rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            seconds[name].append(clocked(entry.sides[name], times[name]) / times[name] / entry.sides[name].divide_by())
    result: dict[str, Any] = {"what": entry.what, "shape": entry.shape, "check": entry_check, "rounds": rounds, "sides": {}}
    ours = statistics.median(seconds["ours"])
    for name, one in entry.sides.items():
        median = statistics.median(seconds[name])
        result["sides"][name] = {"call": one.call, "times_a_round": times[name], "seconds": seconds[name], "median_seconds": median,
                                 "times_ours": statistics.median(b / a for a, b in zip(seconds["ours"], seconds[name]))}
        print(f"  {name:42} {median * 1e6:12.1f} us   {median / ours:8.2f} x ours", file=sys.stderr, flush=True)
    return result


def clocked(one: side, times: int) -> float:
    begin = time.process_time()
    one.run(times)
    return time.process_time() - begin


def cpu_model() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def circumstances(versions: dict[str, str]) -> dict[str, Any]:
    return {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "cpu": cpu_model(), "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}", "threads": 1, "versions": versions}


class record:
    """The JSON file: written after each contest, and read back so that a run that stopped goes on."""

    def __init__(self, path: pathlib.Path, settings: dict[str, Any], context: dict[str, Any], fresh: bool):
        self.path = path
        self.value: dict[str, Any] = {"settings": settings, "context": context, "contests": {}, "left_out": {}}
        if path.exists() and not fresh:
            before = json.loads(path.read_text(encoding="utf-8"))
            same = before.get("settings") == settings and before.get("context", {}).get("versions") == context["versions"]
            if not same:
                raise SystemExit(f"contests: {path}: was made with other settings or versions; --fresh replaces it")
            self.value["contests"] = before["contests"]
            self.value["context"]["date"] = before["context"]["date"]

    def has(self, name: str) -> bool:
        return name in self.value["contests"]

    def keep(self, name: str, result: dict[str, Any]) -> None:
        self.value["contests"][name] = result
        self.write()

    def leave_out(self, name: str, reason: str) -> None:
        self.value["left_out"][name] = reason
        self.write()

    def write(self) -> None:
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.value, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)
