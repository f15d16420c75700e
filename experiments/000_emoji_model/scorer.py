"""The judges: two CLIPs of open_clip's own kind, each with a linear quality head; no weight is the model's.

They differ in architecture (a modified ResNet, a vision transformer), seed and order of the lessons, so that
the second can agree or disagree with the first. Both learn quality in two ways: as the severity of a pool's
scene, and as the difference between a picture and the same picture damaged more. The second way needs no
judgement of the picture itself, so it also takes drawn pictures and what the autoencoder gives back: what is
special to those must not count as damage, and damage must count on them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from common import Clock, Log, Threads, autocast, device, finished, ramp, restore, save, take_up
from degrade import degrade
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from pool import Pool
from safetensors.torch import save_file
from subjects import SPECIFIC_WORDS
from text import LENGTH, SHORT, captions_of, contrast, ids_of, lengths, train_tokenizer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer
from world import World

PAD = "!"  # open_clip looks for the largest id to find the end of a text, so the end token must not pad
SCENES, PAIRS = 128, 40
DIM = 128


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the two judges."""

    name: str
    seed: int
    rate: float
    vision: dict
    text: dict

    def config(self, vocabulary: int) -> dict:
        """The folder's open_clip_config.json."""
        words = {"context_length": LENGTH, "vocab_size": vocabulary, "hf_tokenizer_name": "CLIPTokenizer"}
        return {
            "model_cfg": {
                "embed_dim": DIM,
                "vision_cfg": {"image_size": 64} | self.vision,
                "text_cfg": words | self.text,
            },
            "preprocess_cfg": {"mean": list(OPENAI_DATASET_MEAN), "std": list(OPENAI_DATASET_STD)},
        }  # fmt: skip


KINDS = {
    "first": Kind(
        name="first", seed=51, rate=1.5e-3,
        vision={"layers": [2, 2, 2, 1], "width": 20, "patch_size": None},
        text={"width": 96, "heads": 3, "layers": 2},
    ),
    "second": Kind(
        name="second", seed=61, rate=1.0e-3,
        vision={"layers": 4, "width": 128, "head_width": 32, "patch_size": 8, "mlp_ratio": 3.0},
        text={"width": 64, "heads": 2, "layers": 3},
    ),
}  # fmt: skip


def quality(severity: np.ndarray) -> np.ndarray:
    """The score a perfect head would give: 10 for a clean picture, 1 for the worst."""
    return 10 - 9 * severity


class Judge(nn.Module):
    """CLIP and the head that reads the unit image embedding."""

    def __init__(self, kind: Kind, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(kind.seed)
        parts = kind.config(vocabulary)["model_cfg"]
        self.clip = open_clip.CLIP(parts["embed_dim"], parts["vision_cfg"], parts["text_cfg"])
        self.head = nn.Linear(DIM, 1)
        nn.init.constant_(self.head.bias, 6.5)


def normalised(pictures: np.ndarray) -> torch.Tensor:
    """[b, 64, 64, 3] uint8 to what open_clip's standard preprocessing gives."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return ((x - mean) / std).to(device())


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
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Scenes with captions; the first of them as the autoencoder gives them back; drawn pictures."""

    world: World
    pool: Pool
    softened: NDArray[np.uint8]
    drawn: NDArray[np.uint8]

    def scenes(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pictures and their rows in the pool; half of those that can be are softened."""
        few = len(self.softened)  # a scene that is there in both forms comes more often
        rows = np.sort(rng.integers(0, few if few and rng.random() < 0.6 else len(self.pool), count))
        pictures = np.array(self.pool.pictures[rows])
        soft = (rows < few) & (rng.random(count) < 0.5)
        pictures[soft] = self.softened[rows[soft]]
        return pictures, rows

    def pairs(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """[2 * count] pictures, first less and then more damaged, and by how much severity they differ."""
        pictures, extra = np.empty((2 * count, 64, 64, 3), np.uint8), np.empty(count, np.float32)
        for i in range(count):
            plain = self._plain(rng)
            word = str(rng.choice(SPECIFIC_WORDS))
            low = 0.0 if rng.random() < 0.5 else float(rng.uniform(0.05, 0.9))
            high = float(rng.uniform(low + 0.05, 1.0))
            seed = int(rng.integers(2**32))  # the same noise, waves or corner in both
            less = degrade(plain, word, low, np.random.default_rng(seed)) if low else plain
            more = degrade(plain, word, high, np.random.default_rng(seed))
            pictures[i], pictures[count + i] = np.asarray(less), np.asarray(more)
            extra[i] = high - low
        return pictures, extra

    def _plain(self, rng: np.random.Generator) -> Image.Image:
        """An undamaged picture: a scene, a softened one or a drawn one."""
        draw = rng.random()
        if draw < 0.5 and len(self.drawn):
            return Image.fromarray(self.drawn[int(rng.integers(len(self.drawn)))])
        source = self.softened if draw < 0.75 and len(self.softened) else self.pool.pictures
        while True:
            row = int(rng.integers(len(source)))
            if self.pool.severities[row] == 0:
                return Image.fromarray(np.array(source[row]))


def lessons(world: World, pool: Pool, folder: Path) -> Lessons:
    """What the stage `drawn` wrote; without it, the pool alone."""
    found = {}
    for name in ("softened", "drawn"):
        path = folder / f"{name}.npy"
        found[name] = np.load(path) if path.exists() else np.array(pool.pictures[:0])
    return Lessons(world=world, pool=pool, **found)


def train(kind: Kind, source: Lessons, folder: Path, steps: int) -> None:
    """Contrast and quality together; goes on from the checkpoint."""
    path, words = folder / f"scorer_{kind.name}.pt", folder / "scorer_tokenizer"
    if not words.exists():
        train_tokenizer(source.world, source.pool.captions[::-1], pad=PAD).save_pretrained(words)
    tokenizer = CLIPTokenizer.from_pretrained(words)
    judge = Judge(kind, len(tokenizer)).to(device())
    optimizer = optimizer_of(judge, kind.rate)
    first, fresh = take_up(restore(path), judge, optimizer)
    log = Log(folder / f"scorer_{kind.name}.csv")
    threads, clock = Threads(), Clock()
    for step in range(first, steps):
        threads.adapt()
        rng = np.random.default_rng((kind.seed + 1, step))
        pictures, rows = source.scenes(rng, SCENES)
        captions, others = captions_of(source.world, source.pool, rows, rng)
        ids, other_ids, width = ids_of(tokenizer, captions), ids_of(tokenizer, [*others, ""]), LENGTH
        if step % 5:
            fits, width = lengths(tokenizer, ids) <= SHORT, SHORT
            rows, pictures, ids = rows[fits], pictures[fits], ids[torch.from_numpy(fits)]
            other_ids = other_ids[torch.from_numpy(lengths(tokenizer, other_ids) <= SHORT)]
        both, extra = source.pairs(rng, PAIRS)
        for group in optimizer.param_groups:
            group["lr"] = kind.rate * group["factor"] * ramp(step, steps, 100, 0.6, fresh)
        with autocast(), sdpa_kernel(SDPBackend.MATH):  # on a CPU the fused one's backward pass is slow
            seen = judge.clip.encode_image(normalised(np.concatenate([pictures, both])))
            texts = encode_short(judge.clip, torch.cat([ids, other_ids])[:, :width].to(device()))
        seen = F.normalize(seen.float(), dim=-1)
        scores = judge.head(seen)[:, 0]
        count = len(rows)
        apart = contrast(seen[:count], texts.float(), judge.clip.logit_scale)
        target = torch.from_numpy(quality(source.pool.severities[rows])).to(device())
        miss = ((scores[:count] - target) / 9).square().mean()
        fall = (scores[count : count + PAIRS] - scores[count + PAIRS :]) / 9
        pair = (fall - torch.from_numpy(extra).to(device())).square().mean()
        optimizer.zero_grad()
        (apart + 15 * miss + 15 * pair).backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            log.write(step + 1, contrast=apart.item(), quality=miss.item(), pair=pair.item())
        if clock.due() or step + 1 == steps:
            save(path, weights=judge.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)


def export(kind: Kind, folder: Path, target: Path) -> None:
    """Write clip/ in open_clip's local-dir layout (float16) and the head beside it (float32)."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "scorer_tokenizer")
    weights = finished(folder / f"scorer_{kind.name}.pt")["weights"]
    (target / "clip").mkdir(parents=True, exist_ok=True)
    clip = {k.removeprefix("clip."): v for k, v in weights.items() if k.startswith("clip.")}
    halves = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in clip.items()}
    save_file(halves, target / "clip" / "open_clip_model.safetensors", {"format": "pt"})
    config = json.dumps(kind.config(len(tokenizer)), indent=2)
    (target / "clip" / "open_clip_config.json").write_text(config + "\n")
    tokenizer.save_pretrained(target / "clip")
    head = {"weight": weights["head.weight"].float(), "bias": weights["head.bias"].float()}
    save_file({k: v.contiguous().cpu() for k, v in head.items()}, target / "aesthetic.safetensors")
