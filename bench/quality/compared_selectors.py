#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every selector on every family of tasks that minillama-ask has, at equal tokens: added up over seeds, with intervals.

    compared_selectors.py --program BUILD/examples/minillama/minillama-ask --model examples/minillama/model --folder FOLDER

The families are those of the model: needles in text and key-value lists for a model of bytes, numbers in text for one that chats. Every
seed has its own contexts and questions, the same for all selectors, and each question is asked behind the prefilled context, which does
not know it. Prints the answers that are right, those that are right of what dense attention gets right, tokens that attend and bytes that
are read a generated token (rows; codes, keys and the like that ranking reads), recall of the exact top-k, attention mass, and the
probability that a selector and the first pq part by chance on the questions that one of them alone answers. A result is a file in --folder; what is
there already is not run again. Several runs at a time (--jobs), a thread each.
"""
from __future__ import annotations

import argparse
import json
import pathlib

from intervals import percent, sign_test
from kept_runs import declare_runs, kept_run, run_all

policies = ["pq", "oracle", "streaming", "snapkv", "h2o", "sparq", "quest", "infllm"]


def run(args: argparse.Namespace, seed: int) -> dict:
    """All selectors on the contexts of one seed; what minillama-ask says of them."""
    command = ["--model", str(args.model), "--threads", "1", "--length", str(args.length), "--contexts", str(args.contexts),
               "--questions", str(args.questions), "--seed", str(seed), "--ratios", *map(str, args.ratios), "--policy", *args.policies,
               *(["--codes", *args.codes] if args.codes else []), *(["--text", *map(str, args.text)] if args.text else [])]
    file = args.folder / f"selectors-{args.length}-seed{seed}.json"
    return kept_run(args.program, command, file, json.dumps(command), f"compared_selectors: seed {seed}")


def is_right(entry: dict, label: str) -> bool:
    """Whether a question's answer is right, as minillama-ask decides it: a number that others follow, or the whole line."""
    text, value = entry["answers"][label], entry["value"]
    if entry["kind"] != "numbers":
        return text == value
    begun = text.lstrip(" \n")
    return begun[:len(begun) - len(begun.lstrip("0123456789"))] == value


def rival_of(policy: dict, policies_of_run: list[dict]) -> str | None:
    """The label of the first pq at a policy's budget."""
    one_in = one_in_of(policy["label"])
    return next((p["label"] for p in policies_of_run if p["label"].startswith("pq") and one_in_of(p["label"]) == one_in), None)


def one_in_of(label: str) -> int:
    """10 of "quest 1/10"; 1 of dense attention, which has no budget."""
    return int(label.rsplit("/", 1)[1]) if "/" in label else 1


def new_record(family: str, length: int, label: str, seeds: int) -> dict:
    counted = ("right", "asked", "kept", "dense", "better_than_pq", "worse_than_pq")
    measured = ("tokens", "row_bytes", "ranking_bytes", "recall", "worst_recall", "mass", "worst_mass", "worst_retrieval_mass", "output_error",
                "worst_output_error", "worst_retrieval_output_error")
    return {"family": family, "length": length, "policy": label.rsplit(" ", 1)[0] if "/" in label else label, "one_in": one_in_of(label),
            **dict.fromkeys(counted, 0), "seeds": seeds, **dict.fromkeys(measured, 0)}


def count(record: dict, own: list[bool], dense: list[bool], rival: list[bool] | None) -> None:
    """Adds answers to a record: whether each is right, dense attention's is, and that of the first pq, if there is one."""
    record["asked"] += len(own)
    record["right"] += sum(own)
    record["dense"] += sum(dense)
    record["kept"] += sum(a and b for a, b in zip(own, dense))
    if rival is not None:
        record["better_than_pq"] += sum(a and not b for a, b in zip(own, rival))
        record["worse_than_pq"] += sum(b and not a for a, b in zip(own, rival))


def add_figures(record: dict, policy: dict) -> None:
    """Adds a run's share of what is a mean over seeds. A figure that a run does not have is null from then on."""
    read = policy["bytes_per_token"]
    halves = 1 if policy.get("rows") == "int8" else 2  # minillama's float rows stand for 16 bits
    recall, mass, error = (policy.get(name) or {} for name in ("recall", "attention_mass", "output_error"))
    figures = {"tokens": policy["tokens_attended"], "row_bytes": read["rows"] / halves,
               "ranking_bytes": sum(read[part] or 0 for part in ("index", "selector")), "recall": recall.get("mean"),
               "worst_recall": recall.get("worst_head"), "mass": mass.get("mean"), "worst_mass": mass.get("worst_head"),
               "worst_retrieval_mass": mass.get("worst_retrieval_head"), "output_error": error.get("mean"),
               "worst_output_error": error.get("worst_head"), "worst_retrieval_output_error": error.get("worst_retrieval_head")}
    for name, value in figures.items():
        record[name] = None if value is None or record[name] is None else record[name] + value / record["seeds"]


def measure(args: argparse.Namespace) -> list[dict]:
    """A record for each family, selector and budget: counts over all seeds, means over the seeds of what is not counted."""
    args.folder.mkdir(parents=True, exist_ok=True)
    results = run_all(args.seeds, lambda seed: run(args, seed), args.jobs, f"compared_selectors, {args.length} tokens")
    records: dict[tuple[str, str], dict] = {}
    for result in results:
        for policy in result["policies"]:
            label, rival = policy["label"], rival_of(policy, result["policies"])
            right = lambda of, entries: [is_right(entry, of) for entry in entries]
            if (own := sum(right(label, result["questions"]))) != policy["right"]:
                raise SystemExit(f"compared_selectors: {label}: {own} answers are right here, {policy['right']} in minillama-ask")
            for family in dict.fromkeys(entry["kind"] for entry in result["questions"]):
                record = records.setdefault((family, label), new_record(family, args.length, label, len(args.seeds)))
                entries = [entry for entry in result["questions"] if entry["kind"] == family]
                count(record, right(label, entries), right("full", entries), right(rival, entries) if rival else None)
                add_figures(record, policy)
    return list(records.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    declare_runs(parser, "minillama-ask")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--policies", choices=policies, nargs="+", default=policies)
    parser.add_argument("--codes", nargs="+", default=[], help="codes of pq, each a selector: 4x8 8x8; others are compared with the first")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a context")
    parser.add_argument("--contexts", type=int, default=4, help="contexts of each seed; with an even number, as many have needles as lists")
    parser.add_argument("--questions", type=int, default=20, help="questions of each seed")
    parser.add_argument("--ratios", type=int, nargs="+", default=[10, 40], help="10: a tenth of the tokens is attended to")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=[], help="files or folders of running text; default: minillama-ask's own prose")
    args = parser.parse_args()
    records = measure(args)
    print(f"{'family':8} {'policy':12} {'at':>5} {'right':>9} {'interval, %':>12} {'of dense':>9} {'tokens':>7} {'rows, kB':>9} "
          f"{'ranking, kB':>12} {'recall':>7} {'mass':>6} {'against pq':>11}")
    for of in records:
        at, right, kept = f"1/{of['one_in']}", f"{of['right']}/{of['asked']}", f"{of['kept']}/{of['dense']}"
        print(f"{of['family']:8} {of['policy']:12} {at:>5} {right:>9} {percent(of['right'], of['asked']):>12} {kept:>9} {of['tokens']:7.0f} "
              f"{of['row_bytes'] / 1000:9.1f} {of['ranking_bytes'] / 1000:12.1f} {of['recall'] or 0:7.3f} {of['mass'] or 0:6.3f} "
              f"{sign_test(of['better_than_pq'], of['worse_than_pq']):11.3f}")


if __name__ == "__main__":
    main()
