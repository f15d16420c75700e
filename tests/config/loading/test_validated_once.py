"""A sweep is validated once, and so is each of its trials, on the way from its file to its plan."""

from pathlib import Path
from typing import Any

import pytest

from harness.config.loading.load import load_plan
from harness.config.plan.plan import expand
from harness.config.schema.base import Frozen
from harness.config.schema.sweep import SweepConfig, TrialConfig
from harness.errors import ConfigError
from tests.config.example import load

QUICKSTART = Path(__file__).parents[3] / "sweeps" / "quickstart.yaml"


class Counted:
    """A specification's own validator that counts its calls."""

    def __init__(self, specification: type[Frozen]) -> None:
        self.validator = specification.__pydantic_validator__
        self.calls = 0

    def validate_python(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.validator.validate_python(*args, **kwargs)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted(SweepConfig)
    monkeypatch.setattr(SweepConfig, "__pydantic_validator__", counted)
    return counted


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted(TrialConfig)
    monkeypatch.setattr(TrialConfig, "__pydantic_validator__", counted)
    return counted


def test_the_sweep_and_each_trial_once(sweeps: Counted, trials: Counted) -> None:
    plan = load_plan(QUICKSTART)
    assert sweeps.calls == 1
    shams = len(plan.trials)  # the training of the sham arm, which takes its settings from the trial
    assert trials.calls == len(plan.trials) + shams == 16


def test_a_conditional_axis_repeats_no_trial(tmp_path: Path, trials: Counted) -> None:
    axes = {
        "adapter.kind": ["lora", "dora"],
        "adapter.rank": {"values": [2.0, 8.0], "when": {"adapter.kind": "dora"}},
    }
    arms = [{"name": "placebo"}, {"name": "lora", "adapters": [{}]}]
    load(tmp_path, axes=axes, arms=arms)
    assert trials.calls == 3


def test_the_plan_of_the_file_is_the_plan_of_the_sweep() -> None:
    plan = load_plan(QUICKSTART)
    again = expand(SweepConfig.model_validate(plan.sweep.model_dump(mode="json")))
    assert again == plan


def test_a_plan_with_more_points_validates_the_new_ones(tmp_path: Path, trials: Counted) -> None:
    sweep = load(tmp_path, search={"kind": "optuna", "trials": 4})
    points = [{"adapter.rank": rank, "training.steps": steps} for rank in (2, 8) for steps in (100, 200)]
    rounds = [
        sweep.model_copy(update={"search": sweep.search.model_copy(update={"points": tuple(points[:end])})})
        for end in (2, 4)
    ]
    plan = expand(rounds[0])
    trials.calls = 0
    more = expand(rounds[1], plan.points)
    assert trials.calls == 2
    assert more == expand(rounds[1])


def test_a_fault_of_the_text_is_told_before_one_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"axes\.adapter\.rank\[1\]: 0 is not allowed"):
        load(tmp_path, recipe={"kind": "folder", "path": "nowhere"}, axes={"adapter.rank": [4, 0]})
