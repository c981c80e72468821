#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds a converted model against the GGUF that it was made from, and against other programs where they are installed.

    check_conversion.py MODEL.gguf FOLDER

- logits: a forward pass of the Llama in numpy, float32, once over the GGUF as llama.cpp defines it (rotary pairs side by side) and once
  over FOLDER as Hugging Face does (rotary pairs in halves). A wrong order of Q and K shows here, and in the loss on plain English.
- logits of transformers over FOLDER in float32, where transformers and torch are installed.
- texts through tokenizer.json and back, and their tokens against llama.cpp's own reading of the GGUF, where xllamacpp is installed.

One line for each on stdout. Exit code 1 when one is wrong. Needs gguf, numpy, safetensors, tokenizers.
"""
from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
import urllib.request
from typing import Any, Callable

import gguf
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tokenizer_cases import special_tokens, texts

most_logit_difference = 2e-3  # of logits up to about 30; rounding alone gives 1e-4
most_loss_difference = 0.01  # what rounding the weights to float16 may cost
least_loss_of_wrong_pairs = 1.0  # above the right ones'; else the paragraph tells nothing

paragraph = """The lighthouse stands on a low rock at the mouth of the bay. It was built of grey stone more than a hundred years ago,
after two ships had been lost there in one winter. For a long time a keeper lived in the tower with his family. Every
evening he climbed the stairs, cleaned the glass and lit the lamp, and every morning he put it out again. In bad weather
no boat could reach the rock for weeks, so they kept flour, beans and dried fish in the cellar. Today the light is
electric and nobody lives there any more, but the people of the village still row out in summer to paint the door and to
sweep the rooms. From the top you can see the whole coast, and on a clear day even the mountains on the other side of
the water.""".replace("\n", " ")


@dataclasses.dataclass
class llama:
    """Weights by short names in float32; `pairs` says where the two of a rotary pair are: "adjacent" or "halves"."""

    weights: dict[str, np.ndarray]
    layers: int
    query_heads: int
    kv_heads: int
    epsilon: float
    theta: float
    pairs: str


def from_gguf(path: pathlib.Path, through_float16: bool) -> llama:
    reader = gguf.GGUFReader(path)
    value: Callable[[str], Any] = lambda key: reader.get_field(f"llama.{key}").contents()
    weights = {}
    for tensor in reader.tensors:
        rows = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if through_float16:
            rows = rows.astype(np.float16).astype(np.float32)
        weights[tensor.name.removesuffix(".weight").removeprefix("blk.")] = rows
    return llama(weights, value("block_count"), value("attention.head_count"), value("attention.head_count_kv"),
                 value("attention.layer_norm_rms_epsilon"), value("rope.freq_base"), "adjacent")


def from_directory(folder: pathlib.Path) -> llama:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = load_file(folder / "model.safetensors")
    short = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
             "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    weights = {"token_embd": stored["model.embed_tokens.weight"], "output_norm": stored["model.norm.weight"]}
    if not config["tie_word_embeddings"]:
        weights["output"] = stored["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        for name, to in short.items():
            weights[f"{layer}.{to}"] = stored[f"model.layers.{layer}.{name}.weight"]
    return llama({name: rows.astype(np.float32) for name, rows in weights.items()}, config["num_hidden_layers"],
                 config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"], config["rope_theta"], "halves")


def turned(x: np.ndarray, theta: float, pairs: str) -> np.ndarray:
    """Rotary embedding of [tokens, heads, d]."""
    tokens, _, width = x.shape
    angles = np.arange(tokens)[:, None] / theta ** (np.arange(0, width, 2) / width)
    cosine, sine = (part.astype(np.float32)[:, None] for part in (np.cos(angles), np.sin(angles)))
    first, second = (slice(0, None, 2), slice(1, None, 2)) if pairs == "adjacent" else (slice(0, width // 2), slice(width // 2, None))
    out = np.empty_like(x)
    out[..., first] = x[..., first] * cosine - x[..., second] * sine
    out[..., second] = x[..., second] * cosine + x[..., first] * sine
    return out


def logits(model: llama, tokens: list[int]) -> np.ndarray:
    """[tokens, vocabulary]."""
    w, count = model.weights, len(tokens)

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(model.epsilon)) * w[name]

    def heads(x: np.ndarray, name: str, number: int) -> np.ndarray:
        return (x @ w[name].T).reshape(count, number, -1)

    x = w["token_embd"][tokens]
    later = np.triu(np.full((count, count), -np.inf, np.float32), 1)
    for layer in range(model.layers):
        y = normed(x, f"{layer}.attn_norm")
        q = turned(heads(y, f"{layer}.attn_q", model.query_heads), model.theta, model.pairs)
        k = turned(heads(y, f"{layer}.attn_k", model.kv_heads), model.theta, model.pairs)
        v = heads(y, f"{layer}.attn_v", model.kv_heads)
        k, v = (np.repeat(part, model.query_heads // model.kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k, optimize=True) / np.float32(np.sqrt(q.shape[-1])) + later
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", scores, v, optimize=True).reshape(count, -1) @ w[f"{layer}.attn_output"].T
        y = normed(x, f"{layer}.ffn_norm")
        gate = y @ w[f"{layer}.ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w[f"{layer}.ffn_up"].T)) @ w[f"{layer}.ffn_down"].T
    return normed(x, "output_norm") @ w.get("output", w["token_embd"]).T


def loss(of: np.ndarray, tokens: list[int]) -> float:
    """Mean negative log-likelihood of the tokens after the first."""
    rows = of[:-1].astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    return float(np.mean(np.log(np.exp(rows).sum(axis=-1)) - rows[np.arange(len(rows)), tokens[1:]]))


class report:
    def __init__(self) -> None:
        self.wrong = 0

    def say(self, right: bool, what: str) -> None:
        self.wrong += not right
        print(f"{'right' if right else 'WRONG'}: {what}", flush=True)


def check_logits(told: report, source: pathlib.Path, folder: pathlib.Path, tokens: list[int]) -> None:
    model = from_directory(folder)
    converted, same_weights = logits(model, tokens), logits(from_gguf(source, through_float16=True), tokens)
    difference = float(np.abs(converted - same_weights).max())
    told.say(difference <= most_logit_difference, f"logits: GGUF and directory, both in numpy: largest difference {difference:.1e} of "
             f"{np.abs(converted).max():.1f}, over {len(tokens)} tokens")
    exact, ours = loss(logits(from_gguf(source, through_float16=False), tokens), tokens), loss(converted, tokens)
    told.say(abs(ours - exact) <= most_loss_difference, f"loss: {ours:.4f} a token in float16, {exact:.4f} in the GGUF's own numbers")
    wrong = loss(logits(dataclasses.replace(model, pairs="adjacent"), tokens), tokens)
    told.say(wrong >= ours + least_loss_of_wrong_pairs, f"loss with the rotary pairs taken wrongly: {wrong:.4f}, expected "
             f"{ours + least_loss_of_wrong_pairs:.4f} or more")
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        print("left out: transformers, which is not installed")
        return
    theirs = transformers_logits(folder, tokens)
    difference = float(np.abs(converted - theirs).max())
    told.say(difference <= most_logit_difference, f"logits: transformers and numpy on the directory: largest difference {difference:.1e}; "
             f"loss {loss(theirs, tokens):.4f}")


def transformers_logits(folder: pathlib.Path, tokens: list[int]) -> np.ndarray:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    print(f"with transformers {transformers.__version__} and torch {torch.__version__}")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def check_tokenizer(told: report, source: pathlib.Path, folder: pathlib.Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    unknown = tokenizer.token_to_id(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["unk_token"])
    cases = texts(special_tokens(folder / "tokenizer.json"))
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in cases]
    back = {text: tokenizer.decode(encoded, skip_special_tokens=False) for text, encoded in zip(cases, ids) if unknown not in encoded}
    lost = [text for text in back if back[text] != text]
    told.say(not lost, f"texts: {len(back) - len(lost)} of {len(back)} come back through tokenizer.json as they were; "
             f"{len(cases) - len(back)} others have the unknown token" + (f"; not {lost[0]!a}" if lost else ""))
    chat = tokenizer.encode("<|im_start|>user\n2024<|im_end|>").tokens
    told.say(chat == ["<|im_start|>", "user", "\u010a", "2", "0", "2", "4", "<|im_end|>"],
             f"tokens: chat marks are one token, digits one each: {' '.join(chat)}")
    if not importlib.util.find_spec("xllamacpp"):
        print("left out: llama.cpp, which is not installed (xllamacpp)")
        return
    # Bytes without a token: Hugging Face gives the unknown token, llama.cpp drops them.
    without = [[token for token in encoded if token != unknown] for encoded in ids]
    theirs = [[token for token in encoded if token != unknown] for encoded in llama_cpp_tokens(source, cases)]
    differing = [text for text, one, other in zip(cases, without, theirs) if one != other]
    told.say(not differing, f"tokens: llama.cpp has the same for {len(cases) - len(differing)} of {len(cases)} texts, "
             "unknown tokens left out")
    for text in differing:
        print(f"    differs: {text!a}"[:136])


def llama_cpp_tokens(source: pathlib.Path, cases: list[str]) -> list[list[int]]:
    """By llama.cpp's own server, on the loopback."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(source)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 256, 1, False, 0
    server = xllamacpp.Server(parameters)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answers = []
    for text in cases:
        asked = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", asked, {"Content-Type": "application/json"})
        with direct.open(request, timeout=60) as answer:
            answers.append(json.load(answer)["tokens"])
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares a converted model with its GGUF and with other programs.")
    parser.add_argument("source", metavar="MODEL.gguf", type=pathlib.Path)
    parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path)
    args = parser.parse_args()
    told = report()
    try:
        check_tokenizer(told, args.source, args.folder)
        tokens = Tokenizer.from_file(str(args.folder / "tokenizer.json")).encode(paragraph).ids
        check_logits(told, args.source, args.folder, tokens)
    except OSError as error:
        parser.exit(2, f"check_conversion.py: {error}\n")
    if told.wrong:
        print(f"check_conversion.py: {told.wrong} wrong", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
