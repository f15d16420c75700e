"""Pairs on the page are chosen by their difference, and the images are the right ones."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from harness.reporting.report.images import LONGEST, Thumbnails, image_grid, image_rows
from harness.reporting.report.layout import layout
from harness.results.study import Study
from harness.store.workspace import Workspace
from tests.reporting.report import example


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_rows_are_best_median_and_worst_by_difference(study: Study, workspace: Path) -> None:
    groups, every = image_rows(study, Thumbnails(Workspace(workspace)))
    pairs = study.results.pairs(control="placebo", arm="wrong_lora", split="test")
    pairs = pairs[(pairs["trial_id"] == study.selected) & (pairs["metric"] == "aesthetic")]
    expected = pairs["difference"].dropna().sort_values(ascending=False).to_list()
    shown = [[row.shots[-1].difference for row in group.rows] for group in groups]
    middle = (len(expected) - 3) // 2
    chosen = [expected[:3], expected[middle : middle + 3], expected[-3:]]
    assert np.allclose(np.array(shown, dtype=float), chosen)
    assert groups[0].title == f"The 3 best of {len(expected)} pairs"
    assert every is not None and len(every.rows) == 24


def test_small_images_are_embedded_pixel_by_pixel(study: Study, workspace: Path) -> None:
    groups, _ = image_rows(study, Thumbnails(Workspace(workspace)))
    row = groups[0].rows[0]
    images = study.results.images
    own = images[(images["trial_id"] == study.selected) & (images["seed"] == row.seed)]
    path = own.loc[own["prompt"] == row.prompt, "path"].iloc[0]
    thumbnail = row.shots[-1].thumbnail
    assert row.shots[-1].arm == "wrong_lora" and thumbnail is not None and thumbnail.crisp
    assert np.array_equal(pixels(thumbnail.uri), np.asarray(Image.open(workspace / path)))


def test_large_images_become_thumbnails(tmp_path: Path) -> None:
    Image.effect_noise((1024, 768), 60).save(tmp_path / "large.png")
    thumbnail = Thumbnails(Workspace(tmp_path))("large.png")
    assert thumbnail is not None and not thumbnail.crisp
    assert (thumbnail.width, thumbnail.height) == (LONGEST, 192)
    assert pixels(thumbnail.uri).shape == (192, LONGEST, 3)


def test_a_image_that_is_gone_or_broken_is_said_so(tmp_path: Path) -> None:
    results = example.build(tmp_path, example.config(axes={}), failed=())
    paths = results.images.loc[results.images["arm"] == "placebo", "path"]
    for path in paths:
        (tmp_path / path).write_bytes(b"not an image")
    shutil.rmtree(
        tmp_path / Path(results.images.loc[results.images["arm"] == "sham", "path"].iloc[-1]).parent
    )
    groups, _ = image_rows(Study(results), Thumbnails(Workspace(tmp_path)))
    shots = {shot.arm: shot for shot in groups[0].rows[0].shots}
    for arm in ("placebo", "sham"):
        assert shots[arm].thumbnail is None and shots[arm].reason == "the file is gone or unreadable"
    assert shots["baseline"].thumbnail is not None


def test_all_pairs_stop_at_the_budget(study: Study, workspace: Path) -> None:
    _, every = image_rows(study, Thumbnails(Workspace(workspace), spent=10_000_000))
    assert every is None


def test_the_grid_shows_one_pair_in_every_trial_that_has_it(study: Study, workspace: Path) -> None:
    grid = image_grid(study, layout(study), Thumbnails(Workspace(workspace)))
    assert grid is not None
    drawn = {trial_id for trial_id, shot in grid.shots.items() if shot.thumbnail is not None}
    completed = study.results.trials.query("status == 'completed'")["trial_id"]
    assert drawn == set(completed)
    pairs = study.results.pairs(control="placebo", arm="wrong_lora", split="dev")
    pairs = pairs.query("metric == 'aesthetic' and prompt == @grid.prompt and seed == @grid.seed")
    for trial_id, difference in zip(pairs["trial_id"], pairs["difference"], strict=True):
        shown = grid.shots[trial_id].difference
        assert shown is None or np.isclose(shown, difference)
