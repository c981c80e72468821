#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far a real model's next-token distributions are from those of dense attention, by settings: minillama --perplexity over several texts.

    divergence.py --program BUILD/examples/minillama/minillama --model FOLDER --folder FOLDER [--text FILE ...]

The model reads the first --bytes bytes of each text; the last --tokens tokens of them are scored through the decode path, once with dense
attention and once with the setting. Prints, for each setting and budget, the Kullback-Leibler divergence of the setting's distribution
from dense attention's, in nats a token: the mean over the texts, and the highest of them. A budget 1/R counts bytes of rows, as in
real_model.py. A result is a file in --folder, and what is there already is not run again. Several runs at a time (--jobs), a thread each.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import sys

from kept_runs import declare_runs, kept_run, run_all
from real_model import chosen

root = pathlib.Path(__file__).resolve().parents[2]
weighted = ["--policy", "pq", "--axes", "weighted", "--over", "attended", "--rows", "int8"]
settings = {
    "exact top-k, 16-bit rows, 32 sinks": ["--policy", "oracle", "--sink", "32"],
    "2 x 6, contiguous axes, 16-bit rows, 32 sinks": ["--policy", "pq", "--subspaces", "2", "--bits", "6", "--axes", "contiguous", "--sink", "32"],
    "rotary axes, over middle, 16-bit rows": ["--policy", "pq", "--axes", "rotary", "--over", "middle"],
    "rotary axes, over middle, 8-bit rows": ["--policy", "pq", "--axes", "rotary", "--over", "middle", "--rows", "int8"],
    "rotary axes, over attended, 8-bit rows": ["--policy", "pq", "--axes", "rotary", "--over", "attended", "--rows", "int8"],
    "weighted axes, over attended, 8-bit rows": weighted,
    "8 x 8, weighted axes, over attended, 8-bit rows": [*weighted, "--subspaces", "8"],
    "exact top-k, 8-bit rows, 4 sinks": ["--policy", "oracle", "--rows", "int8"],
}
own_texts = [root / name for name in ("docs/integrating.md", "docs/backends.md", "include/pqkv/pqcache.hpp", "examples/minillama/model.cpp",
                                      "docs/numerics.md", "docs/results.md")]


def run(args: argparse.Namespace, name: str, one_in: int, text: pathlib.Path) -> dict:
    """One setting at one budget on one text: what minillama says of it."""
    file = args.folder / f"{list(settings).index(name)}-{one_in}-{text.name}.json"
    prompt = args.folder / f"{text.name}.{args.bytes}"
    command = ["--model", str(args.model), "--threads", "1", "--ratio", str(1 / one_in), *settings[name], "--compare", "full",
               "--perplexity", str(prompt), "--perplexity-tokens", str(args.tokens)]
    of = json.dumps([*command, text.read_bytes()[:args.bytes].decode("utf-8", "ignore")])
    return kept_run(args.program, command, file, of, f"divergence: {name}, 1/{one_in}, {text}")


def measure(args: argparse.Namespace) -> list[dict]:
    """A record for each setting and budget: means over the texts, and each text's divergence."""
    args.folder.mkdir(parents=True, exist_ok=True)
    if len({text.name for text in args.text}) != len(args.text):
        sys.exit("divergence: --text: two files of one name")
    for text in args.text:
        (args.folder / f"{text.name}.{args.bytes}").write_bytes(text.read_bytes()[:args.bytes])
    names = list(chosen("divergence", settings, args.settings))
    runs = [(name, one_in, text) for text in args.text for one_in in sorted(args.ratios) for name in names]
    results = run_all(runs, lambda one: run(args, *one), args.jobs, "divergence")
    records = []
    for name in names:
        for one_in in sorted(args.ratios):
            own = [(result, text) for (n, r, text), result in zip(runs, results) if (n, r) == (name, one_in)]
            parts = {text.name: result["perplexity"]["policy"]["divergence_from_full"] for result, text in own}
            halves = 1 if "8-bit" in name else 2  # minillama's floats stand for 16 bits
            records.append({"setting": name, "one_in": one_in, "divergence": sum(parts.values()) / len(own), "highest": max(parts.values()),
                            "dense_perplexity": sum(result["perplexity"]["full"]["perplexity"] for result, _ in own) / len(own),
                            "row_bytes": sum(result["statistics"]["bytes_per_token"]["rows"] for result, _ in own) / halves / len(own),
                            "texts": parts})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    declare_runs(parser, "minillama")
    parser.add_argument("--settings", nargs="+", help="run only these settings, named as in the table")
    parser.add_argument("--bytes", type=int, default=8000, help="bytes of each text that are used")
    parser.add_argument("--tokens", type=int, default=256, help="tokens at the end of each text that are scored")
    parser.add_argument("--ratios", type=int, nargs="+", default=[10, 20, 40], help="10: a tenth of the tokens is attended to")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=own_texts, help="files of text; default: six of this repository")
    args = parser.parse_args()
    records = measure(args)
    print(f"{'setting':48} {'at':>5} {'divergence':>11} {'highest':>9} {'perplexity of dense':>20} {'rows, kB a token':>17}")
    for of in records:
        at = f"1/{of['one_in']}"
        print(f"{of['setting']:48} {at:>5} {of['divergence']:11.4f} {of['highest']:9.4f} {of['dense_perplexity']:20.2f} "
              f"{of['row_bytes'] / 1000:17.0f}")


if __name__ == "__main__":
    main()
