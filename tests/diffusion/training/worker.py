"""One process of a data-parallel run: `python -m tests.training.worker RANK SIZE FOLDER`."""

import sys
from pathlib import Path
from typing import Any

import torch

from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.model import EmojiModel
from harness.diffusion.models import load_model
from harness.diffusion.training import train
from harness.diffusion.training.run_state import Job
from tests.diffusion.training.runs import make_run, raise_it

PRIOR = {"prompt": "a fox", "recipe": {"kind": "folder", "path": "class"}}
RUNS: dict[str, dict[str, Any]] = {
    # A row is a pass: whoever computes it, the numbers are the same, and two of them add up alike.
    "rows": {
        "adapter": LowRankAdapter(rank=2, dropout=0.2),
        "batch_size": 1,
        "gradient_accumulation": 2,
        "caption_dropout": 0.3,
        "ema": 0.9,
        "holdout": 1,
    },
    # Passes of other shapes, and shares of unequal size: equal up to rounding.
    "passes": {"batch_size": 3, "prior": PRIOR, "max_grad_norm": 0.1, "min_snr_gamma": 5.0},
}


def train_all(folder: Path, name: str) -> None:
    """Train every run of RUNS; whoever is told to save writes to `folder/name/run`, and what was reported."""
    torch.set_num_threads(1)
    model = load_model(EmojiModel(), device="cpu")
    for key, settings in RUNS.items():
        reported: list[str] = []
        job = Job(
            run=make_run(model, checkpoints=(1, 2), **settings),
            images=folder / "images",
            prior=folder / "class" if "prior" in settings else None,
            latents=(),
            resume=None,
            save=lambda saved, seconds, key=key: saved.write(folder / name / key / str(saved.step)),  # type: ignore[misc]
            save_at=lambda step: False,
            report=lambda step, loss, reported=reported: reported.append(f"{step}\n"),  # type: ignore[misc]
            ended=raise_it,
        )
        train([job], model)
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{key}.reported").write_text("".join(reported))


if __name__ == "__main__":
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    if size > 1:
        meeting_point = f"file://{folder / 'meeting_point'}"
        torch.distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=size)
    train_all(folder, f"{size}-{rank}")
