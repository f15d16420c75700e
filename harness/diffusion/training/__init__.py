"""Training adapters on datasets' images, under one prompt or under captions; several in one pack."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model
    from harness.diffusion.training.run_state import Job


def train(
    jobs: "Iterable[Job]",
    model: "Model",
    *,
    at_once: int = 1,
    checkpointing: bool = False,
    compiled: bool = False,
) -> None:
    """Train each job's run to its last checkpoint, `at_once` of them together; the next enters as one ends.

    A run that cannot be trained, or diverges, ends with its reason, and the others go on untouched. Where
    torch.distributed is initialised, every process calls this with the same arguments (`model` on its own
    device): the rows of a step are shared out, the gradients added up, and the first process alone saves and
    reports. The result is that of one process, and packed that of a run alone, up to the rounding of
    differently shaped sums.

    Of a job:
        run: what to train; its `training.steps` is the last checkpoint.
        images: the folder that `harness.recipes` wrote.
        prior: likewise for the class images of `training.prior`; None exactly where that is null.
        latents: files of `latents.write_latents`; views that they hold are not encoded again.
        resume: a checkpoint of the same run, trained in whatever company; alone, the result is then bit for
            bit (on the CPU) that of a run never interrupted.
        save: called with the checkpoint of each checkpoint after `resume`, and of each step that `save_at`
            picks, in ascending order; and with the seconds that the run has taken since the call, of those
            of a pack its share. Nothing is passed on whose loss or weights are not finite.
        save_at: which steps besides the checkpoints are saved.
        report: called once for each step, in order, with its mean loss; on an accelerator some steps late.
        ended: called once, with null or why the run ended early: TrainingError where the loss or the adapter
            became NaN or infinite, memory ran out for it alone, `resume` is of another run, an optimizer is
            not installed, or the images are too few or lack captions; ArtifactError where a dataset is
            damaged; ModelError where the model's prediction type cannot be trained, or it lacks what the
            adapter acts on.

    Args:
        jobs: taken one by one, each when there is room for it. Runs of a pack are low-rank; another kind of
            adapter is trained alone.
        model: left as it was found, weights and global random state included.
        at_once: how many are trained together. Where memory is too small for them, it is halved.
        checkpointing: compute activations again in the backward pass: less memory, more time.
        compiled: run the UNet's transformer blocks through torch.compile.
    """
    from harness.diffusion.training.loop import train_pack

    train_pack(jobs, model, at_once=at_once, checkpointing=checkpointing, compiled=compiled)
