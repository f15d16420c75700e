"""Training an adapter on a dataset's pictures, under one prompt or under their captions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.spec.expand import TrainingRun

if TYPE_CHECKING:
    from harness.models.model import Model
    from harness.training.checkpoint import Checkpoint


def train(
    run: TrainingRun,
    model: "Model",
    *,
    pictures: Path,
    prior: Path | None,
    latents: Sequence[Path] = (),
    resume: "Checkpoint | None",
    save: Callable[["Checkpoint"], None],
    save_at: Callable[[int], bool],
    report: Callable[[int, float], None],
    checkpointing: bool = False,
    compiled: bool = False,
) -> None:
    """Train to the run's last snapshot, from `resume` if given.

    Where torch.distributed is initialised, every process calls this with the same arguments (`model` on its
    own device): the rows of a step are shared out, the gradients added up, and the first process alone saves
    and reports. The result is that of one process, up to the rounding of differently shaped sums.

    Args:
        run: what to train; its `training.steps` is the last snapshot.
        model: left as it was found, weights and global random state included.
        pictures: the folder that `harness.recipes.build_dataset` wrote.
        prior: likewise for the class pictures of `training.prior`; None exactly where that is null.
        latents: files of `latents.write_latents`; views that they hold are not encoded again.
        resume: a checkpoint of the same run; the result is then bit for bit (on the CPU) that of a run
            never interrupted. Nothing is done if it stands at the last snapshot already.
        save: called with the checkpoint of each snapshot after `resume`, and of each step that `save_at`
            picks, in ascending order. Nothing is passed on whose loss or weights are not finite.
        save_at: which steps besides the snapshots are saved.
        report: called once for each step, in order, with its mean loss; on an accelerator some steps late.
        checkpointing: compute activations again in the backward pass: less memory, more time.
        compiled: run the UNet through torch.compile.

    Raises:
        TrainingError: the loss or the adapter became NaN or infinite, memory ran out, `resume` is of another
            run, an optimizer is not installed, or the pictures are too few or lack captions.
        StageError: a dataset is damaged.
        ModelError: the model's prediction type cannot be trained, or it lacks what the adapter acts on.
    """
    from harness.training.adapter import train_adapter

    train_adapter(
        run,
        model,
        pictures=pictures,
        prior=prior,
        latents=latents,
        resume=resume,
        save=save,
        save_at=save_at,
        report=report,
        checkpointing=checkpointing,
        compiled=compiled,
    )
