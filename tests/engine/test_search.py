"""Points asked of Optuna: in rounds, from what was tried, the same again after an interruption."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config.plan.axes import key_of
from harness.config.plan.plan import expand
from harness.config.schema.model import SdxlModel
from harness.config.schema.search import ContrastObjective, LossObjective, OptunaSearch
from harness.config.schema.sweep import SweepConfig
from harness.engine.completion import MARK
from harness.engine.executors import make_executor
from harness.engine.pipeline import run_sweep
from harness.engine.search import MOST_TRIED, next_round, with_points, with_remembered
from harness.engine.stages.context import Context
from harness.reporting.report import write_report
from harness.results import Results, tables
from harness.results.objectives import front, gains
from harness.store.workspace import PLAN, Workspace
from tests.config.example import load
from tests.engine.executors.carrying import Display
from tests.sweeps.small import small_plan

RATE, RANK, EMA = "training.learning_rate", "adapter.rank", "training.ema"
AXES: dict[str, Any] = {
    RATE: {"low": 1e-6, "high": 1e-1, "log": True},
    RANK: [2, 4, 8, 16],
    EMA: {"low": 0.9, "high": 0.99, "when": {RANK: [8, 16]}},
}


def searching(folder: Path, **search: Any) -> SweepConfig:
    return load(folder, axes=AXES, search={"kind": "optuna", **search})


def results_of(sweep: SweepConfig, value: Any) -> Results:
    """Tables in which each trial's contrast is what `value` gives for its point; null for a failed one."""
    trials, rows = [], []
    for trial in expand(sweep).trials:
        difference = value(trial.params)
        trials.append(
            {
                "trial_id": trial.trial_id,
                "index": trial.index,
                "status": "failed" if difference is None else "completed",
                "validation_loss": None if difference is None else -difference,
            }
        )
        rows.append(
            {
                "trial_id": trial.trial_id,
                "arm": "wrong_lora",
                "control": "placebo",
                "metric": "aesthetic",
                "split": "dev",
                "mean_difference": difference,
                "higher_is_better": True,
            }
        )
    arms, images, scores = (tables.empty(name) for name in ("arms", "images", "scores"))
    return Results(
        trials=pd.DataFrame(trials),
        summary=pd.DataFrame(rows),
        arms=arms,
        images=images,
        scores=scores,
        sweep={},
    )


def searched(sweep: SweepConfig, value: Any) -> SweepConfig:
    """All rounds of a search over a function."""
    results = None
    while (asked := next_round(sweep, results)) is not None:
        sweep = asked
        results = results_of(sweep, value)
    return sweep


def points_of(sweep: SweepConfig) -> tuple[dict[str, Any], ...]:
    assert isinstance(sweep.search, OptunaSearch)
    return sweep.search.points


def peak(params: dict[str, Any]) -> float:
    """Best at a learning rate of 1e-3 and rank 4."""
    return -abs(math.log10(params[RATE]) + 3) - (params[RANK] != 4)


def test_rounds_end_with_as_many_different_points_as_asked_for(tmp_path: Path) -> None:
    sweep = searched(searching(tmp_path, trials=14, at_once=4), peak)
    points = points_of(sweep)
    assert len(points) == len({key_of(point) for point in points}) == len(expand(sweep).trials) == 14
    assert all((EMA in point) == (point[RANK] in (8, 16)) for point in points)
    assert next_round(sweep, results_of(sweep, peak)) is None


def test_it_learns_where_the_best_is(tmp_path: Path) -> None:
    points = points_of(searched(searching(tmp_path, trials=60, at_once=5), peak))
    first, last = points[:15], points[-15:]
    assert sum(map(peak, last)) / 15 > sum(map(peak, first)) / 15 + 0.5
    assert max(map(peak, points)) > -0.3


def test_the_same_search_asks_for_the_same_points_wherever_it_was_interrupted(tmp_path: Path) -> None:
    whole = searched(searching(tmp_path, trials=12, at_once=3), peak)
    part = searched(searching(tmp_path, trials=6, at_once=3), peak)
    assert points_of(part) == points_of(whole)[:6]
    resumed = with_points(searching(tmp_path, trials=12, at_once=3), points_of(part))
    assert points_of(resumed) == points_of(part)
    results = results_of(resumed, peak)
    while (asked := next_round(resumed, results)) is not None:
        resumed, results = asked, results_of(asked, peak)
    assert points_of(resumed) == points_of(whole)
    assert points_of(searched(searching(tmp_path, trials=6, at_once=3, seed=1), peak)) != points_of(part)


def test_a_failed_trial_is_no_hindrance(tmp_path: Path) -> None:
    sweep = searched(searching(tmp_path, trials=12, at_once=4), lambda p: None if p[RANK] == 2 else peak(p))
    assert len(points_of(sweep)) == 12


def test_several_objectives_are_searched_and_have_a_front(tmp_path: Path) -> None:
    objectives = [{"kind": "contrast"}, {"kind": "validation_loss"}]
    sweep = load(
        tmp_path,
        axes=AXES,
        training={"holdout": 1},
        search={"kind": "optuna", "trials": 12, "objectives": objectives},
    )
    assert isinstance(sweep.search, OptunaSearch)
    assert sweep.search.objectives[0] == ContrastObjective(
        metric="aesthetic", arm="wrong_lora", control="placebo"
    )
    assert len(points_of(searched(sweep, peak))) == 12


def test_the_front_is_what_nothing_else_beats() -> None:
    frame = pd.DataFrame(
        {0: [1.0, 2.0, 3.0, 0.5, 3.0], 1: [3.0, 2.0, 1.0, 0.5, math.nan]},
        index=["a", "b", "c", "beaten", "failed"],
    )
    assert front(frame) == ["a", "b", "c"]


def test_gains_have_more_is_better_whatever_the_metric(tmp_path: Path) -> None:
    sweep = with_points(searching(tmp_path, trials=1), [{RATE: 1e-3, RANK: 4}])
    results = results_of(sweep, peak)
    results.summary["higher_is_better"] = False
    contrast = ContrastObjective(metric="aesthetic", arm="wrong_lora", control="placebo")
    found = gains(results.trials, results.summary, [contrast, LossObjective(kind="validation_loss")])
    assert found.to_numpy().tolist() == [[0.0, 0.0]] or found.to_numpy().tolist() == [[-0.0, 0.0]]
    results.summary["mean_difference"], results.trials["validation_loss"] = 0.25, 0.5
    assert gains(
        results.trials, results.summary, [contrast, LossObjective(kind="validation_loss")]
    ).to_numpy().tolist() == [[-0.25, -0.5]]


SMALL: dict[str, Any] = {
    "axes": {
        "adapter.rank": [1, 2, 3, 4],
        "training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
    },
    "training": {"batch_size": 2, "steps": 2},
    "arms": [
        {"name": "placebo", "negative": "wrong"},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
    ],
}


def run(folder: Path, model: SdxlModel, clip: str, root: Path, trials: int) -> tuple[Results, Display]:
    search = {"kind": "optuna", "trials": trials, "at_once": 2}
    display = Display()
    plan = small_plan(folder, model, clip, search=search, **SMALL)
    ctx = Context.of(plan, root, display.report)
    with make_executor("local") as workers:
        done = run_sweep(plan, ctx, workers, announce=lambda *_: None, publish=lambda _: False)
    return done.results, display


def test_a_search_is_carried_out_extended_and_not_repeated(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    root = tmp_path / "ws"
    first, made = run(tmp_path, tiny_config, tiny_clip, root, 3)
    assert list(first.trials["status"]) == ["completed"] * 3
    assert made.counts["training_steps"] == 3 * 2
    assert first.sweep["search"]["points"] and len(first.sweep["search"]["points"]) == 3
    again, made = run(tmp_path, tiny_config, tiny_clip, root, 3)
    assert not made.counts
    pd.testing.assert_frame_equal(again.trials, first.trials)
    more, made = run(tmp_path, tiny_config, tiny_clip, root, 5)
    assert made.counts["training_steps"] == 2 * 2
    assert list(more.trials["trial_id"][:3]) == list(first.trials["trial_id"])


def test_points_are_remembered_only_for_the_same_search(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    search = {"kind": "optuna", "trials": 4, "at_once": 2}
    plan = small_plan(tmp_path, tiny_config, tiny_clip, search=search, **SMALL)
    workspace = Workspace(tmp_path / "ws")

    class Interrupted:
        def workers(self, *_: Any) -> int:
            return 1

        def carry_out(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ctx = Context.of(plan, workspace.address, lambda *_: None)
        run_sweep(plan, ctx, Interrupted(), announce=lambda *_: None, publish=lambda _: False)
    remembered = points_of(with_remembered(plan.sweep, workspace))
    assert len(remembered) == 2
    fewer = replace(plan, sweep=with_points(plan.sweep, ()))
    assert points_of(with_remembered(fewer.sweep, workspace)) == remembered
    for name, value in {"seeds": [0], "axes": {"adapter.rank": [1, 2, 3, 4]}}.items():
        other = small_plan(tmp_path, tiny_config, tiny_clip, search=search, **{**SMALL, name: value})
        assert points_of(with_remembered(other.sweep, workspace)) == ()


MATCHED: list[dict[str, Any]] = [
    {"name": "placebo", "negative": "wrong", "guidance": 3.0},
    {"name": "matched", "negative": "wrong", "match": {"arm": "wrong_lora", "by": "saturation"}},
    {
        "name": "beyond",
        "negative": "wrong",
        "match": {"arm": "wrong_lora", "by": "saturation", "between": [7, 8]},
    },
    {"name": "wrong_lora", "negative": "wrong", "guidance": 3.7, "adapters": [{"scale": 1e-6}]},
]


def matching(tmp_path: Path, model: SdxlModel, clip: str) -> tuple[Results, Display]:
    plan = small_plan(tmp_path, model, clip, arms=MATCHED, axes={"training.steps": [2, 4]})
    display = Display()
    ctx = Context.of(plan, tmp_path / "ws", display.report)
    with make_executor("local") as executor:
        run = run_sweep(plan, ctx, executor, announce=lambda *_: None, publish=lambda _: True)
    return run.results, display


def test_a_matched_control_has_the_arms_statistic_on_dev(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    """The arm's adapter does next to nothing, so the guidance found is the arm's own."""
    results, made = matching(tmp_path, tiny_config, tiny_clip)
    (row,) = results.arms[results.arms["arm"] == "matched"].to_dict("records")
    assert row["trial_id"] == results.trials.loc[results.trials["selected"], "trial_id"].item()
    assert row["guidance"] == pytest.approx(3.7, abs=0.1)
    (arm,) = [arm for arm in results.sweep["arms"] if arm["name"] == "matched"]
    assert arm["guidance"] == row["guidance"] and arm["match"]["missing"] is None
    tried = arm["match"]["tried"]
    assert 2 < len(tried) <= MOST_TRIED and tried[:2] == [2.35, 6.4]

    (beyond,) = results.arms[results.arms["arm"] == "beyond"].to_dict("records")
    assert pd.isna(beyond["guidance"]) and pd.isna(beyond["arm_id"])
    assert beyond["reason"].startswith("not reachable: between guidance 7 and 8 the statistic goes from ")
    of_beyond = results.summary[results.summary["control"] == "beyond"]
    assert of_beyond["mean_difference"].isna().all() and len(of_beyond) == 2 * 2
    assert of_beyond["reason"].str.startswith("no pairs: control: no image (not reachable: ").all()
    write_report(results, Workspace(tmp_path / "ws"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"guidance by saturation as of wrong_lora: {row['guidance']:g}" in page
    assert "guidance by saturation as of wrong_lora: not reachable (between guidance 7 and 8" in page

    wide, arms = results.wide(), results.arms.set_index(["trial_id", "arm"])["arm_id"]
    at = wide[(wide["split"] == "dev")].groupby("arm_id")["saturation"].mean()
    own = at[arms[row["trial_id"], "wrong_lora"]]
    assert abs(at[row["arm_id"]] - own) <= 0.02 * (at.max() - at.min())
    tested = set(wide.loc[wide["split"] == "test", "arm_id"])
    others = set(wide["arm_id"]) - set(arms)  # what was tried: of beyond both ends
    assert row["arm_id"] in tested
    assert len(others) == len(tried) - 1 + 2 and not others & tested
    contrasts = results.summary.query("control == 'matched' and split == 'test'")
    assert len(contrasts) == 2 and (contrasts["n_pairs"] == 2).all()

    assert made.counts["images"] == len(results.images)
    again, made = matching(tmp_path, tiny_config, tiny_clip)
    assert not made.counts, "finished, and marked so"
    pd.testing.assert_frame_equal(again.arms, results.arms)
    for name in (PLAN, MARK):  # as where the search was interrupted before it noted anything
        (Workspace(tmp_path / "ws").sweep("small") / name).unlink()
    resumed, made = matching(tmp_path, tiny_config, tiny_clip)
    assert not made.counts["images"], "every image that it asks for is in the store"
    pd.testing.assert_frame_equal(resumed.arms, results.arms)
