"""One training run inside the loop: optimizer, losses, moving average of its adapter, checkpoints, end."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from harness.config.plan.plan import TrainingRun
from harness.config.schema.adapter import LowRankAdapter
from harness.diffusion.training.batches import Batch, StepPlan
from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.distributed import sum_over_processes
from harness.diffusion.training.noise import Part, Stream, counter_seed
from harness.diffusion.training.optimizer import (
    clip_gradients,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    parameters_of,
    require_same_shapes,
    set_rates,
)
from harness.errors import HarnessError, TrainingError

if TYPE_CHECKING:
    from harness.diffusion.models.model import Member


class MovingAverage:
    """Exponential moving average of the parameters after each step, without a share of where they started.

    The weights of steps 1 … n are dⁿ⁻¹ … d, 1, over their sum (as Adam corrects its moments, Kingma & Ba
    2015, section 3): the average of a short run is not all beginning, and every decay d gives another one.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._average = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step 1, 2, …."""
        newest = (1 - self._decay) / -math.expm1(step * math.log(self._decay))
        difference = torch._foreach_sub([p.detach() for p in self._parameters], self._average)
        torch._foreach_mul_(difference, newest)
        torch._foreach_add_(self._average, difference)

    @torch.no_grad()
    def state_dict(self, member: "Member") -> dict[str, Tensor]:
        """The average under the adapter's own keys, fp32, on the CPU."""
        last = [parameter.detach().clone() for parameter in self._parameters]
        torch._foreach_copy_([p.detach() for p in self._parameters], self._average)
        state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in member.state_dict().items()}
        torch._foreach_copy_([p.detach() for p in self._parameters], last)
        return state

    @torch.no_grad()
    def load_state_dict(self, member: "Member", state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave; the adapter itself is left holding the average."""
        member.load_state_dict(state)
        self._average = [parameter.detach().clone() for parameter in self._parameters]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to train, and who hears of it. See `harness.training.train` for the fields."""

    run: TrainingRun
    images: Path
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
        return self.run.checkpoints[-1]

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
        """The loss on the held-out images. Raises TrainingError where it is not finite."""
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
