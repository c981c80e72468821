#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model on paper of one layer's decode step over several ranks: bytes from the formulas of include/pqkv/scale/, the time of a rank's own
work from the medians in docs/results_gpu.md, the network from its options. Prints the tables of docs/scale.md.

    scale_model.py [--hop 3] [--bandwidth 50] [--tokens 1048576 8388607]

--hop        us of one message between two ranks; an exchange takes it log2(ranks) times (assumed)
--bandwidth  GB/s that a rank receives (assumed)

What tests check: the bytes (tests/unit/exact_selection_test.cpp, context_parallel_test.cpp). What nothing checks: the times.
"""
import argparse
import math
import re
from pathlib import Path

H, HQ, D, K = 8, 32, 128, 2048  # the layer of docs/results_gpu.md
VOTE, WORD = 8, 8
MOST_GATHERED = 1 << 18  # partial_outputs::most_gathered_bytes


def measured(page):
    """{(what, n): us}: medians of decode steps at batch 1, caches cold."""
    row = re.compile(r"^\| `decode_step/(\w+)/(?:attended:2048/)?batch:1/h:8/g:4/d:128/n:(\d+)` \| [^|]*\| ([\d.]+) us")
    found = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        match = row.match(line)
        if match:
            found[match[1], int(match[2])] = float(match[3])
    return found


def own_work(found, what, n):
    """us of one rank with n tokens: a line through the measured lengths around n, or nearest to it."""
    points = sorted((length, us) for (name, length), us in found.items() if name == what)
    pair = next((i for i in range(len(points) - 2) if n < points[i + 1][0]), len(points) - 2)
    (n0, us0), (n1, us1) = points[pair:pair + 2]
    if n < points[0][0]:  # short sequences take what the shortest measured one does
        return points[0][1]
    return us0 + max(us1 - us0, 0) * (n - n0) / (n1 - n0)


def rounded_words(rows):
    return (rows * (D + 1) + 1) // 2


class network:
    def __init__(self, ranks, hop, bandwidth):
        self.ranks, self.hop, self.bandwidth = ranks, hop, bandwidth
        self.exchanges, self.received = 0, 0

    def add(self, received):
        if self.ranks > 1:
            self.exchanges += 1
            self.received += received

    def gather(self, message):
        self.add((self.ranks - 1) * message)

    def us(self):
        return self.exchanges * self.hop * math.ceil(math.log2(self.ranks)) + self.received / self.bandwidth / 1000


def merge(net):
    whole = rounded_words(HQ) * WORD
    if net.ranks * whole <= MOST_GATHERED:
        return net.gather(VOTE + whole)
    piece = VOTE + rounded_words(-(-HQ // net.ranks)) * WORD
    net.gather(piece)  # all_to_all
    net.gather(piece)


def exact(net):
    net.add(2 * WORD * (HQ + 1))  # all_reduce of the normalisers
    some = 2 * K // net.ranks + 64
    net.gather(VOTE + H * WORD * (1 + (K if net.ranks == 1 else min(K, some))))
    merge(net)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hop", type=float, default=3)
    options.add_argument("--bandwidth", type=float, default=50)
    options.add_argument("--tokens", type=int, nargs="+", default=[1048576, 8388607])
    given = options.parse_args()
    found = measured(Path(__file__).parent.parent / "docs" / "results_gpu.md")

    def over(ranks, exchange):
        net = network(ranks, given.hop, given.bandwidth)
        exchange(net)
        return net

    print(f"Assumed: {given.hop:g} us a hop, {given.bandwidth:g} GB/s a rank. No votes (agreement_mode::with_exchange).\n")
    print("| ranks | exact: exchanges, received a layer | local: exchanges, received a layer |")
    print("|---|---|---|")
    for ranks in (2, 8, 64, 512):
        cells = [f"{net.exchanges}, {net.received / 1024:.1f} KiB, {net.us():.1f} us" for net in (over(ranks, exact), over(ranks, merge))]
        print(f"| {ranks} | {cells[0]} | {cells[1]} |")
    for codes in ("pq_2x6", "pq_4x8"):
        print(f"\n| tokens, {codes} | ranks | exact | local | dense |")
        print("|---|---|---|---|---|")
        for tokens in given.tokens:
            for ranks in (1, 2, 8, 64, 512):
                own, dense = own_work(found, codes, tokens / ranks), own_work(found, "dense", tokens / ranks)
                with_exact, alone = over(ranks, exact).us() if ranks > 1 else 0, over(ranks, merge).us() if ranks > 1 else 0
                print(f"| {tokens} | {ranks} | {own + with_exact:.0f} us | {own + alone:.0f} us | {dense + alone:.0f} us |")


if __name__ == "__main__":
    main()
