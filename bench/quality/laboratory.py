#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures all that docs/quality.md says about answers and distributions; run.sh builds the programs and calls this.

    laboratory.py --programs BUILD/examples/minillama --folder FOLDER [--real-model FOLDER] [--size whole] [--parts selectors ...]

Parts:
  selectors       every selector on needles and key-value lists, the example's own model      compared_selectors.py
  real-selectors  the same on numbers in running text, the real model                         compared_selectors.py
  tasks           every selector on nine families of tasks in RULER's form, the real model    task_families.py
  answers         answers that a real model keeps, by settings                                real_model.py
  divergence      how far its next-token distributions part from dense attention's            divergence.py
  first-turn      sessions that begin short, the example's own model                          first_turn.py

FOLDER/quality.json has a record for each setting and budget, quality.csv the same as a table, report.md the tables of docs/quality.md;
figures.py draws from the JSON. Each is written anew after each part. FOLDER/runs keeps the result of every run of a program, and what is
there is not run again: a laboratory that was ended goes on where it stopped. Parts of the real model are left out without --real-model,
and the report says so. --seeds takes the place of the sizes' own seeds; a seed is one of contexts, questions and codebooks.
"""
from __future__ import annotations

import argparse
import csv
import io
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import compared_selectors
import divergence
import real_model
import tables
import task_families
import task_files
from kept_runs import refuse, write_whole

root = pathlib.Path(__file__).resolve().parents[2]
parts = ["selectors", "real-selectors", "tasks", "answers", "divergence", "first-turn"]
of_real_model = {"real-selectors", "tasks", "answers", "divergence"}

# What each size asks: (tokens of a context, contexts of a seed, questions of a seed, seeds); of `tasks`, (bytes of a prompt, prompts of a
# family and seed, seeds). `tiny` shows that everything runs. Long parts are many short runs: the runs that a laboratory is ended in are lost.
sizes: dict[str, dict[str, Any]] = {
    "tiny": {"selectors": [(512, 2, 4, [1])], "real-selectors": [(300, 1, 2, [1])], "answers": [(300, 1, 2, [1])], "ratios": [10],
             "tasks": (1000, 1, [1]), "divergence": (900, 16, 1), "first-turn": ([700], 32, 300, 200)},
    "small": {"selectors": [(2048, 4, 20, [1, 2])], "real-selectors": [(2000, 3, 24, [1])], "answers": [(2000, 5, 40, [1])],
              "ratios": [10, 40], "tasks": (8000, 1, [1, 2, 3]), "divergence": (8000, 256, 2), "first-turn": ([7000], 256, 150, 512)},
    "whole": {"selectors": [(4096, 4, 20, [1, 2, 3, 4, 5, 6])], "real-selectors": [(2000, 1, 4, list(range(1, 25)))],
              "answers": [(2000, 5, 40, [1, 2, 3, 4]), (4000, 3, 24, [5, 6, 7, 8, 13, 14, 15, 16]), (7000, 2, 16, [9, 10, 11, 12])],
              "ratios": [10, 20, 40], "tasks": (8000, 1, list(range(1, 33))), "divergence": (8000, 256, 6),
              "first-turn": ([7000, 7800, 8700, 9600], 256, 150, 512)},
}


def series(args: argparse.Namespace, part: str) -> list[argparse.Namespace]:
    """What the scripts of contexts and questions are called with, once for each length."""
    own = part == "selectors"
    return [argparse.Namespace(program=args.programs / "minillama-ask", model=args.model if own else args.real_model,
                               folder=args.folder / "runs" / part / str(length), length=length, contexts=contexts, questions=questions,
                               seeds=args.seeds or seeds, ratios=args.ratios or sizes[args.size]["ratios"], text=args.text, jobs=args.jobs,
                               settings=args.settings, policies=compared_selectors.policies, codes=["4x8", "8x8"])
            for length, contexts, questions, seeds in sizes[args.size][part]]


def measure(args: argparse.Namespace, part: str) -> list[dict]:
    """The records of one part."""
    if part in ("selectors", "real-selectors"):
        return [record for one in series(args, part) for record in compared_selectors.measure(one)]
    if part == "tasks":
        size, prompts, seeds = sizes[args.size][part]
        return task_families.measure(argparse.Namespace(
            program=args.programs / "minillama-ask", model=args.real_model, folder=args.folder / "runs" / part, length=size, records=prompts,
            seeds=args.seeds or seeds, ratios=args.ratios or sizes[args.size]["ratios"], families=task_files.families, rows=None,
            policies=compared_selectors.policies, codes=["4x8", "8x8"], jobs=args.jobs))
    if part == "answers":
        return [record for one in series(args, part) for record in real_model.measure(one)]
    if part == "divergence":
        size, tokens, texts = sizes[args.size][part]
        return divergence.measure(argparse.Namespace(
            program=args.programs / "minillama", model=args.real_model, folder=args.folder / "runs" / part, bytes=size, tokens=tokens,
            ratios=args.ratios or sizes[args.size]["ratios"], text=divergence.own_texts[:texts], jobs=args.jobs, settings=args.settings))
    lengths, tokens, first, turn = sizes[args.size][part]
    command = [sys.executable, "-B", str(pathlib.Path(__file__).with_name("first_turn.py")), "--program", str(args.programs / "minillama"),
               "--model", str(args.model), "--folder", str(args.folder / "runs" / part), "--bytes", *map(str, lengths), "--tokens", str(tokens),
               "--first", str(first), "--turn", str(turn)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:  # it said why
        raise SystemExit(done.returncode)
    return [{"line": line} for line in done.stdout.splitlines()]


def csv_of(measured: dict[str, list[dict]]) -> str:
    """All records in one table, with a column for whatever any of them has."""
    flat = [{"part": part, **{name: value for name, value in record.items() if not isinstance(value, dict)}}
            for part, records in measured.items() for record in records]
    columns = list(dict.fromkeys(name for record in flat for name in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def write_results(args: argparse.Namespace, measured: dict[str, list[dict]]) -> None:
    document = {"size": args.size, "seeds": args.seeds, "parts": measured}
    write_whole(args.folder / "quality.json", json.dumps(document, indent=1) + "\n")
    write_whole(args.folder / "quality.csv", csv_of(measured))
    write_whole(args.folder / "report.md", tables.report(document))


def check(args: argparse.Namespace) -> None:
    """Ends the program where something is missing, before anything runs."""
    for name in ("minillama", "minillama-ask"):
        if not os.access(args.programs / name, os.X_OK):
            refuse("laboratory", f"--programs: {args.programs / name}: no such program")
    for option, model in (("--model", args.model), ("--real-model", args.real_model)):
        if model is not None and not (model / "config.json").is_file():
            refuse("laboratory", f"{option}: {model}: has no config.json")
    missing = of_real_model & set(args.parts or [])
    if missing and args.real_model is None:
        refuse("laboratory", f"--parts: {', '.join(sorted(missing))} need --real-model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder of minillama and minillama-ask")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where runs are kept and results written")
    parser.add_argument("--model", type=pathlib.Path, default=root / "examples/minillama/model", help="the example's own model")
    parser.add_argument("--real-model", type=pathlib.Path, help="Hugging Face directory, e.g. what examples/models/smollm2.sh prints")
    parser.add_argument("--size", choices=sizes, default="small", help="whole is what docs/quality.md shows: hours of 16 cores")
    parser.add_argument("--parts", choices=parts, nargs="+", help="default: all parts for which there is a model")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds, in place of those of the size")
    parser.add_argument("--ratios", type=int, nargs="+", help="10: a tenth of the tokens is attended to; in place of those of the size")
    parser.add_argument("--settings", nargs="+", help="run only these settings of the parts answers and divergence")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=[], help="files or folders of running text; default: minillama-ask's own prose")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    args = parser.parse_args()
    check(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    measured: dict[str, list[dict]] = {}
    for part in args.parts or parts:
        if part in of_real_model and args.real_model is None:
            print(f"== {part}: left out, no --real-model", file=sys.stderr)
            continue
        print(f"== {part}", file=sys.stderr, flush=True)
        measured[part] = measure(args, part)
        write_results(args, measured)
    print(args.folder / "report.md")


if __name__ == "__main__":
    main()
