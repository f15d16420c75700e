"""Trainings that changed on the way: what may change, what each goes on from, and who shares it."""

from pathlib import Path
from typing import Any

import pytest

from harness.errors import SpecError
from harness.spec.expand import Plan, TrainingRun, expand
from harness.spec.history import PLACES, beginning, phases, settings_of, told
from harness.spec.training import Phase, TrainingSpec
from tests.spec.example import load

RATE = "training.learning_rate"


def training(history: list[dict[str, Any]], **values: Any) -> TrainingSpec:
    return TrainingSpec(**{"learning_rate": 1e-4, "history": history, **values})


def plan(folder: Path, **changes: Any) -> Plan:
    return expand(load(folder, **{"axes": {RATE: [1e-4]}, **changes}))


def run_of(plan: Plan, trial: int) -> TrainingRun:
    return plan.runs[plan.trials[trial].run_id]


def test_what_may_change_are_fields_of_the_training() -> None:
    now = settings_of(TrainingSpec())
    assert now["weight_decay"] == TrainingSpec().optimizer.weight_decay
    assert set(now) == set(PLACES) == set(Phase.model_fields) - {"until"}


def test_a_beginning_has_the_values_of_its_last_phase_and_the_history_before() -> None:
    spec = training(
        [{"until": 50, "learning_rate": 1e-2}, {"until": 80, "weight_decay": 0.1, "min_snr_gamma": 5}],
        max_grad_norm=0.5,
    )
    before = beginning(spec)
    assert before is not None and before.steps == 80
    assert (before.learning_rate, before.optimizer.weight_decay, before.min_snr_gamma) == (1e-4, 0.1, 5)
    assert before.max_grad_norm == 0.5
    (first,) = before.history  # told against the values of its own: there the decay was as it is now
    assert (first.until, first.learning_rate, first.weight_decay, first.min_snr_gamma) == (
        50, 1e-2, 0.01, None,
    )  # fmt: skip
    begun = beginning(before)
    assert begun is not None
    assert (begun.steps, begun.learning_rate, begun.history) == (50, 1e-2, ())
    assert settings_of(begun) == {**settings_of(spec), "learning_rate": 1e-2}
    assert beginning(begun) is None


def test_phases_are_where_something_changes() -> None:
    high, low = {"learning_rate": 1e-2, "noise_offset": 0.0}, {"learning_rate": 1e-4, "noise_offset": 0.0}
    assert phases([(50, high), (100, high), (150, low)], low) == (Phase(until=100, learning_rate=1e-2),)
    assert phases([(50, low), (100, high)], low) == (Phase(until=50), Phase(until=100, learning_rate=1e-2))
    assert phases([(50, low)], low) == ()


def test_it_is_told_in_a_line() -> None:
    history: list[dict[str, Any]] = [
        {"until": 50, "learning_rate": 1e-2, "min_snr_gamma": None},
        {"until": 80},
    ]
    assert told(training(history, min_snr_gamma=5.0).history) == (
        "learning rate 0.01, min snr gamma none to step 50; as now to step 80"
    )


def test_runs_that_begin_alike_share_the_beginning(tmp_path: Path) -> None:
    found = plan(tmp_path, axes={RATE: [1e-4, 1e-3, 1e-2]})
    history = [{"until": 50, "learning_rate": 1e-2}]
    rows = plan(tmp_path, axes={RATE: [1e-4, 1e-3]}, training__history=history)
    shared = run_of(rows, 0).parent
    assert shared is not None and shared == run_of(rows, 1).parent == run_of(found, 2).run_id
    assert rows.runs[shared].snapshots == (50,) and not rows.draws_of_run(shared)
    assert (run_of(rows, 0).start, run_of(rows, 0).own_steps) == (50, 150)
    assert len({trial.run_id for trial in rows.trials}) == 2
    assert not {trial.run_id for trial in rows.trials} & set(found.runs)  # another run than without history
    own = {run.run_id for run in rows.runs.values()} - {shared}
    assert list(rows.runs).index(shared) < min(list(rows.runs).index(run_id) for run_id in own)


def test_a_sham_is_trained_as_the_trial_is(tmp_path: Path) -> None:
    rows = plan(tmp_path, training__history=[{"until": 50, "learning_rate": 1e-2}])
    sham = next(draw for draw in rows.draws.values() if draw.arm == "sham")
    run = rows.runs[str(sham.adapters[0].run_id)]
    assert run.start == 50 and run.parent in rows.runs


def test_a_history_can_be_an_axis(tmp_path: Path) -> None:
    rows = plan(tmp_path, axes={"training.history": [[], [{"until": 50, "learning_rate": 1e-2}]]})
    assert [trial.params for trial in rows.trials] == [
        {"training.history": None},
        {"training.history": "learning rate 0.01 to step 50"},
    ]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"history": [{"until": 200}]}, r"history\[0\]\.until: 200 must be below training\.steps, 200"),
    (
        {"history": [{"until": 80, "learning_rate": 1}, {"until": 80}]},
        r"history\[0\]\.until: 80 must be below history\[1\]\.until, 80",
    ),
    ({"history": [{"until": 50}]}, r"history\[0\]: nothing changes after step 50"),
    (
        {"history": [{"until": 50, "learning_rate": 1}, {"until": 60, "learning_rate": 1}]},
        r"history\[0\]: nothing changes after step 50",
    ),
    (
        {"history": [{"until": 50, "noise_offset": 0.1, "max_grad_norm": 1}]},
        r"history\[0\]\.max_grad_norm: is what training\.max_grad_norm is",
    ),
    (
        {"history": [{"until": 50, "learning_rate": 1}], "schedule": {"kind": "cosine"}},
        "under a cosine schedule",
    ),
    ({"history": [{"until": 50, "batch_size": 1}]}, r"history\[0\]\.batch_size is not known; .*noise_offset"),
    ({"history": [{"until": 50, "learning_rate": 0}]}, r"learning_rate: 0 is not allowed: must be > 0"),
    ({"history": [{"learning_rate": 1}]}, r"history\[0\]\.until is missing"),
    (
        {"history": [{"until": 50, "text_encoder_learning_rate": 1}]},
        r"up to step 50: training\.text_encoder_learning_rate is not used",
    ),
    (
        {"history": [{"until": 50, "lora_plus_ratio": 4}], "optimizer": {"kind": "prodigy"}},
        "up to step 50: .*prodigy has one rate",
    ),
]


@pytest.mark.parametrize(("given", "message"), FAULTS, ids=range(len(FAULTS)))
def test_what_cannot_be_is_said(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        load(tmp_path, axes={"adapter.rank": [2, 8]}, training=given)
