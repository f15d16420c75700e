"""The two UNets: one draws, the other refines the last fifth of the noise schedule.

The base goes on teaching the text encoders: against pictures alone they learn subjects and places, but
hardly the words for damages or who stands on the left. The refiner takes them as the base left them.

v-prediction on a schedule that ends in pure noise (Lin et al. 2024, "Common diffusion noise schedules and
sample steps are flawed"): few steps teach it backdrops and colours that epsilon-prediction does not learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import Average, Clock, Log, Threads, autocast, device, finished, ramp, restore, save, take_up
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from pool import Pool
from text import Encoders, ids_of
from text import load as load_text
from torch import nn
from torch.nn import functional as F
from vae import CHANNELS
from world import World

BATCH, ZEROS, EMPTY = 64, 0.08, 0.02
REFINER_STEPS = 220  # the pipeline hands over at 200 of 1000; a margin so that its edge is known too
AVERAGE, TEXT_SHARE = 0.9995, 0.3


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's scheduler class with a zero signal at the end."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip


def signal_levels() -> torch.Tensor:
    """Cumulative alphas [1000] of the schedule."""
    return scheduler().alphas_cumprod.to(device())


def build(refiner: bool, seed: int) -> UNet2DConditionModel:
    """9 million parameters for the base, 2.7 for the refiner; the top level has no attention, as in SDXL."""
    torch.manual_seed(seed)
    widths, context, time_ids = ((64, 96), 128, 5) if refiner else ((64, 128, 160), 224, 6)
    deeper = len(widths) - 1
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * deeper),
        up_block_types=(*["CrossAttnUpBlock2D"] * deeper, "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", transformer_layers_per_block=1, cross_attention_dim=context,
        attention_head_dim=tuple(max(2, w // 32) for w in widths), use_linear_projection=True,
        norm_num_groups=16, addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=128 + 32 * time_ids,
    )  # fmt: skip
    return unet.to(device())


@dataclass(kw_only=True)
class Lessons:
    """What a UNet learns from: latents [n, 2, 4, 16, 16] (mean, deviation), and words for them."""

    world: World
    pool: Pool
    encoders: Encoders
    latents: np.ndarray
    scaling: float

    def words(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoded new captions of the rows, some of them empty: hidden [b, 48, 224] and pooled [b, 128].

        No prompt is zeros, as in SDXL's base; an empty one is encoded: both are learnt.
        """
        draw = rng.random(len(rows))
        captions = [self.pool.caption_again(self.world, int(row), rng) for row in rows]
        captions = ["" if d < ZEROS + EMPTY else c for c, d in zip(captions, draw, strict=True)]
        with autocast():
            hidden, pooled = self.encoders.states(ids_of(self.encoders.tokenizer, captions))
        keep = torch.from_numpy((draw >= ZEROS).astype(np.float32)).to(device())
        return hidden.float() * keep[:, None, None], pooled.float() * keep[:, None]


def lessons(world: World, pool: Pool, encoders: Encoders, folder: Path) -> Lessons:
    """What the stages `text` and `latents` wrote."""
    return Lessons(
        world=world, pool=pool, encoders=encoders, latents=np.load(folder / "latents.npy", mmap_mode="r"),
        scaling=float((folder / "scaling.txt").read_text()),
    )  # fmt: skip


def aesthetic(severity: np.ndarray) -> np.ndarray:
    """The refiner's condition: 6.5 for clean, 1.5 for the worst, around the pipeline's 6.0 and 2.5."""
    return 6.5 - 5 * severity


def batch(source: Lessons, rng: np.random.Generator, refiner: bool) -> dict[str, torch.Tensor]:
    """Scaled latents, noise, timesteps and conditions for one step, all drawn from `rng`."""
    rows = np.sort(rng.integers(0, len(source.pool), BATCH))
    mean, deviation = (source.latents[rows, i].astype(np.float32) for i in (0, 1))
    clean = (mean + deviation * rng.standard_normal(mean.shape, dtype=np.float32)) * source.scaling
    hidden, pooled = source.words(rows, rng)
    sizes = np.tile(np.array([64, 64, 0, 0, 64, 64], np.float32), (BATCH, 1))
    jitter = rng.random(BATCH) < 0.1  # so that other sizes than 64 are harmless
    sizes[:, :2] += np.where(jitter, rng.integers(-24, 65, BATCH), 0)[:, None]
    sizes[:, 2:4] += np.where(jitter[:, None], rng.integers(0, 9, (BATCH, 2)), 0)
    if refiner:
        score = aesthetic(source.pool.severities[rows]) + 0.25 * rng.standard_normal(BATCH)
        sizes = np.concatenate([sizes[:, :4], score[:, None].astype(np.float32)], 1)
        hidden = hidden[..., -128:]  # the second encoder alone
    # one timestep from each 64th of the schedule, so that the loss of a step varies less
    share = (rng.permutation(BATCH) + rng.random(BATCH)) / BATCH
    values = {
        "clean": clean, "noise": rng.standard_normal(clean.shape, dtype=np.float32), "sizes": sizes,
        "times": (share * (REFINER_STEPS if refiner else 1000)).astype(np.int64),
    }  # fmt: skip
    parts = {k: torch.from_numpy(np.ascontiguousarray(v)).to(device()) for k, v in values.items()}
    return parts | {"hidden": hidden, "pooled": pooled}


def loss_of(unet: UNet2DConditionModel, parts: dict[str, torch.Tensor], levels: torch.Tensor) -> torch.Tensor:
    """Mean squared error on v = sqrt(a) noise - sqrt(1 - a) clean (Salimans and Ho 2022)."""
    a = levels[parts["times"]].float()[:, None, None, None]
    noisy = a.sqrt() * parts["clean"] + (1 - a).sqrt() * parts["noise"]
    target = a.sqrt() * parts["noise"] - (1 - a).sqrt() * parts["clean"]
    with autocast():
        drawn = unet(
            noisy, parts["times"], parts["hidden"],
            added_cond_kwargs={"text_embeds": parts["pooled"], "time_ids": parts["sizes"]},
        ).sample  # fmt: skip
    return F.mse_loss(drawn.float(), target)


def parts_of(unet: UNet2DConditionModel, encoders: Encoders, refiner: bool) -> nn.ModuleDict:
    """What learns in a stage: the UNet, and for the base the text encoders too."""
    words = {} if refiner else {"first": encoders.first, "second": encoders.second}
    return nn.ModuleDict({"unet": unet, **words})


def train(source: Lessons, folder: Path, steps: int, refiner: bool = False, rate: float = 1.0e-3) -> None:
    """Train one UNet, or go on from its checkpoint. The exported weights are the moving average."""
    name, seed = ("refiner", 41) if refiner else ("base", 31)
    unet, levels = build(refiner, seed), signal_levels()
    unet.set_attn_processor(AttnProcessor())  # on a CPU its backward pass is faster than the fused one's
    learner = parts_of(unet, source.encoders, refiner).requires_grad_(True)
    groups = [{"params": list(part.parameters()), "share": 1.0 if key == "unet" else TEXT_SHARE}
              for key, part in learner.items()]  # fmt: skip
    average = Average(learner, AVERAGE)
    optimizer = torch.optim.AdamW(groups, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    kept, log, mean = restore(folder / f"{name}.pt"), Log(folder / f"{name}.csv"), 1.0
    first, fresh = take_up(kept, learner, optimizer)
    if kept:
        average.state, average.updates, mean = kept["average"], kept["step"], kept["mean"]
    threads, clock = Threads(), Clock()
    for step in range(first, steps):
        threads.adapt()
        parts = batch(source, np.random.default_rng((seed, step)), refiner)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"] * ramp(step, steps, 300, 0.3, fresh)
        loss = loss_of(unet, parts, levels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        average.update(learner)
        mean = 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            log.write(step + 1, loss=mean)
        if clock.due() or step + 1 == steps:
            save(
                folder / f"{name}.pt", weights=learner.state_dict(), optimizer=optimizer.state_dict(),
                average=average.state, step=step + 1, mean=mean,
            )  # fmt: skip


def averaged(folder: Path, name: str, part: str) -> dict[str, torch.Tensor]:
    """The averaged weights of one part of a stage."""
    state = finished(folder / f"{name}.pt")["average"]
    return {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}


def load(folder: Path, refiner: bool = False) -> UNet2DConditionModel:
    """The averaged weights, frozen."""
    unet = build(refiner, 0)
    unet.load_state_dict(averaged(folder, "refiner" if refiner else "base", "unet"))
    return unet.eval().requires_grad_(False)


def load_encoders(folder: Path) -> Encoders:
    """The text encoders as the base left them (or, before it, as the stage `text` did), frozen."""
    encoders = load_text(folder)
    if (folder / "base.pt").exists():
        encoders.first.load_state_dict(averaged(folder, "base", "first"))
        encoders.second.load_state_dict(averaged(folder, "base", "second"))
    return encoders
