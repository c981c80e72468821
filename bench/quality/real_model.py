#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answers that a real model keeps, by settings: minillama-ask over several seeds, added up in one table.

    real_model.py --program BUILD/examples/minillama/minillama-ask --model FOLDER --seeds 1 2 3 4 --folder FOLDER

Every seed has its own contexts and questions, the same for all settings. A result is a file in --folder; what is there already is not run
again, so an interrupted run goes on where it stopped. Several runs at a time (--jobs), a thread each. Prints, for each setting and budget, the
answers that are right among those that dense attention gets right, and all that are right, each with the 95 % interval of its share
(Wilson). A budget 1/R of rows of 16 bits: rows of 8 bits are so many more as have the same bytes.
"""
from __future__ import annotations

import argparse
import json
import pathlib

from intervals import percent
from kept_runs import declare_runs, kept_run, refuse, run_all

int8 = ["--rows", "int8"]
pq = ["--policy", "pq", "--codes"]
weighted = ["--axes", "weighted", "--over", "attended"]
settings = {
    "exact top-k, 16-bit rows, 32 sinks": ["--policy", "oracle", "--sink", "32"],
    "2 x 6, contiguous axes, 16-bit rows, 32 sinks": [*pq, "2x6", "--axes", "contiguous", "--sink", "32"],
    "rotary axes, over middle, 16-bit rows": [*pq, "4x8", "--axes", "rotary", "--over", "middle"],
    "rotary axes, over middle, 8-bit rows": [*pq, "4x8", "--axes", "rotary", "--over", "middle", *int8],
    "rotary axes, over attended, 8-bit rows": [*pq, "4x8", "--axes", "rotary", "--over", "attended", *int8],
    "weighted axes, over middle, 8-bit rows": [*pq, "4x8", "--axes", "weighted", "--over", "middle", *int8],
    "weighted axes, over attended, 8-bit rows": [*pq, "4x8", *weighted, *int8],
    "8 x 8, weighted axes, over attended, 8-bit rows": [*pq, "8x8", *weighted, *int8],
    "exact top-k, 8-bit rows, 4 sinks": ["--policy", "oracle", *int8],
    "weighted axes, over attended, 16-bit rows": [*pq, "4x8", *weighted],
}


def chosen(script: str, all_settings: dict[str, list[str]], names: list[str] | None) -> dict[str, list[str]]:
    """The settings that were asked for; all of them where none was."""
    for name in names or []:
        if name not in all_settings:
            refuse(script, f"--settings: {name!r} is none of {', '.join(map(repr, all_settings))}")
    return {name: how for name, how in all_settings.items() if names is None or name in names}


def run(args: argparse.Namespace, name: str, seed: int) -> dict:
    """One setting on the contexts of one seed; what minillama-ask says of it."""
    file = args.folder / f"{list(settings).index(name)}-seed{seed}.json"
    command = ["--model", str(args.model), "--threads", "1", "--length", str(args.length), "--contexts", str(args.contexts),
               "--questions", str(args.questions), "--seed", str(seed), "--ratios", *map(str, args.ratios), *settings[name], "--answers-only",
               *(["--text", *map(str, args.text)] if args.text else [])]
    return kept_run(args.program, command, file, json.dumps(command), f"real_model: {name}, seed {seed}")


def measure(args: argparse.Namespace) -> list[dict]:
    """A record for each setting and budget: counts over all seeds."""
    args.folder.mkdir(parents=True, exist_ok=True)
    runs = [(name, seed) for seed in args.seeds for name in chosen("real_model", settings, args.settings)]
    results = run_all(runs, lambda one: run(args, *one), args.jobs, f"real_model, {args.length} tokens")
    records: dict[tuple[str, int], dict] = {}
    for (name, _), result in zip(runs, results):
        dense = result["policies"][0]["right"]
        for one_in, policy in zip(sorted(args.ratios), result["policies"][1:]):
            record = records.setdefault((name, one_in), {"setting": name, "length": args.length, "one_in": one_in, "kept": 0, "dense": 0,
                                                         "right": 0, "asked": 0, "row_bytes": 0})
            record["kept"] += dense - policy["lost_of_full"]
            record["dense"] += dense
            record["right"] += policy["right"]
            record["asked"] += args.questions
            halves = 2 if policy["rows"] == "float" else 1  # minillama's floats stand for 16 bits
            record["row_bytes"] += policy["bytes_per_token"]["rows"] / halves / len(args.seeds)
    return list(records.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    declare_runs(parser, "minillama-ask")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--settings", nargs="+", help="run only these settings, named as in the table")
    parser.add_argument("--length", type=int, default=2000, help="tokens of a context")
    parser.add_argument("--contexts", type=int, default=5, help="contexts of each seed")
    parser.add_argument("--questions", type=int, default=40, help="questions of each seed")
    parser.add_argument("--ratios", type=int, nargs="+", default=[10, 20, 40], help="10: a tenth of the tokens is attended to")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=[], help="files or folders of running text; default: minillama-ask's own prose")
    args = parser.parse_args()
    records = measure(args)
    print(f"{'setting':48} {'at':>5} {'of dense':>9} {'interval, %':>12} {'right':>9} {'rows, kB a token':>17}")
    for of in records:
        kept, right, at = f"{of['kept']}/{of['dense']}", f"{of['right']}/{of['asked']}", f"1/{of['one_in']}"
        print(f"{of['setting']:48} {at:>5} {kept:>9} {percent(of['kept'], of['dense']):>12} {right:>9} {of['row_bytes'] / 1000:17.0f}")


if __name__ == "__main__":
    main()
