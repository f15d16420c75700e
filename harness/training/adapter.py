"""DreamBooth training of an adapter: the loop.

N. Ruiz et al., "DreamBooth" (2023), on an adapter alone: low-rank (Hu et al. 2021) or learnt words (Gal et
al. 2022). Parameters and optimizer state are fp32 whatever the base's precision.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from harness.errors import TrainingError
from harness.spec.adapter import LowRankAdapter
from harness.spec.expand import TrainingRun
from harness.training.accelerator import fresh_accelerator
from harness.training.average import MovingAverage
from harness.training.batches import Batch
from harness.training.checkpoint import Checkpoint
from harness.training.loss import mean_squared_error
from harness.training.memory import explaining_memory
from harness.training.optimizer import make_optimizer, parameters_of, set_rates
from harness.training.optimizer_state import load_optimizer_tensors, optimizer_tensors, require_same_shapes
from harness.training.parallel import rank_and_size, sum_over_processes
from harness.training.plan import StepPlan, plan_steps
from harness.training.streams import Part, Stream, counter_seed

if TYPE_CHECKING:
    from harness.models.model import Model, Trainable

LOOK_EVERY = 16  # steps between two looks at the loss on an accelerator: each look waits for it


def train_adapter(
    run: TrainingRun,
    model: "Model",
    *,
    pictures: Path,
    prior: Path | None,
    latents: Sequence[Path],
    resume: Checkpoint | None,
    save: Callable[[Checkpoint], None],
    save_at: Callable[[int], bool],
    report: Callable[[int, float], None],
    checkpointing: bool,
    compiled: bool,
) -> None:
    """See `harness.training.train`."""
    last_step, done = run.snapshots[-1], 0 if resume is None else resume.step
    if done >= last_step:
        return
    rank, size = rank_and_size()
    plan = plan_steps(run, model, pictures=pictures, prior=prior, latents=latents, rank=rank, size=size)
    attached = model.attach(run.adapter, run.training.seed, checkpointing=checkpointing, compiled=compiled)
    with (
        explaining_memory(run, checkpointing=checkpointing),
        fresh_accelerator(model.device, precision=model.spec.precision) as accelerator,
        attached as trainable,
    ):
        loop = _Loop(run, trainable, accelerator, device=model.device, report=report if rank == 0 else None)
        if resume is not None:
            loop.restore(resume)
        for step in range(done + 1, last_step + 1):
            loop.step(step, plan)
            if step in run.snapshots:
                loop.validate(step, plan)
            if step in run.snapshots or save_at(step):
                checkpoint = loop.checkpoint(step)
                if rank == 0:
                    save(checkpoint)


class _Loop:
    """The moving parts of a run: parameters, optimizer, average, loss histories."""

    def __init__(
        self,
        run: TrainingRun,
        trainable: "Trainable",
        accelerator: Accelerator,
        *,
        device: torch.device,
        report: Callable[[int, float], None] | None,
    ) -> None:
        training = run.training
        self.run, self.trainable, self.accelerator = run, trainable, accelerator
        self.device, self.report = device, report
        self.groups = trainable.groups()
        self.parameters = parameters_of(self.groups)
        assert self.parameters and all(parameter.dtype == torch.float32 for parameter in self.parameters)
        self.optimizer = make_optimizer(self.groups, training, accelerator)
        self.average = None if training.ema is None else MovingAverage(self.parameters, training.ema)
        self.losses: list[float] = []  # of steps 1, 2, …
        self.unread: list[Tensor] = []  # of the steps after those, still on the device
        self.validation: dict[int, float] | None = {} if training.holdout else None

    def step(self, step: int, plan: StepPlan) -> None:
        """One optimizer step: this process's forward and backward passes, clipping, the optimizer."""
        total = torch.zeros((), device=self.device)
        for first_row, batch in plan.batches(step):
            with self.dropout_of(step, first_row):
                loss_B = self.row_losses(batch)
            # Every row's share of the step's mean, however the rows are dealt to passes and processes.
            loss = (loss_B * self.moved(batch.weight_B)).sum() / plan.rows_per_step
            if not loss.requires_grad:  # no row has the word that is learnt: all captions were dropped
                loss = loss + 0 * torch.stack([parameter.sum() for parameter in self.parameters]).sum()
            self.accelerator.backward(loss)
            total += loss.detach()
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.unread.append(sum_over_processes(self.parameters, total))
        self.update(step)
        if self.device.type == "cpu" or len(self.unread) == LOOK_EVERY:
            self.read_losses()

    def row_losses(self, batch: Batch) -> Tensor:
        """The unweighted loss of each row, shape [B], on the device."""
        noisy_BChw, timesteps_B, target_BChw, time_ids_B6 = map(
            self.moved, (batch.noisy_BChw, batch.timesteps_B, batch.target_BChw, batch.time_ids_B6)
        )
        with self.accelerator.autocast():
            predicted_BChw = self.trainable.predict(noisy_BChw, timesteps_B, batch.captions, time_ids_B6)
        return mean_squared_error(predicted_BChw.float(), target_BChw)

    def moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device. From memory that is not pinned, the copy would wait for CUDA's queue."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    @contextmanager
    def dropout_of(self, step: int, first_row: int) -> Iterator[None]:
        """Dropout draws from the global generators: seed them for this pass, then put them back."""
        adapter, seed = self.run.adapter, self.run.training.seed
        if not (isinstance(adapter, LowRankAdapter) and adapter.dropout):
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(counter_seed(seed, Part.PICTURES, Stream.DROPOUT, step, first_row))
            yield

    def update(self, step: int) -> None:
        """Clip the gradients' norm over all parameters, then the optimizer, then the average."""
        self.accelerator.clip_grad_norm_(self.parameters, self.run.training.max_grad_norm)
        set_rates(self.optimizer, self.groups, self.run.training, step=step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step)

    def validate(self, step: int, plan: StepPlan) -> None:
        """Note the loss on the held-out pictures. Raises TrainingError where it is not finite."""
        if self.validation is None:
            return
        with torch.no_grad():  # without gradients there is no dropout either
            loss = torch.cat([self.row_losses(batch) for batch in plan.validation()]).mean().item()
        if not math.isfinite(loss):
            raise self.diverged(step, f"the held-out loss became {loss}")
        self.validation[step] = loss

    def read_losses(self) -> None:
        """Fetch the losses still on the device and report them. Raises TrainingError at the first bad one."""
        fetched = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        for loss in fetched:
            self.losses.append(loss)
            if not math.isfinite(loss):
                raise self.diverged(len(self.losses), f"the loss became {loss}")
            if self.report is not None:
                self.report(len(self.losses), loss)

    def checkpoint(self, step: int) -> Checkpoint:
        """All that going on needs. Raises TrainingError where a loss or a weight is not finite."""
        self.read_losses()
        adapter = {
            name: tensor.detach().to("cpu", copy=True) for name, tensor in self.trainable.state_dict().items()
        }
        if not all(bool(tensor.isfinite().all()) for tensor in adapter.values()):
            raise self.diverged(step, "the adapter's weights are no longer finite")
        return Checkpoint(
            run_id=self.run.run_id,
            step=step,
            adapter=adapter,
            optimizer=optimizer_tensors(self.optimizer, self.accelerator),
            losses=list(self.losses),
            ema={} if self.average is None else self.average.state_dict(self.trainable),
            validation=None if self.validation is None else dict(self.validation),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint back. Raises TrainingError where it is not of this run."""
        if checkpoint.run_id != self.run.run_id:
            raise TrainingError(
                f"the checkpoint is of run {checkpoint.run_id}, not of {self.run.run_id}; "
                "delete the checkpoint to train again"
            )
        expected = {name: tuple(tensor.shape) for name, tensor in self.trainable.state_dict().items()}
        require_same_shapes("adapter", checkpoint.adapter, expected)
        require_same_shapes("average", checkpoint.ema, {} if self.average is None else expected)
        if self.average is not None:
            self.average.load_state_dict(self.trainable, checkpoint.ema)
        self.trainable.load_state_dict(checkpoint.adapter)
        load_optimizer_tensors(
            self.optimizer, self.accelerator, checkpoint.optimizer, parameters=self.parameters
        )
        self.losses = list(checkpoint.losses)
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
