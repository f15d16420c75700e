"""What a sweep asks for is counted from the plan and the store, without making anything."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.config.plan.plan import Plan, TrainingRun
from harness.config.schema.base import Frozen
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.model import SdxlModel
from harness.engine.accounting import estimate as estimates
from harness.engine.accounting.estimate import Estimate, estimated
from harness.engine.accounting.inventory import confirmation_images, encodings, inventory, training_steps
from harness.engine.stages.context import Count
from harness.engine.stages.sampling import arm_facts
from harness.store.artifact import Artifact
from harness.store.workspace import Workspace
from tests.sweeps.small import small_plan


@pytest.fixture
def plan(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    training = {"learning_rate": 0.01, "batch_size": 2}
    axes = {"training.steps": [100, 200, 400]}
    return small_plan(tmp_path, tiny_config, tiny_clip, training=training, axes=axes)


class Swept(NamedTuple):
    """A plan, and the store that it is counted in."""

    plan: Plan
    workspace: Workspace


@pytest.fixture
def swept(plan: Plan, tmp_path: Path) -> Swept:
    return Swept(plan, Workspace(tmp_path / "w"))


def test_an_empty_store_lacks_everything(swept: Swept) -> None:
    counts = {name: (count.asked, count.missing) for name, count in inventory(*swept).items()}
    assert counts == {
        "training images": (7, 7),
        "training steps": (800, 800),  # the trial's run and its sham's, 400 each
        "control images": (12, 12),
        "adapter images": (3 * 2 * 4, 3 * 2 * 4),
    }
    assert confirmation_images(swept.plan) == 2 * 1 * 2


@pytest.mark.parametrize(
    ("finished", "missing"),
    [([], 400), ([100], 300), ([100, 200], 200), ([400], 200), ([150], 350), ([100, 200, 400], 0)],
)
def test_steps_before_a_finished_checkpoint_are_not_missing(
    finished: list[int], missing: int, swept: Swept
) -> None:
    run = next(iter(swept.plan.runs.values()))
    for steps in finished:
        with swept.workspace.checkpoint(run.run_id, steps).build():
            pass
    assert training_steps(swept.workspace, run) == Count(asked=400, missing=missing, passes=missing * 2 * 3)


def test_a_step_with_prior_preservation_costs_twice(swept: Swept) -> None:
    run = next(iter(swept.plan.runs.values()))
    with_prior = training_steps(swept.workspace, replace(run, prior=run.dataset))
    assert with_prior.passes == 2 * training_steps(swept.workspace, run).passes


def timed(artifact: Artifact, seconds: float, *, images: int = 0, **facts: Any) -> None:
    """A finished artifact whose images took so long."""
    with artifact.build(**facts, generation_seconds=seconds, made={"generation_seconds": seconds}) as folder:
        for number in range(images):
            (folder / f"{number}.png").write_bytes(b"")


def spec_json(config: Frozen) -> dict[str, Any]:
    return config.model_dump(mode="json")


def train(
    swept: Swept, run: TrainingRun, step: int, seconds: float, *, from_step: int = 0, **changes: Any
) -> None:
    """A checkpoint of a run that differs in some training settings, so that nothing of the plan is made."""
    training = {**spec_json(run.training), **changes}
    about = {"model": spec_json(run.dataset.model), "adapter": spec_json(run.adapter), "training": training}
    artifact = swept.workspace.checkpoint("elsewhere", step)
    timed(artifact, 0.1, run=about, step=step, from_step=from_step, train_seconds=seconds)


def generate(swept: Swept, name: str, seconds: float, *, images: int = 4, **changes: Any) -> None:
    one = next(iter(swept.plan.arms.values()))
    facts = {**arm_facts(one), **changes}
    timed(swept.workspace.images(name, "c"), seconds, images=images, model=spec_json(one.model), arm=facts)


def estimate(swept: Swept) -> Estimate:
    return estimated(*swept, inventory(*swept))


def test_nothing_is_invented(swept: Swept) -> None:
    found = estimate(swept)
    assert found.seconds is None and not found.complete
    assert {(share.seconds, share.timings) for share in found.shares.values()} == {(None, 0)}
    assert found.shares["training steps"].untimed == 800


def test_timings_of_another_model_say_nothing(swept: Swept) -> None:
    one = next(iter(swept.plan.arms.values()))
    timed(swept.workspace.images("d", "c"), 5.0, images=2, model={"kind": "emoji"}, arm=arm_facts(one))
    timed(swept.workspace.images("e", "c"), 5.0, images=2)  # as an earlier version wrote it
    assert estimate(swept).seconds is None


def test_training_of_the_same_kind_comes_first(swept: Swept) -> None:
    run = next(iter(swept.plan.runs.values()))
    train(swept, run, 10, 20.0, learning_rate=0.5)
    train(swept, run, 20, 40.0, learning_rate=0.5)  # of the same call: counted from its start
    train(swept, run, 30, 40.0, from_step=20, learning_rate=0.5)
    train(swept, run, 100, 1.0, from_step=40, batch_size=200)
    share = estimate(swept).shares["training steps"]
    assert share.timings == 2 and not share.scaled
    assert share.seconds == pytest.approx(800 * (40 + 40) / (20 + 10))


def test_other_settings_are_scaled_by_passes(swept: Swept) -> None:
    run = next(iter(swept.plan.runs.values()))
    train(swept, run, 10, 50.0, batch_size=2 * run.training.batch_size)
    share = estimate(swept).shares["training steps"]
    assert (share.timings, share.scaled, share.untimed) == (1, True, 0)
    assert share.seconds == pytest.approx(800 * 5.0 / 2)


def test_images_of_as_many_steps_come_first(swept: Swept) -> None:
    generate(swept, "as asked", 8.0, adapters=1)
    generate(swept, "longer", 40.0, steps=30, adapters=0)  # ten times the sweep's steps
    found = estimate(swept)
    controls, adapters = found.shares["control images"], found.shares["adapter images"]
    assert adapters.seconds == pytest.approx(24 * 2.0)
    assert (adapters.timings, adapters.scaled) == (1, False)
    per_pass = (8 + 40) / (4 * 3 + 4 * 30)
    assert controls.seconds == pytest.approx(12 * 3 * per_pass)
    assert (controls.timings, controls.scaled) == (2, True)
    assert found.shares["training images"].seconds == pytest.approx(7 * 2 * per_pass)
    assert not found.complete and found.seconds is not None  # nothing is known of training
    assert found.shares["confirmation images"].seconds == pytest.approx(2 * 2 * 2.0)


@pytest.mark.parametrize(("at_once", "seconds"), [(1, 800.0), (2, 400.0), (5, 400.0)])
def test_workers_share_the_tasks(at_once: int, seconds: float, swept: Swept) -> None:
    run = next(iter(swept.plan.runs.values()))
    train(swept, run, 10, 10.0, learning_rate=0.5)
    compute = {"max_concurrent": at_once, "cpus_per_trial": 2, "gpus_per_trial": 0.5}
    sweep = swept.plan.sweep.model_copy(update={"compute": ComputeConfig(**compute)})
    found = estimate(swept._replace(plan=replace(swept.plan, sweep=sweep)))
    assert found.seconds == pytest.approx(seconds)  # two runs of 400 steps, of a second each
    assert found.cpu_hours == pytest.approx(800 * 2 / 3600)
    assert found.gpu_hours == pytest.approx(800 * 0.5 / 3600)


def test_several_processes_of_one_run_are_all_paid_for(swept: Swept) -> None:
    run = next(iter(swept.plan.runs.values()))
    train(swept, run, 10, 10.0, learning_rate=0.5)
    compute = ComputeConfig(max_concurrent=4, gpus_per_trial=2)
    sweep = swept.plan.sweep.model_copy(update={"compute": compute})
    found = estimate(swept._replace(plan=replace(swept.plan, sweep=sweep)))
    assert found.seconds == pytest.approx(400)  # both runs at once, on two each
    assert found.gpu_hours == pytest.approx(800 * 2 / 3600)


@pytest.mark.parametrize(
    ("compute", "expected"),
    [({}, 16), ({"cpus_per_trial": 4}, 4), ({"max_concurrent": 40}, 40)]
    + [({"gpus_per_trial": gpus}, room) for gpus, room in ((1, 2), (0.5, 4), (2, 2), (0.1, 16))],
)
def test_as_many_work_as_this_machine_has_room_for(
    compute: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "usable_cpus", lambda: 16)
    monkeypatch.setattr(estimates, "gpus", lambda: 2)
    assert estimates.workers(ComputeConfig(**compute)) == expected


def test_what_is_encoded_once_is_asked_for_while_work_needs_it(swept: Swept) -> None:
    def asked_and_missing() -> dict[str, tuple[int, int]]:
        found = encodings(*swept, inventory(*swept))
        return {name: (count.asked, count.missing) for name, count in found.items()}

    assert asked_and_missing() == {"latents": (7, 7), "prompt embeddings": (5, 5)}
    run = swept.plan.runs[str(swept.plan.trials[0].run_id)]
    with swept.workspace.latents(run.dataset.dataset_id, "center").build():
        pass
    assert asked_and_missing()["latents"] == (7, 3)
    for one in swept.plan.runs.values():
        for steps in one.checkpoints:
            with swept.workspace.checkpoint(one.run_id, steps).build():
                pass
    assert asked_and_missing()["latents"] == (4, 0)
