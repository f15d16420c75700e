"""Arms of one family make a curve, and many arms leave room on the page."""

from pathlib import Path

import pytest

from harness.reporting.report.figures.curves import family_curves
from harness.reporting.report.figures.effects import MOST_ROWS, forest, forest_hidden
from harness.reporting.report.images import family_row
from harness.reporting.report.layout import MOST_SHOWN, families, matched_control, shown_arms
from harness.reporting.report.page import render
from harness.reporting.report.provenance import arm_rows, other_adapters
from harness.reporting.report.thumbnails import Thumbnails
from harness.results import Results
from harness.results.headline import verdict
from harness.results.study import Study
from harness.store.workspace import Workspace
from tests.reporting.report import example
from tests.reporting.report.test_figures import words

OWN = {"negative": "wrong", "adapters": [{}]}
FOLDER = {"kind": "folder", "name": "ogre", "path": "/pictures/ogre", "digest": "cafe" * 16, "count": 6}
SUBJECT = {
    "recipe": FOLDER,
    "adapter": {"kind": "lora", "rank": 4},
    "training": {"prompt": "an ogre", "steps": 300},
    "branch": "both",
}
KEYWORDS = {"kind": "keywords", "name": "keywords", "keywords": ["blurry", "noisy"], "guidance": [8, 9]}
ARMS = [
    *example.family("placebo_at", "guidance", (3, 9), negative="wrong"),
    *example.family("scaled", "scale", (0.5, 2), **OWN),
    *example.family("guided", "guidance", (3, 9), **OWN),
    {"name": "subject", "negative": "wrong", "adapters": [SUBJECT]},
    {"name": "alone", "negative": "wrong", "adapters": [{"recipe": KEYWORDS}]},
    {
        "name": "merged",
        "negative": "wrong",
        "adapters": [SUBJECT, {"branch": "both"}],
        "merge": {"method": "ties", "density": 0.5},
    },
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def many(folder: Path) -> Results:
    """Two checkpoints of one run, 13 arms; the arm of scale 2 is truly best."""
    axes = {"training.steps": [50, 200]}
    sweep = example.config(axes=axes, arms=ARMS, n_prompts=12, seeds=(0,))
    return example.build(folder, sweep, gain=3.0, failed=())


@pytest.fixture(scope="module")
def wide(many: Results) -> Study:
    return Study(many)


def test_a_family_is_in_order_of_its_number(wide: Study) -> None:
    scaled, guided = families(wide)
    assert [(point.x, point.arm) for point in scaled.points] == [
        (0.5, "scaled-scale-0.5"),
        (2.0, "scaled-scale-2"),
    ]
    assert (guided.name, guided.axis) == ("guided", "guidance")


def test_arms_that_differ_in_words_alone_are_no_curve() -> None:
    arms = [
        {
            "name": f"on-{branch}",
            "family": "on",
            "params": {"branch": branch},
            "adapters": [{"branch": branch}],
        }
        for branch in ("negative", "both")
    ]
    assert families(Study(example.outline(example.config(arms=arms)))) == []


def test_a_second_value_makes_a_line_each() -> None:
    arms = [
        {"name": f"g{guidance}-{branch}", "family": "g", "params": {"guidance": guidance, "branch": branch},
         "guidance": guidance, "adapters": [{"branch": branch}]}
        for guidance in (7, 3) for branch in ("negative", "both")
    ]  # fmt: skip
    (family,) = families(Study(example.outline(example.config(arms=arms))))
    assert family.lines == [("branch negative",), ("branch both",)]
    assert [point.x for point in family.points] == [3, 3, 7, 7]


def test_the_curve_says_what_the_tables_say(wide: Study) -> None:
    scaled, guided = family_curves(wide)
    text = words(scaled.figure)
    assert {"0.5", "2", "scale", "aesthetic − placebo"} <= set(text)
    assert {"selected trial, dev", "selected trial, test", "other trials, dev"} <= set(text)
    assert not any("control of equal" in word for word in text)
    assert "control of equal guidance" in words(guided.figure)  # placebo_at has the same guidances


def test_a_control_of_the_same_values_is_matched(wide: Study) -> None:
    assert matched_control(wide, "guided-guidance-9") == "placebo_at-guidance-9"
    assert matched_control(wide, "scaled-scale-2") is None
    assert matched_control(wide, "wrong_lora") is None


def test_rows_of_images_show_one_arm_of_each_family(wide: Study, folder: Path) -> None:
    assert wide.arm == "scaled-scale-2"
    shown = shown_arms(wide)
    assert len(shown) == MOST_SHOWN < len(wide.sweep["arms"])
    assert {"placebo", "scaled-scale-2", "placebo_at-guidance-3"} <= set(shown)
    assert not {"scaled-scale-0.5", "placebo_at-guidance-9"} & set(shown)
    row = family_row(
        wide, families(wide)[0], Thumbnails(Workspace(folder), list(wide.results.images["path"]))
    )
    assert row is not None
    assert [shot.arm for shot in row.shots] == ["placebo", "scaled-scale-0.5", "scaled-scale-2"]


def test_the_effect_plot_stops_and_says_so(wide: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert forest_hidden(wide) == 0 and len(wide.adapter_arms) * 2 <= MOST_ROWS
    monkeypatch.setattr("harness.reporting.report.figures.effects.MOST_ROWS", 5)
    text = words(forest(wide))
    assert sum(word == "n = 6" for word in text) == 6  # five, and the selected on test
    assert forest_hidden(wide) == 2 * len(wide.adapter_arms) - 5


def test_arms_and_merges_are_named(wide: Study) -> None:
    rows = {row["name"]: row["adapters"] for row in arm_rows(wide)}
    assert rows["scaled-scale-2"] == "the trial’s own, scale 2, negative branch"
    assert rows["merged"] == (
        "one trained on ogre (folder), scale 1, both branches; the trial’s own, scale 1, both branches; "
        "merged into one (ties, density 0.5)"
    )
    assert "ogre (folder), images cafecafecafe: lora of rank 4, 300 steps on “an ogre”, seed 0" in (
        other_adapters(wide)
    )
    assert "merged: merged into one (ties, density 0.5)" in other_adapters(wide)


def test_controls_that_hold_a_part_of_the_arm_are_told_apart(wide: Study) -> None:
    merged = Study(wide.results)
    merged.__dict__["arm"] = "merged"
    assert merged.control_kind("subject") == "others"
    assert merged.control_kind("alone") == "alone"
    assert merged.control_kind("sham") == "sham"
    assert wide.control_kind("subject") == "other"  # the headline's arm has no subject
    assert wide.control_kind("sham") == "sham"
    assert wide.differences("sham") == ["scale 1, not 2"] and merged.differences("alone") == []
    assert wide.control_kind("placebo_at-guidance-9") == "guidance"


def test_the_choice_among_arms_is_told(wide: Study) -> None:
    selected = verdict(wide).facts[0]
    assert "200 steps, arm scaled-scale-2. Of 2 usable trials in 6 arms it had" in selected


def test_the_page_has_the_curves(many: Results, folder: Path) -> None:
    page = render(many, Workspace(folder))
    assert "Over the arms’ values" in page and "curve-scaled" in page and "curve-guided" in page
    assert "Of arms that differ in a value alone one is shown; 5 arms are left out here." in page
    assert "Other adapters" in page
