from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.diffusion.models.model import Model
from harness.diffusion.training import train
from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.run_state import Job
from tests.diffusion.training.runs import Outcome, Trainer, make_run, raise_it, write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), seed=0)


@pytest.fixture
def run_training(tiny_model: Model, images: Path) -> Trainer:
    """Train a tiny adapter and keep all that comes out of it."""

    def run(
        *,
        model: Model = tiny_model,
        dataset: Path = images,
        class_images: Path | None = None,
        latents: tuple[Path, ...] = (),
        resume: Checkpoint | None = None,
        save_at: Callable[[int], bool] = lambda step: False,
        outcome: Outcome | None = None,
        checkpointing: bool = False,
        **asked: Any,
    ) -> Outcome:
        outcome = Outcome() if outcome is None else outcome

        def save(checkpoint: Checkpoint, seconds: float) -> None:
            assert checkpoint.step not in outcome.saved
            outcome.saved[checkpoint.step] = checkpoint

        job = Job(
            run=make_run(model, **asked),
            images=dataset,
            prior=class_images,
            latents=latents,
            resume=resume,
            save=save,
            save_at=save_at,
            report=lambda step, loss: outcome.reported.append((step, loss)),
            ended=raise_it,
        )
        train([job], model, checkpointing=checkpointing)
        return outcome

    return run
