"""A population carried out, killed, repeated, gone on with; and members that fail."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from harness.asking import with_remembered_points
from harness.bench import Bench
from harness.errors import SpecError
from harness.execution import make_executor
from harness.inventory import LOOKS, inventory
from harness.models.spec import SdxlModel
from harness.pipeline import SweepRun, run_sweep, run_trial
from harness.spec.evolution import is_grown, population_of
from harness.spec.expand import Plan, expand
from harness.spec.scheduler import Member
from harness.spec.sweep import SweepSpec
from harness.store import collect_garbage
from harness.training.member import Trainee
from harness.workspace import PLAN, Workspace
from tests.execution.carrying import Display, assert_same
from tests.sweeps import small_plan

RATE = "training.learning_rate"
LOSS = {"kind": "validation_loss"}
ARMS = [
    {"name": "placebo", "negative": "wrong"},
    {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
    {"name": "both", "negative": "wrong", "adapters": [{"scale": 1.0, "branch": "both"}]},
]


def population(folder: Path, model: SdxlModel, clip: str, **changes: Any) -> Plan:
    """Four members, three generations of two steps."""
    settings: dict[str, Any] = {
        "training": {"batch_size": 1, "steps": 6, "holdout": 1},
        "axes": {RATE: {"low": 0.01, "high": 0.3, "log": True}},
        "search": {"kind": "random", "trials": 4},
        "arms": ARMS,
        "scheduler": {"kind": "population", "every": 2, "objective": {"kind": "contrast", "prompts": 1}},
        "compute": {"batch_size": 2, "checkpoint_every": 100, "max_concurrent": 1, "pack": "off"},
        **changes,
    }
    return small_plan(folder, model, clip, **settings)


class Killed(KeyboardInterrupt):
    """Stands in for a kill: no task takes it for a reason of its own."""


def carry_out(
    plan: Plan, root: Path, *, kill_at: int | None = None, executor: Any = "local"
) -> tuple[SweepRun, Counter[str]]:
    display = Display()

    def report(kind: Any, count: int) -> None:
        display.report(kind, count)
        if kill_at is not None and sum(display.counts.values()) >= kill_at:
            raise Killed

    bench = Bench(plan=plan, workspace=Workspace(root), report=report)
    with make_executor(executor) as workers:
        done = run_sweep(bench, workers, announce=lambda *_: None, publish=lambda _: True)
    return done, display.counts


def generations(root: Path) -> tuple[tuple[Member, ...], ...]:
    plan = json.loads((root / "sweeps" / "small" / PLAN).read_text())
    return population_of(SweepSpec.model_validate(plan)).generations


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SdxlModel, tiny_clip: str) -> Plan:
    return population(tmp_path_factory.mktemp("sweep"), tiny_spec, tiny_clip)


Done = tuple[Path, SweepRun, Counter[str]]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Done:
    root = tmp_path_factory.mktemp("grown")
    return root, *carry_out(plan, root)


def test_a_population_ends_as_the_sweeps_trials(grown: Done) -> None:
    root, done, made = grown
    trials, found = done.results.trials, generations(root)
    assert list(trials["status"]) == ["completed"] * 4 and len(found) == 3
    assert trials[RATE].tolist() == [member.point[RATE] for member in found[-1]]
    replaced = {place for last in found[1:] for place, one in enumerate(last) if one.parent is not None}
    assert replaced and trials.loc[sorted(replaced), "training.history"].str.contains("to step [24]").all()
    configs = [json.loads(config)["training"] for config in trials["config"]]
    assert all(config["steps"] == 6 for config in configs)
    assert all(bool(configs[place]["history"]) for place in replaced)
    assert made["training_steps"] == 4 * 6
    assert set(done.results.images["arm"]) == {"placebo", "wrong_lora", "both"}
    own = done.results.images.query("split == 'dev' and arm == 'both'")
    assert len(own) == 4 * 2 * 2  # in full: all dev prompts and seeds
    contrasts = done.results.summary.query("split == 'dev' and arm == 'both'")
    assert contrasts["mean_difference"].notna().all() and set(contrasts["metric"]) == {
        "clip_score", "saturation",
    }  # fmt: skip


def test_the_values_are_the_contrasts_of_the_members(
    grown: Done, tmp_path: Path, tiny_spec: SdxlModel, tiny_clip: str
) -> None:
    """Of a plain sweep that ends there, on the prompts and seeds that they are compared on."""
    root, _, _ = grown
    prompts = [{"text": "a green cat", "split": "dev"}]
    plain = population(
        tmp_path,
        tiny_spec,
        tiny_clip,
        name="plain",
        training={"batch_size": 1, "steps": 2, "holdout": 1},
        scheduler={"kind": "fifo"},
        prompts=prompts,
        seeds=[0],
    )
    done, made = carry_out(plain, root)
    assert not made["training_steps"]
    rows = done.results.summary.query("metric == 'clip_score' and arm == 'wrong_lora' and split == 'dev'")
    values = [member.value for member in generations(root)[0]]
    assert rows["mean_difference"].tolist() == pytest.approx(values)
    worst = min(range(4), key=lambda place: values[place] or 0)
    assert generations(root)[1][worst].parent == max(range(4), key=lambda place: values[place] or 0)


def test_the_same_again_makes_nothing(grown: Done, plan: Plan) -> None:
    root, done, _ = grown
    before = generations(root)
    again, made = carry_out(plan, root)
    assert not again.outcomes and not made and generations(root) == before
    (root / "sweeps" / "small" / PLAN).unlink()  # nothing is remembered: it is found in the store
    again, made = carry_out(plan, root)
    assert not made and generations(root) == before
    assert_same(again.results, done.results)


@pytest.mark.parametrize("kill_at", [3, 14, 40, 70])
def test_killed_anywhere_it_ends_the_same(grown: Done, plan: Plan, tmp_path: Path, kill_at: int) -> None:
    root, done, whole = grown
    with pytest.raises(Killed):
        carry_out(plan, tmp_path, kill_at=kill_at)
    again, _ = carry_out(plan, tmp_path)
    assert_same(again.results, done.results)
    assert generations(tmp_path) == generations(root)
    columns = ["trial_id", "status", "training.history", RATE]
    pd.testing.assert_frame_equal(again.results.trials[columns], done.results.trials[columns])
    assert sum(whole.values()) > kill_at


def test_check_counts_what_the_members_need_and_nothing_of_it_is_garbage(grown: Done, plan: Plan) -> None:
    root, _, _ = grown
    store = Workspace(root)
    now = with_remembered_points(plan.sweep, store)
    counts = inventory(Bench(plan=expand(now), workspace=store, report=lambda *_: None))
    assert all(count.missing == 0 for count in counts.values())
    fresh = Bench(plan=plan, workspace=Workspace(root / "none"), report=lambda *_: None)
    asked = inventory(fresh)
    assert asked["training steps"].missing == 4 * 6
    assert asked[LOOKS].missing == 4 * 2  # one prompt and seed at the end of each generation but the last


def test_garbage_of_a_population_is_what_its_members_do_not_come_from(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        carry_out(plan, tmp_path, kill_at=45)
    collect_garbage(Workspace(tmp_path), delete=True)
    done, _ = carry_out(plan, tmp_path)
    collect_garbage(Workspace(tmp_path), delete=True)
    again, made = carry_out(plan, tmp_path)
    assert not made and set(done.results.trials["status"]) == {"completed"}
    assert_same(again.results, done.results)


def test_with_more_steps_the_last_members_go_on(
    grown: Done, tmp_path: Path, tiny_spec: SdxlModel, tiny_clip: str
) -> None:
    root, _, _ = grown
    shutil.copytree(root, tmp_path / "ws")
    longer = population(tmp_path, tiny_spec, tiny_clip, training={"batch_size": 1, "steps": 8, "holdout": 1})
    done, made = carry_out(longer, tmp_path / "ws")
    found, before = generations(tmp_path / "ws"), generations(root)
    assert made["training_steps"] == 4 * 2 and len(found) == 4
    assert [[member.point for member in members] for members in found[:3]] == [
        [member.point for member in members] for members in before
    ]
    assert set(done.results.trials["status"]) == {"completed"}


def test_a_member_that_fails_is_replaced_with_the_reason(
    tmp_path: Path, tiny_spec: SdxlModel, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = population(
        tmp_path,
        tiny_spec,
        tiny_clip,
        scheduler={"kind": "population", "every": 2, "objective": LOSS},
        training={"batch_size": 1, "steps": 4, "holdout": 1},
    )
    update = Trainee.update

    def diverging(self: Trainee, loss: torch.Tensor) -> None:
        update(self, loss * math.nan if self.run.run_id == plan.trials[1].run_id else loss)

    monkeypatch.setattr(Trainee, "update", diverging)
    done, made = carry_out(plan, tmp_path / "ws")
    first, last = generations(tmp_path / "ws")
    assert first[1].value is None and "loss became" in str(first[1].reason)
    assert last[1].parent is not None and [member.parent for member in last].count(None) == 3
    assert list(done.results.trials["status"]) == ["completed"] * 4
    assert not [outcome for outcome in done.outcomes if outcome.failed]
    # Only the final members were drawn: they are compared by losses.
    assert made["pictures"] == 4 * 4 * 2 + 6 + 4


def test_where_all_fail_there_are_rows_with_the_reason(
    tmp_path: Path, tiny_spec: SdxlModel, tiny_clip: str
) -> None:
    plan = population(tmp_path, tiny_spec, tiny_clip, axes={RATE: [1e30, 1e31]}, search={"kind": "grid"})
    done, _ = carry_out(plan, tmp_path / "ws")
    assert list(done.results.trials["status"]) == ["failed"] * 2
    assert done.results.trials["reason"].str.contains("loss became").all()
    assert len([outcome for outcome in done.outcomes if outcome.failed]) == 2
    assert len(generations(tmp_path / "ws")) == 1


def test_one_member_cannot_be_carried_out_alone(plan: Plan, tmp_path: Path, grown: Done) -> None:
    def trial(root: Path) -> Any:
        store = Workspace(root)
        now = expand(with_remembered_points(plan.sweep, store))
        bench = Bench(plan=now, workspace=store, report=lambda *_: None)
        return run_trial(bench, now.trials[1], announce=lambda _: None)

    with pytest.raises(SpecError, match="hangs on the others; use harness run"):
        trial(tmp_path)
    root, done, _ = grown
    assert trial(root).trials["training.history"].equals(done.results.trials["training.history"])


@pytest.mark.slow
def test_in_packs_through_ray_it_is_the_same_population(grown: Done, plan: Plan, tmp_path: Path) -> None:
    """Up to rounding: the tiny model's contrasts are far enough apart."""
    root, _, _ = grown
    compute = plan.sweep.compute.model_copy(update={"pack": 4})
    packed = replace(plan, sweep=plan.sweep.model_copy(update={"compute": compute}))
    again, _ = carry_out(packed, tmp_path, executor="ray")
    assert set(again.results.trials["status"]) == {"completed"}
    assert is_grown(with_remembered_points(plan.sweep, Workspace(tmp_path)))
    for these, those in zip(generations(tmp_path), generations(root), strict=True):
        assert [member.parent for member in these] == [member.parent for member in those]
        assert [member.point for member in these] == [member.point for member in those]
