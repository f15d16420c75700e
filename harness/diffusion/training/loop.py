"""DreamBooth training of adapters, several at once: the loop.

N. Ruiz et al., "DreamBooth" (2023), on adapters alone: low-rank (Hu et al. 2021) or learnt words (Gal et al.
2022). The frozen base does the same work whichever adapter a row belongs to, so the rows of all runs of a
pack go through it together, each with its own adapter, as PLoRA (arXiv 2508.02932) does for language models.
All else is each run's own: optimizer, rate, clipping, loss, random numbers. A run's numbers do not depend on
its neighbours beyond the rounding of differently shaped products.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.diffusion.models.model import Fresh
from harness.diffusion.training.autotune import out_of_memory
from harness.diffusion.training.batches import Batch, StepPlan, plan_steps
from harness.diffusion.training.data import Posteriors
from harness.diffusion.training.distributed import fresh_accelerators, rank_and_size
from harness.diffusion.training.noise import mean_squared_error
from harness.diffusion.training.run_state import Job, Trainee
from harness.errors import HarnessError, TrainingError

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


LOOK_EVERY = 16  # steps between two looks at the loss on an accelerator: each look waits for it

Pass = tuple[int, Batch] | None  # the first row's number, and the rows; null for a run that has none


@dataclass(frozen=True, kw_only=True)
class _Entrant:
    """A run that is to be trained on, and what its steps are made of."""

    job: Job
    plan: StepPlan
    seconds: float = 0.0  # that it has taken so far


def train_pack(
    jobs: Iterable[Job], model: "Model", *, at_once: int, checkpointing: bool, compiled: bool
) -> None:
    """See `harness.training.train`."""
    # One for all runs of a dataset, so that they share what it encodes.
    shared = cache(lambda latents: Posteriors(model, stored=latents))
    entrants = (_entrant(job, model, shared(job.latents)) for job in jobs)
    waiting: Iterator[_Entrant] = (entrant for entrant in entrants if entrant is not None)
    pack: list[_Entrant] = []
    while pack := _filled(pack, waiting, at_once):
        try:
            pack = _Stretch(model, checkpointing=checkpointing, compiled=compiled).run(pack)
        except _TooLarge as error:
            at_once = len(error.pack) // 2
            pack, waiting = error.pack[:at_once], chain(error.pack[at_once:], waiting)
        except HarnessError as error:
            if len(pack) == 1:
                pack[0].job.ended(error)
                pack = []
            else:  # whose fault it is shows when each is alone
                at_once = 1
                pack, waiting = pack[:1], chain(pack[1:], waiting)


def _filled(pack: list[_Entrant], waiting: Iterator[_Entrant], at_once: int) -> list[_Entrant]:
    pack = list(pack)
    while len(pack) < at_once and (entrant := next(waiting, None)) is not None:
        pack.append(entrant)
    return pack


def _entrant(job: Job, model: "Model", posteriors: Posteriors) -> _Entrant | None:
    """Ready to be trained; None if there is nothing left to do, or it cannot be."""
    rank, size = rank_and_size()
    if rank > 0:  # the first process speaks for all
        job = replace(job, save=lambda _checkpoint, _seconds: None, report=lambda _step, _loss: None)
    if job.resume is not None and job.resume.step >= job.run.checkpoints[-1]:
        job.ended(None)
        return None
    try:
        plan = plan_steps(
            job.run,
            model,
            images=job.images,
            prior=job.prior,
            posteriors=posteriors,
            rank=rank,
            size=size,
        )
    except HarnessError as error:
        job.ended(error)
        return None
    return _Entrant(job=job, plan=plan)


def _fresh(job: Job) -> Fresh:
    seed = job.run.training.seed if job.resume is None else None  # else its checkpoint is put back
    return Fresh(adapter=job.run.adapter, seed=seed)


class _TooLarge(Exception):
    """The pack does not fit into the accelerator's memory; its runs stand where they are in `pack`."""

    def __init__(self, pack: list[_Entrant]) -> None:
        super().__init__()
        self.pack = pack


class _Stretch:
    """Training with one set of members, up to the first that ends: then another may take its place."""

    def __init__(self, model: "Model", *, checkpointing: bool, compiled: bool) -> None:
        self.model, self.device = model, model.device
        self.checkpointing, self.compiled = checkpointing, compiled
        self.clock = time.monotonic()

    def run(self, pack: Sequence[_Entrant]) -> list[_Entrant]:
        """Train until one has ended; the others, to be gone on with."""
        attached = self.model.attach(
            [_fresh(entrant.job) for entrant in pack],
            checkpointing=self.checkpointing,
            compiled=self.compiled,
        )
        precision = self.model.config.precision
        with (
            fresh_accelerators(self.device, precision=precision, count=len(pack)) as self.accelerators,
            attached as self.trainable,
        ):
            self.trainees = [
                Trainee(entrant.job, entrant.plan, member, accelerator)
                for entrant, member, accelerator in zip(
                    pack, self.trainable.members, self.accelerators, strict=True
                )
            ]
            for trainee, entrant in zip(self.trainees, pack, strict=True):
                trainee.seconds = entrant.seconds
            ended = self._restored()
            while not ended:
                self._explained_step()
                self._share_time()
                ended = self._looked_after()
            return [
                self._entrant(trainee) for number, trainee in enumerate(self.trainees) if number not in ended
            ]

    def _restored(self) -> set[int]:
        ended: set[int] = set()
        for number, trainee in enumerate(self.trainees):
            if trainee.job.resume is not None:
                with self._ending(number, ended):
                    trainee.restore(trainee.job.resume)
        return ended

    @contextmanager
    def _ending(self, number: int, ended: set[int]) -> Iterator[None]:
        """A run that cannot go on leaves the pack with its reason; the others do not notice."""
        try:
            yield
        except HarnessError as error:
            ended.add(number)
            self.trainees[number].job.ended(error)

    def _share_time(self) -> None:
        """What has passed since the last time, setting up included, is the members' in equal parts."""
        now = time.monotonic()
        for trainee in self.trainees:
            trainee.seconds += (now - self.clock) / len(self.trainees)
        self.clock = now

    def _looked_after(self) -> set[int]:
        """Losses read, checkpoints saved; the numbers of the members that have ended."""
        ended: set[int] = set()
        for number, trainee in enumerate(self.trainees):
            with self._ending(number, ended):
                step, is_checkpoint = trainee.step, trainee.step in trainee.run.checkpoints
                if self.device.type == "cpu" or len(trainee.unread) == LOOK_EVERY:
                    trainee.read_losses()
                if is_checkpoint and trainee.validation is not None:
                    trainee.note_validation(self._validation(number))
                if is_checkpoint or trainee.job.save_at(step):
                    trainee.job.save(trainee.checkpoint(), trainee.seconds)
                if step == trainee.last_step:
                    ended.add(number)
                    trainee.job.ended(None)
        return ended

    def _entrant(self, trainee: Trainee) -> _Entrant:
        resume = trainee.checkpoint() if trainee.step else None
        return _Entrant(job=replace(trainee.job, resume=resume), plan=trainee.plan, seconds=trainee.seconds)

    def _explained_step(self) -> None:
        """One step of all. Where memory runs out, what has been done so far is kept."""
        try:
            self._step()
        except torch.OutOfMemoryError as error:
            if len(self.trainees) == 1:
                told = out_of_memory(self.trainees[0].run, checkpointing=self.checkpointing)
                raise TrainingError(told) from error
            raise _TooLarge([self._entrant(trainee) for trainee in self.trainees]) from None

    def _step(self) -> None:
        """One optimizer step of every member; those with fewer passes wait for the others' last."""
        totals = [torch.zeros((), device=self.device) for _ in self.trainees]
        for passes in zip_longest(*(trainee.batches() for trainee in self.trainees)):
            losses = self._losses(passes)
            parts = []
            for number, (loss_B, one) in enumerate(zip(losses, passes, strict=True)):
                if one is None:
                    continue
                # Every row's share of the step's mean, however the rows are dealt to passes and processes.
                rows_per_step = self.trainees[number].plan.rows_per_step
                loss = (loss_B * self._moved(one[1].weight_B)).sum() / rows_per_step
                totals[number] += loss.detach()
                scaler = self.accelerators[number].scaler  # fp16's, each member's own
                parts.append(loss if scaler is None else scaler.scale(loss))
            together = torch.stack(parts).sum()
            if together.requires_grad:  # else no row has the word that is learnt: all captions were dropped
                together.backward()
        for trainee, total in zip(self.trainees, totals, strict=True):
            trainee.update(total)

    def _losses(self, passes: Sequence[Pass]) -> Sequence[Tensor]:
        """The unweighted loss of each row, on the device: [B] for each member, empty where it has no rows."""
        batches = [one[1] for one in passes if one is not None]
        counts = [0 if one is None else len(one[1].captions) for one in passes]
        seeds = [
            0 if one is None else trainee.dropout_seed(one[0])
            for trainee, one in zip(self.trainees, passes, strict=True)
        ]
        noisy_BChw, timesteps_B, target_BChw, time_ids_B6 = (
            self._moved(torch.cat(tensors))
            for tensors in zip(
                *((b.noisy_BChw, b.timesteps_B, b.target_BChw, b.time_ids_B6) for b in batches), strict=True
            )
        )
        with self.accelerators[0].autocast():
            predicted_BChw = self.trainable.predict(
                noisy_BChw,
                timesteps_B,
                [caption for batch in batches for caption in batch.captions],
                time_ids_B6,
                counts=counts,
                dropout_seeds=seeds,
            )
        return mean_squared_error(predicted_BChw.float(), target_BChw).split(counts)

    def _validation(self, number: int) -> float:
        """A member's loss on its held-out images."""
        alone: list[Pass] = [None] * len(self.trainees)
        losses = []
        with torch.no_grad():  # without gradients there is no dropout either
            for batch in self.trainees[number].plan.validation():
                alone[number] = (0, batch)
                losses.append(self._losses(alone)[number])
        return torch.cat(losses).mean().item()

    def _moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device. From memory that is not pinned, the copy would wait for CUDA's queue."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
