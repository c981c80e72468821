#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answers that a real model keeps, by settings: minillama-ask over several seeds, added up in one table.

    real_model.py --program BUILD/examples/minillama/minillama-ask --model FOLDER --seeds 1 2 3 4 --folder FOLDER

Every seed has its own contexts and questions, the same for all settings. A result is a file in --folder; what is there already is not run
again, so an interrupted run goes on where it stopped. Several runs at a time (--jobs), a thread each. Prints, for each setting and budget, the
answers that are right among those that dense attention gets right, and all that are right, each with the 95 % interval of its share
(Wilson). A budget 1/R of rows of 16 bits: rows of 8 bits are so many more as have the same bytes.
"""
import argparse
import concurrent.futures
import json
import math
import pathlib

from kept_runs import kept_run

quantized = ["--policy", "pq", "--codes", "4x8", "--axes"]
settings = {
    "exact top-k, 16-bit rows, 32 sinks": ["--policy", "oracle", "--sink", "32"],
    "2 x 6, contiguous axes, 16-bit rows, 32 sinks": ["--policy", "pq", "--codes", "2x6", "--axes", "contiguous", "--sink", "32"],
    "rotary axes, over middle, 16-bit rows": [*quantized, "rotary", "--over", "middle"],
    "rotary axes, over middle, 8-bit rows": [*quantized, "rotary", "--over", "middle", "--rows", "int8"],
    "rotary axes, over attended, 8-bit rows": [*quantized, "rotary", "--over", "attended", "--rows", "int8"],
    "weighted axes, over middle, 8-bit rows": [*quantized, "weighted", "--over", "middle", "--rows", "int8"],
    "weighted axes, over attended, 8-bit rows": [*quantized, "weighted", "--over", "attended", "--rows", "int8"],
}


def interval(right: int, of: int) -> str:
    """The 95 % interval of a share, in percent."""
    if of == 0:
        return "-"
    z, p = 1.959964, right / of
    middle, half = (p + z * z / (2 * of)), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    scale = 100 / (1 + z * z / of)
    return f"{(middle - half) * scale:.0f} to {(middle + half) * scale:.0f}"


def run(args: argparse.Namespace, name: str, seed: int) -> dict:
    """One setting on the contexts of one seed; what minillama-ask says of it."""
    file = args.folder / f"{list(settings).index(name)}-seed{seed}.json"
    command = ["--model", str(args.model), "--threads", "1", "--length", str(args.length), "--contexts", str(args.contexts),
               "--questions", str(args.questions), "--seed", str(seed), "--ratios", *map(str, args.ratios), *settings[name],
               *(["--text", *map(str, args.text)] if args.text else [])]
    return kept_run(args.program, command, file, json.dumps(command), f"real_model: {name}, seed {seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=pathlib.Path, required=True, help="minillama-ask")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="Hugging Face directory, e.g. what examples/models/smollm2.sh prints")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--length", type=int, default=2000, help="tokens of a context")
    parser.add_argument("--contexts", type=int, default=5, help="of each seed")
    parser.add_argument("--questions", type=int, default=40, help="of each seed")
    parser.add_argument("--ratios", type=int, nargs="+", default=[10, 20, 40], help="one token in so many attends")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=[], help="files or folders of running text; default: minillama-ask's own prose")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    runs = [(name, seed) for seed in args.seeds for name in settings]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda one: run(args, *one), runs))

    counts: dict[tuple[str, int], list[int]] = {}  # of dense's right answers: right, all of them; right at all, questions; bytes of rows
    for (name, _), result in zip(runs, results):
        policies = result["policies"]
        dense = policies[0]["right"]
        for ratio, policy in zip(sorted(args.ratios), policies[1:]):
            now = counts.setdefault((name, ratio), [0, 0, 0, 0, 0])
            row_bytes = policy["bytes_per_token"]["rows"] / (2 if policy["rows"] == "float" else 1)  # minillama's floats stand for 16 bits
            for i, more in enumerate([dense - policy["lost_of_full"], dense, policy["right"], args.questions, row_bytes]):
                now[i] += more
    print(f"{'setting':48} {'at':>5} {'of dense':>9} {'interval, %':>12} {'right':>9} {'rows, kB a token':>17}")
    for (name, ratio), (kept, dense, right, asked, row_bytes) in counts.items():
        print(f"{name:48} {'1/' + str(ratio):>5} {f'{kept}/{dense}':>9} {interval(kept, dense):>12} {f'{right}/{asked}':>9} "
              f"{row_bytes / len(args.seeds) / 1000:17.0f}")


if __name__ == "__main__":
    main()
