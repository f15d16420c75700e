"""The grid as a picture: the right images and numbers at the right places, and what is in it said."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.errors import ConfigError
from harness.reporting.report.sheet import GAP, LABEL, LINE, Sheet, View, draw_grid
from harness.results.study import Study
from harness.store.workspace import Workspace
from tests.cli.command import harness
from tests.reporting.report import example

HELD = {"prompt": "a fox on a beach", "seed": "0"}


def view(**changes: object) -> View:
    fields = {
        "x": "training.steps",
        "y": "recipe",
        "at": {**HELD, "adapter.rank": "16"},
        "size": 64,
        **changes,
    }
    return View(**fields)  # type: ignore[arg-type]


def test_a_cell_is_the_image_of_its_trial_and_its_difference_that_of_the_pair(study: Study) -> None:
    sheet = Sheet(study, view())
    at = {**sheet.home, "training.steps": 100, "recipe": "damaged"}
    cell = sheet.cell(at)
    pairs = study.results.pairs(control="placebo", arm="wrong_lora", split="dev")
    trials = study.results.trials
    trial_id = trials[
        (trials["training.steps"] == 100) & (trials["recipe"] == "damaged") & (trials["adapter.rank"] == 16)
    ]["trial_id"].iloc[0]
    pair = pairs[
        (pairs["trial_id"] == trial_id)
        & (pairs["metric"] == "aesthetic")
        & (pairs["prompt"] == HELD["prompt"])
        & (pairs["seed"] == 0)
    ].iloc[0]
    assert cell.path == pair["path_arm"]
    assert cell.difference == pytest.approx(pair["difference"])
    control = sheet.cell(at, control=True)
    assert control.path == pair["path_control"] and control.difference is None


def test_the_picture_has_the_images_where_they_belong(study: Study, workspace: Path) -> None:
    picture, about = draw_grid(study, Workspace(workspace), view())
    sheet = Sheet(study, view())
    row, column = 1, 2  # damaged, 200 steps; the control stands before the columns
    cell = sheet.cell({**sheet.home, "recipe": "damaged", "training.steps": 200})
    assert cell.path is not None
    x = LABEL + (column + 1) * (64 + GAP)
    y = 3 * LINE + 2 * LINE + GAP + row * (64 + 2 * LINE + GAP)
    drawn = np.asarray(picture.crop((x, y, x + 64, y + 64)))
    assert np.array_equal(drawn, np.asarray(Image.open(workspace / cell.path).convert("RGB")))
    assert about.chunks


def test_a_trial_that_failed_says_why(study: Study) -> None:
    sheet = Sheet(study, view(at={**HELD, "adapter.rank": "rank 4"}))
    cell = sheet.cell({**sheet.home, "recipe": "keywords", "training.steps": 200})
    assert cell.path is None and cell.reason.startswith("trial 2 failed: loss became NaN")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": "adapter.rnak"}, "adapter.rank"),
        ({"metric": "astetic"}, "aesthetic"),
        ({"control": "placbo"}, "placebo"),
        ({"at": {"prompt": "a fox"}}, "a fox on a beach"),
    ],
)
def test_an_unknown_name_is_the_users_error(study: Study, changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match="is not in this sweep") as error:
        Sheet(study, view(**changes))
    assert said in str(error.value) and len(str(error.value)) < 300


def test_arms_and_their_parameters_are_dimensions(tmp_path: Path) -> None:
    arms = example.family("scaled", "scale", (0.5, 1.5), negative="wrong", adapters=[{}])
    sweep = example.config(n_prompts=4, seeds=(0,), axes={"adapter.rank": (4, 16)}, arms=arms)
    study = Study(example.build(tmp_path, sweep, failed=()))
    sheet = Sheet(study, View(x="arm.scale", y="adapter.rank", at={"arm": "scaled"}))
    assert [label for label, _ in sheet.coordinates("arm.scale")] == ["scale 0.5", "scale 1.5"]
    images = study.results.images.set_index("path")["arm"]
    names = [images[str(sheet.cell({**sheet.home, "arm.scale": scale}).path)] for scale in (0.5, 1.5)]
    assert names == ["scaled-scale-0.5", "scaled-scale-1.5"]


def test_the_command_writes_a_png_that_says_what_is_in_it(
    study: Study, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "grid.png"
    folder = workspace / "sweeps" / "example"
    arguments = ["grid", folder, "--x", "arm", "--y", "seed", "--score", "clip_score", "--out", out]
    assert harness(*arguments) == 0
    with Image.open(out) as picture:
        about = json.loads(picture.info["harness"])
    assert (about["x"], about["y"], about["score"]) == ("arm", "seed", "clip_score")
    assert set(about["images"]) <= set(study.results.images["image_id"]) and len(about["images"]) == 2 * 5
