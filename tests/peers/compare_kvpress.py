#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares what kvpress keeps of a prompt with what the selectors of its methods attend to, on random keys and queries.

    compare_kvpress.py PROGRAM      PROGRAM is kept_positions.cpp, built; compare_kvpress.sh calls this

- SnapKVPress and snapkv;
- ObservedAttentionPress, which kvpress calls related to H2O, and h2o: the press divides the attention that a token has received by the number
  of queries that see it, and H2O does not, so its scores are multiplied by that number again; the best of the middle are to be the same;
- StreamingLLMPress and streaming.

Other selectors have no counterpart there. Attention and queries are transformers', of a layer with random weights; rotary embedding is the
identity. A position may differ only where its score is within 1e-5 of the last one kept. Exit code 1: one differs by more.
"""
import struct
import subprocess
import sys

import numpy
import torch
from kvpress import ObservedAttentionPress, SnapKVPress, StreamingLLMPress
from kvpress.utils import get_prerope_query_states
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

methods = {"snapkv": 0, "h2o": 1, "streaming": 2}
# h, hq, d, n, sinks, window, k; snapkv observes as many queries as the window has tokens
shapes = [(1, 1, 64, 300, 4, 64, 40), (2, 8, 32, 700, 0, 32, 70), (4, 4, 64, 129, 1, 64, 30), (2, 6, 128, 2000, 4, 64, 200),
          (3, 9, 64, 1500, 32, 32, 1), (1, 8, 64, 90, 4, 16, 60), (2, 4, 64, 1000, 0, 64, 900)]
kernels = [5, 5, 7, 5, 7, 1, 5]


def layer(h, hq, d, n):
    """A layer with random weights, what goes into it, its keys, queries [n, hq, d] and causal attention weights."""
    config = LlamaConfig(hidden_size=hq * d, num_attention_heads=hq, num_key_value_heads=h, head_dim=d, num_hidden_layers=1,
                         attn_implementation="eager")
    module = LlamaAttention(config, layer_idx=0)
    module.q_proj.weight.copy_(torch.randn_like(module.q_proj.weight) * 2 / (hq * d) ** 0.5)
    module.k_proj.weight.copy_(torch.randn_like(module.k_proj.weight) / (hq * d) ** 0.5)
    hidden = torch.randn(1, n, hq * d)
    keys = module.k_proj(hidden).view(1, n, h, d).transpose(1, 2)
    identity = torch.ones(1, n, d), torch.zeros(1, n, d)
    later = torch.triu(torch.full((n, n), torch.finfo(torch.float32).min), 1)[None, None]
    weights = module(hidden, position_embeddings=identity, attention_mask=later)[1]
    return module, hidden, keys, get_prerope_query_states(module, hidden)[0].transpose(0, 1), weights, identity


def kept_by_press(method, of, made, kernel):
    """Scores [h, n], with what is kept in any case above all others, and the positions that are kept."""
    h, hq, d, n, sinks, window, k = of
    module, hidden, keys, _, weights, identity = made
    kept = sinks + window + k
    if method == "snapkv":
        press = SnapKVPress(window_size=window, kernel_size=kernel)
    elif method == "h2o":
        press = ObservedAttentionPress()
    else:
        press = StreamingLLMPress(compression_ratio=(n - kept - 0.5) / n, n_sink=sinks)  # the press rounds down what it keeps
    scores = press.score(module, hidden, keys, keys, weights, {"position_embeddings": identity})[0].clone()
    if method == "streaming":
        return scores, [torch.nonzero(row > 0)[:, 0] for row in scores]
    if method == "h2o":
        scores *= torch.arange(n, 0, -1)
    scores[:, :sinks] = scores[:, n - window:] = scores.max() + 1
    return scores, list(scores.topk(kept, dim=-1).indices)


def main():
    program = sys.argv[1]
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    for method, number in methods.items():
        same = near = lists = 0
        for (h, hq, d, n, sinks, window, k), kernel in zip(shapes, kernels):
            if method == "streaming":
                k = 0
            made = layer(h, hq, d, n)
            of = h, hq, d, n, sinks, window, k
            scores, wanted = kept_by_press(method, of, made, kernel)
            queries = made[3] if method == "h2o" else made[3][n - window:]
            sizes = struct.pack("11I", number, h, hq, d, n, sinks, window, k, len(queries), kernel, 0)
            ran = subprocess.run([program], input=sizes + made[2].contiguous().numpy().tobytes() + queries.contiguous().numpy().tobytes(),
                                 stdout=subprocess.PIPE, check=True)
            got = numpy.frombuffer(ran.stdout, dtype=numpy.int32).reshape(h, sinks + k + window)
            for head in range(h):
                ours, theirs = set(got[head].tolist()), set(wanted[head].tolist())
                least = scores[head][wanted[head]].min().item()
                far = [t for t in ours ^ theirs if method == "streaming" or abs(scores[head][t].item() - least) > 1e-5 * least]
                if far or len(ours) != len(theirs):
                    sys.exit(f"{method}: h {h}, hq {hq}, d {d}, n {n}, sinks {sinks}, window {window}, k {k}, head {head}: positions "
                             f"{sorted(far)[:20]} differ; {len(ours)} here, {len(theirs)} there")
                lists += 1
                same += ours == theirs
                near += len(ours ^ theirs) // 2
        print(f"{method}: {lists} lists, {same} are equal, {near} positions differ in scores within 1e-5")


if __name__ == "__main__":
    main()
