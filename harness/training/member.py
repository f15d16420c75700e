"""One training run among those that are trained together: optimizer, losses, snapshots, and how it ends."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from harness.errors import HarnessError, TrainingError
from harness.spec.adapter import LowRankAdapter
from harness.spec.expand import TrainingRun
from harness.training.average import MovingAverage
from harness.training.batches import Batch
from harness.training.checkpoint import Checkpoint
from harness.training.optimizer import clip_gradients, make_optimizer, parameters_of, set_rates
from harness.training.optimizer_state import load_optimizer_tensors, optimizer_tensors, require_same_shapes
from harness.training.parallel import sum_over_processes
from harness.training.plan import StepPlan
from harness.training.streams import Part, Stream, counter_seed

if TYPE_CHECKING:
    from harness.models.model import Member


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to train, and who hears of it. See `harness.training.train` for the fields."""

    run: TrainingRun
    pictures: Path
    prior: Path | None
    latents: tuple[Path, ...]
    resume: Checkpoint | None
    save: Callable[[Checkpoint, float], None]
    save_at: Callable[[int], bool]
    report: Callable[[int, float], None]
    ended: Callable[[HarnessError | None], None]


class Trainee:
    """The moving parts of one run: parameters, optimizer, average, loss histories."""

    def __init__(self, job: Job, plan: StepPlan, member: "Member", accelerator: Accelerator) -> None:
        self.job, self.run, self.plan, self.member = job, job.run, plan, member
        self.accelerator = accelerator
        training = job.run.training
        self.groups = member.groups()
        self.parameters = parameters_of(self.groups)
        assert self.parameters and all(parameter.dtype == torch.float32 for parameter in self.parameters)
        self.optimizer = make_optimizer(self.groups, training, accelerator)
        self.average = None if training.ema is None else MovingAverage(self.parameters, training.ema)
        self.step = 0  # done so far
        self.seconds = 0.0  # since the job began, its share of the pack's
        self.losses: list[float] = []  # of steps 1, 2, …
        self.unread: list[Tensor] = []  # of the steps after those, still on the device
        self.validation: dict[int, float] | None = {} if training.holdout else None

    @property
    def last_step(self) -> int:
        """Where the run ends."""
        return self.run.snapshots[-1]

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """The number of the first row and the rows of each forward pass of the next step."""
        return self.plan.batches(self.step + 1)

    def dropout_seed(self, first_row: int) -> int:
        """What dropout is drawn from in the pass with this first row."""
        adapter, seed = self.run.adapter, self.run.training.seed
        if not (isinstance(adapter, LowRankAdapter) and adapter.dropout):
            return 0
        return counter_seed(seed, Part.PICTURES, Stream.DROPOUT, self.step + 1, first_row)

    def update(self, loss: Tensor) -> None:
        """End the step: clip the norm of all gradients, then the optimizer, then the average."""
        self.step += 1
        self.unread.append(sum_over_processes(self.parameters, loss))
        self.accelerator.unscale_gradients(self.optimizer)
        clip_gradients(self.parameters, self.run.training.max_grad_norm)
        set_rates(self.optimizer, self.groups, self.run.training, step=self.step)
        self.optimizer.step()
        self.member.clear_gradients()
        if self.average is not None:
            self.average.update(self.step)

    def note_validation(self, loss: float) -> None:
        """The loss on the held-out pictures. Raises TrainingError where it is not finite."""
        if not math.isfinite(loss):
            raise self.diverged(self.step, f"the held-out loss became {loss}")
        assert self.validation is not None
        self.validation[self.step] = loss

    def read_losses(self) -> None:
        """Fetch the losses still on the device and report them. Raises TrainingError at the first bad one."""
        fetched = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        for loss in fetched:
            self.losses.append(loss)
            if not math.isfinite(loss):
                raise self.diverged(len(self.losses), f"the loss became {loss}")
            self.job.report(len(self.losses), loss)

    def checkpoint(self) -> Checkpoint:
        """All that going on needs. Raises TrainingError where a loss or a weight is not finite."""
        self.read_losses()
        adapter = self.member.state_dict()
        if not all(bool(tensor.isfinite().all()) for tensor in adapter.values()):
            raise self.diverged(self.step, "the adapter's weights are no longer finite")
        return Checkpoint(
            run_id=self.run.run_id,
            step=self.step,
            adapter=adapter,
            optimizer=optimizer_tensors(self.optimizer, self.accelerator, self.member),
            losses=list(self.losses),
            ema={} if self.average is None else self.average.state_dict(self.member),
            validation=None if self.validation is None else dict(self.validation),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint back. Raises TrainingError where it is not of this run."""
        if checkpoint.run_id != self.run.run_id:
            raise TrainingError(
                f"the checkpoint is of run {checkpoint.run_id}, not of {self.run.run_id}; "
                "delete the checkpoint to train again"
            )
        expected = {name: tuple(tensor.shape) for name, tensor in self.member.state_dict().items()}
        require_same_shapes("adapter", checkpoint.adapter, expected)
        require_same_shapes("average", checkpoint.ema, {} if self.average is None else expected)
        if self.average is not None:
            self.average.load_state_dict(self.member, checkpoint.ema)
        self.member.load_state_dict(checkpoint.adapter)
        load_optimizer_tensors(self.optimizer, self.accelerator, checkpoint.optimizer, self.member)
        self.step, self.losses = checkpoint.step, list(checkpoint.losses)
        if self.validation is not None:
            self.validation.update(checkpoint.validation or {})

    def diverged(self, step: int, what: str) -> TrainingError:
        """The error that says what to try."""
        training = self.run.training
        return TrainingError(
            f"run {self.run.run_id}: {what} at step {step} (learning rate {training.learning_rate:g}); try a "
            "lower training.learning_rate, more training.schedule.warmup_steps, a smaller "
            "training.max_grad_norm, or model.precision bf16 or fp32 instead of fp16"
        )
