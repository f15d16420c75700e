"""Small training runs and how to compare them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.config.plan.plan import Dataset, TrainingRun
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.base import fingerprint
from harness.config.schema.recipe import FolderRecipe
from harness.config.schema.training import TrainingConfig
from harness.diffusion.datasets.dataset import Sample, write_dataset
from harness.diffusion.models.model import Model
from harness.diffusion.training.checkpoint import Checkpoint
from harness.errors import HarnessError

WORDS = ("fox", "cat", "moon", "tree", "car")


def write_images(
    folder: Path,
    *,
    seed: int,
    count: int = 5,
    size: tuple[int, int] = (64, 64),
    original_size: tuple[int, int] | None = None,
    repeats: Sequence[int] | None = None,
) -> Path:
    """A dataset of coarse random colours, which a tiny model can learn, each with a caption of its own."""
    rng = np.random.default_rng(seed)
    samples = [
        Sample(
            image=Image.fromarray(rng.integers(0, 256, (2, 4, 3), dtype=np.uint8)).resize(size),
            caption=WORDS[place % len(WORDS)],
            original_size=original_size,
            repeats=1 if repeats is None else repeats[place],
        )
        for place in range(count)
    ]
    write_dataset(samples, folder, resolution=64, report=lambda _: None)
    return folder


def make_run(
    model: Model, *, checkpoints: Sequence[int] = (3,), rank: int = 4, **training: Any
) -> TrainingRun:
    """A run on images somebody has. Its id follows what was asked for, as the plan's do."""
    adapter = LowRankAdapter(rank=rank) if "adapter" not in training else training.pop("adapter")
    config = TrainingConfig(**{"learning_rate": 1e-3, "batch_size": 2, **training, "steps": checkpoints[-1]})
    shared = set() if config.schedule.depends_on_length else {"steps"}
    dataset = Dataset(dataset_id="0" * 16, model=model.config, recipe=FolderRecipe(path=Path("images")))
    return TrainingRun(
        run_id=fingerprint(
            "run",
            adapter=adapter,
            training={n: getattr(config, n) for n in TrainingConfig.model_fields if n not in shared},
        ),
        dataset=dataset,
        adapter=adapter,
        training=config,
        checkpoints=tuple(checkpoints),
        prior=None if config.prior is None else dataset,
    )


@dataclass
class Outcome:
    """What a training run handed out, in order."""

    saved: dict[int, Checkpoint] = field(default_factory=dict)
    reported: list[tuple[int, float]] = field(default_factory=list)


Trainer = Callable[..., Outcome]


def raise_it(error: HarnessError | None) -> None:
    """For a run alone: what ended it early is the call's error."""
    if error is not None:
        raise error


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Names, dtypes and bytes."""
    parts = hashlib.sha256()
    for name in sorted(tensors):
        parts.update(f"{name}{tensors[name].dtype}{tuple(tensors[name].shape)}".encode())
        parts.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return parts.hexdigest()


def apart(left: Checkpoint, right: Checkpoint) -> float:
    """The largest relative difference: of the adapter's norm, of the average's, and of a loss."""
    assert (left.run_id, left.step, left.ema.keys()) == (right.run_id, right.step, right.ema.keys())
    found = [abs(one - other) / other for one, other in zip(left.losses, right.losses, strict=True)]
    for ours, theirs in ((left.adapter, right.adapter), (left.ema, right.ema)):
        if theirs:
            one, other = (torch.cat([t[name].flatten() for name in theirs]) for t in (ours, theirs))
            found.append(((one - other).norm() / other.norm()).item())
    return max(found)


def same(left: Checkpoint, right: Checkpoint) -> bool:
    """Equal bit for bit, optimizer, average and losses included."""
    return (
        (left.run_id, left.step, left.losses) == (right.run_id, right.step, right.losses)
        and digest(left.adapter) == digest(right.adapter)
        and digest(left.optimizer) == digest(right.optimizer)
        and digest(left.ema) == digest(right.ema)
    )
