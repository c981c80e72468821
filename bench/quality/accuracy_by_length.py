#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Exact answers by context length and policy: runs minillama-ask once for each length, writes one JSON file and a figure.

    accuracy_by_length.py --program build/demo/examples/minillama/minillama-ask --model examples/minillama/model \\
        --json accuracy_by_length.json --svg accuracy_by_length.svg
    accuracy_by_length.py --plot-only accuracy_by_length.json accuracy_by_length.svg

The file is written after each length. A length that it already has under the same settings is not run again, so that a run that
stopped goes on; --fresh runs all. All lengths have the same number of questions, short ones on more contexts: at least 512 bytes for
each question, so that facts lie as thin at 1 K as at 32 K. Where a context as long as the model's positions leaves no room for a
question, it is 128 bytes shorter ("context_bytes" in the file). The figure needs matplotlib.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
from typing import Any, NoReturn

repository = pathlib.Path(__file__).resolve().parents[2]
question_room = 128  # what minillama-ask needs behind a context; examples/minillama/interview.hpp
bytes_per_fact = 512
most_questions_per_context = 10
default_lengths = [1024, 2048, 4096, 8192, 16384, 32768]
policy_names = ["full", "pq", "oracle", "streaming"]

# Colours of Okabe and Ito, which colour-blind readers tell apart; the mark says it once more.
looks = {"full": ("#000000", "o"), "pq": ("#0072B2", "s"), "oracle": ("#009E73", "^"), "streaming": ("#D55E00", "v")}
dashes = ["-", "--", "-.", ":"]


def refuse(what: str) -> NoReturn:
    print(f"accuracy_by_length: {what}", file=sys.stderr)
    raise SystemExit(2)


def contexts_for(length: int, questions: int) -> int:
    """An even number, so that needles and lists are asked alike, of contexts with room for their questions' facts."""
    each = min(max(length // bytes_per_fact, 1), most_questions_per_context)
    return min(2 * math.ceil(questions / (2 * each)), questions)


def settings_of(args: argparse.Namespace, weights: str) -> dict[str, Any]:
    """What decides the answers, besides the length. Threads are not among it."""
    return {"model": shown(args.model), "model_sha256": weights, "seed": args.seed, "policies": args.policies, "ratios": args.ratios,
            "text": [shown(file) for file in args.text], **({"codes": args.codes} if args.codes else {})}


def shown(path: pathlib.Path) -> str:
    """A path as another machine can use it: from the repository's root, or the name alone."""
    path = path.resolve()
    return path.relative_to(repository).as_posix() if path.is_relative_to(repository) else path.name


def read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(f"{path}: cannot be read as JSON: {' '.join(str(error).split())}")
    if not isinstance(kept, dict) or not isinstance(kept.get("results"), list):
        refuse(f"{path}: results: missing; not a file of this program")
    return kept


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        refuse(f"{path}: cannot be written: {error.strerror}")


def run_ask(command: list[str], length: int) -> None:
    """Hands progress on line by line; the last line of a run that fails becomes part of the error."""
    last = ""
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    except OSError as error:
        refuse(f"--program: {command[0]}: {error.strerror}")
    assert process.stderr
    for line in process.stderr:
        if last:
            print(f"{length}: {last}", file=sys.stderr, flush=True)
        last = line.rstrip("\n")
    if process.wait() != 0:
        refuse(f"length {length}: exit code {process.returncode} of {pathlib.Path(command[0]).name}: {last or 'it said nothing'}")
    if last:
        print(f"{length}: {last}", file=sys.stderr, flush=True)


def measure(args: argparse.Namespace, length: int, positions: int) -> dict[str, Any]:
    """Asks at one length; the length is that of the context unless the model's positions end there."""
    context = min(length, positions - question_room)
    contexts = args.contexts or contexts_for(context, args.questions)
    options = ["--length", str(context), "--questions", str(args.questions), "--contexts", str(contexts), "--seed", str(args.seed)]
    if args.ratios:
        options += ["--ratios", *map(str, args.ratios)]
    if args.codes:
        options += ["--codes", *args.codes]
    options += ["--policy", *args.policies]
    program = [str(args.program.resolve()), "--model", str(args.model), "--threads", str(args.threads)]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "result.json"
        texts = [part for text in args.text for part in ("--text", str(text))]
        run_ask([*program, *texts, *options, "--json", str(file)], length)
        measured = json.loads(file.read_text(encoding="utf-8"))
    command = ["minillama-ask", "--model", shown(args.model), *(part for text in args.text for part in ("--text", shown(text))), *options]
    keep = ("label", "ratio", "right", "lost_of_full", "tokens_attended", "recall", "attention_mass")
    return {"length": length, "context_bytes": context, "contexts": contexts, "asked": args.questions,
            "text_bytes": measured["settings"]["text_bytes"], "command": shlex.join(command),
            "policies": [{key: policy[key] for key in keep if key in policy} for policy in measured["policies"]]}


def reusable(result: dict[str, Any], args: argparse.Namespace, length: int, positions: int) -> bool:
    context = min(length, positions - question_room)
    wanted = {"length": length, "context_bytes": context, "asked": args.questions,
              "contexts": args.contexts or contexts_for(context, args.questions)}
    return all(result.get(key) == value for key, value in wanted.items())


def print_result(result: dict[str, Any]) -> None:
    counts = "  ".join(f"{policy['label']} {policy['right']}" + (f" (lost {policy['lost_of_full']})" if policy["lost_of_full"] else "")
                       for policy in result["policies"])
    print(f"{result['length']:7}  right of {result['asked']}: {counts}")


def run(args: argparse.Namespace) -> None:
    if args.svg:
        load_matplotlib()  # before hours of measuring
    weights = args.model / "model.safetensors"
    try:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        positions = int(json.loads((args.model / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"])
    except (OSError, ValueError, KeyError) as error:
        refuse(f"--model: {args.model}: no config.json with max_position_embeddings and model.safetensors: {type(error).__name__}")
    too_long = [length for length in args.lengths if length > positions]
    if too_long:
        refuse(f"--lengths: {too_long[0]} is more than the model's {positions} positions")
    settings = settings_of(args, digest)
    kept: list[dict[str, Any]] = []
    if args.json.exists() and not args.fresh:
        before = read_json(args.json)
        if before.get("settings") != settings:
            refuse(f"--json: {args.json}: was made with other settings; --fresh replaces it")
        kept = before["results"]
    results: dict[int, dict[str, Any]] = {result["length"]: result for result in kept}
    for length in args.lengths:
        if length in results and reusable(results[length], args, length, positions):
            print(f"{length}: already measured", file=sys.stderr)
        else:
            results[length] = measure(args, length, positions)
            ordered = [results[key] for key in sorted(results)]
            labels = list(dict.fromkeys(policy["label"] for result in ordered for policy in result["policies"]))
            write_json(args.json, {"settings": settings, "lengths": sorted(results), "policies": labels, "results": ordered})
    for length in args.lengths:
        print_result(results[length])
    if args.svg:
        plot(read_json(args.json), args.svg)


def load_matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        refuse("figure: needs matplotlib, which this Python does not have")
    matplotlib.use("svg")
    return matplotlib


def name_of_length(length: int) -> str:
    return f"{length // 1024} K" if length % 1024 == 0 else str(length)


def plot(figures: dict[str, Any], path: pathlib.Path) -> None:
    """The same bytes for the same figures: fixed ids, no date, no version, text as text."""
    matplotlib = load_matplotlib()
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "pqkv", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
    try:
        results = figures["results"]
        points = {label: [(result["length"], 100 * policy["right"] / result["asked"]) for result in results for policy in result["policies"]
                          if policy["label"] == label] for label in figures["policies"]}
        lengths = [result["length"] for result in results]
        asked = sorted({result["asked"] for result in results})
    except (KeyError, TypeError) as error:
        refuse(f"figure: the JSON file lacks {error}")
    if not lengths:
        refuse("figure: the JSON file has no results")
    figure, axes = pyplot.subplots(figsize=(7.2, 4.0), layout="constrained")
    seen: dict[str, int] = {}
    for label, line in points.items():
        family = label.split()[0]
        colour, mark = looks.get(family, ("#777777", "x"))
        dash = dashes[seen.get(family, 0) % len(dashes)]
        seen[family] = seen.get(family, 0) + 1
        axes.plot(*zip(*line), dash, color=colour, marker=mark, markersize=5, linewidth=1.6,
                  label="dense (full)" if family == "full" else label.replace("streaming", "streaming (sinks and window)"))
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [name_of_length(length) for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(-2, 103)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel(f"exact answers to {' or '.join(map(str, asked))} questions, %")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    try:
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    except OSError as error:
        refuse(f"{path}: cannot be written: {error.strerror}")
    pyplot.close(figure)


def count_of(least: int) -> Any:
    def count(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a whole number of at least {least} expected, got {text!r}")
        return int(text)
    return count


class one_line_parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse(message)


def main() -> None:
    parser = one_line_parser(description="Exact answers by context length and policy.")
    parser.add_argument("--program", type=pathlib.Path, help="the built minillama-ask")
    parser.add_argument("--model", type=pathlib.Path, help="folder with config.json and model.safetensors")
    parser.add_argument("--lengths", type=count_of(256), nargs="+", default=default_lengths)
    parser.add_argument("--questions", type=count_of(1), default=100, help="questions at each length")
    parser.add_argument("--contexts", type=count_of(1), help="contexts at each length; default: enough for 512 bytes a question")
    parser.add_argument("--policies", choices=policy_names, nargs="+", default=policy_names, help="policies to measure; full is always one of them")
    parser.add_argument("--ratios", type=count_of(1), nargs="*", default=[10], help="10 for a tenth of the tokens; without a number: minillama-ask's own")
    parser.add_argument("--codes", nargs="*", default=[], help="codes of pq, as in 2x6 4x8; default: the library's")
    parser.add_argument("--seed", type=count_of(0), default=21)
    parser.add_argument("--threads", type=count_of(1), default=os.cpu_count() or 1)
    parser.add_argument("--text", type=pathlib.Path, nargs="+", default=[], help="files or folders of running text; default: minillama-ask's own prose")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("accuracy_by_length.json"))
    parser.add_argument("--svg", type=pathlib.Path, help="also draw the figure")
    parser.add_argument("--fresh", action="store_true", help="run lengths again that the JSON file already has")
    parser.add_argument("--plot-only", type=pathlib.Path, nargs=2, metavar=("JSON", "SVG"), help="draw the results in a file, and run nothing")
    args = parser.parse_args()
    if args.plot_only:
        plot(read_json(args.plot_only[0]), args.plot_only[1])
        return
    for option in ("program", "model"):
        if getattr(args, option) is None:
            refuse(f"--{option}: is required")
    args.policies = [name for name in policy_names if name in args.policies]
    args.ratios = sorted(set(args.ratios))
    args.lengths = sorted(set(args.lengths))
    if args.contexts and args.contexts > args.questions:
        refuse(f"--contexts: {args.contexts} are more than the {args.questions} questions")
    run(args)


if __name__ == "__main__":
    main()
