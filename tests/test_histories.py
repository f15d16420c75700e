"""Runs with a history in a sweep: their beginnings shared, resumed, mended, counted, kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.bench import Bench
from harness.inventory import inventory
from harness.models.spec import SdxlModel
from harness.pipeline import SweepRun, run_sweep
from harness.spec.expand import Plan, TrainingRun
from harness.stage import MANIFEST
from harness.store import collect_garbage
from harness.training.checkpoint import Checkpoint
from harness.training_stages import ensure_snapshots
from harness.workspace import Workspace
from tests.execution.carrying import Display
from tests.sweeps import small_plan
from tests.training.runs import same

RATE = "training.learning_rate"
HISTORY: list[dict[str, Any]] = [{"until": 1, "learning_rate": 0.3}, {"until": 3, "learning_rate": 0.1}]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SdxlModel, tiny_clip: str) -> Plan:
    return history_plan(tmp_path_factory.mktemp("sweep"), tiny_spec, tiny_clip)


def history_plan(folder: Path, model: SdxlModel, clip: str, **changes: Any) -> Plan:
    arms = [
        {"name": "placebo", "negative": "wrong"},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
    ]
    settings: dict[str, Any] = {
        "training": {"batch_size": 2, "steps": 5, "history": HISTORY},
        "axes": {RATE: [0.01, 0.02]},
        "arms": arms,
        "compute": {"batch_size": 2, "checkpoint_every": 100},
        "metrics": ["saturation", {"kind": "clip_score", "encoder": clip}],
        **changes,
    }
    return small_plan(folder, model, clip, **settings)


def bench_of(plan: Plan, root: Path, display: Display | None = None) -> Bench:
    return Bench(plan=plan, workspace=Workspace(root), report=(display or Display()).report)


def trained(bench: Bench) -> dict[str, Checkpoint]:
    """The last checkpoint of each trial's run."""
    ids = [trial.run_id for trial in bench.plan.trials]
    assert not ensure_snapshots(bench, ids)
    return {run_id: Checkpoint.read(bench.workspace.snapshot(run_id, 5).fetch()) for run_id in ids}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan
) -> tuple[Path, dict[str, Checkpoint], Any]:
    root, display = tmp_path_factory.mktemp("undisturbed"), Display()
    return root, trained(bench_of(plan, root, display)), display.counts


def lineage(plan: Plan, run_id: str) -> list[TrainingRun]:
    run: TrainingRun | None = plan.runs[run_id]
    found = []
    while run is not None:
        found.append(run)
        run = plan.runs[run.parent] if run.parent else None
    return found[::-1]


def test_a_shared_beginning_is_trained_once(undisturbed: Any, plan: Plan) -> None:
    root, _, made = undisturbed
    first, second = (lineage(plan, trial.run_id) for trial in plan.trials)
    assert first[:2] == second[:2] and first[2] != second[2]
    assert [run.training.learning_rate for run in first] == [0.3, 0.1, 0.01]
    assert made["training_steps"] == 1 + 2 + 2 + 2
    for run in first:
        assert list(Workspace(root).snapshots(run.run_id)) == [run.snapshots[-1]] == [*run.snapshots]


def test_its_seconds_are_those_of_its_beginning_too(undisturbed: Any, plan: Plan) -> None:
    from harness.collect import _train_seconds

    root, _, _ = undisturbed
    runs = lineage(plan, plan.trials[0].run_id)
    stages = [Workspace(root).snapshot(run.run_id, run.snapshots[-1]) for run in runs]
    seconds = [stage.manifest()["facts"]["train_seconds"] for stage in stages]
    assert _train_seconds(Workspace(root), runs[-1].run_id, 5) == pytest.approx(sum(seconds))


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_killed_and_begun_again_it_ends_the_same(
    undisturbed: Any, plan: Plan, tmp_path: Path, step: int
) -> None:
    """Killed in the beginning of its beginning, between two checkpoints, where it changes, and at its end."""
    _, whole, _ = undisturbed
    compute = plan.sweep.compute.model_copy(update={"checkpoint_every": 1})
    often = replace(plan, sweep=plan.sweep.model_copy(update={"compute": compute}))
    bench, steps = bench_of(often, tmp_path), 0

    class Killed(Exception):
        pass

    def kill(kind: str, count: int) -> None:
        nonlocal steps
        steps += kind == "training_steps"
        if steps == step:
            raise Killed

    with pytest.raises(Killed):
        trained(replace(bench, report=kill))
    again = trained(bench)
    assert all(same(again[run_id], whole[run_id]) for run_id in whole)


def test_a_damaged_beginning_is_made_again(undisturbed: Any, plan: Plan, tmp_path: Path) -> None:
    _, whole, _ = undisturbed
    bench = bench_of(plan, tmp_path)
    _, before, own = lineage(plan, plan.trials[0].run_id)
    assert not ensure_snapshots(bench, [before.run_id])
    file = bench.workspace.snapshot(before.run_id, 3).path / "training_state.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    display = Display()
    again = trained(replace(bench, report=display.report))
    assert display.counts["made again"] == 1
    assert same(again[own.run_id], whole[own.run_id])


def test_what_cannot_begin_fails_with_the_reason(
    tmp_path: Path, tiny_spec: SdxlModel, tiny_clip: str
) -> None:
    training = {"batch_size": 2, "steps": 5, "history": [{"until": 2, "learning_rate": 1e30}]}
    plan = history_plan(tmp_path, tiny_spec, tiny_clip, training=training)
    failed = ensure_snapshots(bench_of(plan, tmp_path / "ws"), [trial.run_id for trial in plan.trials])
    assert set(failed) == {trial.run_id for trial in plan.trials}
    parent = plan.runs[plan.trials[0].run_id].parent
    assert all(f"run {parent}: the loss became" in str(error) for error in failed.values())


def carry_out(bench: Bench) -> SweepRun:
    from harness.execution import make_executor

    with make_executor("local") as executor:
        return run_sweep(bench, executor, announce=lambda *_: None, publish=lambda _: True)


def test_a_sweep_with_histories_is_counted_and_kept(undisturbed: Any, plan: Plan, tmp_path: Path) -> None:
    bench = bench_of(plan, tmp_path)
    steps = inventory(bench)["training steps"]
    assert (steps.asked, steps.missing) == (7, 7)
    done = carry_out(bench)
    assert set(done.results.trials["status"]) == {"completed"}
    assert (
        list(done.results.trials["training.history"])
        == ["learning rate 0.3 to step 1; learning rate 0.1 to step 3"] * 2
    )
    assert inventory(bench)["training steps"].missing == 0
    assert not collect_garbage(bench.workspace, delete=True)
    beginning = lineage(plan, plan.trials[0].run_id)[1]
    assert (bench.workspace.snapshot(beginning.run_id, 3).path / MANIFEST).is_file()
    display = Display()
    assert not carry_out(replace(bench, report=display.report)).outcomes and not display.counts


@pytest.mark.parametrize("pack", [2, "auto"])
def test_packs_train_beginnings_first(undisturbed: Any, plan: Plan, tmp_path: Path, pack: Any) -> None:
    _, whole, made = undisturbed
    compute = plan.sweep.compute.model_copy(update={"pack": pack})
    display = Display()
    packed = replace(plan, sweep=plan.sweep.model_copy(update={"compute": compute}))
    done = trained(bench_of(packed, tmp_path, display))
    assert display.counts["training_steps"] == made["training_steps"]
    for run_id, checkpoint in whole.items():
        assert done[run_id].losses == pytest.approx(checkpoint.losses, rel=1e-3)
