"""The judge: a CLIP of open_clip's own kind and a linear quality head; no weight is the drawing model's.

Another architecture (a modified ResNet) and another seed. Half of the pictures in softened.npy, where there
is one, are shown as the autoencoder gives them back: what no drawn picture can have must not count as damage.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from common import Log, autocast, device, finished, restore, save
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from pool import Pool
from safetensors.torch import save_file
from text import LENGTH, SHORT, contrast, ids_of, train_tokenizer
from torch import nn
from transformers import CLIPTokenizer
from world import World

PAD = "!"  # open_clip looks for the largest id to find the end of a text, so the end token must not pad
BATCH = 192
DIM = 128


def config(vocabulary: int) -> dict:
    """The folder's open_clip_config.json."""
    return {
        "model_cfg": {
            "embed_dim": DIM,
            "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "patch_size": None},
            "text_cfg": {
                "context_length": LENGTH, "vocab_size": vocabulary, "width": 96, "heads": 3, "layers": 2,
                "hf_tokenizer_name": "CLIPTokenizer",
            },
        },
        "preprocess_cfg": {"mean": list(OPENAI_DATASET_MEAN), "std": list(OPENAI_DATASET_STD)},
    }  # fmt: skip


def quality(severity: np.ndarray) -> np.ndarray:
    """The score a perfect head would give: 10 for a clean picture, 1 for the worst."""
    return 10 - 9 * severity


class Judge(nn.Module):
    """CLIP and the head that reads the unit image embedding."""

    def __init__(self, vocabulary: int, seed: int = 51) -> None:
        super().__init__()
        torch.manual_seed(seed)
        parts = config(vocabulary)["model_cfg"]
        self.clip = open_clip.CLIP(parts["embed_dim"], parts["vision_cfg"], parts["text_cfg"])
        self.head = nn.Linear(DIM, 1)
        nn.init.constant_(self.head.bias, 6.5)


def normalised(pictures: np.ndarray) -> torch.Tensor:
    """[b, 64, 64, 3] uint8 to what open_clip's standard preprocessing gives."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return ((x - mean) / std).to(device(), memory_format=torch.channels_last)


def encode_short(clip: open_clip.CLIP, ids: torch.Tensor) -> torch.Tensor:
    """`clip.encode_text` for texts cut after their end: by the causal mask, nothing later can act on it."""
    width = ids.shape[1]
    x = clip.token_embedding(ids) + clip.positional_embedding[:width]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:width, :width]))
    return x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)] @ clip.text_projection


def optimizer_of(judge: Judge, rate: float) -> torch.optim.AdamW:
    """A head on unit vectors needs weights of about ten, so it learns faster than the rest."""
    groups = [
        {"params": list(judge.clip.parameters()), "lr": rate, "factor": 1.0, "weight_decay": 0.05},
        {"params": list(judge.head.parameters()), "lr": rate, "factor": 15.0, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def train(world: World, pool: Pool, folder: Path, minutes: float, rate: float = 2e-3, seed: int = 52) -> None:
    """Contrast and severity together, for so many minutes; goes on from the checkpoint."""
    if not (folder / "scorer_tokenizer").exists():
        train_tokenizer(world, pool.captions[::-1], pad=PAD).save_pretrained(folder / "scorer_tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "scorer_tokenizer")
    ids = ids_of(tokenizer, pool.captions)
    lengths = (ids == tokenizer.eos_token_id).int().argmax(1).numpy() + 1
    judge = Judge(len(tokenizer)).to(device()).to(memory_format=torch.channels_last)
    softened = np.load(folder / "softened.npy") if (folder / "softened.npy").exists() else pool.pictures[:0]
    optimizer = optimizer_of(judge, rate)
    kept, step, spent, log = restore(folder / "scorer.pt"), 0, 0.0, Log(folder / "scorer.csv")
    if kept:
        judge.load_state_dict(kept["weights"])
        optimizer.load_state_dict(kept["optimizer"])
        step, spent = kept["step"], kept["spent"]
    start = time.monotonic() - spent
    while spent < 60 * minutes:
        rng = np.random.default_rng((seed, step))
        few = len(softened) and rng.random() < 0.6  # often from the part that is there in both forms
        rows = np.sort(rng.integers(0, len(softened) if few else len(pool), BATCH))
        width = LENGTH if step % 6 == 0 else SHORT
        rows = rows[lengths[rows] <= width]
        pictures = np.array(pool.pictures[rows])
        soft = (rows < len(softened)) & (rng.random(len(rows)) < 0.5)
        pictures[soft] = softened[rows[soft]]
        left = 1 - spent / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"] * min((step + 1) / 100, 1.0, left / 0.6)
        with autocast():
            images = judge.clip.encode_image(normalised(pictures))
            texts = encode_short(judge.clip, ids[rows, :width].to(device()))
        images = F.normalize(images.float(), dim=-1)
        apart = contrast(images, texts.float(), judge.clip.logit_scale)
        target = torch.from_numpy(quality(pool.severities[rows])).to(device())
        miss = ((judge.head(images)[:, 0] - target) / 9).square().mean()
        optimizer.zero_grad()
        (apart + 15 * miss).backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        step, spent = step + 1, time.monotonic() - start
        if step % 50 == 0:
            log.write(step, contrast=apart.item(), quality=miss.item())
        if step % 200 == 0 or spent >= 60 * minutes:
            save(
                folder / "scorer.pt", weights=judge.state_dict(), optimizer=optimizer.state_dict(), step=step,
                spent=spent,
            )  # fmt: skip


def export(folder: Path, target: Path) -> None:
    """Write clip/ in open_clip's local-dir layout (float16) and the head beside it (float32)."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "scorer_tokenizer")
    weights = finished(folder / "scorer.pt")["weights"]
    (target / "clip").mkdir(parents=True, exist_ok=True)
    clip = {k.removeprefix("clip."): v for k, v in weights.items() if k.startswith("clip.")}
    halves = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in clip.items()}
    save_file(halves, target / "clip" / "open_clip_model.safetensors", {"format": "pt"})
    (target / "clip" / "open_clip_config.json").write_text(
        json.dumps(config(len(tokenizer)), indent=2) + "\n"
    )
    tokenizer.save_pretrained(target / "clip")
    head = {"weight": weights["head.weight"].float(), "bias": weights["head.bias"].float()}
    save_file({k: v.contiguous().cpu() for k, v in head.items()}, target / "aesthetic.safetensors")
