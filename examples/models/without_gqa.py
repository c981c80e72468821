#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a model without grouped-query attention that computes what a model with it computes.

    without_gqa.py MODEL.gguf OUT.gguf

Every query head gets a KV head of its own: a copy of the one that its group shares. So the answers stay as they are, and an engine can be
tried on a model with as many KV heads as query heads. Weights are copied as they are stored. Needs gguf and numpy. Exits with 2, and writes
nothing, for a file that is no such model.
"""
import argparse
import pathlib
import sys

import gguf
import numpy as np


def expand(source: pathlib.Path, out: pathlib.Path) -> str:
    reader = gguf.GGUFReader(source)
    field = {name: reader.fields[name] for name in reader.fields}
    architecture = field["general.architecture"].contents()
    heads, kv_heads = (field[f"{architecture}.attention.{name}"].contents() for name in ("head_count", "head_count_kv"))
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads < heads and heads % kv_heads == 0):
        raise ValueError(f"{heads} query heads and {kv_heads} KV heads: expected the same in every layer, and groups of more than one")
    writer = gguf.GGUFWriter(out, architecture)
    for name, value in field.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, of = value.types[0], value.types[-1] if value.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, heads if name.endswith(".attention.head_count_kv") else value.contents(), kind, of)
    expanded = 0
    for tensor in reader.tensors:
        rows = tensor.data
        if tensor.name.startswith("blk.") and tensor.name.split(".", 2)[2] in ("attn_k.weight", "attn_v.weight", "attn_k.bias", "attn_v.bias"):
            by_head = rows.reshape(kv_heads, rows.shape[0] // kv_heads, *rows.shape[1:])
            rows = np.ascontiguousarray(np.repeat(by_head, heads // kv_heads, axis=0)).reshape(-1, *rows.shape[1:])
            expanded += 1
        writer.add_tensor(tensor.name, rows, raw_dtype=tensor.tensor_type)
    if expanded == 0:
        raise ValueError("no tensor blk.N.attn_k.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return f"{kv_heads} KV heads became {heads} in {expanded} tensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="MODEL.gguf", type=pathlib.Path)
    parser.add_argument("out", metavar="OUT.gguf", type=pathlib.Path)
    args = parser.parse_args()
    try:
        print(expand(args.source, args.out), file=sys.stderr)
    except (OSError, ValueError, KeyError) as error:
        parser.exit(2, f"without_gqa.py: {args.source}: {error}\n")


if __name__ == "__main__":
    main()
