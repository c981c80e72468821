# SPDX-License-Identifier: Apache-2.0
"""Times what torch offers on a GPU for the shapes of bench/cuda/operations.cu: one JSON line each, median and spread of replays of a CUDA
graph by events. Needs a GPU and torch, nothing of pqkv.

    python3 bench/peers/gpu.py >> gpu.json
"""
from __future__ import annotations

import json
import statistics
import sys
from typing import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def measure(name: str, call: Callable[[], object], calls: int = 8, replays: int = 30) -> None:
    """Times `call`, captured `calls` times in a graph; prints why not where torch refuses."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
        times = []
        for turn in range(replays + 3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 3:
                times.append(begin.elapsed_time(end) * 1000 / calls)
    except RuntimeError as error:
        print(json.dumps({"name": name, "refused": str(error).splitlines()[0]}), flush=True)
        return
    times.sort()
    print(json.dumps({"name": name, "us": round(statistics.median(times), 2), "us_p10": round(times[len(times) // 10], 2),
                      "us_p90": round(times[len(times) * 9 // 10], 2), "calls": calls, "replays": replays}), flush=True)


def ceilings() -> None:
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    measure("ceiling/copy/bytes:2147483648", lambda: target.copy_(source), calls=2, replays=20)
    measure("ceiling/read/bytes:1073741824", lambda: source.sum(), calls=2, replays=20)


def selections() -> None:
    scores = torch.randn(64, 131072, device="cuda")
    for rows in (8, 64):
        for k in (2048, 16384):
            measure(f"torch.topk/rows:{rows}/n:131072/k:{k}", lambda: torch.topk(scores[:rows], k, sorted=False))


def tensor_formulation(n: int, k: int, h: int = 8, group: int = 4, m: int = 2, c: int = 64, ds: int = 64) -> None:
    """PQCache's own expression: 64-bit codes expanded to all query heads, torch.gather, softmax, sum over the group, torch.topk."""
    hq = h * group
    centroids = torch.randn(hq, m, ds, c, device="cuda")
    codes = torch.randint(0, c, (h, m, n), device="cuda").repeat_interleave(group, 0)
    queries = torch.randn(hq, m, 1, ds, device="cuda")

    def call() -> None:
        table = torch.matmul(queries, centroids).squeeze(2)
        shares = torch.softmax(torch.gather(table, 2, codes).sum(1) * (m * ds) ** -0.5, 1)
        torch.topk(shares.view(h, group, n).sum(1), k, 1, sorted=False)
    measure(f"torch tensor operations/retrieve/h:{h}/g:{group}/m:{m}/b:6/n:{n}/k:{k}", call)


def clustering(problems: int, n: int = 16384, ds: int = 64, c: int = 64, iterations: int = 25) -> None:
    points = torch.randn(problems, n, ds, device="cuda").to(torch.bfloat16)
    start = points[:, :c].float()

    def call() -> None:
        centroids, rows = start, points.float()
        for _ in range(iterations):
            nearest = (centroids.square().sum(2)[:, None] / 2 - torch.bmm(rows, centroids.transpose(1, 2))).argmin(2)
            index = nearest[:, :, None].expand(-1, -1, ds)
            sums = torch.zeros_like(centroids).scatter_add_(1, index, rows)
            counts = torch.zeros(problems, c, device="cuda").scatter_add_(1, nearest, torch.ones_like(nearest, dtype=torch.float))
            centroids = sums / counts.clamp_min(1)[:, :, None]
    torch.backends.cuda.matmul.allow_tf32 = True
    measure(f"torch tensor operations/kmeans/problems:{problems}/n:{n}/ds:{ds}/c:{c}/L:{iterations}", call, calls=1, replays=3)


def attentions() -> None:
    h, group, d = 8, 4, 128
    query = torch.randn(1, h * group, 1, d, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(1, h, 131072, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for backend, which in backends.items():
        with sdpa_kernel(which):
            measure(f"torch sdpa {backend}/dense/h:8/g:4/d:128/n:131072",
                    lambda: scaled_dot_product_attention(query, keys, values, enable_gqa=True))
    chosen = torch.sort(torch.stack([torch.randperm(131072, device="cuda")[:4096] for _ in range(h)]), 1)[0]
    rows = chosen[None, :, :, None].expand(1, h, 4096, d)
    measure("torch gather of K and V/h:8/d:128/n:131072/k:4096", lambda: (torch.gather(keys, 2, rows), torch.gather(values, 2, rows)))


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 77
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}), flush=True)
    ceilings()
    selections()
    tensor_formulation(131072, 2048)
    tensor_formulation(1048576, 2048)
    attentions()
    clustering(512)
    return 0


if __name__ == "__main__":
    sys.exit(main())
