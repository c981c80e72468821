# SPDX-License-Identifier: Apache-2.0
"""Times what torch offers on a GPU for the shapes of bench/cuda: one JSON line each, times by events as bench/cuda/timing.cuh takes them
(warm: several calls in a CUDA graph; cold: one, after a read of eight times the L2 cache). Needs a GPU and torch, nothing of pqkv.

    python3 bench/peers/gpu.py >> gpu.json     bench/gpu.sh does it in a run
"""
from __future__ import annotations

import json
import statistics
import sys
from typing import Any, Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention, silu

backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def graph_of(call: Callable[[], object], calls: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph


def times_of(graph: torch.cuda.CUDAGraph, calls: int, replays: int, before: Callable[[], object]) -> dict[str, Any]:
    """Microseconds of a call. before() keeps the device busy while the replay is enqueued; three replays are not counted."""
    times = []
    for turn in range(replays + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(begin.elapsed_time(end) * 1000 / calls)
    times.sort()
    return {"us": round(statistics.median(times), 2), "us_p10": round(times[len(times) // 10], 2), "us_p90": round(times[len(times) * 9 // 10], 2),
            "calls": calls, "replays": replays}


def measure(name: str, call: Callable[[], object], calls: int = 8, replays: int = 30, cold_replays: int = 20, **work: float) -> None:
    """Prints the times of `call`, which only enqueues; why not where torch refuses."""
    cache_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
    block = torch.ones(2 * cache_bytes, device="cuda")  # eight times as many bytes
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        for _ in range(100):  # clocks rise
            block.sum()
        result = {"name": name, **times_of(graph_of(call, calls), calls, replays, lambda: torch.cuda._sleep(100000)), **work}
        if cold_replays:
            result["cold"] = times_of(graph_of(call, 1), 1, cold_replays, block.sum)
    except RuntimeError as error:
        result = {"name": name, "refused": str(error).splitlines()[0]}
    print(json.dumps(result), flush=True)
    torch.cuda.empty_cache()


def memory() -> None:
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    measure("torch copy/bytes:2147483648", lambda: target.copy_(source), 2, 20, 0, bytes=1 << 31)
    measure("torch sum/bytes:1073741824", lambda: source.sum(), 2, 20, 0, bytes=1 << 30)


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
    measure(f"torch tensor operations/kmeans/problems:{problems}/n:{n}/ds:{ds}/c:{c}/L:{iterations}", call, 1, 3, 0)


def attentions(batch: int, n: int, k: int, h: int = 8, group: int = 4, d: int = 128) -> None:
    """A decode step's attention over all n tokens, and over k gathered ones."""
    of_batch = "" if batch == 1 else f"batch:{batch}/"
    query = torch.randn(batch, h * group, 1, d, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(batch, h, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for backend, which in backends.items():
        with sdpa_kernel(which):
            measure(f"torch sdpa {backend}/dense/{of_batch}h:{h}/g:{group}/d:{d}/n:{n}",
                    lambda: scaled_dot_product_attention(query, keys, values, enable_gqa=True))
    chosen = torch.stack([torch.randperm(n, device="cuda")[:k].sort()[0] for _ in range(batch * h)]).view(batch, h, k)
    rows = chosen[:, :, :, None].expand(batch, h, k, d)

    def gather() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.gather(keys, 2, rows), torch.gather(values, 2, rows)
    measure(f"torch gather of K and V/{of_batch}h:{h}/d:{d}/n:{n}/k:{k}", gather)
    with sdpa_kernel(backends["flash"]):
        measure(f"torch gather and sdpa flash/{of_batch}h:{h}/g:{group}/d:{d}/n:{n}/k:{k}",
                lambda: scaled_dot_product_attention(query, *gather(), enable_gqa=True))


def layer_prefill(n: int, hidden: int = 4096, mlp: int = 14336, h: int = 8, group: int = 4, d: int = 128) -> None:
    """A layer of Llama-3.1-8B over a prompt in bfloat16: its matrices and causal attention. Without norms and rotary embedding, which would
    make it longer, and the index's share of it smaller."""
    hq = h * group

    def matrix(to: int, of: int) -> torch.Tensor:
        return torch.randn(to, of, device="cuda", dtype=torch.bfloat16) * of ** -0.5
    rows = torch.randn(n, hidden, device="cuda", dtype=torch.bfloat16)
    to_query, to_key, to_value, to_out = matrix(hq * d, hidden), matrix(h * d, hidden), matrix(h * d, hidden), matrix(hidden, hq * d)
    gate, up, down = matrix(mlp, hidden), matrix(mlp, hidden), matrix(hidden, mlp)

    def call() -> torch.Tensor:
        query, key, value = (linear(rows, to).view(1, n, -1, d).transpose(1, 2) for to in (to_query, to_key, to_value))
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2).reshape(n, hq * d)
        between = rows + linear(attended, to_out)
        return between + linear(silu(linear(between, gate)) * linear(between, up), down)
    products = 2.0 * n * sum(one.numel() for one in (to_query, to_key, to_value, to_out, gate, up, down)) + 2.0 * n * n * hq * d
    for backend, which in backends.items():
        with sdpa_kernel(which):
            measure(f"torch layer prefill {backend}/hidden:{hidden}/mlp:{mlp}/h:{h}/g:{group}/d:{d}/n:{n}", call, 1, 5, 0, flops=products)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu.py: no CUDA device", file=sys.stderr)
        return 77
    print(json.dumps({"peer": "torch", "version": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}), flush=True)
    memory()
    selections()
    tensor_formulation(131072, 2048)
    tensor_formulation(1048576, 2048)
    attentions(1, 131072, 4096)
    attentions(7, 120000, 2048)
    clustering(512)
    layer_prefill(131072)
    return 0


if __name__ == "__main__":
    sys.exit(main())
