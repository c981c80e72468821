#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far a real model's next-token distributions part from dense attention's, by settings: minillama --perplexity over several texts.

    divergence.py --program BUILD/examples/minillama/minillama --model FOLDER --folder FOLDER [--text FILE ...]

The model reads the first --bytes bytes of each text; the last --tokens tokens of them are scored through the decode path, once with dense
attention and once with the setting. Prints, for each setting and budget, the Kullback-Leibler divergence of the setting's distribution
from dense attention's, in nats a token: the mean over the texts, and the highest of them. A budget 1/R counts bytes of rows, as in
real_model.py. A result is a file in --folder, and what is there already is not run again. Several runs at a time (--jobs), a thread each.
"""
import argparse
import concurrent.futures
import json
import pathlib
import sys

from kept_runs import kept_run

root = pathlib.Path(__file__).resolve().parents[2]
settings = {
    "exact top-k, 16-bit rows, 32 sinks": ["--policy", "oracle", "--sink", "32"],
    "2 x 6, contiguous axes, 16-bit rows, 32 sinks": ["--policy", "pq", "--subspaces", "2", "--bits", "6", "--axes", "contiguous", "--sink", "32"],
    "rotary axes, over middle, 16-bit rows": ["--policy", "pq", "--axes", "rotary", "--over", "middle"],
    "rotary axes, over middle, 8-bit rows": ["--policy", "pq", "--axes", "rotary", "--over", "middle", "--rows", "int8"],
    "rotary axes, over attended, 8-bit rows": ["--policy", "pq", "--axes", "rotary", "--over", "attended", "--rows", "int8"],
    "weighted axes, over attended, 8-bit rows": ["--policy", "pq", "--axes", "weighted", "--over", "attended", "--rows", "int8"],
}
own_texts = [root / name for name in ("docs/integrating.md", "docs/backends.md", "include/pqkv/pqcache.hpp", "examples/minillama/model.cpp",
                                      "docs/numerics.md", "docs/results.md")]


def run(args: argparse.Namespace, name: str, ratio: int, text: pathlib.Path) -> dict:
    """One setting at one budget on one text: what minillama says of it."""
    file = args.folder / f"{list(settings).index(name)}-{ratio}-{text.name}.json"
    prompt = args.folder / f"{text.name}.{args.bytes}"
    command = ["--model", str(args.model), "--threads", "1", "--ratio", str(1 / ratio), *settings[name], "--compare", "full",
               "--perplexity", str(prompt), "--perplexity-tokens", str(args.tokens)]
    of = json.dumps([*command, text.read_bytes()[:args.bytes].decode("utf-8", "ignore")])
    return kept_run(args.program, command, file, of, f"divergence: {name}, 1/{ratio}, {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=pathlib.Path, required=True, help="minillama")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="Hugging Face directory, e.g. what examples/models/smollm2.sh prints")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where results are kept")
    parser.add_argument("--bytes", type=int, default=8000, help="of each text")
    parser.add_argument("--tokens", type=int, default=256, help="at its end that are scored")
    parser.add_argument("--ratios", type=int, nargs="+", default=[10, 20, 40], help="one token in so many attends")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=own_texts, help="files of text; default: six of this repository")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if len({text.name for text in args.text}) != len(args.text):
        sys.exit("divergence: --text: two files of one name")
    for text in args.text:
        (args.folder / f"{text.name}.{args.bytes}").write_bytes(text.read_bytes()[:args.bytes])
    runs = [(name, ratio, text) for text in args.text for ratio in sorted(args.ratios) for name in settings]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda one: run(args, *one), runs))

    print(f"{'setting':48} {'at':>5} {'divergence':>11} {'highest':>9} {'perplexity of dense':>20} {'rows, kB a token':>17}")
    for name in settings:
        for ratio in sorted(args.ratios):
            own = [result for (n, r, _), result in zip(runs, results) if (n, r) == (name, ratio)]
            parts = [result["perplexity"]["policy"]["divergence_from_full"] for result in own]
            dense = [result["perplexity"]["full"]["perplexity"] for result in own]
            wide = 1 if "8-bit" in name else 2  # minillama's floats stand for 16 bits
            rows = [result["statistics"]["bytes_per_token"]["rows"] / wide / 1000 for result in own]
            mean = lambda values: sum(values) / len(values)
            print(f"{name:48} {'1/' + str(ratio):>5} {mean(parts):11.4f} {max(parts):9.4f} {mean(dense):20.2f} {mean(rows):17.0f}")


if __name__ == "__main__":
    main()
