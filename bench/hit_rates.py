#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How many of the selected tokens have their rows in memory while a model reads a text, by eviction policy, size of cache and of block, and
whether the KV heads of a layer share their blocks.

    hit_rates.py --program build/demo/examples/minillama/minillama --model examples/minillama/model --json hit_rates.json

A run prefills the text's first --length bytes and decodes the --tokens behind them one by one, with keys and values in a file and an empty
cache at the start. Hit rates and bytes are counts, which do not depend on the machine's speed. Prints a table; what the file already has
under the same settings is not run again. --fresh runs all.
"""
from __future__ import annotations

import argparse
import sys

from program_runs import add_options, kept_results, read_text, run


def main() -> None:
    parser = argparse.ArgumentParser(description="Hit rates of minillama's tier by eviction policy, size of cache and of block.")
    add_options(parser)
    parser.add_argument("--length", type=int, default=8192, help="bytes that are prefilled")
    parser.add_argument("--tokens", type=int, default=256, help="tokens decoded after them")
    parser.add_argument("--evictions", nargs="+", default=["lfu", "lru", "tiny_lfu"])
    parser.add_argument("--caches", type=int, nargs="+", default=[1024, 4096], help="tokens in memory, for each layer")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 16, 128], help="tokens of a block")
    parser.add_argument("--scopes", nargs="+", default=["layer", "head"], help="layer: blocks have the rows of all KV heads; head: of one")
    args = parser.parse_args()
    text = read_text(args, args.length + args.tokens)[:args.length + args.tokens]
    kept = kept_results(args, {"--length": args.length, "--tokens": args.tokens})
    rows = [(scope, eviction) for scope in args.scopes for eviction in args.evictions]
    columns = [(cache, block) for cache in args.caches for block in args.blocks if block <= cache]
    for cache, block in columns:
        for scope, eviction in rows:
            if kept.find(scope=scope, eviction=eviction, cache=cache, block=block) is not None:
                continue
            found = run(args, f"{eviction}, {scope}, {cache}, {block}", text,
                        ["--perplexity", "TEXT", "--perplexity-tokens", str(args.tokens), "--kv-tier", "FOLDER", "--cache-tokens", str(cache),
                         "--cache-block", str(block), "--cache-scope", scope, "--eviction", eviction])
            kept.add({"scope": scope, "eviction": eviction, "cache": cache, "block": block} | found["statistics"]["tiers"])
            print(f"{eviction}, {scope}, cache {cache}, block {block}: {kept.results[-1]['hit_rate']:.3f}", file=sys.stderr, flush=True)
    print(f"`{kept.command}`\n")
    print("| hit rate, KB read a token | " + " | ".join(f"{cache} tokens, blocks of {block}" for cache, block in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for scope, eviction in rows:
        cells = [kept.find(scope=scope, eviction=eviction, cache=cache, block=block) or {} for cache, block in columns]
        print(f"| {eviction}, blocks of a {scope} | " + " | ".join(f"{one['hit_rate']:.2f}, {one['slow_bytes_per_token'] / 1e3:.0f}" for one in cells) + " |")


if __name__ == "__main__":
    main()
