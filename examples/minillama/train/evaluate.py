# SPDX-License-Identifier: Apache-2.0
"""Counts exact answers of a model by task and context length, on text and words that training never saw.

An answer is exact when each of its bytes, the final line feed included, is the likeliest next byte given the prompt and the right
bytes before it. That is the same as greedy decoding giving the answer, and needs one pass instead of one for each byte.

    python3 evaluate.py --model FOLDER --text text.xz --out results.json [--lengths 1024,2048] [--count 100] [--seed 7]
"""
from __future__ import annotations

import argparse
import json
import pathlib
import time

import torch
from torch import Tensor

import data
from model import llama, load_model

# A pass holds at most this many tokens: 5 GB of activations for the shipped shape.
most_tokens = 262144
shortest_length = 1024  # eight facts and some text
default_lengths = [1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]


def exact_answers(model: llama, asked: list[tuple[str, str]], device: torch.device) -> list[bool]:
    """One batch: prompts are filled up on the right, which a causal model does not see, to a multiple of 128, so that shapes recur."""
    rows = [list((prompt + answer).encode()) for prompt, answer in asked]
    longest = -(-max(map(len, rows)) // 128) * 128
    tokens = torch.tensor([row + [10] * (longest - len(row)) for row in rows], device=device)
    positions = torch.arange(longest, device=device)[None]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        hidden = model(tokens, positions)
        right: list[bool] = []
        for i, (prompt, answer) in enumerate(asked):
            begin = len(prompt)
            best: Tensor = model.logits(hidden[i, begin - 1:begin - 1 + len(answer)]).argmax(-1)
            right.append(bool((best == tokens[i, begin:begin + len(answer)]).all()))
    return right


def measure(model: llama, part: data.text_part, lengths: list[int], tasks: list[str], count: int, seed: int,
            device: torch.device, say: bool = False) -> dict[str, dict[str, int]]:
    """Right answers of `count` by task and length; every (task, length) has its own seed."""
    result: dict[str, dict[str, int]] = {task: {} for task in tasks}
    for length in lengths:
        begin = time.time()
        for task in tasks:
            make = data.writer(part, seed * 1_000_003 + length * 17 + sorted(data.prompts).index(task))
            asked = [data.prompts[task](make, length) for _ in range(count)]
            rows = max(1, most_tokens // (length + 128))
            right = [ok for i in range(0, count, rows) for ok in exact_answers(model, asked[i:i + rows], device)]
            result[task][str(length)] = sum(right)
        if say:
            print(f"length {length:6}  " + "  ".join(f"{task} {result[task][str(length)]:3}/{count}" for task in tasks)
                  + f"  ({time.time() - begin:.1f} s)", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact answers by task and context length.")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder with config.json and model.safetensors")
    parser.add_argument("--text", type=pathlib.Path, required=True, help="the text that corpus.py made; its last 3 %% is used")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the figures")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=default_lengths)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(data.prompts))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    model = load_model(args.model, device).eval()
    _, held_out = data.load_parts(args.text)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"{args.model}: {args.count} prompts each, seed {args.seed}, {name}", flush=True)
    exact: dict[str, dict[str, int]] = {task: {} for task in args.tasks}
    for length in args.lengths:
        for task, right in measure(model, held_out, [length], args.tasks, args.count, args.seed, device, say=True).items():
            exact[task].update(right)
        if args.out:
            figures = {"count": args.count, "seed": args.seed, "device": name, "exact": exact}
            args.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
