#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time to the first token, to the second, and for each one behind them, by context length and policy, of minillama.

    latency.py --program build/demo/examples/minillama/minillama --model examples/minillama/model --json latency.json --figure latency.svg

A run prefills the text's first bytes and generates --tokens tokens; times are the clock's, from the start of the prefill. pq-file keeps keys
and values in a file (--kv-tier), with --cache-tokens of a layer in memory. pq-beside builds the index of a layer on one thread more while the
next layers are computed: with --threads one below the cores it hides behind the prefill, and its line says how much is left. full has no
index. Prints the table and draws it with --figure, which needs matplotlib. What the file already has under the same settings is not run
again, so that a series that stopped goes on; --fresh runs all.
"""
from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from program_runs import add_options, kept_results, read_text, refuse, run

in_file, beside = "pq-file", "pq-beside"
policies = ["full", "pq", in_file, beside, "oracle", "streaming", "snapkv", "h2o", "sparq", "quest", "infllm"]
times = {"first": "first_token_seconds", "second": "second_token_seconds", "each": "output_token_seconds", "index": "index_seconds",
         "waited": "index_wait_seconds"}


def measure(args: argparse.Namespace, text: bytes, length: int, policy: str) -> dict[str, Any]:
    name = "pq" if policy in (in_file, beside) else policy
    more = {in_file: ["--kv-tier", "FOLDER", "--cache-tokens", str(args.cache_tokens), "--eviction", args.eviction],
            beside: ["--index-threads", "1"]}.get(policy, [])
    found = run(args, f"{policy}, {length}", text[:length], ["-f", "TEXT", "-n", str(args.tokens), "--ignore-end", "--policy", name, *more])
    result: dict[str, Any] = {"length": length, "policy": policy} | {name: found["times"][key] for name, key in times.items()}
    if policy == in_file:
        result["hit_rate"] = found["statistics"]["tiers"]["hit_rate"]
    return result


def shown(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def table(results: list[dict[str, Any]]) -> list[str]:
    lengths = sorted({one["length"] for one in results})
    lines = []
    for title, name in (("first token", "first"), ("second token", "second"), ("each later token", "each")):
        lines += [f"| {title} | " + " | ".join(map(str, lengths)) + " |", "|---" * (len(lengths) + 1) + "|"]
        for policy in policies:
            of = {one["length"]: one[name] for one in results if one["policy"] == policy}
            if of:
                lines.append(f"| {policy} | " + " | ".join(shown(of[n]) if n in of else "not measured" for n in lengths) + " |")
        lines.append("")
    full = {one["length"]: one["first"] for one in results if one["policy"] == "full"}
    for policy, what in (("pq", "built between the layers"), (beside, "built beside them on a thread more")):
        added = {one["length"]: one["first"] / full[one["length"]] - 1 for one in results if one["policy"] == policy and one["length"] in full}
        if added:
            lines += [f"The index, {what}, adds to full's time to the first token: "
                      + ", ".join(f"{added[n]:+.1%} at {n}" for n in sorted(added)) + ".", ""]
    hits = {one["length"]: one["hit_rate"] for one in results if "hit_rate" in one}
    if hits:
        lines += ["Selected tokens of pq-file whose rows were in memory: " + ", ".join(f"{hits[n]:.0%} at {n}" for n in sorted(hits)) + ".", ""]
    return lines


def draw(results: list[dict[str, Any]], path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError:
        refuse("--figure: needs matplotlib")
    matplotlib.use("svg")
    from matplotlib import pyplot
    matplotlib.rcParams.update({"svg.hashsalt": "pqkv", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 4), layout="constrained")
    for axes, (title, name) in zip(panels, (("time to first token, s", "first"), ("time to second token, s", "second"),
                                            ("each later token, s", "each"))):
        for i, policy in enumerate(policies):
            of = sorted((one["length"], one[name]) for one in results if one["policy"] == policy)
            if of:
                axes.plot([n for n, _ in of], [seconds for _, seconds in of], marker="os^vD<>Px*h"[i], markersize=4, linewidth=1.2, color=f"C{i % 10}",
                          label=policy)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("context, tokens")
        axes.set_title(title)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[2].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="minillama's time to first and second token and per output token, by length and policy.")
    add_options(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32000], help="bytes of the text")
    parser.add_argument("--policies", nargs="+", choices=policies, default=policies)
    parser.add_argument("--tokens", type=int, default=32, help="tokens generated in each run; at least 3")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each case; the one with the median time to the second token counts")
    parser.add_argument("--cache-tokens", type=int, default=4096, help="tokens in memory of pq-file")
    parser.add_argument("--eviction", default="lfu", help="eviction policy of pq-file")
    parser.add_argument("--figure", type=pathlib.Path, help="an SVG file")
    args = parser.parse_args()
    if args.tokens < 3:
        refuse("--tokens: at least 3, the first, the second and one behind them")
    text = read_text(args, max(args.lengths))
    kept = kept_results(args, {"--tokens": args.tokens, "--cache-tokens": args.cache_tokens, "--eviction": args.eviction,
                               "--threads": args.threads, "--repeat": args.repeat})
    for length in args.lengths:
        wanted = [policy for policy in args.policies if kept.find(length=length, policy=policy) is None]
        runs = [{policy: measure(args, text, length, policy) for policy in wanted} for _ in range(args.repeat)]  # in turns
        for policy in wanted:
            one = sorted((each[policy] for each in runs), key=lambda each: each["second"])[args.repeat // 2]
            print(f"{length} {policy}: " + "  ".join(f"{name} {shown(one[name])}" for name in times), file=sys.stderr, flush=True)
            kept.add(one)
    print(f"`{kept.command}`\n\n" + "\n".join(table(kept.results)))
    if args.figure:
        draw(kept.results, args.figure)


if __name__ == "__main__":
    main()
