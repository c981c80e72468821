# SPDX-License-Identifier: Apache-2.0
"""Runs of minillama whose JSON results are kept in a folder: what is there already is not run again, so an interrupted series goes on
where it stopped. Imported by the other scripts of this folder."""
from __future__ import annotations

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import time
from typing import Any, Callable, NoReturn, TypeVar

Run = TypeVar("Run")


def refuse(script: str, what: str) -> NoReturn:
    """Ends the program because of its arguments or files, which `what` names in one line."""
    print(f"{script}: {what}", file=sys.stderr)
    raise SystemExit(2)


def declare_runs(parser: argparse.ArgumentParser, program: str) -> None:
    """The options of every script that calls one program."""
    parser.add_argument("--program", type=pathlib.Path, required=True, help=program)
    parser.add_argument("--model", type=pathlib.Path, required=True,
                        help="Hugging Face directory: examples/minillama/model, or what examples/models/smollm2.sh prints")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where results are kept")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")


def read_json(script: str, path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(script, f"{path}: cannot be read as JSON: {' '.join(str(error).split())}")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file that is either as it was or complete."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def kept_run(program: pathlib.Path, command: list[str], file: pathlib.Path, of: str, what: str) -> dict:
    """The JSON document that `program command --json file` writes.

    Beside the file lies what it was made by: `of`, all that the result depends on but the program. Ends the script when the program
    fails, with its last line behind `what`; nothing is left of that run.
    """
    made_by = file.with_suffix(".command")
    if not (file.exists() and made_by.exists() and made_by.read_text() == of):
        partial = file.with_suffix(".partial")
        try:
            done = subprocess.run([str(program), *command, "--json", str(partial)], capture_output=True, text=True, errors="replace")
        except OSError as error:
            sys.exit(f"{what}: {program}: {error.strerror}")
        if done.returncode != 0:
            partial.unlink(missing_ok=True)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            sys.exit(f"{what}: exit code {done.returncode}: {last}")
        made_by.unlink(missing_ok=True)
        partial.replace(file)
        made_by.write_text(of)
    return json.loads(file.read_text())


def run_all(runs: list[Run], one: Callable[[Run], dict], jobs: int, what: str) -> list[dict]:
    """`one` of every run, `jobs` at a time, in the order of the runs. Says on standard error how many are done. The first failure ends the
    script once the runs that have begun are over; no other begins."""
    began, results = time.monotonic(), {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(one, run): place for place, run in enumerate(runs)}
        try:
            for done in concurrent.futures.as_completed(futures):
                results[futures[done]] = done.result()
                print(f"{what}: {len(results)} of {len(runs)} runs, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [results[place] for place in range(len(runs))]
