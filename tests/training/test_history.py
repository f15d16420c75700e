"""Runs that changed on the way, on a tiny SDXL."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import TrainingError
from harness.models.model import Fresh, Model
from harness.spec.adapter import LowRankAdapter
from harness.training import train
from harness.training.checkpoint import Checkpoint
from harness.training.loss import mean_squared_error
from harness.training.member import Job
from harness.training.plan import plan_steps
from harness.training.views import Posteriors
from tests.training.runs import Outcome, Trainer, digest, make_run, raise_it, same

EVERYTHING: dict[str, Any] = {
    "adapter": LowRankAdapter(rank=2, dropout=0.3),
    "caption_dropout": 0.3,
    "noise_offset": 0.1,
    "min_snr_gamma": 5.0,
    "ema": 0.9,
    "holdout": 1,
    "schedule": {"warmup_steps": 4},
}


def named(checkpoint: Checkpoint, run_id: str) -> Checkpoint:
    return replace(checkpoint, run_id=run_id)


def test_a_phase_with_the_same_values_changes_nothing(run_training: Trainer, tiny_model: Model) -> None:
    plain = run_training(snapshots=(2, 5), **EVERYTHING)
    asked: dict[str, Any] = {"snapshots": (5,), "history": ({"until": 2},), **EVERYTHING}
    run = make_run(tiny_model, **asked)
    assert run.run_id != run.parent == plain.saved[2].run_id
    changed = run_training(resume=plain.saved[2], **asked)
    assert same(changed.saved[5], named(plain.saved[5], run.run_id))
    assert changed.saved[5].validation == plain.saved[5].validation  # the parent's own look included
    assert changed.reported == plain.reported[2:]


def by_hand(model: Model, pictures: Path, rates: list[float]) -> dict[str, torch.Tensor]:
    """DreamBooth training with another rate at each step, and no harness around it."""
    run = make_run(model, snapshots=(len(rates),), max_grad_norm=1e9)
    plan = plan_steps(run, model, pictures=pictures, prior=None, posteriors=Posteriors(model), rank=0, size=1)
    with model.attach([Fresh(adapter=run.adapter, seed=run.training.seed)]) as trainable:
        (member,) = trainable.members
        parameters = [parameter for group in member.groups() for parameter in group.parameters]
        optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, fused=True)
        for step, rate in enumerate(rates, start=1):
            optimizer.param_groups[0]["lr"] = rate
            ((_, batch),) = plan.batches(step)
            predicted = trainable.predict(
                batch.noisy_BChw, batch.timesteps_B, batch.captions, batch.time_ids_B6
            )
            (mean_squared_error(predicted, batch.target_BChw) * batch.weight_B).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        return member.state_dict()


def test_a_changed_rate_equals_a_loop_that_changes_it(
    run_training: Trainer, tiny_model: Model, pictures: Path
) -> None:
    first = run_training(snapshots=(2,), learning_rate=1e-2, max_grad_norm=1e9)
    changed = run_training(
        snapshots=(5,),
        history=({"until": 2, "learning_rate": 1e-2},),
        learning_rate=3e-4,
        max_grad_norm=1e9,
        resume=first.saved[2],
    )
    expected = by_hand(tiny_model, pictures, [1e-2, 1e-2, 3e-4, 3e-4, 3e-4])
    assert digest(changed.saved[5].adapter) == digest(expected)
    assert digest(expected) != digest(by_hand(tiny_model, pictures, [3e-4] * 5))


def test_it_resumes_bit_for_bit(run_training: Trainer, tmp_path: Path) -> None:
    first = run_training(**{**EVERYTHING, "noise_offset": 0.0}, snapshots=(2,), learning_rate=1e-2)
    asked: dict[str, Any] = {
        **EVERYTHING,
        "snapshots": (6,),
        "history": ({"until": 2, "learning_rate": 1e-2, "noise_offset": 0.0},),
    }
    whole = run_training(resume=first.saved[2], save_at=lambda step: step == 4, **asked)
    whole.saved[4].write(tmp_path)
    resumed = run_training(resume=Checkpoint.read(tmp_path), **asked)
    assert same(resumed.saved[6], whole.saved[6])


def test_only_its_own_beginning_is_taken_on(run_training: Trainer) -> None:
    plain = run_training(snapshots=(2, 3))
    history = ({"until": 2, "learning_rate": 1e-3},)
    for strange in (plain.saved[3], run_training(seed=1, snapshots=(2,)).saved[2]):
        with pytest.raises(TrainingError, match=f"of run {strange.run_id}, not of"):
            run_training(snapshots=(5,), history=history, learning_rate=1e-4, resume=strange)


def test_in_a_pack_it_is_what_it_is_alone(run_training: Trainer, tiny_model: Model, pictures: Path) -> None:
    """Its first step there is not the others' first."""
    first = run_training(snapshots=(2,), learning_rate=1e-2)
    asked: dict[str, Any] = {"snapshots": (4,), "history": ({"until": 2, "learning_rate": 1e-2},)}
    alone = run_training(resume=first.saved[2], **asked).saved[4]
    outcome = Outcome()

    def jobs() -> Iterator[Job]:
        for number, run in enumerate((make_run(tiny_model, **asked), make_run(tiny_model, seed=3))):
            yield Job(
                run=run,
                pictures=pictures,
                prior=None,
                latents=(),
                resume=None if number else first.saved[2],
                save=lambda checkpoint, seconds: outcome.saved.update({checkpoint.step: checkpoint}),
                save_at=lambda step: False,
                report=lambda step, loss: None,
                ended=raise_it,
            )

    train(jobs(), tiny_model, at_once=2)
    assert outcome.saved[4].losses == pytest.approx(alone.losses, rel=1e-4)
    for name, tensor in alone.adapter.items():
        assert torch.allclose(outcome.saved[4].adapter[name], tensor, atol=1e-5)
