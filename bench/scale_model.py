#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model on paper of one layer's decode step over several ranks: bytes from the formulas of include/pqkv/scale/, the time of a rank's own
work from the medians in docs/results_gpu.md, the network from its options. Prints the tables of docs/scale.md.

    scale_model.py [--hop 3] [--bandwidth 50] [--tokens 1048576 8388607] [--measured FILE]

--hop        us of one message between two ranks; an exchange takes it log2(ranks) times (assumed)
--bandwidth  GB/s that a rank receives (assumed)
--measured   prints instead what bench/gpu_scale.sh measured on two GPUs, beside the model with the steps of one GPU in that file as a rank's
             own work; hop and bandwidth are those of the options, fitted to nothing

What tests check: the bytes (tests/unit/exact_selection_test.cpp, context_parallel_test.cpp). What nothing checks: the times.
"""
import argparse
import json
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


def exact_exchanges(net):
    net.add(2 * WORD * (HQ + 1))  # all_reduce of the normalisers
    some = 2 * K // net.ranks + 64
    net.gather(VOTE + H * WORD * (1 + (K if net.ranks == 1 else min(K, some))))
    merge(net)


def measured_on_two(path, model):
    """Prints the tables of a file of bench/gpu_scale.sh."""
    found = {"cold": {}, "warm": {}}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "name" in record:
            name = record["name"].removeprefix("rank_step/")
            found["cold"][name], found["warm"][name] = record["cold"]["us"], record["us"]
    lengths = sorted({int(name.rsplit("n:", 1)[1]) for name in found["cold"] if name.startswith(("peer/exact", "nccl/exact"))})

    def cell(us, digits=1):
        return "-" if us is None else f"{us:.{digits}f} us"

    def ratio(of, to):
        return "-" if of is None or to is None else f"{of / to:.2f}"

    for caches, times in found.items():
        print(f"\n| caches {caches}: codes, tokens | one GPU, all | one GPU, half | peers: exact | of half | of it exchanging | peers: local "
              "| NCCL: exact | of half | NCCL: local |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for codes in ("pq_2x6", "pq_4x8"):
            for n in lengths:
                half, alone = times.get(f"one_gpu/{codes}/n:{n // 2}"), times.get(f"alone/exact/{codes}/n:{n // 2}")
                peer, nccl = times.get(f"peer/exact/{codes}/n:{n}"), times.get(f"nccl/exact/{codes}/n:{n}")
                exchanging = None if peer is None or alone is None else peer - alone
                print(f"| {codes}, {n} | {cell(times.get(f'one_gpu/{codes}/n:{n}'))} | {cell(half)} | {cell(peer)} | {ratio(peer, half)} | "
                      f"{cell(exchanging)} | {cell(times.get(f'peer/local/{codes}/n:{n}'))} | {cell(nccl)} | {ratio(nccl, half)} | "
                      f"{cell(times.get(f'nccl/local/{codes}/n:{n}'))} |")
    cold = found["cold"]
    print("\n| caches cold: tokens | dense, two GPUs | of exact, pq_2x6 | of exact, pq_4x8 |")
    print("|---|---|---|---|")
    for n in lengths:
        dense = cold.get(f"peer/dense/n:{n}")
        print(f"| {n} | {cell(dense, 0)} | {ratio(dense, cold.get(f'peer/exact/pq_2x6/n:{n}'))} | "
              f"{ratio(dense, cold.get(f'peer/exact/pq_4x8/n:{n}'))} |")
    print("\n| caches cold: step, tokens | measured, peers | measured, NCCL | model |")
    print("|---|---|---|---|")
    for n in lengths:
        for codes in ("pq_2x6", "pq_4x8"):
            half = cold.get(f"one_gpu/{codes}/n:{n // 2}")
            for mode, exchange in (("exact", exact_exchanges), ("local", merge)):
                predicted = None if half is None else half + model(2, exchange)
                print(f"| {mode}, {codes}, {n} | {cell(cold.get(f'peer/{mode}/{codes}/n:{n}'))} | "
                      f"{cell(cold.get(f'nccl/{mode}/{codes}/n:{n}'))} | {cell(predicted)} |")
        read = 2 * H * (n // 2) * D * 2 / 4.1e6  # us at 4.1 TB/s, what attention reaches in docs/results_gpu.md
        print(f"| dense, {n} | {cell(cold.get(f'peer/dense/n:{n}'))} | - | {cell(read + model(2, merge))} |")
    print("\n| messages of one exact step alone, each a launch of its own | caches warm | caches cold |")
    print("|---|---|---|")
    for how, what in (("peer", "peers, 3 all_gathers"), ("nccl", "NCCL, 4 all_gathers")):
        name = f"{how}/exchanges/k:{K}"
        print(f"| {what} | {cell(found['warm'].get(name))} | {cell(cold.get(name))} |")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hop", type=float, default=3)
    options.add_argument("--bandwidth", type=float, default=50)
    options.add_argument("--tokens", type=int, nargs="+", default=[1048576, 8388607])
    options.add_argument("--measured", type=Path)
    given = options.parse_args()
    found = measured(Path(__file__).parent.parent / "docs" / "results_gpu.md")

    def over(ranks, exchange):
        net = network(ranks, given.hop, given.bandwidth)
        exchange(net)
        return net

    if given.measured:
        return measured_on_two(given.measured, lambda ranks, exchange: over(ranks, exchange).us())
    print(f"Assumed: {given.hop:g} us a hop, {given.bandwidth:g} GB/s a rank. No votes (agreement_mode::with_exchange).\n")
    print("| ranks | exact: exchanges, received a layer | local: exchanges, received a layer |")
    print("|---|---|---|")
    for ranks in (2, 8, 64, 512):
        cells = [f"{net.exchanges}, {net.received / 1024:.1f} KiB, {net.us():.1f} us" for net in (over(ranks, exact_exchanges), over(ranks, merge))]
        print(f"| {ranks} | {cells[0]} | {cells[1]} |")
    for codes in ("pq_2x6", "pq_4x8"):
        print(f"\n| tokens, {codes} | ranks | exact | local | dense |")
        print("|---|---|---|---|---|")
        for tokens in given.tokens:
            for ranks in (1, 2, 8, 64, 512):
                own, dense = own_work(found, codes, tokens / ranks), own_work(found, "dense", tokens / ranks)
                with_exact, alone = over(ranks, exact_exchanges).us() if ranks > 1 else 0, over(ranks, merge).us() if ranks > 1 else 0
                print(f"| {tokens} | {ranks} | {own + with_exact:.0f} us | {own + alone:.0f} us | {dense + alone:.0f} us |")


if __name__ == "__main__":
    main()
