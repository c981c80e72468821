#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns a GGUF of a small Llama into a Hugging Face directory: config.json, generation_config.json, model.safetensors in float16,
tokenizer.json and tokenizer_config.json.

    gguf_to_hugging_face.py MODEL.gguf FOLDER

Read: architecture `llama` without rotary scaling or biases; tokenizer `gpt2` with the pre-tokenizer `smollm`. What the file says besides
that is refused by name, on one line, with exit code 2: a key or a tensor that is passed over would show as wrong text. FOLDER must not
be there; it appears when all of it is written.

Needs gguf, numpy, safetensors, tokenizers; smollm2.sh installs them.
"""
from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any, Iterable, NoReturn

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

read_types = {"F32", "F16", "Q4_0", "Q4_1", "Q8_0"}

# GGUF's name of a layer's tensor, Hugging Face's, and the extents of its shape by their names in `shape_of`.
layer_tensors = {
    "attn_norm": ("input_layernorm", "hidden"),
    "attn_q": ("self_attn.q_proj", "queries hidden"),
    "attn_k": ("self_attn.k_proj", "keys hidden"),
    "attn_v": ("self_attn.v_proj", "keys hidden"),
    "attn_output": ("self_attn.o_proj", "hidden queries"),
    "ffn_norm": ("post_attention_layernorm", "hidden"),
    "ffn_gate": ("mlp.gate_proj", "inner hidden"),
    "ffn_up": ("mlp.up_proj", "inner hidden"),
    "ffn_down": ("mlp.down_proj", "hidden inner"),
}
outer_tensors = {
    "token_embd": ("model.embed_tokens", "vocabulary hidden"),
    "output_norm": ("model.norm", "hidden"),
    "output": ("lm_head", "vocabulary hidden"),
}

known_keys = {
    "llama": {"block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
              "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
              "rope.freq_base", "rope.dimension_count", "vocab_size"},
    "tokenizer": {"ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.merges", "ggml.bos_token_id", "ggml.eos_token_id",
                  "ggml.unknown_token_id", "ggml.padding_token_id", "ggml.add_bos_token", "ggml.add_eos_token", "ggml.add_space_prefix",
                  "chat_template"},
}
normal_token, control_token = 1, 3  # gguf.TokenType


class refusal(Exception):
    """What this program does not convert, on one line."""


def refuse(what: str) -> NoReturn:
    raise refusal(what)


def some(names: Iterable[str], most: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


class model_file:
    """A GGUF whose keys are all known to this program."""

    def __init__(self, path: pathlib.Path) -> None:
        try:
            self.reader = gguf.GGUFReader(path)
        except (ValueError, KeyError, IndexError, OSError) as error:
            refuse(f"not a GGUF that can be read: {' '.join(str(error).split()) or type(error).__name__}")
        if (architecture := self.get("general.architecture")) != "llama":
            refuse(f"general.architecture: unsupported: {architecture!r} (only 'llama')")
        for room, known in known_keys.items():
            unknown = {key for key in self.reader.fields if key.startswith(room + ".") and key.removeprefix(room + ".") not in known}
            if unknown:
                refuse(f"unknown keys: {some(unknown)}")

    def get(self, key: str, otherwise: Any = None) -> Any:
        field = self.reader.get_field(key)
        return otherwise if field is None else field.contents()

    def at(self, key: str, kind: type = int) -> Any:
        value = self.get(key)
        if value is None:
            refuse(f"{key}: missing key")
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
            refuse(f"{key}: expected {kind.__name__}, got {some([repr(value)])[:60]}")
        return value

    def require(self, key: str, only: Any) -> None:
        if (value := self.get(key, only)) != only:
            refuse(f"{key}: unsupported: {value!r} (only {only!r})")


def config_of(file: model_file) -> dict[str, Any]:
    hidden, query_heads = file.at("llama.embedding_length"), file.at("llama.attention.head_count")
    kv_heads = file.get("llama.attention.head_count_kv", query_heads)
    if not isinstance(kv_heads, int):
        refuse("llama.attention.head_count_kv: unsupported: a number for each layer (only one for all)")
    if not query_heads or not kv_heads or query_heads % kv_heads:
        refuse(f"llama.attention.head_count_kv: {kv_heads} does not divide the {query_heads} of head_count")
    head_dim = file.get("llama.attention.key_length", hidden // query_heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        file.require(key, head_dim)
    tokens = file.at("tokenizer.ggml.tokens", list)
    file.require("llama.vocab_size", len(tokens))
    # The file has a float32, whose double is 9.999999747378752e-06; the model was trained with the shortest number that rounds to it.
    epsilon = float(str(np.float32(file.at("llama.attention.layer_norm_rms_epsilon", float))))
    named = {name: file.at(f"tokenizer.ggml.{key}_token_id") for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "hidden_size": hidden,
        "intermediate_size": file.at("llama.feed_forward_length"),
        "num_hidden_layers": file.at("llama.block_count"),
        "num_attention_heads": query_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": len(tokens),
        "max_position_embeddings": file.at("llama.context_length"),
        "rms_norm_eps": epsilon,
        "rope_theta": file.get("llama.rope.freq_base", 10000.0),
        "rope_scaling": None,
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in file.reader.tensors),
        **{f"{name}_token_id": token for name, token in named.items()},
        "torch_dtype": "float16",
    }


def in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K in Hugging Face's order. A GGUF has the two of a rotary pair side by side, Hugging Face has the first of all pairs
    and then the second."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.concatenate((pairs[:, :, 0], pairs[:, :, 1]), axis=1).reshape(rows.shape)


def tensors_of(file: model_file, config: dict[str, Any]) -> dict[str, np.ndarray]:
    extents = {"hidden": config["hidden_size"], "inner": config["intermediate_size"], "vocabulary": config["vocab_size"],
               "queries": config["num_attention_heads"] * config["head_dim"], "keys": config["num_key_value_heads"] * config["head_dim"]}
    wanted = {f"{name}.weight": (f"{to}.weight", shape, "") for name, (to, shape) in outer_tensors.items()}
    if config["tie_word_embeddings"]:
        del wanted["output.weight"]
    for layer in range(config["num_hidden_layers"]):
        for name, (to, shape) in layer_tensors.items():
            wanted[f"blk.{layer}.{name}.weight"] = (f"model.layers.{layer}.{to}.weight", shape, name)
    present = {tensor.name: tensor for tensor in file.reader.tensors}
    if left_over := present.keys() - wanted.keys():
        refuse(f"unknown tensors: {some(left_over)}")
    if missing := wanted.keys() - present.keys():
        refuse(f"missing tensors: {some(missing)}")

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    converted = {}
    for name, (to, shape, place) in wanted.items():
        tensor = present[name]
        if tensor.tensor_type.name not in read_types:
            refuse(f"{name}: unsupported type {tensor.tensor_type.name} (only {some(read_types, 9)})")
        rows = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if rows.shape != (expected := tuple(extents[extent] for extent in shape.split())):
            refuse(f"{name}: shape is {list(rows.shape)}, expected {list(expected)}")
        if place in heads:
            rows = in_halves(rows, heads[place])
        with np.errstate(over="ignore"):
            converted[to] = np.ascontiguousarray(rows, dtype=np.float16)
        if not np.isfinite(converted[to]).all():
            refuse(f"{name}: has values beyond float16")
    return converted


def tokenizer_of(file: model_file) -> dict[str, Any]:
    """The contents of tokenizer.json."""
    file.require("tokenizer.ggml.model", "gpt2")
    file.require("tokenizer.ggml.add_bos_token", False)
    file.require("tokenizer.ggml.add_eos_token", False)
    file.require("tokenizer.ggml.add_space_prefix", False)
    if (pre := file.at("tokenizer.ggml.pre", str)) != "smollm":
        refuse(f"tokenizer.ggml.pre: unsupported: {pre!r} (only 'smollm')")
    tokens, types = file.at("tokenizer.ggml.tokens", list), file.at("tokenizer.ggml.token_type", list)
    if len(types) != len(tokens):
        refuse(f"tokenizer.ggml.token_type: {len(types)} types for {len(tokens)} tokens")
    if unknown := set(types) - {normal_token, control_token}:
        refuse(f"tokenizer.ggml.token_type: unsupported: {some(map(str, unknown))} (only {normal_token} and {control_token})")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        refuse("tokenizer.ggml.tokens: a token is there twice")
    merges = [merge.split(" ") for merge in file.at("tokenizer.ggml.merges", list)]
    if wrong := [merge for merge in merges if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys()]:
        refuse(f"tokenizer.ggml.merges: {' '.join(wrong[0])!r} is not two tokens that make a third")
    unknown_token = file.at("tokenizer.ggml.unknown_token_id")
    if unknown_token >= len(tokens):
        refuse(f"tokenizer.ggml.unknown_token_id: {unknown_token} is not below {len(tokens)}")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": tokens[number], "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for number, kind in enumerate(types) if kind == control_token],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        # Bytes whose letter is no token (smollm: 21 of 256) become the unknown token.
        "model": {"type": "BPE", "dropout": None, "unk_token": tokens[unknown_token], "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": [" ".join(merge) for merge in merges]},
    }


def tokenizer_config_of(file: model_file, config: dict[str, Any], tokenizer: dict[str, Any]) -> dict[str, Any]:
    tokens = file.at("tokenizer.ggml.tokens", list)
    for name in ("bos", "eos", "pad"):
        if config[f"{name}_token_id"] >= len(tokens):
            refuse(f"token {config[f'{name}_token_id']} ({name}) is not below {len(tokens)}")
    made = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"], "unk_token": tokenizer["model"]["unk_token"],
            **{f"{name}_token": tokens[config[f"{name}_token_id"]] for name in ("bos", "eos", "pad")}}
    if template := file.get("tokenizer.chat_template"):
        made["chat_template"] = template
    return made


def write_directory(source: pathlib.Path, folder: pathlib.Path) -> None:
    file = model_file(source)
    config, tokenizer = config_of(file), tokenizer_of(file)
    written = {
        "config.json": config,
        "generation_config.json": {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config_of(file, config, tokenizer),
    }
    tensors = tensors_of(file, config)
    if os.path.lexists(folder):
        refuse(f"{folder}: is there already")
    made = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, contents in written.items():
            indent = None if name == "tokenizer.json" else 2
            (made / name).write_text(json.dumps(contents, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
        Tokenizer.from_file(str(made / "tokenizer.json"))  # refuses what cannot be read
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        for path in made.iterdir():
            path.chmod(0o644)  # save_file leaves a file that only its owner may read
        made.chmod(0o755)
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description="Turns a GGUF of a small Llama into a Hugging Face directory.")
    parser.add_argument("source", metavar="MODEL.gguf", type=pathlib.Path)
    parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path, help="folder to make; must not exist")
    args = parser.parse_args()
    try:
        write_directory(args.source, args.folder)
    except (refusal, OSError) as error:
        parser.exit(2, f"gguf_to_hugging_face.py: {args.source}: {error}\n")


if __name__ == "__main__":
    main()
