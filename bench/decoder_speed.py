#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode tokens per second of minillama by context length and policy: one prefill a length, each policy from a fork of it.

    decoder_speed.py --program build/demo/examples/minillama/minillama-ask --model examples/minillama/model --json results/decoder_speed.json

The file is written after each length; a length that it already has under the same settings is not run again, so that a run that stopped
goes on. --fresh runs all.
"""
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
    print(f"decoder_speed: {what}", file=sys.stderr)
    raise SystemExit(2)


def measure(args: argparse.Namespace, length: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "result.json"
        command = [str(args.program.resolve()), "--model", str(args.model), "--threads", str(args.threads), "--length", str(length), "--questions",
                   str(args.questions), "--contexts", "1", "--ratios", *map(str, args.ratios), "--seed", "1", "--json", str(file)]
        try:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        except OSError as error:
            refuse(f"--program: {command[0]}: {error.strerror}")
        if done.returncode != 0:
            refuse(f"length {length}: exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
        found = json.loads(file.read_text(encoding="utf-8"))
    return {"length": length, "prefill_tokens_per_second": found["prefill"]["tokens_per_second"],
            "decode_tokens_per_second": {policy["label"]: policy["decode_tokens_per_second"] for policy in found["policies"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description="minillama's tokens per second by context length and policy.")
    parser.add_argument("--program", type=pathlib.Path, required=True, help="the built minillama-ask")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32640], help="bytes; a question needs 128 more")
    parser.add_argument("--questions", type=int, default=6, help="questions on each context, under each policy")
    parser.add_argument("--ratios", type=int, nargs="+", default=[10], help="10 for a tenth of the tokens")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--fresh", action="store_true", help="run lengths again that the file already has")
    args = parser.parse_args()
    model = args.model.resolve()
    model = model.relative_to(repository) if model.is_relative_to(repository) else pathlib.Path(model.name)
    settings = ["--model", model.as_posix(), "--questions", str(args.questions), "--ratios", *map(str, args.ratios)]
    value: dict[str, Any] = {"command": shlex.join(["decoder_speed.py", *settings]), "threads": args.threads, "results": []}
    if args.json.exists() and not args.fresh:
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if (before["command"], before["threads"]) != (value["command"], value["threads"]):
            refuse(f"--json: {args.json}: was made with other settings; --fresh replaces it")
        value = before
    for length in args.lengths:
        if any(result["length"] == length for result in value["results"]):
            print(f"{length}: already measured", file=sys.stderr)
            continue
        result = measure(args, length)
        rates = "  ".join(f"{name} {rate:.1f}" for name, rate in result["decode_tokens_per_second"].items())
        print(f"{length}: prefill {result['prefill_tokens_per_second']:.0f} tokens/s; decode {rates}", file=sys.stderr, flush=True)
        value["results"] = sorted([*value["results"], result], key=lambda one: one["length"])
        part = args.json.with_name(args.json.name + ".part")
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(part, args.json)


if __name__ == "__main__":
    main()
