"""The autoencoder: 64 px pictures to 16 x 16 latents of 4 channels.

A quarter of the side where SDXL has an eighth: at this size an eighth (the first edition: 8 x 8 x 8 numbers)
loses eyes, stars and spokes. The UNet's top level has no attention, as SDXL's, which keeps a picture cheap.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Clock, Log, Threads, autocast, device, finished, ramp, restore, save, take_up
from diffusers import AutoencoderKL
from perceptual import Perceptual
from PIL import Image
from pool import Pool, as_batch

CROP, CROPS, WHOLES = 32, 64, 16
CHANNELS, FACTOR = 4, 4
SLACK = 0.06  # noise that makes the decoder forgiving: drawn latents are never quite those of a picture


def build() -> AutoencoderKL:
    """1.6 M parameters, few of them at full resolution; no attention, so crops and wholes are alike to it."""
    vae = AutoencoderKL(
        in_channels=3, out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96), latent_channels=CHANNELS, layers_per_block=1, norm_num_groups=8,
        mid_block_add_attention=False, sample_size=64, force_upcast=False,
    )  # fmt: skip
    return vae.to(device())


def batch(pool: Pool, rng: np.random.Generator) -> torch.Tensor:
    """64 crops of 32 px, or (every other step) 16 whole pictures."""
    if rng.random() < 0.5:
        return as_batch(pool.pictures[np.sort(rng.integers(0, len(pool), WHOLES))]).to(device())
    rows = np.sort(rng.integers(0, len(pool), CROPS))
    corners = rng.integers(0, 64 - CROP + 1, (CROPS, 2))
    crops = [pool.pictures[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(rows, corners, strict=True)]
    return as_batch(np.stack(crops)).to(device())


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbours, along columns and rows."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def picture_loss(drawn: torch.Tensor, pictures: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """L1 on pixels, on edges and at a quarter of the size."""
    pixel = F.l1_loss(drawn, pictures)
    edge = torch.stack([F.l1_loss(a, b) for a, b in zip(edges(drawn), edges(pictures), strict=True)]).sum()
    coarse = F.l1_loss(F.avg_pool2d(drawn, 4), F.avg_pool2d(pictures, 4))
    return pixel + 0.7 * edge + 0.5 * coarse, {"pixel": pixel.item(), "edge": edge.item()}


def loss_of(
    vae: AutoencoderKL, pictures: torch.Tensor, rng: np.random.Generator, perceptual: Perceptual
) -> tuple[torch.Tensor, dict[str, float]]:
    """Picture loss, perceptual distance, a trace of KL, and the same at half of the size.

    The last asks that a latent made smaller is the latent of the picture made smaller (Kouzelis et al. 2025,
    "EQ-VAE"): such latents are easier to learn for the UNet.
    """
    with autocast():
        posterior = vae.encode(pictures).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), dtype=np.float32)).to(device())
        latents = mean + (deviation + SLACK * float(rng.random())) * noise
        drawn = vae.decode(latents).sample
    loss, parts = picture_loss(drawn.float(), pictures)
    seen = perceptual(drawn.float(), pictures)
    kl = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.log()).mean()
    loss = loss + 0.1 * seen + 2e-4 * kl
    if pictures.shape[-1] > CROP and rng.random() < 0.5:
        with autocast():
            small = vae.decode(F.avg_pool2d(latents, 2)).sample
        loss = loss + 0.25 * picture_loss(small.float(), F.avg_pool2d(pictures, 2))[0]
    return loss, parts | {"perceptual": seen.item(), "kl": kl.item()}


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: np.ndarray, chunk: int = 100) -> np.ndarray:
    """uint8 pictures as the autoencoder gives them back."""
    rows = []
    for start in range(0, len(pictures), chunk):
        with autocast():
            drawn = vae.decode(
                vae.encode(as_batch(pictures[start : start + chunk]).to(device())).latent_dist.mean
            )
        drawn = ((drawn.sample.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        rows.append(drawn.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(rows)


def psnr(pictures: np.ndarray, others: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    error = (pictures.astype(np.float64) - others.astype(np.float64)) ** 2
    return float((10 * np.log10(255**2 / np.maximum(error.mean((1, 2, 3)), 1e-3))).mean())


def train(
    pool: Pool, check: Pool, cache: Path, folder: Path, steps: int, rate: float = 1.5e-3, seed: int = 11
) -> None:
    """Train, or go on from the checkpoint; `check` holds pictures that are not learnt from."""
    torch.manual_seed(seed)
    vae, perceptual = build(), Perceptual(cache)
    optimizer = torch.optim.AdamW(vae.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3)
    first, fresh = take_up(restore(folder / "vae.pt"), vae, optimizer)
    log, threads, clock = Log(folder / "vae.csv"), Threads(), Clock()
    for step in range(first, steps):
        threads.adapt()
        rng = np.random.default_rng((seed, step))
        optimizer.param_groups[0]["lr"] = rate * ramp(step, steps, 100, 0.5, fresh)
        loss, parts = loss_of(vae, batch(pool, rng), rng, perceptual)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            log.write(step + 1, loss=loss.item(), **parts)
        last = step + 1 == steps
        if clock.due() or last:
            save(folder / "vae.pt", weights=vae.state_dict(), optimizer=optimizer.state_dict(), step=step + 1)
            report(vae, check, folder, step + 1)


def report(vae: AutoencoderKL, check: Pool, folder: Path, step: int, name: str = "vae_check") -> None:
    """PSNR of held-out clean and damaged pictures, and a sheet: picture above, as given back below."""
    given = reconstruct(vae, check.pictures)
    clean = check.severities == 0
    Log(folder / f"{name}.csv").write(
        step,
        psnr_clean=psnr(check.pictures[clean], given[clean]),
        psnr_bad=psnr(check.pictures[~clean], given[~clean]),
    )
    rows = []
    for chosen in (np.flatnonzero(clean)[:24], np.flatnonzero(~clean)[:12]):
        for start in range(0, len(chosen), 12):
            some = chosen[start : start + 12]
            rows += [np.concatenate(list(source[some]), 1) for source in (check.pictures, given)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(folder / f"{name}.png")


def decoder_of(vae: AutoencoderKL) -> torch.nn.ModuleList:
    """What goes on learning after the latents are fixed."""
    return torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])


def train_decoder(
    pool: Pool, check: Pool, cache: Path, folder: Path, steps: int, rate: float = 8e-4, seed: int = 12
) -> None:
    """Go on with the decoder alone, on cached latents: pictures get sharper and the UNets need not know."""
    vae, latents, perceptual = load(folder), np.load(folder / "latents.npy", mmap_mode="r"), Perceptual(cache)
    layers = decoder_of(vae).requires_grad_(True)
    optimizer = torch.optim.AdamW(layers.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3)
    first, fresh = take_up(restore(folder / "decoder.pt"), layers, optimizer)
    log = Log(folder / "decoder.csv")
    threads, clock = Threads(), Clock()
    for step in range(first, steps):
        threads.adapt()
        rng = np.random.default_rng((seed, step))
        rows = np.sort(rng.integers(0, len(pool), WHOLES))
        mean, deviation = (torch.from_numpy(latents[rows, i].astype(np.float32)).to(device()) for i in (0, 1))
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), dtype=np.float32)).to(device())
        optimizer.param_groups[0]["lr"] = rate * ramp(step, steps, 50, 0.7, fresh)
        with autocast():
            drawn = vae.decode(mean + (deviation + SLACK * float(rng.random())) * noise).sample.float()
        pictures = as_batch(pool.pictures[rows]).to(device())
        loss, parts = picture_loss(drawn, pictures)
        seen = perceptual(drawn, pictures)
        optimizer.zero_grad()
        (loss + 0.1 * seen).backward()
        torch.nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            log.write(step + 1, loss=loss.item(), perceptual=seen.item(), **parts)
        if clock.due() or step + 1 == steps:
            state = optimizer.state_dict()
            save(folder / "decoder.pt", weights=layers.state_dict(), optimizer=state, step=step + 1)
            report(vae, check, folder, step + 1, "decoder_check")


def load(folder: Path) -> AutoencoderKL:
    """The trained autoencoder, frozen, with the longer-trained decoder where there is one."""
    vae = build()
    vae.load_state_dict(finished(folder / "vae.pt")["weights"])
    better = restore(folder / "decoder.pt")
    if better:
        decoder_of(vae).load_state_dict(better["weights"])
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, pool: Pool, folder: Path) -> float:
    """Write means and standard deviations [n, 2, 4, 16, 16] as float16; returns the scaling factor 1/std."""
    rows, threads = [], Threads()
    for start in range(0, len(pool), 100):
        threads.adapt()
        with autocast():
            posterior = vae.encode(as_batch(pool.pictures[start : start + 100]).to(device())).latent_dist
        rows.append(torch.stack([posterior.mean, posterior.std], 1).float().cpu().numpy().astype(np.float16))
    latents = np.concatenate(rows)
    with (folder / "latents.tmp").open("wb") as file:
        np.save(file, latents)
    (folder / "latents.tmp").replace(folder / "latents.npy")
    values = latents[:8000].astype(np.float32)
    return float(1 / np.sqrt(values[:, 0].var() + (values[:, 1] ** 2).mean()))


@torch.no_grad()
def soften(vae: AutoencoderKL, folder: Path, size: int) -> None:
    """Write softened.npy: the first `size` pictures of the pool as the autoencoder gives them back."""
    latents, pictures, threads = np.load(folder / "latents.npy", mmap_mode="r"), [], Threads()
    for start in range(0, size, 100):
        threads.adapt()
        mean = torch.from_numpy(latents[start : start + 100, 0].astype(np.float32)).to(device())
        with autocast():
            drawn = vae.decode(mean).sample
        drawn = ((drawn.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        pictures.append(drawn.permute(0, 2, 3, 1).cpu().numpy())
    np.save(folder / "softened.npy", np.concatenate(pictures))
