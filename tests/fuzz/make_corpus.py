#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the corpus of the fuzz targets: for each a folder with a few small files that its reader takes.

    make_corpus.py PQKV_FUZZ [FOLDER]     FOLDER: corpus/ beside this file unless given; PQKV_FUZZ: the program, which saves a slot
"""
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

CONFIG = dict(architectures=["LlamaForCausalLM"], hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
              num_key_value_heads=1, head_dim=4, vocab_size=8, max_position_embeddings=16, rms_norm_eps=1e-5, rope_theta=10000.0,
              tie_word_embeddings=False, hidden_act="silu", eos_token_id=2)
LAYER = {"input_layernorm": [8], "post_attention_layernorm": [8], "self_attn.q_proj": [8, 8], "self_attn.k_proj": [4, 8],
         "self_attn.v_proj": [4, 8], "self_attn.o_proj": [8, 8], "mlp.gate_proj": [8, 8], "mlp.up_proj": [8, 8], "mlp.down_proj": [8, 8]}
SHAPES = {"model.embed_tokens.weight": [8, 8], "model.norm.weight": [8], "lm_head.weight": [8, 8],
          **{f"model.layers.0.{name}.weight": shape for name, shape in LAYER.items()}}
DRAW = random.Random(1)


def configs():
    yield "plain", CONFIG
    yield "llama3", {**CONFIG, "rope_scaling": dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                    original_max_position_embeddings=8)}
    yield "yarn", {**CONFIG, "rope_parameters": dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=8)}
    yield "mistral", {**CONFIG, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 8,
                      "eos_token_id": [1, 2], "hidden_size": 8.0}
    yield "generation", {"bos_token_id": 1, "eos_token_id": [2, 5, -1, 900], "do_sample": True, "temperature": 0.6}


def safetensors(kind, extra=()):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape in [*SHAPES.items(), *extra]:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [DRAW.uniform(-1, 1) for _ in range(count)]
        raw = {"F32": lambda: struct.pack(f"<{count}f", *values), "F16": lambda: struct.pack(f"<{count}e", *values),
               "BF16": lambda: b"".join(struct.pack("<f", value)[2:] for value in values)}[kind]()
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def llama2c():
    """One layer of 8, with separate embeddings."""
    numbers = struct.pack("<7i", 8, 8, 1, 2, 1, -8, 16)
    count = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in SHAPES.values()) + 16 * 4
    return numbers + struct.pack(f"<{count}f", *[DRAW.uniform(-1, 1) for _ in range(count)])


def llama2c_tokenizer():
    pieces = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)] + [b" ", b"a", b"b", b" a", b"ab", b" ab", "é".encode()]
    return struct.pack("<i", 8) + b"".join(struct.pack("<fi", -float(i), len(piece)) + piece for i, piece in enumerate(pieces))


def tokenizers():
    letters = ["h", "e", "l", "o", "Ġ", "1", "2", "'", "s", "he", "ll", "Ġhe", "hell"]
    merges = ["h e", "l l", "Ġ he", "he ll"]
    yield "bytes", {
        "version": "1.0", "normalizer": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "added_tokens": [{"id": len(letters), "content": "<|end|>", "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}],
        "model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(letters)}, "merges": merges, "ignore_merges": True}}
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + ["▁", "h", "e", "l", "he", "▁he"]
    yield "sentencepiece", {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                                                      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "added_tokens": [{"id": i, "content": text, "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
                         for i, text in enumerate(pieces[:3])],
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True, "vocab": {text: i for i, text in enumerate(pieces)},
                  "merges": [["h", "e"], ["▁", "he"]]}}


def json_lines():
    answered = {"input": "Where is it?", "context": "It is in the box.", "answers": ["the box", "box"], "length": 5, "dataset": "hotpotqa",
                "language": "en", "all_classes": None, "_id": "a1"}
    sorted_out = {**answered, "dataset": "trec", "all_classes": ["Place", "Date"], "answers": ["Place"]}
    numbered = {"index": 0, "input": "One is 17. One is", "outputs": ["17"], "length": 6}
    for name, records in (("answers", [answered, answered]), ("classes", [sorted_out]), ("outputs", [numbered, {**numbered, "index": 1, "answer_prefix": " It is"}])):
        yield name, "".join(json.dumps(record) + "\n" for record in records).encode()


def main():
    program = sys.argv[1]
    root = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "corpus"

    def write(target, name, data):
        (root / target).mkdir(parents=True, exist_ok=True)
        (root / target / name).write_bytes(data if isinstance(data, bytes) else (json.dumps(data, ensure_ascii=False) + "\n").encode())

    for name, config in configs():
        write("config", name, config)
    for kind in ("F32", "F16", "BF16"):
        write("safetensors", kind.lower(), safetensors(kind))
    write("safetensors", "left_over", safetensors("BF16", [("model.layers.0.self_attn.rotary_emb.inv_freq", [2])]))
    write("index", "two_shards", {"metadata": {"total_size": 0},
                                  "weight_map": {name: f"shard{i % 2}.safetensors" for i, name in enumerate(sorted(SHAPES))}})
    for name, described in json_lines():
        write("jsonl", name, described)
    write("llama2c", "untied", llama2c())
    write("llama2c_tokenizer", "bytes_and_words", llama2c_tokenizer())
    for name, described in tokenizers():
        write("tokenizer_json", name, described)
    (root / "slot").mkdir(parents=True, exist_ok=True)
    subprocess.run([program, "write-slot", root / "slot" / "trained"], check=True)


if __name__ == "__main__":
    main()
