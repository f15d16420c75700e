"""The card's words follow the numbers, and its sheet shows pairs that nobody picked."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from harness.reporting.export import export_trial
from harness.reporting.export.card import card
from harness.reporting.export.contact_sheet import CAPTION, GAP, HEAD, TILE
from harness.reporting.export.evidence import PAIRS, _spread, gather
from harness.reporting.export.subject import find
from harness.store.workspace import Workspace
from tests.reporting.export.example import COLOURS, finished

MANY = [
    *(
        {"text": f"a {animal} on grass", "split": "dev"}
        for animal in ("cat", "dog", "fox", "lion", "bear", "pig")
    ),
    *(
        {"text": f"a {thing} at night", "split": "test"}
        for thing in ("pear", "lemon", "banana", "rose", "house", "bicycle", "balloon")
    ),
]


def exported(root: Path, gain: float = 1.0, **changes: Any) -> str:
    results = finished(root, gain=gain, **{"prompts": MANY, **changes})
    out = export_trial(results, Workspace(root), "best", folder=root / "out", layout="both")
    return (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("gain", "words"),
    [(1.0, "**This adapter is better than"), (-1.0, "**This adapter is worse than"), (0.0, "is the same as")],
)
def test_the_verdict_is_the_numbers(tmp_path: Path, gain: float, words: str) -> None:
    text = exported(tmp_path, gain)
    assert words in text
    assert "on 7 held-out test prompts" in text


def test_dev_alone_is_said_to_flatter(tmp_path: Path) -> None:
    text = exported(tmp_path, prompts=MANY[:6])
    assert "on 6 dev prompts" in text
    assert "selected on these prompts" in text


def test_every_control_and_metric_has_a_row(tmp_path: Path) -> None:
    text = exported(tmp_path)
    for row in ("clip_score ↑ | `baseline`", "clip_score ↑ | `placebo`", "saturation | `placebo`"):
        assert f"| {row} |" in text


def test_the_front_matter_is_yaml_that_the_hub_reads(tmp_path: Path) -> None:
    prompts = [*MANY, {"text": 'a "goat": on grass', "split": "test"}]
    front = yaml.safe_load(exported(tmp_path, prompts=prompts).split("---\n")[1])
    assert front["instance_prompt"] == "wrong"
    assert "lora" in front["tags"] and front["license"] == "mit"
    assert len(front["widget"]) == 3
    for example in front["widget"]:
        assert (tmp_path / "out" / example["output"]["url"]).is_file()


def test_two_adapters_that_act_are_both_said(tmp_path: Path) -> None:
    other = {"kind": "plain", "prompts": ["a goat on grass"], "count": 2, "steps": 2}
    arms = [
        {"name": "placebo", "negative": "wrong"},
        {
            "name": "wrong_lora",
            "negative": "wrong",
            "adapters": [
                {"branch": "both", "scale": 0.5},
                {"recipe": other, "branch": "both", "scale": 2.0},
            ],
            "merge": {"method": "linear"},
        },
    ]
    text = exported(tmp_path, arms=arms)
    assert (
        "this adapter at scale 0.5 on both guidance branches and another adapter at scale 2 on both guidance "
        "branches, merged by linear"
    ) in text
    assert "On one branch alone" not in text


def test_a_matched_control_is_said_with_its_guidance_and_a_damaged_one_is_no_rival(tmp_path: Path) -> None:
    arms = [
        {"name": "placebo", "negative": "wrong"},
        {"name": "blurred", "negative": "wrong", "post": {"degrade": "blur", "severity": 0.2}},
        {"name": "matched", "negative": "wrong", "match": {"arm": "wrong_lora", "by": "saturation"}},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.5}]},
    ]
    results = finished(tmp_path, arms=arms, prompts=MANY)
    subject = find(results, Workspace(tmp_path), "best")
    evidence = gather(subject)
    assert evidence.controls == ("placebo",) and {c.control for c in evidence.contrasts} == {"placebo"}
    text = card(subject, evidence, files={}, examples=())
    assert "- `matched`: guidance by saturation as of wrong_lora: searched for" in text
    results.sweep["arms"][2]["guidance"] = 2.31
    text = card(subject, evidence, files={}, examples=())
    assert "- `matched`: guidance by saturation as of wrong_lora: 2.31" in text


def test_the_sheet_has_an_arm_in_each_column(tmp_path: Path) -> None:
    exported(tmp_path)
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        for column, arm in enumerate(("baseline", "placebo", "wrong_lora")):
            centre = (GAP + column * (TILE + GAP) + TILE // 2, GAP + HEAD + CAPTION + TILE // 2)
            assert sheet.getpixel(centre) == COLOURS[arm]


def test_the_sheet_goes_from_the_best_pair_to_the_worst(tmp_path: Path) -> None:
    results = finished(tmp_path, prompts=MANY)
    evidence = gather(find(results, Workspace(tmp_path), "best"))
    assert evidence.n_pairs == 14 and len(evidence.pairs) == PAIRS
    gains = [
        pair.shots["wrong_lora"].score - pair.shots["placebo"].score  # type: ignore[union-attr, operator]
        for pair in evidence.pairs
    ]
    assert gains == sorted(gains, reverse=True)
    found = results.pairs(control="placebo", arm="wrong_lora", split="test")
    difference = found.loc[found["metric"] == "clip_score", "difference"].dropna()
    assert gains[0] == pytest.approx(difference.max()) and gains[-1] == pytest.approx(difference.min())


def test_a_lost_image_leaves_an_empty_frame(tmp_path: Path) -> None:
    results = finished(tmp_path)
    for path in results.images.loc[results.images["arm"] == "baseline", "path"]:
        (tmp_path / path).unlink()
    out = export_trial(results, Workspace(tmp_path), "best", folder=tmp_path / "out", layout="both")
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.getpixel((GAP + TILE // 2, GAP + HEAD + CAPTION + TILE // 2)) == (255, 255, 255)


def test_places_are_spread_evenly() -> None:
    assert _spread(0) == []
    assert _spread(3) == [0, 1, 2]
    assert _spread(101) == [0, 20, 40, 60, 80, 100]
