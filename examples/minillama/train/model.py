# SPDX-License-Identifier: Apache-2.0
"""The Llama that is trained: the plain architecture of Hugging Face's LlamaForCausalLM, with its tensor names and rotary form.

Bytes are the tokens (vocabulary 256, no special ones). Weights are kept in float32 and written in bfloat16.
"""
from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclasses.dataclass
class model_config:
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 64
    vocab_size: int = 256
    max_position_embeddings: int = 131072
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5


smoke_config = model_config(64, 128, 2, 4, 2, 16, max_position_embeddings=512)


def rotary_table(positions: Tensor, config: model_config) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, 1, n, head_dim] of positions [rows, n]. In float64 up to the cosine: at position 131072 a float32 angle
    is off by up to 0.008."""
    dim = config.head_dim
    rate = config.rope_theta ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64) / dim)
    angle = positions[:, None, :, None].double() * rate
    angle = torch.cat((angle, angle), -1)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + head_dim / 2) of x [rows, heads, n, head_dim]; computed in float32."""
    wide = x.float()
    low, high = wide.chunk(2, -1)
    return (wide * cos + torch.cat((-high, low), -1) * sin).to(x.dtype)


class rms_norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class attention(nn.Module):
    def __init__(self, config: model_config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, n, _ = x.shape
        query = rotate(self.q_proj(x).view(rows, n, self.heads, self.dim).transpose(1, 2), cos, sin)
        key = rotate(self.k_proj(x).view(rows, n, self.kv_heads, self.dim).transpose(1, 2), cos, sin)
        value = self.v_proj(x).view(rows, n, self.kv_heads, self.dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(rows, n, self.heads * self.dim))


class mlp(nn.Module):
    def __init__(self, config: model_config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class block(nn.Module):
    def __init__(self, config: model_config) -> None:
        super().__init__()
        self.input_layernorm = rms_norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention(config)
        self.post_attention_layernorm = rms_norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class llama(nn.Module):
    """forward gives the normed hidden states [rows, n, hidden]; logits() turns any of them into scores of the next byte."""

    def __init__(self, config: model_config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(block(config) for _ in range(config.num_hidden_layers))
        self.norm = rms_norm(config.hidden_size, config.rms_norm_eps)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("_proj.weight"):
                scale = 0.6 / math.sqrt(weight.shape[1])
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale /= math.sqrt(2 * config.num_hidden_layers)
                nn.init.normal_(weight, std=scale)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        cos, sin = rotary_table(positions, self.config)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed_tokens.weight)


def save_model(model: llama, folder: pathlib.Path, trained_length: int) -> None:
    """Writes config.json and model.safetensors (bfloat16). Each file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **dataclasses.asdict(model.config),
              "max_position_embeddings": trained_length, "rope_scaling": None, "tie_word_embeddings": True, "hidden_act": "silu",
              "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16", "bos_token_id": None, "eos_token_id": 10}
    tensors = {f"model.{name}": weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors.part", metadata={"format": "pt"})
    (folder / "config.json.part").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors.part").chmod(0o644)
    for name in ("model.safetensors", "config.json"):
        os.replace(folder / f"{name}.part", folder / name)


def load_model(folder: pathlib.Path, device: torch.device) -> llama:
    stored = json.loads((folder / "config.json").read_text())
    config = model_config(**{field.name: stored[field.name] for field in dataclasses.fields(model_config)})
    model = llama(config)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})
    return model.to(device)
