"""DreamBooth training of an adapter: the loop.

N. Ruiz et al., "DreamBooth" (2023), on an adapter alone (Hu et al. 2021) and without prior preservation:
all pictures share one prompt. Parameters and optimizer state are fp32 whatever the base's precision.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from harness.errors import TrainingError
from harness.spec.expand import TrainingRun
from harness.training.accelerator import fresh_accelerator
from harness.training.checkpoint import Checkpoint
from harness.training.data import Batches, encode_pictures, read_pictures
from harness.training.loss import mean_squared_error
from harness.training.optimizer import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    require_same_shapes,
)

if TYPE_CHECKING:
    from harness.models.model import Conditioning, Model, Trainable

LOOK_EVERY = 16  # steps between two looks at the loss on an accelerator: each look waits for it


def train_adapter(
    run: TrainingRun,
    model: "Model",
    dataset: Path,
    *,
    resume: Checkpoint | None,
    save: Callable[[Checkpoint], None],
    save_at: Callable[[int], bool],
    report: Callable[[int, float], None],
) -> None:
    """See `harness.training.train`."""
    training, last_step = run.training, run.snapshots[-1]
    done = 0 if resume is None else resume.step
    if done >= last_step:
        return
    alphas_cumprod, prediction_type = model.noise_schedule()
    batches = Batches(
        posterior=encode_pictures(read_pictures(dataset, resolution=model.resolution), model),
        alphas_cumprod=alphas_cumprod,
        prediction_type=prediction_type,
        seed=training.seed,
        rows_per_step=training.batch_size * training.gradient_accumulation,
    )
    conditioning = model.condition(training.prompt)
    accelerating = fresh_accelerator(
        model.device, precision=model.spec.precision, gradient_accumulation=training.gradient_accumulation
    )
    with accelerating as accelerator, model.attach(run.adapter, training.seed) as trainable:
        loop = _Loop(run, trainable, accelerator, device=model.device, report=report)
        if resume is not None:
            loop.restore(resume)
        for step in range(done + 1, last_step + 1):
            loop.step(step, batches, conditioning)
            if step in run.snapshots or save_at(step):
                save(loop.checkpoint(step))


class _Loop:
    """The moving parts of a run: parameters, optimizer, loss history."""

    def __init__(
        self,
        run: TrainingRun,
        trainable: "Trainable",
        accelerator: Accelerator,
        *,
        device: torch.device,
        report: Callable[[int, float], None],
    ) -> None:
        self.run, self.trainable, self.accelerator = run, trainable, accelerator
        self.device, self.report = device, report
        self.parameters = list(trainable.parameters())
        assert self.parameters and all(parameter.dtype == torch.float32 for parameter in self.parameters)
        self.optimizer = make_optimizer(self.parameters, run.training, accelerator)
        self.losses: list[float] = []  # of steps 1, 2, …
        self.unread: list[Tensor] = []  # of the steps after those, still on the device

    def step(self, step: int, batches: Batches, conditioning: "Conditioning") -> None:
        """One optimizer step: `gradient_accumulation` forward and backward passes, clipping, AdamW."""
        size = self.run.training.batch_size
        means: list[Tensor] = []
        for first in range(0, batches.rows_per_step, size):
            batch = batches.batch(step=step, rows=range(first, first + size))
            noisy_BChw, timesteps_B, target_BChw = (
                tensor.to(self.device, non_blocking=True)
                for tensor in (batch.noisy_BChw, batch.timesteps_B, batch.target_BChw)
            )
            with self.accelerator.accumulate():
                with self.accelerator.autocast():
                    prediction_BChw = self.trainable.predict(noisy_BChw, timesteps_B, conditioning)
                loss = mean_squared_error(prediction_BChw.float(), target_BChw).mean()
                self.accelerator.backward(loss)
                means.append(loss.detach())
                if self.accelerator.sync_gradients:
                    self.update(step)
        self.unread.append(torch.stack(means).mean())
        if self.device.type == "cpu" or len(self.unread) == LOOK_EVERY:
            self.read_losses()

    def update(self, step: int) -> None:
        """Clip the gradients' norm over all parameters, then AdamW."""
        self.accelerator.clip_grad_norm_(self.parameters, self.run.training.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.run.training, step)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def read_losses(self) -> None:
        """Fetch the losses still on the device and report them. Raises TrainingError at the first bad one."""
        fetched = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        for loss in fetched:
            self.losses.append(loss)
            if not math.isfinite(loss):
                raise self.diverged(len(self.losses), f"the loss became {loss}")
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
        self.trainable.load_state_dict(checkpoint.adapter)
        load_optimizer_tensors(
            self.optimizer, self.accelerator, checkpoint.optimizer, parameters=self.parameters
        )
        self.losses = list(checkpoint.losses)

    def diverged(self, step: int, what: str) -> TrainingError:
        """The error that says what to try."""
        training = self.run.training
        return TrainingError(
            f"run {self.run.run_id}: {what} at step {step} (learning rate {training.learning_rate:g}); try a "
            "lower training.learning_rate, more training.warmup_steps, a smaller training.max_grad_norm, or "
            "model.precision bf16 or fp32 instead of fp16"
        )
