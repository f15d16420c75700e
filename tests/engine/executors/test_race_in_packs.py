"""Runs that are compared on their way in packs: as each alone, whatever befalls their worker."""

import itertools
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from harness.config.plan.rungs import IntermediateResult, rungs_of
from harness.config.schema.model import ModelConfig, SdxlModel
from harness.diffusion.models.model import Model
from harness.engine import worker as performing
from harness.engine.early_stopping import DECISIONS, Decisions
from harness.engine.executors import make_executor
from harness.engine.pipeline import run_sweep
from harness.engine.stages.context import Context
from harness.engine.stages.training import missing_checkpoints
from harness.engine.tasks import TrainingTask, Wish, missing_tasks, training_task
from harness.engine.worker import run_task
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import Display, assert_same
from tests.engine.executors.racing import (
    ALONE,
    MEDIAN,
    PACKED,
    OneAfterTheOther,
    carry_out,
    racing_plan,
    set_values,
)


def test_a_race_in_packs_is_the_race_of_each_alone(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "rung_results", set_values)
    plan = racing_plan(tmp_path, tiny_config, tiny_clip, compute=ALONE)
    alone, all_made = carry_out(plan, tmp_path / "alone", OneAfterTheOther())
    plan, executor = racing_plan(tmp_path, tiny_config, tiny_clip, compute=PACKED), OneAfterTheOther()
    together, made = carry_out(plan, tmp_path / "together", executor)
    assert [len(results) for results in executor.told] == [
        3,
        1,
    ]  # one pack, then one run of it
    ours, theirs = (
        Decisions(plan.sweep, Workspace(tmp_path / folder)).made for folder in ("together", "alone")
    )
    assert ours == theirs and made == all_made
    assert_same(together.results, alone.results)
    columns = ["trial_id", "status", "reason"]
    pd.testing.assert_frame_equal(together.results.trials[columns], alone.results.trials[columns])


def test_runs_of_a_pack_come_to_their_looks_together_whatever_their_lengths(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that end early, one that fails, one that is stopped, and one that nobody looks at."""
    monkeypatch.setattr(performing, "rung_results", set_values)
    plan = racing_plan(
        tmp_path,
        tiny_config,
        tiny_clip,
        training={"batch_size": 2, "steps": 5, "schedule": {"kind": "cosine"}},  # each length is a run
        axes={"training.learning_rate": [0.3, 3.0, 1e39], "training.steps": [1, 3, 5]},
        scheduler={**MEDIAN, "grace": 2, "objective": {"kind": "contrast", "prompts": 1}},
    )
    ctx = Context.of(plan, tmp_path / "ws", Display().report)
    names = {
        str(trial.run_id): (trial.params["training.learning_rate"], trial.params["training.steps"])
        for trial in plan.trials
    }
    runs = {name: run_id for run_id, name in names.items()}
    told: list[list[tuple[float, int]]] = []

    def stop_one(looks: Sequence[IntermediateResult]) -> list[str]:
        told.append([names[look.run_id] for look in looks])
        return [runs[3.0, 5]]

    tasks = missing_tasks(Wish(plan=plan, workers=lambda: 1, racing=plan.own_runs), ctx.workspace)
    for before in itertools.takewhile(lambda task: not isinstance(task, TrainingTask), tasks):
        run_task(before, ctx)
    rungs = [rung for run_id in plan.runs for rung in rungs_of(plan, run_id)]
    task = training_task(list(plan.runs.values()), rungs)
    failed = run_task(task, ctx, stop_one)
    assert told == [[(0.3, 3), (0.3, 5), (3.0, 3), (3.0, 5)], [(0.3, 5)], [(0.3, 5)]]
    assert {names[run_id] for run_id in failed} == {(1e39, 1), (1e39, 3), (1e39, 5)}
    whole = {
        name for name, run_id in runs.items() if not missing_checkpoints(ctx.workspace, plan.runs[run_id])
    }
    assert whole == {(0.3, 1), (0.3, 3), (0.3, 5), (3.0, 1), (3.0, 3)}
    assert list(ctx.workspace.checkpoints(runs[3.0, 5])) == [2]


@dataclass(frozen=True, kw_only=True)
class Shot(Context):
    """A worker's context that ends its process once, when it goes on after its first rungs."""

    def model(self, config: ModelConfig) -> Model:
        folder = self.workspace.sweep(self.sweep)
        if (folder / DECISIONS).exists() and not (folder / "shot").exists():
            (folder / "shot").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().model(config)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_pack_whose_worker_is_killed_is_judged_as_if_it_had_not_been(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    """By the median rule, under Ray: nothing is decided or trained twice."""
    axes = {"training.learning_rate": [0.3, 3.0, 0.1, 1.0], "training.steps": [2, 5]}
    compute = {**PACKED, "max_concurrent": 1}
    plan = racing_plan(tmp_path, tiny_config, tiny_clip, axes=axes, scheduler=MEDIAN, compute=compute)
    undisturbed, all_made = carry_out(plan, tmp_path / "whole", OneAfterTheOther())
    display = Display()
    ctx = Shot.of(plan, tmp_path / "shot", display.report)
    with make_executor("ray") as workers:
        done = run_sweep(plan, ctx, workers, announce=lambda *_: None, publish=lambda _: False)
    assert display.counts["worker lost"] == 1 and not [one for one in done.outcomes if one.failed]
    ours, theirs = (Decisions(plan.sweep, Workspace(tmp_path / folder)) for folder in ("shot", "whole"))
    assert ours.stops and list(ours.made) == list(theirs.made)
    for made, expected in zip(ours.made.values(), theirs.made.values(), strict=True):
        assert made.stopped == expected.stopped
        assert made.result.value == pytest.approx(expected.result.value, rel=0.02)  # rounding
    assert display.counts["training_steps"] == all_made["training_steps"]
    assert_same(done.results, undisturbed.results)
