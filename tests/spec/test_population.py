"""Members of a population as trials, and what cannot be one."""

from pathlib import Path
from typing import Any

import pytest

from harness.errors import SpecError
from harness.spec.expand import expand
from harness.spec.population import CHANGING, ancestry
from harness.spec.scheduler import Member
from harness.spec.training import TrainingSpec
from tests.spec.example import load

RATE, RANK = "training.learning_rate", "adapter.rank"
DECAY = "training.optimizer.weight_decay"
AXES = {RATE: {"low": 1e-5, "high": 1e-2, "log": True}, RANK: [2, 8]}


def population(folder: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "axes": AXES,
        "search": {"kind": "random", "trials": 4},
        "scheduler": {"kind": "population", "every": 50, "objective": {"kind": "contrast", "prompts": 1}},
        **changes,
    }
    return load(folder, **settings)


def member(rate: float, parent: int | None = None, rank: int = 2) -> dict[str, Any]:
    return Member(point={RATE: rate, RANK: rank}, parent=parent).model_dump()


def test_what_a_phase_may_change_a_population_may() -> None:
    assert "training.noise_offset" in CHANGING and CHANGING[DECAY] == "weight_decay"
    assert all(
        name.removeprefix("training.").partition(".")[0] in TrainingSpec.model_fields for name in CHANGING
    )


def test_before_the_first_generation_members_are_the_points_of_the_search(tmp_path: Path) -> None:
    plain = expand(population(tmp_path, scheduler={"kind": "fifo"}))
    assert [t.trial_id for t in expand(population(tmp_path)).trials] == [t.trial_id for t in plain.trials]


def test_members_have_the_history_of_whom_they_went_on_from(tmp_path: Path) -> None:
    """The second is replaced by the first, then the first by what has become of the second."""
    generations = [
        [member(1e-3), member(1e-5, rank=8)],
        [member(1e-3), member(2e-3, parent=0)],
        [member(3e-3, parent=1), member(2e-3)],
        [member(3e-3), member(2e-3)],
    ]
    scheduler = {
        "kind": "population",
        "every": 50,
        "generations": generations,
        "objective": {"kind": "contrast", "prompts": 1},
    }
    sweep = population(tmp_path, scheduler=scheduler)
    first, second = expand(sweep).trials
    assert first.params == {
        RATE: 3e-3,
        RANK: 2,
        "training.history": "learning rate 0.001 to step 50; learning rate 0.002 to step 100",
    }
    assert second.params["training.history"] == "learning rate 0.001 to step 50"
    assert second.spec.training.learning_rate == 2e-3
    plan = expand(sweep)
    one, other = plan.runs[first.run_id], plan.runs[second.run_id]
    assert one.parent == other.run_id and plan.runs[str(other.parent)].training.learning_rate == 1e-3
    assert (one.start, other.start) == (100, 50)  # one goes on from where the other was, which goes on too
    assert other.snapshots == (100, 200)
    assert ancestry(sweep.scheduler.generations, 0) == [0, 1, 0, 0]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"search": {"kind": "optuna", "trials": 4}}, "optuna asks for points; use another search"),
    ({"axes": {RATE: [1e-3]}, "search": {"kind": "grid"}}, "needs two members or more"),
    ({"axes": {RANK: [2, 4]}, "search": {"kind": "grid"}}, f"has nothing to change: .*{RATE}.*{DECAY}"),
    ({"axes": {**AXES, "training.steps": [100, 200]}}, "axes.training.steps: a population"),
    ({"training__steps": 120}, "every: 50 does not divide training.steps, 120"),
    ({"training__steps": 50}, "every: 50 does not divide training.steps, 50"),
    (
        {"axes": {**AXES, "training.schedule.kind": ["constant", "cosine"]}},
        "under a cosine schedule no run is the beginning of another",
    ),
    (
        {"training__history": [{"until": 20, "noise_offset": 0.1}]},
        "writes training.history itself",
    ),
    (
        {
            "axes": {RATE: [1e-3, 1e-4], RANK: {"values": [2, 4], "when": {RATE: 1e-3}}},
            "search": {"kind": "grid"},
        },
        f"axes.{RANK}.when.{RATE}: a population changes it",
    ),
    (
        {"scheduler": {"kind": "population", "every": 50}},
        "scheduler.objective.prompts: 4 of 1",
    ),
    (
        {"scheduler": {"kind": "population", "every": 50, "objective": {"kind": "validation_loss"}}},
        "needs training.holdout",
    ),
    ({"scheduler": {"kind": "population"}}, r"scheduler\.every is missing"),
    ({"scheduler": {"kind": "population", "every": 50, "quantile": 0.6}}, "quantile: 0.6 .* ≤ 0.5"),
]


@pytest.mark.parametrize(("given", "message"), FAULTS, ids=range(len(FAULTS)))
def test_what_cannot_be_is_said(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        population(tmp_path, **given)
