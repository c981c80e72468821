# SPDX-License-Identifier: Apache-2.0
"""PQCache's decode step in torch's tensor operations, as its published code expresses it: 64-bit codes expanded to all query heads, one gather
from the query's table, a softmax over all tokens, torch.topk, rows gathered, one attention over them."""
from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention


class scorer:
    call = "torch: codes as int64 for all query heads, torch.gather from the table, softmax, sum over the group, torch.topk; float32"

    def __init__(self, centroids: np.ndarray, codes: np.ndarray, queries: np.ndarray, k: int):
        """centroids [h, m, c, ds], codes [h, m, n], queries [hq, d]."""
        self.h, self.m, _, self.ds = centroids.shape
        self.hq, self.k = len(queries), k
        group = self.hq // self.h
        self.centroids = torch.from_numpy(centroids).repeat_interleave(group, 0).transpose(2, 3).contiguous()
        self.codes = torch.from_numpy(codes.astype(np.int64)).repeat_interleave(group, 0)
        self.queries = torch.from_numpy(queries)

    def run(self) -> None:
        table = torch.matmul(self.queries.view(self.hq, self.m, 1, self.ds), self.centroids).squeeze(2)
        logits = torch.gather(table, 2, self.codes).sum(1)
        shares = torch.softmax(logits * (self.m * self.ds) ** -0.5, 1)
        self.scores = shares.view(self.h, -1, shares.shape[1]).sum(1)
        self.chosen = torch.topk(self.scores, self.k, 1)[1]


class decode_step:
    call = scorer.call + "; rows by index_select, sinks and window joined by torch.cat, scaled_dot_product_attention in bfloat16; nothing appended"

    def __init__(self, centroids: np.ndarray, codes: np.ndarray, keys: np.ndarray, values: np.ndarray, queries: np.ndarray, sinks: int,
                 window: int, k: int):
        """keys and values [h, n, d], bfloat16 bits; codes [h, m, n - sinks] of the tokens behind the sinks."""
        h, n, d = keys.shape
        self.scorer = scorer(centroids, np.ascontiguousarray(codes[:, :, :-window]), queries, k)
        self.keys, self.values = (torch.from_numpy(bits).view(torch.bfloat16) for bits in (keys, values))
        self.sinks, self.window, self.n, self.d = sinks, window, n, d
        self.first = (torch.arange(h) * n + sinks)[:, None]
        self.queries = torch.from_numpy(queries).to(torch.bfloat16).view(1, -1, 1, d)

    def run(self) -> None:
        self.scorer.run()
        rows = (self.scorer.chosen + self.first).flatten()

        def attended(all_rows: torch.Tensor) -> torch.Tensor:
            chosen = all_rows.view(-1, self.d).index_select(0, rows).view(all_rows.shape[0], -1, self.d)
            return torch.cat([all_rows[:, :self.sinks], chosen, all_rows[:, self.n - self.window:]], 1)[None]
        self.out = scaled_dot_product_attention(self.queries, attended(self.keys), attended(self.values), enable_gqa=True)

    def result(self) -> np.ndarray:
        return self.out.view(-1, self.d).float().numpy()


class dense:
    def __init__(self, rows: np.ndarray, queries: np.ndarray, group: int):
        """rows [h, n, 2, d], bfloat16 bits; torch gets keys and values apart and dense, which it likes best."""
        bits = torch.from_numpy(rows).view(torch.bfloat16)
        self.keys, self.values = (bits[:, :, i].contiguous()[None] for i in (0, 1))
        self.queries = torch.from_numpy(queries).to(torch.bfloat16)
        self.group = group

    def grouped(self) -> None:
        self.first = scaled_dot_product_attention(self.queries.view(1, -1, 1, self.queries.shape[1]), self.keys, self.values, enable_gqa=True)

    def as_rows(self) -> None:
        self.second = scaled_dot_product_attention(self.queries.view(1, -1, self.group, self.queries.shape[1]), self.keys, self.values)

    def results(self) -> list[np.ndarray]:
        return [out.reshape(-1, self.queries.shape[1]).float().numpy() for out in (self.first, self.second)]
