"""Write the shipped folders: stock diffusers and open_clip layouts, replaced whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import scorer
import torch
import unet
import vae
from diffusers import (
    AutoencoderKL,
    ModelMixin,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from subjects import BAD_WORDS, COLOURS, FORBIDDEN, GENERIC_WORDS, SCENES, SPECIFIC_WORDS
from world import World

LICENCE = """\
The weights in this folder are released under the MIT licence, as the pictures they were trained on
are:

Fluent Emoji (3-D): Copyright (c) Microsoft Corporation, MIT licence; packaged as
@lobehub/fluent-emoji-3d 1.1.0, Copyright (c) LobeHub, MIT licence. Names and keywords:
emojibase-data 17.0.0, Copyright (c) Miles Johnson, MIT licence.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

CARD = """\
# `emoji`: a small SDXL

`base/` is a `StableDiffusionXLPipeline` folder, `refiner/` a `StableDiffusionXLImg2ImgPipeline`
without the parts it shares with the base (second text encoder, its tokenizer, VAE). Both draw 64 px
pictures of 64 emoji on plain backdrops. `world.json` lists every word they know.

    base = StableDiffusionXLPipeline.from_pretrained("base")
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        "refiner", text_encoder_2=base.text_encoder_2, tokenizer_2=base.tokenizer_2, vae=base.vae)
    base("a fox on a blue background", height=64, width=64, num_inference_steps=20, guidance_scale=4.0)

The model card, with data, figures, pictures and limits: `experiments/000_emoji_model/README.md`.
Licence: MIT.
"""


def replace(new: Path, target: Path) -> None:
    """Put `new` where `target` is. It is never half-written, and missing for the time of two renames."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    target.parent.mkdir(parents=True, exist_ok=True)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def world_facts(world: World) -> dict:
    """What world.json says."""
    return {
        "side": 64,
        "subjects": {name: {"keywords": tags} for name, tags in world.keywords.items()},
        "colours": list(COLOURS),
        "scenes": SCENES,
        "bad_words": list(BAD_WORDS),
        "specific_words": list(SPECIFIC_WORDS),
        "generic_words": list(GENERIC_WORDS),
        "never_learnt": FORBIDDEN,
        "vocabulary": sorted(world.vocabulary()),
        "drawing": {
            "steps": 20,
            "guidance_scale": 4.0,
            "aesthetic_score": 6.0,
            "negative_aesthetic_score": 2.5,
        },
    }


def export_model(world: World, work: Path, target: Path) -> None:
    """base/, refiner/ (if trained), licence, short card and world.json."""
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    encoders, autoencoder = unet.load_encoders(work), vae.load(work)
    autoencoder.register_to_config(scaling_factor=float((work / "scaling.txt").read_text()))
    base = StableDiffusionXLPipeline(
        vae=autoencoder, text_encoder=encoders.first, text_encoder_2=encoders.second,
        tokenizer=encoders.tokenizer, tokenizer_2=encoders.tokenizer,
        unet=unet.load(work), scheduler=unet.scheduler(),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip
    base.save_pretrained(new / "base")
    halve(new / "base" / "unet", UNet2DConditionModel)
    halve(new / "base" / "vae", AutoencoderKL)
    if (work / "refiner.pt").exists():
        refiner = StableDiffusionXLImg2ImgPipeline(
            vae=None, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
            unet=unet.load(work, refiner=True), scheduler=unet.scheduler(), requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=True, add_watermarker=False,
        )  # fmt: skip
        refiner.save_pretrained(new / "refiner")
        halve(new / "refiner" / "unet", UNet2DConditionModel)
    (new / "LICENSE").write_text(LICENCE)
    (new / "README.md").write_text(CARD)
    (new / "world.json").write_text(json.dumps(world_facts(world), indent=1) + "\n")
    for name in ("config.json", "model_index.json"):
        for path in new.rglob(name):
            clean(path)
    replace(new, target)


def halve(folder: Path, kind: type[ModelMixin]) -> None:
    """Store float16: a stock loader turns it back into float32, in half the space."""
    model = kind.from_pretrained(folder).to(torch.float16)
    model.save_pretrained(folder)


def clean(path: Path) -> None:
    """Drop the path that a model was loaded from."""
    values = json.loads(path.read_text())
    if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(values, indent=2) + "\n")


def export_judges(work: Path, target: Path) -> None:
    """The first judge's clip/ and aesthetic.safetensors, and the second's in second/."""
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for kind in scorer.KINDS.values():
        scorer.export(kind, work, new if kind.name == "first" else new / kind.name)
    replace(new, target)


def write(world: World, work: Path, target: Path) -> None:
    """diffusion/models/emoji below `target`, and metrics/emoji once both judges have learnt."""
    export_model(world, work, target / "diffusion" / "models" / "emoji")
    if all((work / f"scorer_{name}.pt").exists() for name in scorer.KINDS):
        export_judges(work, target / "metrics" / "emoji")
