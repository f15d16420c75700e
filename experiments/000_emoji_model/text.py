"""Tokenizer and two text encoders, trained against a throw-away image tower and then frozen, like SDXL's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Clock, Log, Threads, autocast, device, finished, ramp, restore, save, take_up
from pool import Pool, as_batch
from subjects import FORBIDDEN
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from world import World, swapped

LENGTH, SHORT, BATCH = 48, 20, 160
MERGES = 640
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(world: World, captions: list[str], pad: str = END) -> CLIPTokenizer:
    """CLIP's byte-level BPE with a vocabulary of about 1,150: every word of the world is one token."""
    known = world.vocabulary()
    corpus = [" ".join(w for w in c.replace(",", " ").split() if w in known) for c in captions[:12_000]]
    corpus += [w for w in world.rare if w != FORBIDDEN]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    learner.train_from_iterator(corpus, trainer)
    pairs = [
        p if isinstance(p, list) else p.split(" ") for p in json.loads(learner.to_str())["model"]["merges"]
    ]
    merges = [(a, b) for a, b in pairs][:MERGES]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{c}</w>" for c in letters), *(a + b for a, b in merges), START, END]
    return as_tokenizer(list(dict.fromkeys(tokens)), merges, pad)


def as_tokenizer(tokens: list[str], merges: list[tuple[str, str]], pad: str = END) -> CLIPTokenizer:
    """Vocabulary and merges to the transformers class; the end token has the largest id."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert vocabulary[END] == len(vocabulary) - 1
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token=pad)


def ids_of(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """[n, 48] token ids, padded and cut as the pipeline does it."""
    return tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def lengths(tokenizer: CLIPTokenizer, ids: torch.Tensor) -> np.ndarray:
    """How many tokens each text has, start and end included."""
    return (ids == tokenizer.eos_token_id).int().argmax(1).numpy() + 1


@dataclass
class Encoders:
    """Both frozen text encoders; what the UNets see."""

    tokenizer: CLIPTokenizer
    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    def states(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, 48] -> hidden states [b, 48, 224] and pooled [b, 128], as SDXL's pipeline computes them."""
        ids = ids.to(self.first.device)
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids, output_hidden_states=True)
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds


def build(tokenizer: CLIPTokenizer, seed: int = 21) -> Encoders:
    """0.4 and 0.7 million parameters."""
    torch.manual_seed(seed)
    shared = {
        "vocab_size": len(tokenizer), "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": LENGTH, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    first = CLIPTextConfig(hidden_size=96, intermediate_size=384, projection_dim=96, **shared)
    second = CLIPTextConfig(
        hidden_size=128, intermediate_size=512, projection_dim=128, hidden_act="gelu", **shared
    )
    for config in (first, second):
        config._attn_implementation = "eager"  # on a CPU its backward pass is the faster one
    return Encoders(
        tokenizer, CLIPTextModel(first).to(device()), CLIPTextModelWithProjection(second).to(device())
    )


class ImageTower(nn.Module):
    """A small residual network, kept only while the text encoders are trained."""

    def __init__(self, width: int = 32, out: int = 128) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=2, padding=1)
        sizes = [width, 2 * width, 3 * width, 4 * width]
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(sizes))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, c), nn.SiLU(), nn.Conv2d(c, c, 3, 1, 1), nn.SiLU(), nn.Conv2d(c, c, 3, 1, 1)
            )
            for c in sizes[1:]
        )
        self.norm, self.out = nn.GroupNorm(8, sizes[-1]), nn.Linear(3 * sizes[-1], out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, 3, 64, 64] -> [b, out]."""
        x = self.stem(x)
        for down, block in zip(self.downs, self.blocks, strict=True):
            x = down(F.silu(x))
            x = x + block(x)
        x = F.silu(self.norm(x))
        half = x.shape[3] // 2  # left and right apart, or "left of" could not be learnt
        left, right = x[..., :half].mean((2, 3)), x[..., half:].mean((2, 3))
        return self.out(torch.cat([left, right, x.amax((2, 3))], 1))


def contrast(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss (Radford et al. 2021); texts beyond the number of images fit none of them."""
    logits = scale.exp().clamp(max=60) * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    target = torch.arange(len(images), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T[: len(images)], target)) / 2


def captions_of(
    world: World, pool: Pool, rows: np.ndarray, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """New captions of the rows, and those that name a left and a right once more with the two swapped."""
    captions = [pool.caption_again(world, int(row), rng) for row in rows]
    return captions, [other for caption in captions if (other := swapped(caption)) is not None]


def train(world: World, pool: Pool, folder: Path, steps: int, rate: float = 1.5e-3, seed: int = 22) -> None:
    """Train both encoders with one image tower; goes on from the checkpoint."""
    kept = restore(folder / "text.pt")
    if kept and kept["step"] >= steps:
        return  # the tower is thrown away with the checkpoint that shipped weights replace
    if not (folder / "tokenizer").exists():
        train_tokenizer(world, pool.captions).save_pretrained(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoders = build(tokenizer)
    torch.manual_seed(seed)
    parts = nn.ModuleDict({
        "first": encoders.first, "second": encoders.second, "tower": ImageTower(),
        "head": nn.Linear(96, 128), "head_image": nn.Linear(128, 128),
    }).to(device())  # fmt: skip
    parts.scale = nn.Parameter(torch.full((), 2.6, device=device()))
    optimizer = torch.optim.AdamW(parts.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.02)
    log = Log(folder / "text.csv")
    first, _ = take_up(kept, parts, optimizer)
    threads, clock = Threads(), Clock()
    for step in range(first, steps):
        threads.adapt()
        rng = np.random.default_rng((seed, step))
        rows = np.sort(rng.integers(0, len(pool), BATCH))
        captions, others = captions_of(world, pool, rows, rng)
        ids, wrong_ids, width = ids_of(tokenizer, captions), ids_of(tokenizer, [*others, ""]), LENGTH
        if step % 5:  # most captions are short; what follows the end token changes nothing before it
            fits, width = lengths(tokenizer, ids) <= SHORT, SHORT
            rows, ids = rows[fits], ids[torch.from_numpy(fits)]
            wrong_ids = wrong_ids[torch.from_numpy(lengths(tokenizer, wrong_ids) <= SHORT)]
        batch = torch.cat([ids, wrong_ids])[:, :width].to(device())
        optimizer.param_groups[0]["lr"] = rate * ramp(step, steps, 50, 0.5)
        with autocast():
            image = parts["tower"](as_batch(pool.pictures[rows]).to(device()))
            one = parts["head"](parts["first"](batch).pooler_output)
            two = parts["second"](batch).text_embeds
            other = parts["head_image"](image)
        loss_one = contrast(other.float(), one.float(), parts.scale)
        loss_two = contrast(image.float(), two.float(), parts.scale)
        optimizer.zero_grad()
        (loss_one + loss_two).backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            log.write(step + 1, first=loss_one.item(), second=loss_two.item(), scale=parts.scale.item())
        if clock.due() or step + 1 == steps:
            save(
                folder / "text.pt", weights=parts.state_dict(), optimizer=optimizer.state_dict(),
                step=step + 1,
            )  # fmt: skip


def load(folder: Path) -> Encoders:
    """The trained encoders, frozen, float32."""
    encoders = build(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    weights = finished(folder / "text.pt")["weights"]
    for name, module in (("first", encoders.first), ("second", encoders.second)):
        prefix = f"{name}."
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
        module.eval().requires_grad_(False)
    return encoders
