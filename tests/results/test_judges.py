"""Whether judges with another network agree, in every case."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.results.headline import verdict
from harness.results.judges import network, second_opinions
from harness.results.study import Study
from tests.reporting.report import example

FINDINGS = {  # of the second judge, as differences: low, high, p
    "better": (0.2, 0.4, 0.001),
    "worse": (-0.4, -0.2, 0.001),
    "undecided": (-0.4, 0.4, 0.5),
}


def judged(study: Study, *, primary: str, second: str) -> str:
    """The sentence where the primary metric and CLIP score, here on another encoder, find this."""
    study.sweep["metrics"][0]["encoder"] = "ViT-H-14/laion2b_s32b_b79k"
    main = study.contrast(study.selected, control=study.control, split=study.split)
    assert main is not None
    changed = {}
    for metric, finding in (("aesthetic", primary), ("clip_score", second)):
        low, high, p = FINDINGS[finding]
        key = (main.trial_id, main.arm, main.control, metric, main.split)
        numbers = replace(study.contrasts[key], difference=(low + high) / 2, low=low, high=high, p=p)
        changed[key] = study.contrasts[key] = replace(numbers, verdict=finding)
    return second_opinions(study, changed[main.trial_id, main.arm, main.control, "aesthetic", main.split])


@pytest.fixture
def fresh(tmp_path: Path) -> Study:
    return Study(example.build(tmp_path, example.config(axes={})))


@pytest.mark.parametrize(
    ("primary", "second", "opinion"),
    [
        ("better", "better", "agree: CLIP score +0.30 [+0.20, +0.40]"),
        ("better", "worse", "the opposite: CLIP score −0.30 [−0.40, −0.20]"),
        ("better", "undecided", "no difference shown: CLIP score"),
        ("worse", "worse", "agree: CLIP score"),
        ("undecided", "better", "better than placebo: CLIP score"),
        ("undecided", "undecided", "no difference shown: CLIP score"),
    ],
)
def test_a_second_judge(fresh: Study, primary: str, second: str, opinion: str) -> None:
    said = judged(fresh, primary=primary, second=second)
    assert said.startswith(f"Judges with another network than emoji: {opinion}")


def test_metrics_on_one_encoder_are_one_judge(fresh: Study) -> None:
    none = "No second judge: no other metric with a better direction has a network other than emoji."
    assert verdict(fresh).facts[-1] == none


def test_a_judge_without_numbers_is_named(fresh: Study) -> None:
    fresh.sweep["metrics"][0]["encoder"] = "ViT-H-14/laion2b_s32b_b79k"
    main = fresh.contrast(fresh.selected, control=fresh.control, split=fresh.split)
    assert main is not None
    key = (main.trial_id, main.arm, main.control, "clip_score", main.split)
    fresh.contrasts[key] = replace(fresh.contrasts[key], difference=None, low=None, high=None, p=None)
    assert second_opinions(fresh, main).endswith("no numbers: CLIP score.")


def test_what_sees_the_images() -> None:
    assert network({"kind": "clip_score", "name": "a", "encoder": "emoji"}) == "emoji"
    assert network({"kind": "pick_score", "name": "a", "weights": "x"}) == "pick_score"
    assert network({"kind": "command", "name": "mine", "command": ["x"]}) == "mine"
