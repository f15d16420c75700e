"""A small valid sweep as a mapping, for tests to change."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from harness.config.loading.load import load_sweep
from harness.config.schema.sweep import SweepConfig

SWEEP: dict[str, Any] = {
    "name": "example",
    "question": "Does it help?",
    "model": {"kind": "sdxl"},
    "recipe": {"kind": "keywords", "keywords": ["blurry", "ugly"], "guidance": [8, 12]},
    "axes": {"adapter.rank": [2, 8], "training.steps": [100, 200]},
    "arms": [
        {"name": "baseline"},
        {"name": "placebo", "negative": "wrong"},
        {
            "name": "sham",
            "negative": "wrong",
            "adapters": [{"recipe": {"kind": "plain", "prompts": ["a cat"]}}],
        },
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
    ],
    "prompts": [{"text": "a fox", "split": "dev"}, {"text": "an owl", "split": "test"}],
    "seeds": [0, 1],
    "metrics": [{"kind": "aesthetic", "encoder": "emoji", "head": "emoji"}, "saturation"],
}


def changed(**changes: Any) -> dict[str, Any]:
    """The example with dotted names (`__` for a dot) replaced; a value of None removes the key."""
    sweep = copy.deepcopy(SWEEP)
    for name, value in changes.items():
        *parents, last = name.split("__")
        section = sweep
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is None:
            section.pop(last)
        else:
            section[last] = value
    return sweep


def load(folder: Path, *overrides: str, text: str | None = None, **changes: Any) -> SweepConfig:
    """The changed example read from `folder/x.yaml`, as a user's file would be."""
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump(changed(**changes), sort_keys=False) if text is None else text)
    return load_sweep(path, overrides)


TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TO_K = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def lora(path: Path, *, width: int = 1280, text: int = 2048, rank: int = 2, **more: Any) -> Path:
    """Write a LoRA on two layers of a UNet of these widths; SDXL's, unless they are given."""
    tensors = {
        f"unet.{TO_Q}.lora_A.weight": np.ones((rank, width), np.float32),
        f"unet.{TO_Q}.lora_B.weight": np.ones((width, rank), np.float32),
        f"unet.{TO_K}.lora_A.weight": np.ones((rank, text), np.float32),
        f"unet.{TO_K}.lora_B.weight": np.ones((width, rank), np.float32),
        **more,
    }
    save_file(tensors, path)
    return path
