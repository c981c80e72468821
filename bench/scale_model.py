#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model on paper of one layer's decode step over several ranks: bytes from the formulas of include/pqkv/scale/, the time of a rank's own
work from the medians in docs/results_gpu.md, the network from its options. Prints the tables of docs/scale.md.

    scale_model.py [--hop 3] [--bandwidth 50] [--tokens 1048576 8388607] [--measured FILE]

--hop        us of one message between two ranks; an exchange takes it log2(ranks) times (assumed)
--bandwidth  GB/s that a rank receives (assumed)
--measured   prints instead what bench/gpu_scale.sh measured on two GPUs, beside the model with the steps of one GPU in that file as a rank's
             own work; hop and bandwidth are those of the options, fitted to nothing

Two kinds of messages: those of ranks in host memory, which are short and share the merging of many ranks' outputs, and those of GPUs over
NCCL, whose lengths are fixed. Either is added to an H200's own work.

What tests check: the bytes (tests/bench/scale_model_test.py, and the tests named in tests/cases/step_bytes.hpp). What nothing checks: the
times of more than two ranks.
"""
import argparse
import json
import math
import re
import statistics
from pathlib import Path

VOTE, WORD = 8, 8
MOST_GATHERED = 1 << 18  # partial_outputs::most_gathered_bytes
EVERY_RANKS = (2, 8, 16, 32, 64, 128, 512)


class layer:
    """Heads, dimensions and retrieved tokens of a layer; by default those of docs/results_gpu.md."""

    def __init__(self, h=8, hq=32, d=128, k=2048):
        self.h, self.hq, self.d, self.k = h, hq, d, k

    def partial(self, rows):
        """Bytes of the partial outputs of so many query heads."""
        return (rows * (self.d + 1) + 1) // 2 * WORD

    def candidates(self, most):
        return VOTE + self.h * WORD * (1 + most)


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
    """(us, is_bound) of one rank with n tokens: a line through the measured lengths around n. Shorter sequences than the shortest measured
    one take at most what that takes; longer ones than the longest grow from there by the slope of a line fitted to all."""
    points = sorted((length, us) for (name, length), us in found.items() if name == what)
    if n < points[0][0]:
        return points[0][1], True
    if n > points[-1][0]:
        lengths, times = zip(*points)
        slope = statistics.linear_regression(lengths, times).slope if len(points) > 1 else 0
        return times[-1] + max(slope, 0) * (n - lengths[-1]), False
    above = next(i for i in range(1, len(points)) if n <= points[i][0])
    (n0, us0), (n1, us1) = points[above - 1:above + 1]
    return us0 + max(us1 - us0, 0) * (n - n0) / (n1 - n0), False


class network:
    """The messages of one step on one of several ranks."""

    def __init__(self, ranks, hop, bandwidth):
        self.ranks, self.hop, self.bandwidth = ranks, hop, bandwidth
        self.exchanges = self.sent = self.received = 0  # sent: bytes of this rank's own messages

    def gather(self, message):
        if self.ranks > 1:
            self.exchanges += 1
            self.sent += message
            self.received += (self.ranks - 1) * message

    def reduce(self, numbers):
        if self.ranks > 1:
            self.exchanges += 1
            self.sent += numbers * WORD
            self.received += 2 * numbers * WORD

    def transpose(self, piece):
        if self.ranks > 1:
            self.exchanges += 1
            self.sent += self.ranks * piece
            self.received += (self.ranks - 1) * piece

    def us(self):
        return self.exchanges * self.hop * math.ceil(math.log2(self.ranks)) + self.received / self.bandwidth / 1000


def gather_outputs(net, of):
    net.gather(VOTE + of.partial(of.hq))


def share_merging(net, of):
    piece = VOTE + of.partial(-(-of.hq // net.ranks))
    net.transpose(piece)
    net.gather(piece)


def host_local(net, of):
    return gather_outputs(net, of) if net.ranks * of.partial(of.hq) <= MOST_GATHERED else share_merging(net, of)


def host_exact(net, of):
    """Where no rank has more than 2 k / ranks + 64 of a list's best, and no normaliser has too few bits. The sums carry the votes."""
    net.reduce(of.hq + 3)
    net.gather(of.candidates(of.k if net.ranks == 1 else min(of.k, 2 * of.k // net.ranks + 64)))
    host_local(net, of)


def nccl_local(net, of):
    gather_outputs(net, of)


def nccl_exact(net, of):
    net.gather(VOTE + 2 * of.hq * WORD)
    net.gather(VOTE + of.hq * WORD)
    net.gather(of.candidates(of.k))
    gather_outputs(net, of)


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

    def less(of, what):
        return "-" if of is None or what is None else f"{of - what:.1f} us"

    for caches, times in found.items():
        print(f"\n| caches {caches}: codes, tokens | one GPU, all | one GPU, half | peers: exact | of half | of all | peers: local | NCCL: exact "
              "| of half | of all | NCCL: local |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for codes in ("pq_2x6", "pq_4x8"):
            for n in lengths:
                whole, half = times.get(f"one_gpu/{codes}/n:{n}"), times.get(f"one_gpu/{codes}/n:{n // 2}")
                peer, nccl = times.get(f"peer/exact/{codes}/n:{n}"), times.get(f"nccl/exact/{codes}/n:{n}")
                print(f"| {codes}, {n} | {cell(whole)} | {cell(half)} | {cell(peer)} | {ratio(peer, half)} | {ratio(peer, whole)} | "
                      f"{cell(times.get(f'peer/local/{codes}/n:{n}'))} | {cell(nccl)} | {ratio(nccl, half)} | {ratio(nccl, whole)} | "
                      f"{cell(times.get(f'nccl/local/{codes}/n:{n}'))} |")
    cold, warm = found["cold"], found["warm"]
    print("\n| peers, exact mode, less: codes, tokens | alone, 2048 of its own: cold | warm | alone, 1024 of its own: cold | warm "
          "| local mode: cold | warm |")
    print("|---|---|---|---|---|---|---|")
    for codes in ("pq_2x6", "pq_4x8"):
        for n in lengths:
            cells = [less(times.get(f"peer/exact/{codes}/n:{n}"), times.get(name))
                     for name in (f"alone/exact/{codes}/n:{n // 2}", f"alone_half/exact/{codes}/n:{n // 2}", f"peer/local/{codes}/n:{n}")
                     for times in (cold, warm)]
            print(f"| {codes}, {n} | {' | '.join(cells)} |")
    print("\n| caches cold: tokens | dense, two GPUs | of exact, pq_2x6 | of exact, pq_4x8 |")
    print("|---|---|---|---|")
    for n in lengths:
        dense = cold.get(f"peer/dense/n:{n}")
        print(f"| {n} | {cell(dense, 0)} | {ratio(dense, cold.get(f'peer/exact/pq_2x6/n:{n}'))} | "
              f"{ratio(dense, cold.get(f'peer/exact/pq_4x8/n:{n}'))} |")
    print("\n| caches cold: step, tokens | measured, peers | model, host's messages | of measured | measured, NCCL | model, NCCL's messages "
          "| of measured |")
    print("|---|---|---|---|---|---|---|")
    for n in lengths:
        for codes in ("pq_2x6", "pq_4x8"):
            half = cold.get(f"one_gpu/{codes}/n:{n // 2}")
            for mode, exchanges in (("exact", (host_exact, nccl_exact)), ("local", (host_local, nccl_local))):
                cells = []
                for how, exchange in zip(("peer", "nccl"), exchanges):
                    taken, predicted = cold.get(f"{how}/{mode}/{codes}/n:{n}"), None if half is None else half + model(2, exchange)
                    cells += [cell(taken), cell(predicted), ratio(predicted, taken)]
                print(f"| {mode}, {codes}, {n} | {' | '.join(cells)} |")
        of = layer()
        read = 2 * of.h * (n // 2) * of.d * 2 / 4.1e6  # us at 4.1 TB/s, what attention reaches in docs/results_gpu.md
        taken, predicted = cold.get(f"peer/dense/n:{n}"), read + model(2, gather_outputs)
        print(f"| dense, {n} | {cell(taken)} | {cell(predicted)} | {ratio(predicted, taken)} | - | - | - |")
    print("\n| messages of one exact step alone, each a launch of its own | caches warm | caches cold |")
    print("|---|---|---|")
    for how, what in (("peer", "peers, 3 all_gathers"), ("nccl", "NCCL, 4 all_gathers")):
        name = f"{how}/exchanges/k:{layer().k}"
        print(f"| {what} | {cell(warm.get(name))} | {cell(cold.get(name))} |")


class steps:
    """Times of steps with any number of ranks."""

    def __init__(self, found, hop, bandwidth):
        self.found, self.hop, self.bandwidth = found, hop, bandwidth

    def net(self, ranks, exchange):
        net = network(ranks, self.hop, self.bandwidth)
        exchange(net, layer())
        return net

    def exchange_us(self, ranks, exchange):
        return self.net(ranks, exchange).us() if ranks > 1 else 0

    def merging(self, ranks):
        """How outputs merge sooner: whoever attends to everything may choose."""
        return min((gather_outputs, share_merging), key=lambda exchange: self.exchange_us(ranks, exchange))

    def step(self, what, tokens, ranks, exchange):
        us, is_bound = own_work(self.found, what, tokens / ranks)
        return us + self.exchange_us(ranks, exchange), is_bound

    def dense(self, tokens, ranks):
        return self.step("dense", tokens, ranks, self.merging(ranks))

    def crossing(self, codes, tokens, exchange):
        """The fewest ranks, a power of two or not, at which exact mode is not faster than dense attention; None up to 512."""
        return next((ranks for ranks in range(2, 513) if self.step(codes, tokens, ranks, exchange)[0] >= self.dense(tokens, ranks)[0]), None)

    def demands(self, codes, tokens, ranks, exchange):
        """(largest hop in us at this bandwidth, least bandwidth in GB/s at this hop) with which exact mode beats dense attention, each None
        where nothing is enough."""
        spare = own_work(self.found, "dense", tokens / ranks)[0] - own_work(self.found, codes, tokens / ranks)[0]
        exact, dense = self.net(ranks, exchange), self.net(ranks, self.merging(ranks))
        hops = (exact.exchanges - dense.exchanges) * math.ceil(math.log2(ranks))
        more = (exact.received - dense.received) / 1000  # us at 1 GB/s
        hop = (spare - more / self.bandwidth) / hops
        time = spare - hops * self.hop
        return hop if hop > 0 else None, more / time if time > 0 else None


def print_model(model, every_tokens):
    print(f"Assumed: {model.hop:g} us a hop, {model.bandwidth:g} GB/s a rank. No votes of their own (agreement_mode::with_exchange).\n")
    kinds = ((host_exact, "host, exact"), (host_local, "host, local"), (nccl_exact, "NCCL, exact"), (nccl_local, "NCCL, local"))
    print("| ranks | " + " | ".join(f"{name}: exchanges, received a layer" for _, name in kinds) + " |")
    print("|---|---|---|---|---|")
    for ranks in EVERY_RANKS:
        nets = [model.net(ranks, exchange) for exchange, _ in kinds]
        print(f"| {ranks} | " + " | ".join(f"{net.exchanges}, {net.received / 1024:.1f} KiB, {net.us():.1f} us" for net in nets) + " |")

    def cell(step):
        return f"{'<= ' if step[1] else ''}{step[0]:.0f} us"

    for codes in ("pq_2x6", "pq_4x8"):
        print(f"\n| tokens, {codes} | ranks | exact, NCCL | local, NCCL | exact, host's messages | local, host's messages | dense |")
        print("|---|---|---|---|---|---|---|")
        for tokens in every_tokens:
            for ranks in (1, *EVERY_RANKS):
                cells = [cell(model.step(codes, tokens, ranks, exchange)) for exchange in (nccl_exact, nccl_local, host_exact, host_local)]
                print(f"| {tokens} | {ranks} | {' | '.join(cells)} | {cell(model.dense(tokens, ranks))} |")
    print("\n| exact mode is not faster than dense attention from so many ranks on | NCCL | host's messages |")
    print("|---|---|---|")
    for codes in ("pq_2x6", "pq_4x8"):
        for tokens in every_tokens:
            from_ranks = [model.crossing(codes, tokens, exchange) for exchange in (nccl_exact, host_exact)]
            print(f"| {codes}, {tokens} | {' | '.join(str(ranks or 'more than 512') for ranks in from_ranks)} |")
    print("\n| exact mode beats dense attention: codes, tokens, ranks | NCCL: hop at most | bandwidth at least | host's messages: hop at most "
          "| bandwidth at least |")
    print("|---|---|---|---|---|")
    for codes in ("pq_2x6", "pq_4x8"):
        for tokens in every_tokens:
            for ranks in (8, 64, 512):
                cells = []
                for exchange in (nccl_exact, host_exact):
                    hop, bandwidth = model.demands(codes, tokens, ranks, exchange)
                    cells += ["never" if hop is None else f"{hop:.1f} us", "never" if bandwidth is None else f"{bandwidth:.1f} GB/s"]
                print(f"| {codes}, {tokens}, {ranks} | {' | '.join(cells)} |")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hop", type=float, default=3)
    options.add_argument("--bandwidth", type=float, default=50)
    options.add_argument("--tokens", type=int, nargs="+", default=[1048576, 8388607])
    options.add_argument("--measured", type=Path)
    given = options.parse_args()
    found = measured(Path(__file__).parent.parent / "docs" / "results_gpu.md")
    model = steps(found, given.hop, given.bandwidth)
    if given.measured:
        return measured_on_two(given.measured, model.exchange_us)
    print_model(model, given.tokens)


if __name__ == "__main__":
    main()
