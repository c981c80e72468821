# SPDX-License-Identifier: Apache-2.0
"""Runs of minillama for a table: the options that all have, the text, a run's JSON, and a file of results that a stopped series goes on from."""
from __future__ import annotations

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from typing import Any, NoReturn

repository = pathlib.Path(__file__).resolve().parents[1]


def refuse(what: str) -> NoReturn:
    print(f"{pathlib.Path(sys.argv[0]).stem}: {what}", file=sys.stderr)
    raise SystemExit(2)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--program", type=pathlib.Path, required=True, help="the built minillama")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, help="default: the pages of docs/, one after the other")
    parser.add_argument("--ratio", type=float, default=0.1, help="share of the tokens that is attended to")
    parser.add_argument("--folder", help="folder for files of keys and values; default: the system's for temporary files")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=pathlib.Path, required=True, help="file of results, written after each run")
    parser.add_argument("--fresh", action="store_true", help="run again what the file already has")


def read_text(args: argparse.Namespace, length: int) -> bytes:
    try:
        text = args.text.read_bytes() if args.text else b"".join(page.read_bytes() for page in sorted((repository / "docs").glob("*.md")))
    except OSError as error:
        refuse(f"--text: {args.text}: {error.strerror}")
    if len(text) < length:
        refuse(f"--text: has {len(text)} bytes, {length} are wanted")
    return text


def run(args: argparse.Namespace, what: str, text: bytes, arguments: list[str]) -> dict[str, Any]:
    """Runs the program once. TEXT among the arguments stands for a file with the text, FOLDER for a folder that goes away afterwards."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        places = {"TEXT": f"{folder}/text", "FOLDER": folder}
        file = pathlib.Path(folder) / "result.json"
        pathlib.Path(places["TEXT"]).write_bytes(text)
        command = [str(args.program.resolve()), "-m", str(args.model), "-t", str(args.threads), "--ratio", str(args.ratio), "--json", str(file)]
        command += [places.get(word, word) for word in arguments]
        try:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        except OSError as error:
            refuse(f"--program: {command[0]}: {error.strerror}")
        if done.returncode != 0:
            refuse(f"{what}: exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return result


class kept_results:
    """Results in a file, each with the values that tell it from the others."""

    def __init__(self, args: argparse.Namespace, settings: dict[str, Any]):
        self.path: pathlib.Path = args.json
        model = args.model.resolve()
        model = model.relative_to(repository) if model.is_relative_to(repository) else pathlib.Path(model.name)
        words = [pathlib.Path(sys.argv[0]).name, "--model", model.as_posix(), "--ratio", str(args.ratio)]
        for name, value in settings.items():
            words += [name, str(value)]
        self.command = shlex.join(words)
        self.results: list[dict[str, Any]] = []
        if not self.path.exists() or args.fresh:
            return
        before = json.loads(self.path.read_text(encoding="utf-8"))
        if before["command"] != self.command:
            refuse(f"--json: {self.path}: was made with other settings; --fresh replaces it")
        self.results = before["results"]

    def find(self, **axes: Any) -> dict[str, Any] | None:
        return next((one for one in self.results if all(one[name] == value for name, value in axes.items())), None)

    def add(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps({"command": self.command, "results": self.results}, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)
