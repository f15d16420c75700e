"""The two UNets: one draws, the other refines the last fifth of the noise schedule.

v-prediction on a schedule that ends in pure noise (Lin et al. 2024, "Common diffusion noise schedules and
sample steps are flawed"): few steps teach it backdrops and colours that epsilon-prediction does not learn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import Average, Log, autocast, device, finished, restore, save
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from pool import Pool
from text import Encoders, ids_of
from torch.nn import functional as F

BATCH, EMPTY = 64, 0.1
REFINER_STEPS = 220  # the pipeline hands over at 200 of 1000; a margin so that its edge is known too


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's scheduler class with a zero signal at the end."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip


def signal_levels() -> torch.Tensor:
    """Cumulative alphas [1000] of the schedule."""
    return scheduler().alphas_cumprod.to(device())


def build(refiner: bool, seed: int, channels: int = 8) -> UNet2DConditionModel:
    """6.7 million parameters for the base and 1.8 million for the refiner."""
    torch.manual_seed(seed)
    widths, context, time_ids = ((64, 64), 128, 5) if refiner else ((112, 128), 224, 6)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        mid_block_type="UNetMidBlock2DCrossAttn", transformer_layers_per_block=1, cross_attention_dim=context,
        attention_head_dim=tuple(w // 16 for w in widths), use_linear_projection=True,
        norm_num_groups=16, addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=128 + 32 * time_ids,
    )  # fmt: skip
    return unet.to(device(), memory_format=torch.channels_last)


@dataclass(kw_only=True)
class Cache:
    """Latents [n, 2, 8, 8, 8] (mean, deviation); hidden [m, 48, 224] and pooled [m, 128] of captions."""

    latents: np.ndarray
    hidden: np.ndarray
    pooled: np.ndarray
    rows: np.ndarray
    severities: np.ndarray
    scaling: float


@torch.no_grad()
def cache_texts(encoders: Encoders, pool: Pool, folder: Path) -> None:
    """Encode every distinct caption once; float16 on disk."""
    unique = sorted({"", *pool.captions})  # row 0 is the empty prompt
    place = {caption: i for i, caption in enumerate(unique)}
    hidden, pooled = [], []
    for start in range(0, len(unique), 500):
        h, p = encoders.encode(ids_of(encoders.tokenizer, unique[start : start + 500]))
        hidden.append(h.cpu().numpy().astype(np.float16))
        pooled.append(p.cpu().numpy().astype(np.float16))
    np.save(folder / "hidden.npy", np.concatenate(hidden))
    np.save(folder / "pooled.npy", np.concatenate(pooled))
    np.save(folder / "rows.npy", np.array([place[c] for c in pool.captions]))


def load_cache(folder: Path, pool: Pool) -> Cache:
    """Read what the stage `latents` wrote."""
    return Cache(
        latents=np.load(folder / "latents.npy"), hidden=np.load(folder / "hidden.npy", mmap_mode="r"),
        pooled=np.load(folder / "pooled.npy"), rows=np.load(folder / "rows.npy"), severities=pool.severities,
        scaling=float((folder / "scaling.txt").read_text()),
    )  # fmt: skip


def aesthetic(severity: np.ndarray) -> np.ndarray:
    """The refiner's condition: 6.5 for clean, 1.5 for the worst, around the pipeline's 6.0 and 2.5."""
    return 6.5 - 5 * severity


def batch(cache: Cache, rng: np.random.Generator, refiner: bool) -> dict[str, torch.Tensor]:
    """Scaled latents, noise, timesteps and conditions for one step, all drawn from `rng`."""
    rows = np.sort(rng.integers(0, len(cache.rows), BATCH))
    mean, deviation = cache.latents[rows, 0].astype(np.float32), cache.latents[rows, 1].astype(np.float32)
    clean = (mean + deviation * rng.standard_normal(mean.shape, dtype=np.float32)) * cache.scaling
    empty = rng.random(
        BATCH
    )  # no prompt is zeros, as in SDXL's base; an empty one is encoded: both are learnt
    texts = np.where(empty < EMPTY + 0.02, 0, cache.rows[rows])
    keep = (empty >= EMPTY).astype(np.float32)
    hidden = cache.hidden[texts].astype(np.float32) * keep[:, None, None]
    pooled = cache.pooled[texts].astype(np.float32) * keep[:, None]
    sizes = np.tile(np.array([64, 64, 0, 0, 64, 64], np.float32), (BATCH, 1))
    jitter = rng.random(BATCH) < 0.1  # so that other sizes than 64 are harmless
    sizes[:, :2] += np.where(jitter, rng.integers(-24, 65, BATCH), 0)[:, None]
    sizes[:, 2:4] += np.where(jitter[:, None], rng.integers(0, 9, (BATCH, 2)), 0)
    if refiner:
        score = aesthetic(cache.severities[rows]) + 0.25 * rng.standard_normal(BATCH)
        sizes = np.concatenate([sizes[:, :4], score[:, None].astype(np.float32)], 1)
        hidden = hidden[..., -128:]  # the second encoder alone
    values = {
        "clean": clean, "noise": rng.standard_normal(clean.shape, dtype=np.float32), "hidden": hidden,
        "pooled": pooled, "sizes": sizes, "times": rng.integers(0, REFINER_STEPS if refiner else 1000, BATCH),
    }  # fmt: skip
    return {k: torch.from_numpy(np.ascontiguousarray(v)).to(device()) for k, v in values.items()}


def loss_of(unet: UNet2DConditionModel, parts: dict[str, torch.Tensor], levels: torch.Tensor) -> torch.Tensor:
    """Mean squared error on v = sqrt(a) noise - sqrt(1 - a) clean (Salimans and Ho 2022)."""
    a = levels[parts["times"]].float()[:, None, None, None]
    noisy = a.sqrt() * parts["clean"] + (1 - a).sqrt() * parts["noise"]
    target = a.sqrt() * parts["noise"] - (1 - a).sqrt() * parts["clean"]
    with autocast():
        drawn = unet(
            noisy.contiguous(memory_format=torch.channels_last), parts["times"], parts["hidden"],
            added_cond_kwargs={"text_embeds": parts["pooled"], "time_ids": parts["sizes"]},
        ).sample  # fmt: skip
    return F.mse_loss(drawn.float(), target)


def train(
    cache: Cache,
    folder: Path,
    minutes: float,
    refiner: bool = False,
    rate: float = 1.2e-3,
    decay: float = 0.4,
) -> None:
    """Train one UNet for so many minutes of its own time, or go on from its checkpoint.

    The rate falls with the clock, not with a step count: on shared cores nobody knows the number of steps.
    The exported weights are the moving average.
    """
    name, seed = ("refiner", 41) if refiner else ("base", 31)
    unet, levels = build(refiner, seed), signal_levels()
    average = Average(unet, 0.998)
    optimizer = torch.optim.AdamW(unet.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.01)
    kept, step, spent, log, mean = restore(folder / f"{name}.pt"), 0, 0.0, Log(folder / f"{name}.csv"), 1.0
    if kept:
        unet.load_state_dict(kept["weights"])
        optimizer.load_state_dict(kept["optimizer"])
        average.state, average.updates = kept["average"], kept["step"]
        step, spent, mean = kept["step"], kept["spent"], kept["mean"]
    start = time.monotonic() - spent
    while spent < 60 * minutes:
        parts = batch(cache, np.random.default_rng((seed, step)), refiner)
        left = 1 - spent / (60 * minutes)
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / 200, 1.0, left / decay)
        loss = loss_of(unet, parts, levels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet)
        mean, step, spent = 0.98 * mean + 0.02 * loss.item(), step + 1, time.monotonic() - start
        if step % 100 == 0:
            log.write(step, loss=mean, minutes=spent / 60)
        if step % 500 == 0 or spent >= 60 * minutes:
            save(
                folder / f"{name}.pt", weights=unet.state_dict(), optimizer=optimizer.state_dict(),
                average=average.state, step=step, spent=spent, mean=mean,
            )  # fmt: skip


def load(folder: Path, refiner: bool = False) -> UNet2DConditionModel:
    """The averaged weights, frozen."""
    weights = finished(folder / f"{'refiner' if refiner else 'base'}.pt")["average"]
    unet = build(refiner, 0, weights["conv_in.weight"].shape[1])
    unet.load_state_dict(weights)
    return unet.eval().requires_grad_(False)
