"""Each sentence of the verdict appears when, and only when, the numbers call for it."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.results.claim import compared, tone
from harness.results.contrast import Contrast, Finding
from harness.results.format import signed
from harness.results.headline import HELD_OUT, Verdict, verdict
from harness.results.study import Study
from tests.reporting.report import example

WHERE = f"on {HELD_OUT} prompts, by aesthetic."
ONE_TRIAL: dict[str, Any] = {"axes": {}}


def judge(folder: Path, *, config: dict[str, Any] | None = None, **build: Any) -> tuple[Study, Verdict]:
    study = Study(example.build(folder, example.config(**(config or {})), **build))
    return study, verdict(study)


def said(found: Verdict) -> str:
    return "\n".join([found.headline, *found.facts, *found.cautions])


def test_a_real_effect_is_better_than_each_control(study: Study) -> None:
    found = verdict(study)
    assert found.tone == "better"
    assert found.headline == f"This adapter is better than placebo, baseline and sham, {WHERE}"
    assert found.cautions[0] == (
        "“Better than every control” is not said: the sweep has no control at a guidance that matches the "
        "arm (match)."
    )
    assert [c.control for c in found.contrasts] == ["baseline", "placebo", "sham"]
    assert all(c.split == "test" for c in found.contrasts)


def test_the_facts_are_the_tables_numbers(study: Study) -> None:
    summary = study.results.summary
    main = summary.query(
        "trial_id == @study.selected and control == 'placebo' and metric == 'aesthetic' and split == 'test'"
    ).iloc[0]
    selected, measured, design, guidance, shrinkage, _ = verdict(study).facts
    assert study.labels[str(study.selected)] in selected and "Of 11 usable trials" in selected
    assert f"+{main['mean_difference']:.2f}" in measured
    assert f"[+{main['ci_low']:.2f}, +{main['ci_high']:.2f}]" in measured
    assert "12 held-out test prompts" in measured and f"({main['n_pairs']} pairs" in measured
    finds = f"12 prompts find a true difference of {main['detectable']:.2f} in 80\u202f% of studies"
    assert design == f"{finds}; less is likely missed."
    none = "not known against placebo, because the sweep has no control like placebo at another guidance"
    assert guidance == f"In guidance units: {none}."
    dev = study.contrast(study.selected, control="placebo", split="dev")
    assert dev is not None and f"from +{dev.difference:.2f} to +{main['mean_difference']:.2f}" in shrinkage


def test_failed_trials_and_lost_scores_are_counted(study: Study) -> None:
    cautions = "\n".join(verdict(study).cautions)
    lost = int(study.results.scores["value"].isna().sum())
    assert lost > 0
    assert "Of 12 trials, 1 failed;" in cautions
    assert f"{lost} of " in cautions


def test_no_effect_is_undecided_with_the_prompts_that_would_decide(tmp_path: Path) -> None:
    _, found = judge(tmp_path, gain=0.0, failed=())
    assert found.tone == "none"
    start = "Undecided: this adapter is not shown to differ from every control"
    assert found.headline == f"{start}, {WHERE}"
    (design,) = [fact for fact in found.facts if "would show" in fact]
    assert (
        "less is likely missed. About " in design and "prompts would show a difference of the size" in design
    )


def test_a_harmful_adapter_is_worse(tmp_path: Path) -> None:
    _, found = judge(tmp_path, config=ONE_TRIAL, gain=-4.0, failed=())
    assert found.tone == "worse"
    assert found.headline == f"This adapter is worse than every control, {WHERE}"
    assert "nothing was selected" in found.facts[0]


def test_a_sham_as_good_as_the_adapter_explains_the_gain(tmp_path: Path) -> None:
    _, found = judge(tmp_path, config=ONE_TRIAL, gain=3.0, sham=0.8, failed=())
    assert found.tone == "better"
    assert "but not shown to beat sham" in found.headline
    (explained,) = [text for text in found.cautions if "not shown to beat sham" in text]
    assert "cannot be put down to the bad images" in explained
    assert re.search(r"; by itself \+\S+ \[.*\], p.* from placebo\)", explained)
    assert "trained in the same way on clean images" in explained


def without(study: Study, *controls: str, **arm: Any) -> Study:
    """The study as it would be without these controls, its own arm changed."""
    arms = [
        {**a, **arm} if a["name"] == "wrong_lora" else a
        for a in study.sweep["arms"]
        if a["name"] not in controls
    ]
    tables = {
        name: table[~table[column].isin(controls)]
        for name, column in (("arms", "arm"), ("summary", "control"))
        for table in [getattr(study.results, name)]
    }
    return Study(replace(study.results, sweep={**study.sweep, "arms": arms}, **tables))


def with_matched(study: Study) -> Study:
    """The study as it would be were its sham a control at a guidance that matches the arm."""
    match = {"arm": "wrong_lora", "by": "saturation"}
    arms = [{**a, "match": match} if a["name"] == "sham" else a for a in study.sweep["arms"]]
    return Study(replace(study.results, sweep={**study.sweep, "arms": arms}))


def test_every_control_includes_one_at_a_matched_guidance(study: Study) -> None:
    found = verdict(with_matched(study))
    assert found.headline == f"This adapter is better than every control, {WHERE}"
    assert not any("is not said" in text for text in found.cautions)


def test_a_matched_control_as_good_as_the_adapter_explains_the_gain(tmp_path: Path) -> None:
    study, _ = judge(tmp_path, config=ONE_TRIAL, gain=3.0, sham=0.8, failed=())
    (text,) = [line for line in verdict(with_matched(study)).cautions if "not shown to beat sham" in line]
    assert "guidance alone, as high as gives its images the arm's statistic, does the same" in text


def test_a_gain_needs_a_baseline_and_a_placebo(study: Study) -> None:
    found = verdict(without(study, "baseline"))
    lacks = "but the sweep has no baseline (no negative prompt, no adapter)"
    assert found.headline == f"Undecided: this adapter is better than placebo and sham, {lacks}, {WHERE}"
    assert found.tone == "none"
    assert "controls: minimal" in found.cautions[0]


def test_a_gain_at_another_guidance_is_not_one_over_every_control(study: Study) -> None:
    found = verdict(without(study, guidance=3.0))
    assert found.tone == "none"
    assert found.headline == (
        "Undecided: this adapter is better than placebo, baseline and sham (placebo differs: guidance 5, "
        f"not 3), but the sweep has no placebo at the arm's own guidance, {WHERE}"
    )


@pytest.mark.parametrize(("damage", "found"), [(-3.0, True), (0.0, False)])
def test_a_known_damage_tries_the_metric_and_explains_no_gain(
    tmp_path: Path, damage: float, found: bool
) -> None:
    """Of a sweep whose sham were the placebo, blurred."""
    study, _ = judge(tmp_path, config=ONE_TRIAL, gain=3.0, sham=damage, failed=())
    blurred = {"adapters": [], "post": {"degrade": "blur", "severity": 0.2}}
    arms = [{**a, **blurred} if a["name"] == "sham" else a for a in study.sweep["arms"]]
    study = Study(replace(study.results, sweep={**study.sweep, "arms": arms}))
    answer = verdict(study)
    assert [c.control for c in answer.contrasts] == ["baseline", "placebo"]
    assert answer.headline == f"This adapter is better than placebo and baseline, {WHERE}"
    (c,) = [c for c in study.between_controls if (c.arm, c.control) == ("sham", "placebo")]
    said_of_it = f"sham (blur 0.2): sham − placebo = {signed(c.difference, study.decimals['aesthetic'])} ["
    lines = answer.facts if found else answer.cautions
    start = "The metric finds a known damage, " if found else "The metric does not find a known damage, "
    assert any(line.startswith(f"{start}{said_of_it}") for line in lines)
    assert sum("known damage" in line for line in (*answer.facts, *answer.cautions)) == 1


@pytest.mark.parametrize(("sham", "reached"), [(4.0, True), (0.1, False)])
def test_a_difference_is_said_in_units_of_guidance(tmp_path: Path, sham: float, reached: bool) -> None:
    """Of a sweep whose sham were the placebo at guidance 7 instead of 5."""
    study, _ = judge(tmp_path, config=ONE_TRIAL, gain=3.0, sham=sham, failed=())
    rung = {"adapters": [], "guidance": 7.0}
    arms = [{**a, **rung} if a["name"] == "sham" else a for a in study.sweep["arms"]]
    study = Study(replace(study.results, sweep={**study.sweep, "arms": arms}))
    placebo, at_7 = (study.contrast(study.selected, control=c, split="test") for c in ("placebo", "sham"))
    assert placebo is not None and at_7 is not None and placebo.difference is not None
    (line,) = [fact for fact in verdict(study).facts if fact.startswith("In guidance units")]
    if reached:
        share = placebo.difference / (at_7.mean_control - placebo.mean_control)  # type: ignore[operator]
        assert f"against placebo is what guidance 5 to {5 + 2 * share:.2f} makes of it" in line
        assert "against baseline" not in line, "it has no rungs"
    else:
        assert line.endswith("because no guidance from 5 to 7 makes such a difference from placebo.")


def test_controls_are_compared_with_each_other(study: Study) -> None:
    found = {(c.arm, c.control): c for c in study.between_controls}
    assert list(found) == [("baseline", "placebo"), ("sham", "placebo"), ("sham", "baseline")]
    assert {c.split for c in found.values()} == {"test"} and {c.metric for c in found.values()} == {
        "aesthetic"
    }
    for c in found.values():
        assert c.low is not None and c.high is not None and c.p is not None and c.n_prompts == 12
    pairs = study.results.pairs(control="placebo", arm="sham", split="test")
    pairs = pairs[(pairs["metric"] == "aesthetic") & (pairs["trial_id"] == study.selected)]
    expected = pairs.groupby("prompt_id")["difference"].mean().mean()
    assert found["sham", "placebo"].difference == pytest.approx(expected)


def test_a_sweep_without_test_prompts_is_exploratory(tmp_path: Path) -> None:
    study, found = judge(tmp_path, config={"test_share": 0.0}, gain=0.8)
    assert study.split == "dev"
    assert found.headline.startswith("Exploratory: this adapter is better than")
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
    assert line in found.cautions[-1]


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
    difference=0.2, low=0.1, high=0.3, confidence=0.95, p=0.01, p_raw=0.01, family=1, win_rate=0.7,
    mean_arm=1.0, mean_control=0.8, higher_is_better=True, verdict="better", verdict_reason=None, margin=None,
    detectable=0.2, prompts_to_decide=None, skewness=0.0, reason=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, None),
        ({"low": -0.1}, "the sign-flip test shows a difference and the interval does not"),
        ({"p": 0.12, "family": 48}, "p is 0.010 by itself, 0.12 among 48 comparisons"),
        ({"p": 0.06, "p_raw": 0.06}, "the interval shows a difference and the sign-flip test does not"),
        ({"n_missing": 2}, "does not hold whatever the 2 lost pairs would have shown"),
        ({"p": 0.4, "low": -0.1}, None),
        ({"verdict_reason": "11 % of the pairs are lost: more than 10 %"}, "11 % of the pairs are lost: more "
         "than 10 %"),
        ({"difference": None, "reason": "no pairs"}, "no pairs"),
    ],
)  # fmt: skip
def test_a_row_says_what_its_numbers_do_not(changes: dict[str, Any], note: str | None) -> None:
    verdict = "better" if not changes else "undecided"
    assert replace(CONTRAST, verdict=verdict, **changes).note == note


FINDINGS: tuple[Finding, ...] = ("better", "worse", "equivalent", "undecided", "missing")


def combinations(controls: int) -> Iterator[tuple[Finding, ...]]:
    """Every combination of findings; the arm is measured against the first control."""
    return itertools.product(FINDINGS[:4], *[FINDINGS] * (controls - 1))


NAMED = {
    "better": "better than",
    "worse": "worse than",
    "equivalent": "equivalent to",
    "undecided": "not shown to",
    "missing": "not compared with",
}


def test_every_control_is_named_as_what_it_was_found_to_be() -> None:
    for found in itertools.chain(*(combinations(controls) for controls in (1, 2, 3, 4))):
        check_named(found)


def check_named(found: tuple[Finding, ...]) -> None:
    contrasts = [
        replace(CONTRAST, control=f"control{place}", verdict=None if f == "missing" else f, margin=0.1,
                difference=None if f == "missing" else -0.2 if f == "worse" else 0.2)
        for place, f in enumerate(found)
    ]  # fmt: skip
    main = contrasts[0]
    said = compared(main, contrasts, 2)
    every = len(contrasts) > 1 and len({c.finding for c in contrasts}) == 1
    assert said.startswith(NAMED[main.finding])
    for c in contrasts:
        clauses = [part for part in re.split(f"(?={'|'.join(NAMED.values())})", said) if part]
        (clause,) = [part for part in clauses if c.control in part or every]
        assert clause.startswith(NAMED[c.finding])
    beaten = any(c.finding == "worse" for c in contrasts)
    assert (tone(main, contrasts) == "better") == (main.finding == "better" and not beaten)
    assert (tone(main, contrasts) == "worse") == (main.finding == "worse")


def test_no_gain_where_none_is_shown_and_few_cautions(study: Study) -> None:
    for found in itertools.product(FINDINGS[:4], repeat=len(study.controls)):
        check_said(study, found)


def check_said(study: Study, found: tuple[Finding, ...]) -> None:
    """All that the example's verdict says, had its test contrasts come out otherwise."""
    rows = study.results.summary.copy()
    for control, finding in zip(study.controls, found, strict=True):
        here = (rows["split"] == "test") & (rows["metric"] == "aesthetic") & (rows["control"] == control)
        rows.loc[here, "verdict"] = finding
    answer = verdict(Study(replace(study.results, summary=rows)))
    main = found[study.controls.index("placebo")]
    if main != "better":
        assert not re.search(r"\bgain", said(answer))
    gain = main == "better" == found[study.controls.index("baseline")]
    assert (answer.tone == "better") == (gain and "worse" not in found)
    assert answer.headline.startswith("Undecided: ") == (
        main == "undecided" or (main == "better" and not gain)
    )
    assert len(answer.cautions) <= 6
    bullets = [caution for caution in answer.cautions if "placebo (" in caution]
    assert not bullets, "the main control has no bullet of its own"
    for control, finding in zip(study.controls, found, strict=True):
        if finding == "worse" and control != "placebo":
            assert any(control in c and f"better than {study.arm}" in c for c in answer.cautions)
