"""What a sweep asks for is counted from the plan and the store, without making anything."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.plan import Plan, TrainingRun
from harness.config.schema.base import Frozen
from harness.config.schema.compute import ComputeSpec
from harness.config.schema.model import SdxlModel
from harness.engine.accounting import estimate as estimates
from harness.engine.accounting.estimate import Estimate, estimated
from harness.engine.accounting.inventory import confirmation_pictures, encodings, inventory, training_steps
from harness.engine.stages.context import Bench, Count
from harness.engine.stages.sampling import draw_facts
from harness.store.artifact import Stage
from harness.store.workspace import Workspace
from tests.sweeps.small import small_plan


def ignore(kind: str, count: int) -> None:
    pass


@pytest.fixture
def plan(tmp_path: Path, tiny_spec: SdxlModel, tiny_clip: str) -> Plan:
    return small_plan(tmp_path, tiny_spec, tiny_clip, axes={"training.steps": [100, 200, 400]})


@pytest.fixture
def bench(plan: Plan, tmp_path: Path) -> Bench:
    return Bench(plan=plan, workspace=Workspace(tmp_path / "w"), report=ignore)


def test_an_empty_store_lacks_everything(bench: Bench) -> None:
    counts = {name: (count.asked, count.missing) for name, count in inventory(bench).items()}
    assert counts == {
        "training pictures": (7, 7),
        "training steps": (800, 800),  # the trial's run and its sham's, 400 each
        "control pictures": (12, 12),
        "adapter pictures": (3 * 2 * 4, 3 * 2 * 4),
    }
    assert confirmation_pictures(bench.plan) == 2 * 1 * 2


@pytest.mark.parametrize(
    ("finished", "missing"),
    [([], 400), ([100], 300), ([100, 200], 200), ([400], 200), ([150], 350), ([100, 200, 400], 0)],
)
def test_steps_before_a_finished_checkpoint_are_not_missing(
    finished: list[int], missing: int, bench: Bench
) -> None:
    run = next(iter(bench.plan.runs.values()))
    for steps in finished:
        with bench.workspace.snapshot(run.run_id, steps).build():
            pass
    assert training_steps(bench, run) == Count(asked=400, missing=missing, passes=missing * 2 * 3)


def test_a_step_with_prior_preservation_costs_twice(bench: Bench) -> None:
    run = next(iter(bench.plan.runs.values()))
    with_prior = training_steps(bench, replace(run, prior=run.dataset))
    assert with_prior.passes == 2 * training_steps(bench, run).passes


def timed(stage: Stage, seconds: float, *, pictures: int = 0, **facts: Any) -> None:
    """A finished stage whose pictures took so long."""
    with stage.build(**facts, draw_seconds=seconds, made={"draw_seconds": seconds}) as folder:
        for number in range(pictures):
            (folder / f"{number}.png").write_bytes(b"")


def spec_json(spec: Frozen) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def train(
    bench: Bench, run: TrainingRun, step: int, seconds: float, *, from_step: int = 0, **changes: Any
) -> None:
    """A snapshot of a run that differs in some training settings, so that nothing of the plan is made."""
    training = {**spec_json(run.training), **changes}
    about = {"model": spec_json(run.dataset.model), "adapter": spec_json(run.adapter), "training": training}
    stage = bench.workspace.snapshot("elsewhere", step)
    timed(stage, 0.1, run=about, step=step, from_step=from_step, train_seconds=seconds)


def draw(bench: Bench, name: str, seconds: float, *, pictures: int = 4, **changes: Any) -> None:
    one = next(iter(bench.plan.draws.values()))
    facts = {**draw_facts(one), **changes}
    timed(
        bench.workspace.images(name, "c"), seconds, pictures=pictures, model=spec_json(one.model), draw=facts
    )


def estimate(bench: Bench) -> Estimate:
    return estimated(bench, inventory(bench))


def test_nothing_is_invented(bench: Bench) -> None:
    found = estimate(bench)
    assert found.seconds is None and not found.complete
    assert {(share.seconds, share.timings) for share in found.shares.values()} == {(None, 0)}
    assert found.shares["training steps"].untimed == 800


def test_timings_of_another_model_say_nothing(bench: Bench) -> None:
    one = next(iter(bench.plan.draws.values()))
    timed(bench.workspace.images("d", "c"), 5.0, pictures=2, model={"kind": "emoji"}, draw=draw_facts(one))
    timed(bench.workspace.images("e", "c"), 5.0, pictures=2)  # as an earlier version wrote it
    assert estimate(bench).seconds is None


def test_training_of_the_same_kind_comes_first(bench: Bench) -> None:
    run = next(iter(bench.plan.runs.values()))
    train(bench, run, 10, 20.0, learning_rate=0.5)
    train(bench, run, 20, 40.0, learning_rate=0.5)  # of the same call: counted from its start
    train(bench, run, 30, 40.0, from_step=20, learning_rate=0.5)
    train(bench, run, 100, 1.0, from_step=40, batch_size=200)
    share = estimate(bench).shares["training steps"]
    assert share.timings == 2 and not share.scaled
    assert share.seconds == pytest.approx(800 * (40 + 40) / (20 + 10))


def test_other_settings_are_scaled_by_passes(bench: Bench) -> None:
    run = next(iter(bench.plan.runs.values()))
    train(bench, run, 10, 50.0, batch_size=2 * run.training.batch_size)
    share = estimate(bench).shares["training steps"]
    assert (share.timings, share.scaled, share.untimed) == (1, True, 0)
    assert share.seconds == pytest.approx(800 * 5.0 / 2)


def test_pictures_of_as_many_steps_come_first(bench: Bench) -> None:
    draw(bench, "as asked", 8.0, adapters=1)
    draw(bench, "longer", 40.0, steps=30, adapters=0)  # ten times the sweep's steps
    found = estimate(bench)
    controls, adapters = found.shares["control pictures"], found.shares["adapter pictures"]
    assert adapters.seconds == pytest.approx(24 * 2.0)
    assert (adapters.timings, adapters.scaled) == (1, False)
    per_pass = (8 + 40) / (4 * 3 + 4 * 30)
    assert controls.seconds == pytest.approx(12 * 3 * per_pass)
    assert (controls.timings, controls.scaled) == (2, True)
    assert found.shares["training pictures"].seconds == pytest.approx(7 * 2 * per_pass)
    assert not found.complete and found.seconds is not None  # nothing is known of training
    assert found.shares["confirmation pictures"].seconds == pytest.approx(2 * 2 * 2.0)


@pytest.mark.parametrize(("at_once", "seconds"), [(1, 800.0), (2, 400.0), (5, 400.0)])
def test_workers_share_the_tasks(at_once: int, seconds: float, bench: Bench) -> None:
    run = next(iter(bench.plan.runs.values()))
    train(bench, run, 10, 10.0, learning_rate=0.5)
    compute = {"max_concurrent": at_once, "cpus_per_trial": 2, "gpus_per_trial": 0.5}
    sweep = bench.plan.sweep.model_copy(update={"compute": ComputeSpec(**compute)})
    found = estimate(replace(bench, plan=replace(bench.plan, sweep=sweep)))
    assert found.seconds == pytest.approx(seconds)  # two runs of 400 steps, of a second each
    assert found.cpu_hours == pytest.approx(800 * 2 / 3600)
    assert found.gpu_hours == pytest.approx(800 * 0.5 / 3600)


def test_several_processes_of_one_run_are_all_paid_for(bench: Bench) -> None:
    run = next(iter(bench.plan.runs.values()))
    train(bench, run, 10, 10.0, learning_rate=0.5)
    compute = ComputeSpec(max_concurrent=4, gpus_per_trial=2)
    sweep = bench.plan.sweep.model_copy(update={"compute": compute})
    found = estimate(replace(bench, plan=replace(bench.plan, sweep=sweep)))
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
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr(estimates, "gpus", lambda: 2)
    assert estimates.workers(ComputeSpec(**compute)) == expected


def test_what_is_encoded_once_is_asked_for_while_work_needs_it(bench: Bench) -> None:
    def asked_and_missing() -> dict[str, tuple[int, int]]:
        found = encodings(bench, inventory(bench))
        return {name: (count.asked, count.missing) for name, count in found.items()}

    assert asked_and_missing() == {"latents": (7, 7), "prompt embeddings": (5, 5)}
    run = bench.plan.runs[bench.plan.trials[0].run_id]
    with bench.workspace.latents(run.dataset.dataset_id, "center").build():
        pass
    assert asked_and_missing()["latents"] == (7, 3)
    for one in bench.plan.runs.values():
        for steps in one.snapshots:
            with bench.workspace.snapshot(one.run_id, steps).build():
                pass
    assert asked_and_missing()["latents"] == (4, 0)
