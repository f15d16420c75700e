"""Runs that are compared on their way: who is stopped, what is remembered, what a stopped row says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray.tune.utils.util import flatten_dict

from harness.config.plan.plan import Plan
from harness.config.plan.rungs import IntermediateResult
from harness.config.schema.model import SdxlModel
from harness.engine import worker as performing
from harness.engine.early_stopping import DECISIONS, Decision, Decisions
from harness.engine.executors import make_executor
from harness.engine.executors.ray_scheduler import Pruner
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.queue import Race
from harness.engine.stages.context import Context
from harness.errors import ConfigError
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import assert_same
from tests.engine.executors.racing import (
    ASHA,
    RATES,
    OneAfterTheOther,
    carry_out,
    racing_plan,
    set_values,
    told,
)


def steps_in_store(plan: Plan, root: Path, rate: float) -> list[int]:
    run_id = next(str(t.run_id) for t in plan.trials if t.params["training.learning_rate"] == rate)
    return list(Workspace(root).checkpoints(run_id))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    return racing_plan(tmp_path_factory.mktemp("sweep"), tiny_config, tiny_clip)


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> tuple[Path, SweepRun, Counter[str]]:
    root = tmp_path_factory.mktemp("raced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(performing, "rung_results", set_values)
        return root, *carry_out(plan, root, OneAfterTheOther())


def test_a_stopped_trial_is_a_row_without_numbers(raced: tuple[Path, SweepRun, Counter[str]]) -> None:
    _, done, _ = raced
    trials = done.results.trials
    points = zip(trials["training.learning_rate"], trials["training.steps"], strict=True)
    assert dict(zip(points, trials["status"], strict=True)) == {
        (0.3, 2): "completed",
        (0.3, 5): "completed",
        (3.0, 2): "completed",  # what ends where its run was stopped is complete
        (3.0, 5): "stopped",
        (0.1, 2): "completed",
        (0.1, 5): "stopped",
    }
    stopped = trials[(trials["training.learning_rate"] == 3.0) & (trials["training.steps"] == 5)].iloc[0]
    assert stopped["reason"].startswith("stopped by asha at step 2: validation loss ")
    assert stopped[["adapter_path", "final_loss", "validation_loss", "train_seconds"]].isna().all()
    rows = done.results.summary[done.results.summary["trial_id"] == stopped["trial_id"]]
    assert len(rows) and rows["mean_difference"].isna().all() and (rows["n_pairs"] == 0).all()
    assert rows["reason"].str.contains("stopped by asha").all()
    assert not done.results.images["trial_id"].eq(stopped["trial_id"]).any()
    assert not [outcome for outcome in done.outcomes if outcome.failed]


def test_nothing_is_trained_or_drawn_beyond_a_stop(
    raced: tuple[Path, SweepRun, Counter[str]], plan: Plan
) -> None:
    root, _, made = raced
    assert steps_in_store(plan, root, 0.3)[-1] == 5
    assert steps_in_store(plan, root, 3.0) == steps_in_store(plan, root, 0.1) == [2]
    assert made["training_steps"] == 5 + 2 + 2


def test_a_second_run_asks_nobody(raced: tuple[Path, SweepRun, Counter[str]], plan: Plan) -> None:
    root, first, _ = raced
    executor = OneAfterTheOther()
    again, made = carry_out(plan, root, executor)
    assert not executor.raced and not again.outcomes and not made
    pd.testing.assert_frame_equal(again.results.trials, first.results.trials)


def test_another_run_is_compared_with_those_of_before(
    raced: tuple[Path, SweepRun, Counter[str]],
    tmp_path: Path,
    tiny_config: SdxlModel,
    tiny_clip: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(performing, "rung_results", set_values)
    root, _, _ = raced
    axes = {"training.learning_rate": [*RATES, 0.12], "training.steps": [2, 5]}
    more, executor = racing_plan(tmp_path, tiny_config, tiny_clip, axes=axes), OneAfterTheOther()
    _, made = carry_out(more, root, executor)
    assert len(executor.raced) == 1
    assert made["training_steps"] == 2  # alone it would have gone on: there would be nothing to compare with


def test_an_interrupted_race_goes_on_and_ends_as_if_it_had_not_been(
    raced: tuple[Path, SweepRun, Counter[str]], plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "rung_results", set_values)
    _, undisturbed, all_made = raced
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan, tmp_path, OneAfterTheOther(rungs=3))  # two of the first run, one of the second
    again, made = carry_out(plan, tmp_path, OneAfterTheOther())
    assert made["training_steps"] < all_made["training_steps"]
    assert_same(again.results, undisturbed.results)
    columns = ["trial_id", "status", "reason"]
    pd.testing.assert_frame_equal(again.results.trials[columns], undisturbed.results.trials[columns])


def test_without_the_scheduler_a_stopped_run_goes_on_from_its_last_checkpoint(
    plan: Plan, tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "rung_results", set_values)
    carry_out(plan, tmp_path / "ws", OneAfterTheOther())
    whole = racing_plan(tmp_path, tiny_config, tiny_clip, scheduler={"kind": "fifo"})
    done, made = carry_out(whole, tmp_path / "ws", OneAfterTheOther())
    assert set(done.results.trials["status"]) == {"completed"}
    assert made["training_steps"] == 3 + 3


def test_a_look_at_images_sees_what_the_summary_says(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    """At a step where a trial ends, with all dev prompts and seeds, they are the same number."""
    objective = {"kind": "contrast", "prompts": 2, "seeds": 2}
    scheduler = {"kind": "median", "grace": 2, "every": 1, "min_runs": 1, "objective": objective}
    plan = racing_plan(tmp_path, tiny_config, tiny_clip, scheduler=scheduler)
    done, _ = carry_out(plan, tmp_path / "ws", OneAfterTheOther())
    rows = json.loads((tmp_path / "ws" / "sweeps" / "small" / DECISIONS).read_text())["decisions"]
    assert len({row["run_id"] for row in rows}) == 3
    summary = done.results.summary.query("metric == 'clip_score' and split == 'dev'").set_index("trial_id")
    looks = {(row["run_id"], row["step"]): row["value"] for row in rows}
    ended = [trial for trial in plan.trials if trial.config.trained.training.steps == 2]
    for trial in ended:
        assert looks[trial.run_id, 2] == pytest.approx(summary.loc[trial.trial_id, "mean_difference"])
    assert {step for _, step in looks} == {2, 3, 4}
    own = done.results.images.query("split == 'dev' and trial_id.notna()")
    kept = done.results.trials.query("status == 'completed'")
    assert len(own) == len(kept) * 4  # and none of the images that only a look was at


def test_a_cosine_run_keeps_its_schedule_where_it_is_looked_at(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    cosine = {"schedule": {"kind": "cosine"}, "learning_rate": 0.01}
    changes: dict[str, Any] = {
        "training": {"batch_size": 2, "steps": 4, "holdout": 1, **cosine},
        "axes": {"training.seed": [0]},
    }
    plans = [
        racing_plan(tmp_path, tiny_config, tiny_clip, scheduler=scheduler, **changes)
        for scheduler in (ASHA, {"kind": "fifo"})
    ]
    finished = [
        carry_out(plan, tmp_path / str(number), OneAfterTheOther())[0] for number, plan in enumerate(plans)
    ]
    assert_same(finished[0].results, finished[1].results)


def test_a_loop_cannot_race(plan: Plan, tmp_path: Path) -> None:
    ctx = Context.of(plan, tmp_path, lambda *_: None)
    with (
        make_executor("local") as workers,
        pytest.raises(ConfigError, match=r"asha compares runs .* --executor local out"),
    ):
        run_sweep(plan, ctx, workers, announce=lambda *_: None, publish=lambda _: False)


def test_a_pruner_that_is_told_again_answers_as_before(plan: Plan, tmp_path: Path) -> None:
    runs = list(plan.own_runs)
    decisions = Decisions(plan.sweep, Workspace(tmp_path))
    (tmp_path / "sweeps" / "small").mkdir(parents=True)
    decisions.add(Decision(result=IntermediateResult(run_id=runs[0], step=2, value=0.5), stopped=False))
    for value, stopped in ((0.4, False), (0.6, True)):
        answers: dict[tuple[str, int], bool] = {}
        race = Race(plan=plan, decisions=Decisions(plan.sweep, Workspace(tmp_path)))
        pruner = Pruner(race, answers.update)
        look = IntermediateResult(run_id=f"new {value}", step=2, value=value)
        again = IntermediateResult(run_id=runs[0], step=2, value=99.0)  # told again by the next worker
        pruner.hear([again, look])
        assert answers == {(runs[0], 2): False, (look.run_id, 2): stopped}


def test_what_is_told_comes_through_tune_in_one_piece() -> None:
    """A past bug: of a mapping Tune hands schedulers `rung/run_id`, `rung/step`, …: nothing was stopped."""
    report = {"ended": False, **told(IntermediateResult(run_id="r", step=2, value=0.5))}
    assert flatten_dict(report) == report
