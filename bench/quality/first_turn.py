#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Recall of a session that begins with a short turn, compared with the same tokens as one prompt, and the cost of its trainings.

    first_turn.py --program BUILD/examples/minillama/minillama --model examples/minillama/model --folder FOLDER

A session's first turn is --first tokens of the text, prefilled. It grows through the decode path to the text's end: in turns of --turn
tokens, or token by token, as generated text does (at the longest length only). On the way maintain() renews the codebooks. Over the
last --tokens tokens it prints recall (the share of the exact top-k that was retrieved) and attention mass, each as it is and divided by
that of the same tokens as one prompt; then how often an index was trained or renewed, how many codes that wrote for each of the last
length's, and the share of the session's time that maintain() took. The session's time is that of its turns: prefill, index, turns and
tokens decoded, measurements left out. One length could fall just behind a training or just before the next one, so there are several; the
last line of a setting is the mean over them.

A result is a file in --folder, and what is there already is not run again.
"""
import argparse
import json
import pathlib
import sys

from kept_runs import kept_run

root = pathlib.Path(__file__).resolve().parents[2]
ways = {"one prompt": None, "turns": None, "token by token": 1}


def run(args: argparse.Namespace, way: str, refresh: float, length: int) -> dict:
    """One session over the first `length` bytes of the text."""
    subspaces, bits = args.codes.split("x")
    name = f"{way.replace(' ', '-')}-{args.refresh_keys}-{refresh:g}-{args.refresh_iterations}-{args.codes}-{length}"
    prompt = args.folder / f"{args.text.name}.{length}"
    command = ["--model", str(args.model), "--threads", str(args.threads), "--policy", "pq", "--quality", "--subspaces", subspaces,
               "--bits", bits, "--refresh", str(refresh), "--refresh-iterations", str(args.refresh_iterations), "--refresh-keys",
               args.refresh_keys, "--perplexity", str(prompt), "--perplexity-tokens", str(args.tokens)]
    if way != "one prompt":
        command += ["--perplexity-prompt", str(args.first), "--perplexity-turn", str(ways[way] or args.turn)]
    of = json.dumps([*command, prompt.read_bytes().decode("utf-8", "ignore")])
    return kept_run(args.program, command, args.folder / f"{name}.json", of, f"first_turn: {way}, {length} bytes")


def measured(result: dict) -> dict:
    """What the table has of a session."""
    statistics, times = result["statistics"], result["times"]
    session = times["prefill_seconds"] + times["index_seconds"] + times["decode_seconds"]
    tokens = result["prompt"]["tokens"] + statistics["steps"]
    index = result["model"]["layers"] * result["model"]["kv_heads"] * result["settings"]["subspaces"]
    return {"tokens": tokens,
            "recall": statistics["quality"]["recall"]["mean"],
            "mass": statistics["quality"]["attention_mass"]["mean"],
            "trainings": statistics["maintenance"]["trainings"] / result["model"]["layers"],
            "codes": statistics["maintenance"]["codes"] / index / tokens,
            "seconds": session,
            "share": statistics["maintenance"]["seconds"] / session}


def line(way: str, refresh: str, of: dict, whole: dict) -> str:
    return (f"{way:16} {refresh:>7} {of['tokens']:7.0f} {of['recall']:8.3f} {of['recall'] / whole['recall']:6.3f} {of['mass']:8.3f} "
            f"{of['mass'] / whole['mass']:6.3f} {of['trainings']:10.1f} {of['codes']:6.2f} {of['seconds']:9.1f} {100 * of['share']:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=pathlib.Path, required=True, help="minillama")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="Hugging Face directory")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where results are kept")
    parser.add_argument("--text", type=pathlib.Path, default=root / "LICENSE", help="file of text; default: the licence of this repository")
    parser.add_argument("--bytes", type=int, nargs="+", default=[7000, 7800, 8700, 9600], help="bytes of the text in a session, one session for each number")
    parser.add_argument("--first", type=int, default=150, help="tokens of the first turn")
    parser.add_argument("--turn", type=int, default=512, help="tokens of the other turns")
    parser.add_argument("--tokens", type=int, default=256, help="tokens at the end, over which recall is measured")
    parser.add_argument("--refresh", type=float, nargs="+", default=[1.05], help="growth at which codebooks are renewed; 0: never")
    parser.add_argument("--refresh-iterations", type=int, default=1, help="iterations of a renewal; 0: codebooks are trained anew")
    parser.add_argument("--refresh-keys", default="new", choices=["new", "all"], help="the keys that a renewal trains on and encodes")
    parser.add_argument("--codes", default="4x8", help="subspaces x bits")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    text, lengths = args.text.read_bytes(), sorted(set(args.bytes))
    if len(text) < lengths[-1]:
        sys.exit(f"first_turn: {args.text}: has {len(text)} bytes, fewer than the {lengths[-1]} of --bytes")
    for length in lengths:
        (args.folder / f"{args.text.name}.{length}").write_bytes(text[:length])

    print(f"{'session':16} {'refresh':>7} {'tokens':>7} {'recall':>8} {'ratio':>6} {'mass':>8} {'ratio':>6} {'trainings':>10} {'codes':>6} "
          f"{'session,s':>9} {'maintain,%':>10}")
    whole = {length: measured(run(args, "one prompt", args.refresh[0], length)) for length in lengths}
    for length in lengths:
        print(line("one prompt", "-", whole[length], whole[length]), flush=True)
    mean = lambda of: {key: sum(one[key] for one in of) / len(of) for key in of[0]}
    for refresh in args.refresh:
        grown = []
        for length in lengths:
            grown.append(measured(run(args, "turns", refresh, length)))
            print(line("turns", f"{refresh:g}", grown[-1], whole[length]), flush=True)
        print(line("turns, mean", f"{refresh:g}", mean(grown), mean(list(whole.values()))), flush=True)
        longest = measured(run(args, "token by token", refresh, lengths[-1]))
        print(line("token by token", f"{refresh:g}", longest, whole[lengths[-1]]), flush=True)


if __name__ == "__main__":
    main()
