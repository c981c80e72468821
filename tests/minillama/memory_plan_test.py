#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds minillama's plan of its memory against the most that the process had resident, for every kind of checkpoint.

    memory_plan_test.py MINILLAMA

Checkpoints of some 100 MB are written into the working directory, one after the other, and deleted. Linux.
"""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

program = Path(sys.argv.pop(1)).resolve() if len(sys.argv) > 1 else None

TOLERANCE = 0.03
ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def numbers(dtype):
    """Bytes of 32768 small random numbers."""
    draw = random.Random(1)
    values = [draw.uniform(-0.05, 0.05) for _ in range(1 << 15)]
    if dtype == "BF16":  # the upper half of a float
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)


def fill(file, block, size):
    """Writes `size` bytes, the block again and again."""
    for _ in range(size // len(block)):
        file.write(block)
    file.write(block[: size % len(block)])


def tensors_of(c):
    """Names and shapes of a Llama in the order of its layers."""
    head = c["head_dim"]
    queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    hidden, wide = c["hidden_size"], c["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        shapes[prefix + "self_attn.q_proj.weight"] = (queries, hidden)
        shapes[prefix + "self_attn.k_proj.weight"] = shapes[prefix + "self_attn.v_proj.weight"] = (keys, hidden)
        shapes[prefix + "self_attn.o_proj.weight"] = (hidden, queries)
        shapes[prefix + "mlp.gate_proj.weight"] = shapes[prefix + "mlp.up_proj.weight"] = (wide, hidden)
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, wide)
        if c.get("attention_bias"):
            for name, width in (("q", queries), ("k", keys), ("v", keys), ("o", hidden)):
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (width,)
    shapes["model.norm.weight"] = (hidden,)
    return shapes if c["tie_word_embeddings"] else shapes | {"lm_head.weight": (c["vocab_size"], hidden)}


def config_of(**changes):
    return {"architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 16384, "num_hidden_layers": 3,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 256, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu"} | changes


def elements(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def write_safetensors(path, shapes, dtype):
    """dtype: of all tensors, or a function of a tensor's name."""
    types = {name: dtype if isinstance(dtype, str) else dtype(name) for name in shapes}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + ELEMENT_BYTES[types[name]] * elements(shape)
        header[name] = {"dtype": types[name], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    blocks = {one: numbers(one) for one in set(types.values())}
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            fill(file, blocks[types[name]], ELEMENT_BYTES[types[name]] * elements(shape))


def write_directory(folder, config, dtype, shards=1):
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tensors_of(config)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", shapes, dtype)
        return folder
    names, index = list(shapes), {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_safetensors(folder / f"part-{i}.safetensors", {name: shapes[name] for name in part}, dtype)
        index |= {name: f"part-{i}.safetensors" for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def write_llama2c(folder):
    """llama2.c's legacy format; embeddings tied, so the size of the vocabulary is positive."""
    hidden, wide, layers, heads, kv_heads, vocabulary, positions = 512, 16384, 1, 8, 4, 256, 512
    head = hidden // heads
    layer = hidden * (2 + 2 * hidden + 2 * kv_heads * head + 3 * wide)
    floats = vocabulary * hidden + layers * layer + hidden + positions * head
    with open(folder / "model.bin", "wb") as file:
        file.write(struct.pack("<7i", hidden, wide, layers, heads, kv_heads, vocabulary, positions))
        fill(file, numbers("F32"), 4 * floats)
    return folder / "model.bin"


class memory_plan(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(dir=Path.cwd())
        self.folder = Path(self.temporary.name)

    def tearDown(self):
        self.temporary.cleanup()

    def check(self, model, *arguments, prompt=48):
        """Runs the program on a prompt of so many bytes, holds its plan against wait4's peak and returns the plan."""
        (self.folder / "prompt").write_text(("some text to be read. " * (prompt // 20 + 1))[:prompt])
        command = [str(program), "-m", str(model), "-f", str(self.folder / "prompt"), "-n", "8", "-t", "2", "--json",
                   str(self.folder / "run.json"), *arguments]
        with open(self.folder / "err", "w+b") as err:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            err.seek(0)
            self.assertEqual(child.returncode, 0, err.read().decode())
        memory = json.loads((self.folder / "run.json").read_text())["memory"]
        planned, peak = memory["most_bytes"], usage.ru_maxrss * 1024
        line = f"{self._testMethodName}: planned {planned}, peak {peak}: {100 * (planned / peak - 1):+.2f} %"
        print(line, flush=True)
        self.assertGreater(peak, 60e6, line)  # 3 % of less would be a few pages
        self.assertLess(abs(planned - peak), TOLERANCE * peak, f"{line} of {memory}")
        return memory

    def check_weights(self, memory, parameters, element_bytes):
        """That weights are planned as the file stores them; norms, which are floats, are a few."""
        self.assertLess(abs(memory["weight_bytes"] / (parameters * element_bytes) - 1), 1e-3)

    def parameters(self, config):
        return sum(elements(shape) for shape in tensors_of(config).values())

    def directory(self, dtype, shards=1, **changes):
        config = config_of(**changes)
        memory = self.check(write_directory(self.folder, config, dtype, shards))
        return memory, self.parameters(config)

    def test_float32(self):
        self.check_weights(*self.directory("F32", num_hidden_layers=1), 4)

    def test_float16(self):
        self.check_weights(*self.directory("F16"), 2)

    def test_bfloat16(self):
        self.check_weights(*self.directory("BF16"), 2)

    def test_shards(self):
        self.check_weights(*self.directory("BF16", shards=3), 2)

    def test_mixed_types_biases_and_a_head(self):
        """Projections of one matrix in two types, which becomes float; a head of its own in a third."""
        changes = {"num_hidden_layers": 2, "tie_word_embeddings": False, "attention_bias": True}
        self.directory(lambda name: "F32" if "lm_head" in name else "F16" if "up_proj" in name else "BF16", **changes)

    def test_llama2c(self):
        self.check(write_llama2c(self.folder))

    def test_padded_heads(self):
        heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
        memory, _ = self.directory("F16", head_dim=20, **heads)
        self.check_weights(memory, self.parameters(config_of(head_dim=24, **heads)), 2)

    def test_rows_and_caches(self):
        """A long prompt in a small model, whose weights are next to nothing."""
        config = config_of(hidden_size=64, intermediate_size=64, num_hidden_layers=16, num_attention_heads=4)
        model = write_directory(self.folder, config, "BF16")
        memory = self.check(model, prompt=2048)
        self.assertLess(memory["weight_bytes"], 0.05 * memory["most_bytes"])
        self.assertGreater(memory["prompt_row_bytes"], 0.25 * (memory["most_bytes"] - memory["program_bytes"]))  # cuBLAS is a large program


if __name__ == "__main__":
    unittest.main()
