"""Each sentence of the verdict appears when, and only when, the numbers call for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.results.contrast import Contrast, Finding
from harness.results.headline import HELD_OUT, Verdict, verdict
from harness.results.study import Study
from tests.reporting.report import example

ONE_TRIAL: dict[str, Any] = {"axes": {}}


def judge(folder: Path, *, config: dict[str, Any] | None = None, **build: Any) -> tuple[Study, Verdict]:
    study = Study(example.build(folder, example.config(**(config or {})), **build))
    return study, verdict(study)


def said(found: Verdict) -> str:
    return "\n".join([found.headline, *found.facts, *found.cautions])


def test_a_real_effect_is_better_than_every_control(study: Study) -> None:
    found = verdict(study)
    assert found.tone == "better"
    assert found.headline == f"Better than every control on {HELD_OUT} prompts, by aesthetic."
    assert [c.control for c in found.contrasts] == ["baseline", "placebo", "sham"]
    assert all(c.split == "test" for c in found.contrasts)


def test_the_facts_are_the_tables_numbers(study: Study) -> None:
    summary = study.results.summary
    main = summary.query(
        "trial_id == @study.selected and control == 'placebo' and metric == 'aesthetic' and split == 'test'"
    ).iloc[0]
    selected, measured, shrinkage = verdict(study).facts
    assert study.labels[str(study.selected)] in selected and "Of 11 usable trials" in selected
    assert f"+{main['mean_difference']:.2f}" in measured
    assert f"[+{main['ci_low']:.2f}, +{main['ci_high']:.2f}]" in measured
    assert "12 held-out test prompts" in measured and f"({main['n_pairs']} pairs" in measured
    dev = study.contrast(study.selected, control="placebo", split="dev")
    assert dev is not None and f"from +{dev.difference:.2f} to +{main['mean_difference']:.2f}" in shrinkage


def test_failed_trials_and_lost_scores_are_counted(study: Study) -> None:
    cautions = "\n".join(verdict(study).cautions)
    lost = int(study.results.scores["value"].isna().sum())
    assert lost > 0
    assert "Of 12 trials, 1 failed;" in cautions
    assert f"{lost} of " in cautions


def test_no_effect_is_no_difference_shown(tmp_path: Path) -> None:
    _, found = judge(tmp_path, gain=0.0, failed=())
    assert found.tone == "none"
    assert found.headline == f"No difference from placebo shown on {HELD_OUT} prompts, by aesthetic."


def test_a_harmful_adapter_is_worse(tmp_path: Path) -> None:
    _, found = judge(tmp_path, config=ONE_TRIAL, gain=-4.0, failed=())
    assert found.tone == "worse"
    assert found.headline == f"Worse than every control on {HELD_OUT} prompts, by aesthetic."
    assert "nothing was selected" in found.facts[0]


def test_a_sham_as_good_as_the_adapter_explains_the_gain(tmp_path: Path) -> None:
    _, found = judge(tmp_path, config=ONE_TRIAL, gain=3.0, sham=0.8, failed=())
    assert found.tone == "better"
    assert "but not shown to beat sham" in found.headline
    (explained,) = [text for text in found.cautions if "not shown to beat sham" in text]
    assert "cannot be put down to the bad images" in explained
    assert "By itself, sham differs from placebo by +" in explained


def test_a_sweep_without_test_prompts_is_exploratory(tmp_path: Path) -> None:
    study, found = judge(tmp_path, config={"test_share": 0.0}, gain=0.8)
    assert study.split == "dev"
    assert found.headline.startswith("Exploratory: Better than")
    assert "the sweep has no test prompts" in found.cautions[0]


def test_a_gain_that_moves_a_guard_is_said_so(tmp_path: Path, study: Study) -> None:
    _, found = judge(tmp_path, config=ONE_TRIAL, gain=3.0, guard=0.3, failed=())
    assert any("also changed in saturation +0." in text for text in found.cautions)
    assert not any("also changed" in text for text in verdict(study).cautions)


def test_too_few_prompts_to_show_anything(tmp_path: Path) -> None:
    _, found = judge(tmp_path, config={"n_prompts": 10, **ONE_TRIAL}, gain=6.0, failed=())
    assert found.tone == "none"
    assert any("cannot give a p below 0.062" in text for text in found.cautions)


def test_no_completed_trial_gives_no_verdict(tmp_path: Path) -> None:
    study, found = judge(tmp_path, failed=tuple(range(8)))
    assert study.selected is None
    assert found.tone == "missing"
    assert found.headline == "No verdict: none of 8 trials was completed."


def test_stopped_trials_are_told_apart_from_failed_ones(study: Study) -> None:
    trials = study.results.trials
    stopped = trials.assign(status=trials["status"].replace("failed", "stopped"))
    sweep = {**study.sweep, "scheduler": {"kind": "asha"}}
    found = verdict(Study(replace(study.results, trials=stopped, sweep=sweep)))
    line = "Of 12 trials, 1 stopped early by asha; they were not in the running."
    assert line in found.cautions


def test_the_front_of_several_objectives_is_named(study: Study) -> None:
    contrast = {"kind": "contrast", "arm": "wrong_lora", "control": "placebo"}
    objectives = [{**contrast, "metric": metric} for metric in ("aesthetic", "clip_score")]
    for several, named in ((objectives, True), (objectives[:1], False)):
        search = {"kind": "optuna", "trials": 12, "objectives": several}
        searched = Study(replace(study.results, sweep={**study.sweep, "search": search}))
        lines = [line for line in verdict(searched).facts if line.startswith("On the Pareto front")]
        assert bool(lines) == named
        if named:
            assert searched.selected in searched.pareto_front  # it is the best in one of them
            assert len(searched.pareto_front) < 11
            assert searched.labels[searched.selected] in lines[0]


CONTRAST = Contrast(
    trial_id="t", arm="a", control="c", metric="m", split="dev", n_prompts=12, n_pairs=24, n_missing=0,
    difference=0.2, low=0.1, high=0.3, confidence=0.95, p=0.01, p_raw=0.01, win_rate=0.7, mean_arm=1.0,
    mean_control=0.8, higher_is_better=True, reason=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, "better"),
        ({"higher_is_better": False}, "worse"),
        ({"higher_is_better": None}, "higher"),
        ({"difference": -0.2, "low": -0.3, "high": -0.1}, "worse"),
        ({"difference": -0.2, "low": -0.3, "high": -0.1, "higher_is_better": False}, "better"),
        ({"p": 0.2}, "none"),  # the interval alone is not enough
        ({"low": -0.1}, "none"),  # nor is p alone
        ({"low": None, "high": None}, "none"),
        ({"difference": None, "low": None, "high": None, "p": None}, "missing"),
    ],
)
def test_interval_and_test_must_agree(changes: dict[str, Any], finding: Finding) -> None:
    assert replace(CONTRAST, **changes).finding == finding
