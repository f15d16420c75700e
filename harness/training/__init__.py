"""Training an adapter on a dataset's pictures under one prompt."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.spec.expand import TrainingRun
from harness.spec.trial import LoraAdapter

if TYPE_CHECKING:
    from harness.models.model import Model
    from harness.training.checkpoint import Checkpoint


def train(
    run: TrainingRun,
    model: "Model",
    dataset: Path,
    *,
    resume: "Checkpoint | None",
    save: Callable[["Checkpoint"], None],
    save_at: Callable[[int], bool],
    report: Callable[[int, float], None],
) -> None:
    """Train to the run's last snapshot, from `resume` if given.

    Args:
        run: what to train; its `training.steps` is the last snapshot.
        model: left as it was found, weights and global random state included.
        dataset: the folder that `harness.recipes.build_dataset` wrote.
        resume: a checkpoint of the same run; the result is then bit for bit (on the CPU) that of a run
            never interrupted. Nothing is done if it stands at the last snapshot already.
        save: called with the checkpoint of each snapshot after `resume`, and of each step that `save_at`
            picks, in ascending order. Nothing is passed on whose loss or weights are not finite.
        save_at: which steps besides the snapshots are saved.
        report: called once for each step, in order, with its mean loss; on an accelerator some steps late.

    Raises:
        TrainingError: the loss or the adapter became NaN or infinite, or `resume` is of another run.
        StageError: the dataset is damaged.
        ModelError: the model's prediction type cannot be trained.
    """
    match run.adapter:
        case LoraAdapter():
            from harness.training.adapter import train_adapter

            train_adapter(run, model, dataset, resume=resume, save=save, save_at=save_at, report=report)
