#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every selector on the families of tasks that task_files.py makes, at equal tokens: added up over seeds.

    task_families.py --program BUILD/examples/minillama/minillama-ask --model FOLDER --folder FOLDER

A record's prompt holds the question, is prefilled with dense attention, and every selector decodes its own reply behind it. Counted is each
expected text that occurs in the reply, so that a question for four numbers counts four times. A record of the result is as those of
compared_selectors.py; its length is in bytes. Sets and results are files in --folder; what is there already is not run again. Several runs
at a time (--jobs), a thread each.
"""
from __future__ import annotations

import argparse
import json
import pathlib

import compared_selectors
import task_files
from intervals import percent, sign_test
from kept_runs import declare_runs, kept_run, refuse, run_all, write_whole


def run(args: argparse.Namespace, family: str, seed: int) -> dict:
    """All selectors on one set; what minillama-ask says of it."""
    name = f"{family.replace(' ', '-')}-{args.length}-seed{seed}"
    made = "".join(json.dumps(record) + "\n" for record in task_files.make(family, seed, args.records, args.length))
    questions = args.folder / f"{name}.jsonl"
    write_whole(questions, made)
    command = ["--model", str(args.model), "--threads", "1", "--benchmark", str(questions), "--answer-tokens",
               str(task_files.reply_tokens[family]), "--seed", str(seed), "--ratios", *map(str, args.ratios), "--policy", *args.policies,
               *(["--codes", *args.codes] if args.codes else []), *(["--rows", args.rows] if args.rows else [])]
    return kept_run(args.program, command, args.folder / f"{name}.json", json.dumps([*command, made]), f"task_families: {family}, seed {seed}")


def found(outputs: list[str], reply: str) -> list[bool]:
    """Which of the expected texts occur, as minillama-ask decides it: whatever their case."""
    return [text.lower() in reply.lower() for text in outputs]


def measure(args: argparse.Namespace) -> list[dict]:
    """A record for each family, selector and budget: counts over all seeds, means over the seeds of what is not counted."""
    args.folder.mkdir(parents=True, exist_ok=True)
    runs = [(family, seed) for family in args.families for seed in args.seeds]
    results = run_all(runs, lambda one: run(args, *one), args.jobs, f"task_families, {args.length} bytes")
    records: dict[tuple[str, str], dict] = {}
    for (family, seed), result in zip(runs, results):
        outputs = [record["outputs"] for record in task_files.make(family, seed, args.records, args.length)]
        for policy in result["policies"]:
            label, rival = policy["label"], compared_selectors.rival_of(policy, result["policies"])
            right = lambda of: [one for texts, entry in zip(outputs, result["records"]) for one in found(texts, entry["replies"][of]["text"])]
            scored = sum(len(texts) * entry["replies"][label]["score"] / 100 for texts, entry in zip(outputs, result["records"]))
            if abs(sum(right(label)) - scored) > 1e-6:
                raise SystemExit(f"task_families: {family}, {label}: {sum(right(label))} texts are found here, {scored:g} in minillama-ask")
            record = records.setdefault((family, label), compared_selectors.new_record(family, args.length, label, len(args.seeds)))
            compared_selectors.count(record, right(label), right("full"), right(rival) if rival else None)
            compared_selectors.add_figures(record, policy)
    return list(records.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    declare_runs(parser, "minillama-ask")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--families", nargs="+", default=task_files.families, help="default: all of task_files.py")
    parser.add_argument("--policies", choices=compared_selectors.policies, nargs="+", default=compared_selectors.policies)
    parser.add_argument("--codes", nargs="+", default=[], help="codes of pq, each a selector: 4x8 8x8; others are compared with the first")
    parser.add_argument("--rows", choices=["float", "int8"], help="type of stored keys and values; int8 attends to more tokens of as many bytes")
    parser.add_argument("--length", type=int, default=8000, help="most bytes of a prompt's text")
    parser.add_argument("--records", type=int, default=5, help="prompts of each family and seed")
    parser.add_argument("--ratios", type=int, nargs="+", default=[10, 40], help="10: a tenth of the tokens is attended to")
    args = parser.parse_args()
    if unknown := [family for family in args.families if family not in task_files.families]:
        refuse("task_families", f"--families: expected some of {', '.join(task_files.families)}, got {unknown[0]!r}")
    print(f"{'family':16} {'policy':12} {'at':>5} {'found':>9} {'interval, %':>12} {'of dense':>9} {'tokens':>7} {'against pq':>11}")
    for of in measure(args):
        at, right, kept = f"1/{of['one_in']}", f"{of['right']}/{of['asked']}", f"{of['kept']}/{of['dense']}"
        print(f"{of['family']:16} {of['policy']:12} {at:>5} {right:>9} {percent(of['right'], of['asked']):>12} {kept:>9} {of['tokens']:7.0f} "
              f"{sign_test(of['better_than_pq'], of['worse_than_pq']):11.3f}")


if __name__ == "__main__":
    main()
