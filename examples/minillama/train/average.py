# SPDX-License-Identifier: Apache-2.0
"""Averages the weights of models of one shape, e.g. of a run and of the run that it started from.

    python3 average.py --models third fourth --out final

Source: Wortsman et al., "Model soups", ICML 2022.
"""
from __future__ import annotations

import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file


def averaged(folders: list[pathlib.Path]) -> dict[str, torch.Tensor]:
    parts = [load_file(folder / "model.safetensors") for folder in folders]
    for folder, part in zip(folders, parts):
        if {name: weight.shape for name, weight in part.items()} != {name: weight.shape for name, weight in parts[0].items()}:
            raise SystemExit(f"average.py: {folder}: tensors are not those of {folders[0]}")
    return {name: torch.stack([part[name].float() for part in parts]).mean(0).to(parts[0][name].dtype) for name in parts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Averages the weights of models of one shape.")
    parser.add_argument("--models", type=pathlib.Path, nargs="+", required=True, help="folders with config.json and model.safetensors")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    config = json.loads((args.models[0] / "config.json").read_text())
    weights = averaged(args.models)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
