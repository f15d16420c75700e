"""Checkpoints made from shipped weights, so that training goes on where they were committed.

The optimizers' memory is not shipped: they begin anew, with a short warm-up.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from common import finished, save
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from vae import decoder_of

PROGRESS = Path(__file__).parent / "progress.json"  # steps of each stage behind the shipped weights


def write_progress(work: Path) -> None:
    """Note how far each stage's checkpoint is."""
    names = ("text", "vae", "decoder", "base", "refiner", "scorer_first", "scorer_second")
    paths = {name: work / f"{name}.pt" for name in names}
    steps = {name: finished(path)["step"] for name, path in paths.items() if path.exists()}
    PROGRESS.write_text(json.dumps(steps, indent=1) + "\n")


def begin(work: Path, harness: Path) -> None:
    """Write a new `work` folder's checkpoints from the folders below `harness`, if they were shipped."""
    if not PROGRESS.exists() or (work / "vae.pt").exists():
        return
    steps, base = json.loads(PROGRESS.read_text()), harness / "diffusion" / "models" / "emoji" / "base"
    work.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    vae = AutoencoderKL.from_pretrained(base / "vae").float()
    words = {
        "first": CLIPTextModel.from_pretrained(base / "text_encoder"),
        "second": CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2"),
    }
    encoders = {f"{name}.{k}": v for name, model in words.items() for k, v in model.state_dict().items()}
    _put(work, "text", steps, weights=encoders)
    unet = {f"unet.{k}": v for k, v in _unet(base.parent / "base").items()}
    _put(work, "base", steps, weights=unet | encoders, average=unet | encoders, mean=1.0)
    if "refiner" in steps:
        refiner = {f"unet.{k}": v for k, v in _unet(base.parent / "refiner").items()}
        _put(work, "refiner", steps, weights=refiner, average=refiner, mean=1.0)
    for name in ("first", "second"):
        folder = harness / "metrics" / "emoji" / ("" if name == "first" else name)
        if f"scorer_{name}" in steps:
            clip = load_file(folder / "clip" / "open_clip_model.safetensors")
            weights = {f"clip.{k}": v.float() if v.is_floating_point() else v for k, v in clip.items()}
            head = load_file(folder / "aesthetic.safetensors")
            _put(work, f"scorer_{name}", steps, weights=weights | {f"head.{k}": v for k, v in head.items()})
            shutil.copytree(folder / "clip", work / "scorer_tokenizer", dirs_exist_ok=True)
    if "decoder" in steps:
        _put(work, "decoder", steps, weights=decoder_of(vae).state_dict())
    _put(work, "vae", steps, weights=vae.state_dict())
    (work / "scaling.txt").write_text(str(vae.config.scaling_factor))


def _unet(folder: Path) -> dict[str, torch.Tensor]:
    return UNet2DConditionModel.from_pretrained(folder / "unet").float().state_dict()


def _put(work: Path, name: str, steps: dict[str, int], **parts: Any) -> None:
    save(work / f"{name}.pt", step=steps[name], optimizer=None, **parts)
