#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times pqkv and rivals on the same arrays in one process, in turns, one thread each; run by run.sh.

    contests.py --library libpqkv_bench_peers.so --json DIR/peers.json [--only NAME ...] [--quick] [--fresh]

Every contest first checks that the sides agree on the result. A rival that is not installed is left out and named in the file. A
contest that the file already has is not run again, so that a run that stopped goes on.
"""
from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[variable] = "1"  # read when the libraries are loaded

import argparse
import pathlib
import sys
from typing import Any, Callable

import numpy as np

import ggml_attention
from library import library
from rows import bfloat16, clustered, normal, widened
from timing import circumstances, contest, measure, record, repeated, side

try:
    import faiss
    faiss.omp_set_num_threads(1)
except ImportError:
    faiss = None
try:
    import sklearn.cluster
except ImportError:
    sklearn = None
try:
    import torch
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    import tensor_operations
except ImportError:
    torch = None

ggml = ggml_attention.installed()

n, d, g, k = 131072, 128, 4, 2048
heads = 8


def expect(holds: bool, what: str) -> str:
    if not holds:
        raise SystemExit(f"contests: the sides disagree: {what}")
    return what


def kmeans(ours: library) -> contest:
    ds, c, iterations = 64, 64, 10
    points = clustered(1, n, ds, 21)[0]
    short = bfloat16(points[None])[0]
    found = {name: np.empty((ds, c), np.float32) for name in ("ours", "ours, bfloat16 rows")}
    sides = {"ours": side("pqkv::kmeans, float rows, all rows, L 10", repeated(ours.bound("kmeans", points, 32, n, ds, c, iterations, found["ours"])),
                          lambda: iterations),
             "ours, bfloat16 rows": side("pqkv::kmeans, bfloat16 rows, all rows, L 10",
                                         repeated(ours.bound("kmeans", short, 16, n, ds, c, iterations, found["ours, bfloat16 rows"])),
                                         lambda: iterations)}
    theirs: dict[str, Any] = {}
    if faiss:
        def by_faiss() -> None:
            training = faiss.Clustering(ds, c)
            training.niter, training.max_points_per_centroid, training.seed = iterations, n, 3
            training.train(points, faiss.IndexFlatL2(ds))
            theirs["faiss Clustering"] = faiss.vector_to_array(training.centroids).reshape(c, ds)
        sides["faiss Clustering"] = side("faiss.Clustering(64, 64), niter 10, IndexFlatL2, all rows", repeated(by_faiss), lambda: iterations)
    if sklearn:
        start = points[np.random.default_rng(3).choice(n, c, replace=False)]

        def by_sklearn() -> None:
            fitted = sklearn.cluster.KMeans(c, init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(points)
            theirs["scikit-learn Lloyd"], theirs["iterations"] = fitted.cluster_centers_, fitted.n_iter_
        import warnings
        warnings.filterwarnings("ignore", category=sklearn.exceptions.ConvergenceWarning)
        sides["scikit-learn Lloyd"] = side("sklearn.cluster.KMeans(64, init=rows, n_init=1, max_iter=10, tol=0, algorithm='lloyd').fit",
                                           repeated(by_sklearn), lambda: theirs["iterations"])

    def check() -> str:
        def error(centroids: np.ndarray) -> float:
            squares = (centroids.astype(np.float64) ** 2).sum(1)
            some = points[::16].astype(np.float64)
            return float(((some ** 2).sum(1) + (squares - 2 * some @ centroids.T.astype(np.float64)).min(1)).mean())
        errors = {"ours": error(found["ours"].T), "ours, bfloat16 rows": error(found["ours, bfloat16 rows"].T)}
        errors |= {name: error(value) for name, value in theirs.items() if name != "iterations"}
        text = "mean squared error of a row: " + ", ".join(f"{name} {value:.3f}" for name, value in errors.items())
        return expect(max(errors["ours"], errors["ours, bfloat16 rows"]) <= 1.03 * min(errors.values()), text)

    return contest("one iteration of k-means, assignment and update", {"n": n, "ds": ds, "c": c}, sides, check)


def one_head(ours: library) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """The index of one KV head over n keys; the keys as float32 and the queries of the group; the codebook as rivals hold it."""
    keys = bfloat16(clustered(1, n, d, 11))
    handle = ours.make("search", keys, 1, n, d, g, 2, 6)
    centroids = np.empty((1, 2, 64, d // 2), np.float32)
    ours.bound("search_centroids", handle, centroids)()
    return handle, widened(keys)[0], normal(12, g, d), centroids[0]


def codes_of(ours: library, handle: Any, h: int) -> np.ndarray:
    """codes [h, m, n]."""
    codes = np.empty((h, 2, n), np.uint8)
    ours.bound("search_codes", handle, codes)()
    return codes


def encode(ours: library) -> contest:
    handle, keys, _, centroids = one_head(ours)
    sides = {"ours": side("pqkv::encode, float rows, canonical codes", repeated(ours.bound("encode", handle, keys)))}
    theirs: dict[str, Any] = {}
    if faiss:
        quantizer = faiss.ProductQuantizer(d, 2, 6)
        faiss.copy_array_to_vector(centroids.ravel(), quantizer.centroids)

        def by_faiss() -> None:
            theirs["codes"] = quantizer.compute_codes(keys)
        sides["faiss compute_codes"] = side("faiss.ProductQuantizer(128, 2, 6).compute_codes, our centroids", repeated(by_faiss))

    def check() -> str:
        if not theirs:
            return "no rival"
        first, second = (theirs["codes"][:, i].astype(np.uint32) for i in (0, 1))
        unpacked = np.stack([first & 63, (first >> 6 | second << 2) & 63])
        same = float((unpacked == codes_of(ours, handle, 1)[0]).mean())
        return expect(same > 0.999, f"{same:.6f} of the codes are equal")
    return contest("encoding keys by a given codebook", {"n": n, "d": d, "m": 2, "b": 6}, sides, check)


def fast_scan(keys: np.ndarray, queries: np.ndarray, results: int) -> Callable[[], Any]:
    index = faiss.IndexPQFastScan(d, 4, 4, faiss.METRIC_INNER_PRODUCT)
    index.train(keys[::16])
    index.add(keys)
    return searching(index, queries, results)


def searching(index: Any, queries: np.ndarray, results: int) -> Callable[[], Any]:
    """Without the Python wrapper's checks and allocations."""
    scores, ids = np.empty((len(queries), results), np.float32), np.empty((len(queries), results), np.int64)
    pointers = faiss.swig_ptr(queries), results, faiss.swig_ptr(scores), faiss.swig_ptr(ids)

    def call() -> None:
        index.search_c(len(queries), *pointers)
    call.results = index, queries, scores, ids
    return call


def scan(ours: library) -> contest:
    handle, keys, queries, centroids = one_head(ours)
    sums = np.empty((g, n), np.uint16)
    sides = {"ours": side("pqkv::inner_product_table, quantize_table and quantized_scan, 16 bits: all logits of 4 query heads",
                          ours.bound("scan", handle, queries, sums))}
    if faiss:
        plain = faiss.IndexPQ(d, 2, 6, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(centroids.ravel(), plain.pq.centroids)
        plain.is_trained = True
        plain.add(keys)
        sides["faiss IndexPQ, k 1"] = side("faiss.IndexPQ(128, 2, 6, inner product).search, 4 queries, k 1", repeated(searching(plain, queries, 1)))
        for results in (1, k):
            sides[f"faiss FastScan 4 x 4, k {results}"] = side(f"faiss.IndexPQFastScan(128, 4, 4, inner product).search, 4 queries, k {results}",
                                                               repeated(fast_scan(keys, queries, results)))

    def check() -> str:
        codes = codes_of(ours, handle, 1)[0]
        parts = [queries[:, j * d // 2:(j + 1) * d // 2] @ centroids[j].T for j in (0, 1)]
        logits = parts[0][:, codes[0]] + parts[1][:, codes[1]]
        least = min(float(np.corrcoef(sums[q], logits[q])[0, 1]) for q in range(g))
        return expect(least > 0.999999, f"correlation with float logits at least {least:.8f}")
    return contest("logits of every token of one KV head, query tables included", {"n": n, "m": 2, "b": 6, "g": g}, sides, check)


def retrieve(ours: library) -> contest:
    handle, keys, queries, _ = one_head(ours)
    indices = np.empty((1, k), np.int32)
    sides = {"ours": side("pqkv::inner_product_table and pqkv::retrieve, joint codes, sum of probabilities over 4 query heads",
                          ours.bound("retrieve", handle, queries, k, indices))}
    if faiss:
        sides["faiss FastScan 4 x 4"] = side("faiss.IndexPQFastScan(128, 4, 4, inner product).search, 4 queries, k 2048: a list each, no reduction",
                                             repeated(fast_scan(keys, queries, k)))

    def check() -> str:
        code = codes_of(ours, handle, 1)[0].astype(np.int64)
        chosen, cells = indices[0], np.bincount(code[0] * 64 + code[1])
        rest = np.setdiff1d(np.arange(n), chosen)
        kept = set((code[0] * 64 + code[1])[chosen].tolist()) & set((code[0] * 64 + code[1])[rest].tolist())
        return expect(len(set(chosen.tolist())) == k and len(kept) <= 1, f"{k} distinct tokens of whole cells but one, of {(cells > 0).sum()} cells")
    return contest("scores, reduction and the k best of one KV head, query tables included", {"n": n, "m": 2, "b": 6, "g": g, "k": k}, sides, check)


def retrieve_heads(ours: library) -> contest:
    handle = ours.make("search", bfloat16(clustered(heads, n, d, 13)), heads, n, d, g, 2, 6)
    centroids = np.empty((heads, 2, 64, d // 2), np.float32)
    ours.bound("search_centroids", handle, centroids)()
    queries, indices = normal(14, heads * g, d), np.empty((heads, k), np.int32)
    sides = {"ours": side("pqkv::inner_product_table and pqkv::retrieve, joint codes, 8 heads", ours.bound("retrieve", handle, queries, k, indices))}
    scorer = tensor_operations.scorer(centroids, codes_of(ours, handle, heads), queries, k) if torch else None
    if scorer:
        sides["torch tensor operations"] = side(tensor_operations.scorer.call, repeated(scorer.run))

    def check() -> str:
        if not scorer:
            return "no rival"
        scores, theirs = scorer.scores.numpy(), scorer.chosen.numpy()
        mass = [float(np.take_along_axis(scores, which.astype(np.int64), 1).astype(np.float64).sum()) for which in (indices, theirs)]
        return expect(abs(mass[0] / mass[1] - 1) < 1e-5, f"summed scores of the selected tokens agree to {abs(mass[0] / mass[1] - 1):.1e}")
    return contest("scores, reduction and the k best of 8 KV heads, query tables included",
                   {"h": heads, "n": n, "m": 2, "b": 6, "g": g, "k": k}, sides, check)


def top_k(ours: library) -> contest:
    scores = normal(31, n)
    chosen = {"ours": np.empty(k, np.int32), "std::nth_element": np.empty(k, np.int32)}
    sides = {"ours": side("pqkv::top_k, lower index first among equals, ascending", ours.bound("top_k", scores, n, k, chosen["ours"])),
             "std::nth_element": side("std::nth_element on pairs of score and index", ours.bound("nth_element", scores, n, k, chosen["std::nth_element"]))}

    def by_numpy() -> None:
        chosen["np.argpartition"] = np.argpartition(scores, n - k)[n - k:]
    sides["np.argpartition"] = side("numpy.argpartition(scores, n - k)[n - k:]", repeated(by_numpy))
    if torch:
        row = torch.from_numpy(scores)

        def by_torch(ordered: bool) -> Callable[[], None]:
            def run() -> None:
                chosen["torch.topk" if ordered else "torch.topk, sorted=False"] = torch.topk(row, k, sorted=ordered)[1].numpy()
            return run
        sides["torch.topk"] = side("torch.topk(scores, k)", repeated(by_torch(True)))
        sides["torch.topk, sorted=False"] = side("torch.topk(scores, k, sorted=False)", repeated(by_torch(False)))

    def check() -> str:
        values = {name: np.sort(scores[which]) for name, which in chosen.items()}
        return expect(all(np.array_equal(values["ours"], other) for other in values.values()), "all select the same scores")
    return contest("the k largest of n float scores", {"n": n, "k": k}, sides, check)


def attention(ours: library) -> contest:
    rows = bfloat16(normal(41, heads, n * 2 * d)).reshape(heads, n, 2, d)
    queries, out = normal(42, heads * g, d), np.empty((heads * g, d), np.float32)
    sides = {"ours": side("pqkv::attention, dense, bfloat16", repeated(ours.bound("attention", rows, heads, n, d, g, queries, out)))}
    dense = tensor_operations.dense(rows, queries, g) if torch else None
    if dense:
        sides["torch SDPA"] = side("torch scaled_dot_product_attention, bfloat16, enable_gqa=True", repeated(dense.grouped))
        sides["torch SDPA, group as rows"] = side("the same, a group's queries as rows of one head", repeated(dense.as_rows))

    def check() -> str:
        if not dense:
            return "no rival"
        error = max(float(np.abs(out - other).max() / np.abs(out).max()) for other in dense.results())
        return expect(error < 0.05, f"largest difference {error:.1e} of the largest output")
    return contest("dense decode attention of 8 KV heads, 32 query heads", {"h": heads, "g": g, "n": n, "d": d}, sides, check)


def ggml_contest(ours: library) -> contest:
    tokens, none = n // 10, np.empty((heads, 1), np.int32)
    values = normal(61, heads, n * 2 * d).reshape(heads, n, 2, d)
    rows = {"float16": values.astype(np.float16), "bfloat16": bfloat16(values)}
    del values
    queries, outs, sides = normal(62, heads * g, d), {}, {}
    for kind, stored in rows.items():
        half, name = int(kind == "float16"), "ours" if kind == "float16" else "ours, bfloat16"
        outs[kind] = np.empty((heads * g, d), np.float32)
        call = ours.bound("listed_attention", stored, half, heads, n, d, g, none, 0, queries, outs[kind])
        sides[name] = side(f"pqkv::attention, dense, {kind}", repeated(call))
    generator = np.random.default_rng(63)
    some = np.stack([np.sort(generator.choice(n, tokens, replace=False)) for _ in range(heads)]).astype(np.int32)
    call = ours.bound("listed_attention", rows["float16"], 1, heads, n, d, g, some, tokens, queries, np.empty((heads * g, d), np.float32))
    sides["ours, a tenth"] = side("pqkv::attention over a tenth of the tokens, chosen before, float16", repeated(call))
    theirs = {kind: ggml_attention.attention(ggml, kind, stored, queries) for kind, stored in rows.items()} if ggml else {}
    for kind, attention_of in theirs.items():
        sides[f"ggml, {kind}"] = side(f"ggml_flash_attn_ext, {kind}, of {ggml.name}", repeated(attention_of.run))

    def check() -> str:
        if not theirs:
            return "no rival"
        errors = {kind: float(np.abs(outs[kind] - other.read()).max() / np.abs(outs[kind]).max()) for kind, other in theirs.items()}
        # ggml adds values of float16 rows in float16: over so many tokens of random rows, whose mean is near 0, that is a tenth.
        return expect(errors["bfloat16"] < 0.05 and errors["float16"] < 0.3,
                      "largest difference of the largest output: " + ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items()))
    return contest("decode attention of 8 KV heads, 32 query heads, beside ggml's", {"h": heads, "g": g, "n": n, "d": d}, sides, check)


def decode_step(ours: library) -> contest:
    sinks, retrieved, budget = 32, 6553, n // 10
    window, rounds_at_most = budget - sinks - retrieved, 4096
    keys, values = bfloat16(clustered(heads, n, d, 51)), bfloat16(normal(52, heads, n * d)).reshape(heads, n, d)
    queries, out, dense_out = normal(53, heads * g, d), np.empty((heads * g, d), np.float32), np.empty((heads * g, d), np.float32)
    row, value = np.ascontiguousarray(keys[:, -1]), np.ascontiguousarray(values[:, -1])
    sparse = ours.make("layer", keys, values, heads, n, d, g, sinks, window, retrieved, rounds_at_most)
    full = ours.make("layer", keys, values, heads, n, d, g, sinks, window, 0, rounds_at_most)
    sides = {"ours": side("pqkv::pqcache append, attend, maintain", repeated(ours.bound("step", sparse, row, value, queries, out))),
             "ours, dense": side("the same, dense", repeated(ours.bound("step", full, row, value, queries, dense_out)))}
    step = None
    if torch:
        ranked = np.ascontiguousarray(keys[:, sinks:])  # what the cache trains on and encodes
        handle = ours.make("search", ranked, heads, n - sinks, d, g, 2, 6)
        centroids, codes = np.empty((heads, 2, 64, d // 2), np.float32), np.empty((heads, 2, n - sinks), np.uint8)
        ours.bound("search_centroids", handle, centroids)()
        ours.bound("search_codes", handle, codes)()
        ours.free("search", handle)
        del ranked
        step = tensor_operations.decode_step(centroids, codes, keys, values, queries, sinks, window, retrieved)
        sides["torch tensor operations"] = side(tensor_operations.decode_step.call, repeated(step.run))

    def check() -> str:
        if not step:
            return "no rival"
        theirs = step.result()
        cosine = float((out * theirs).sum() / np.sqrt((out * out).sum() * (theirs * theirs).sum()))
        return expect(cosine > 0.99, f"outputs' cosine {cosine:.5f}: ours has appended tokens since, theirs appends none")
    return contest("a decode step of one layer, a tenth of the tokens", {"h": heads, "g": g, "n": n, "d": d, "s": sinks, "w": window, "k": retrieved},
                   sides, check)


contests = {"kmeans": kmeans, "encode": encode, "scan": scan, "retrieve": retrieve, "retrieve_heads": retrieve_heads, "top_k": top_k, "attention": attention,
            "ggml": ggml_contest, "decode_step": decode_step}


def main() -> None:
    parser = argparse.ArgumentParser(description="Times pqkv and rivals in turns.")
    parser.add_argument("--library", type=pathlib.Path, required=True, help="ours.cpp, built")
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", choices=contests, default=list(contests), metavar="NAME", help=", ".join(contests))
    parser.add_argument("--quick", action="store_true", help="3 short rounds instead of 9")
    parser.add_argument("--fresh", action="store_true", help="run contests again that the file already has")
    args = parser.parse_args()
    ours = library(args.library)
    versions = {"ours": ours.text("version"), "compiler": ours.text("compiler"), "python": sys.version.split()[0], "numpy": np.__version__}
    kept = None
    for name, module in (("faiss", faiss), ("scikit-learn", sklearn), ("torch", torch)):
        versions[name] = module.__version__ if module else "not installed"
    versions["ggml"] = ggml.name if ggml else "not installed"
    settings = {"rounds": 3 if args.quick else 9, "least_seconds": 0.005 if args.quick else 0.03}
    kept = record(args.json, settings, circumstances(versions), args.fresh)
    for name in args.only:
        if kept.has(name):
            print(f"{name}: already measured", file=sys.stderr)
            continue
        print(name, file=sys.stderr, flush=True)
        kept.keep(name, measure(contests[name](ours), settings["rounds"], settings["least_seconds"]))
    for name, module in (("faiss", faiss), ("scikit-learn", sklearn), ("torch", torch), ("ggml", ggml)):
        if module is None:
            kept.leave_out(name, "not installed")


if __name__ == "__main__":
    main()
