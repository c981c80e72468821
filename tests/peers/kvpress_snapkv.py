#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares what kvpress' SnapKVPress keeps with what selector::snapkv keeps, on random keys and queries.

    kvpress_snapkv.py PROGRAM      PROGRAM is kept_positions.cpp, built; kvpress_snapkv.sh calls this

The press computes attention itself, from keys and from hidden states whose projections are the queries; rotary embedding is the identity.
A position may differ only where its score is within 1e-5 of the last one kept. Exit code 1: one differs by more.
"""
import struct
import subprocess
import sys

import numpy
import torch
from kvpress import SnapKVPress
from kvpress.utils import get_prerope_query_states
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention


# h, hq, d, n, window, kernel, k
shapes = [(1, 1, 64, 300, 64, 5, 40), (2, 8, 32, 700, 32, 5, 70), (4, 4, 64, 129, 64, 7, 30), (2, 6, 128, 2000, 64, 5, 200),
          (3, 9, 64, 1500, 32, 7, 1), (1, 8, 64, 90, 16, 1, 60), (2, 4, 64, 1000, 64, 5, 900)]


def kept_by_press(press, module, hidden, keys, kept):
    h, n, d = keys.shape
    identity = torch.ones(1, n, d), torch.zeros(1, n, d)
    scores = press.score(module, hidden, keys[None], keys[None], None, {"position_embeddings": identity})[0]
    return scores, scores.topk(kept, dim=-1).indices


def main():
    program, same, near, lists = sys.argv[1], 0, 0, 0
    torch.manual_seed(1)
    for h, hq, d, n, window, kernel, k in shapes:
        config = LlamaConfig(hidden_size=hq * d, num_attention_heads=hq, num_key_value_heads=h, head_dim=d, num_hidden_layers=1)
        module = LlamaAttention(config, layer_idx=0)
        with torch.no_grad():
            module.q_proj.weight.copy_(torch.randn_like(module.q_proj.weight) * 2 / (hq * d) ** 0.5)
            hidden, keys = torch.randn(1, n, hq * d), torch.randn(h, n, d)
            press = SnapKVPress(window_size=window, kernel_size=kernel)
            scores, wanted = kept_by_press(press, module, hidden, keys, window + k)
            queries = get_prerope_query_states(module, hidden[:, -window:])[0].transpose(0, 1)  # [window, hq, d]
        sizes = struct.pack("8I", h, hq, d, n, window, kernel, 0, k)
        ran = subprocess.run([program], input=sizes + keys.contiguous().numpy().tobytes() + queries.contiguous().numpy().tobytes(),
                             stdout=subprocess.PIPE, check=True)
        made = numpy.frombuffer(ran.stdout, dtype=numpy.int32).reshape(h, k)
        for head in range(h):
            ours, theirs = set(made[head].tolist()) | set(range(n - window, n)), set(wanted[head].tolist())
            least = scores[head][wanted[head]].min().item()
            far = [t for t in ours ^ theirs if abs(scores[head][t].item() - least) > 1e-5 * least]
            if far or len(ours) != len(theirs):
                sys.exit(f"h {h}, hq {hq}, d {d}, n {n}, window {window}, kernel {kernel}, k {k}, head {head}: positions {sorted(far)} differ")
            lists += 1
            same += ours == theirs
            near += len(ours ^ theirs) // 2
    print(f"{lists} lists: {same} are equal, {near} positions differ in scores within 1e-5")


if __name__ == "__main__":
    main()
