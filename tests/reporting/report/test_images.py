"""Pairs on the page are chosen by their difference, and the images are the right ones."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from harness.reporting.report.images import image_rows
from harness.reporting.report.thumbnails import BYTES, LARGE, ROWS, Parameters, Thumbnails
from harness.results import Results
from harness.results.study import Study
from harness.store.workspace import Workspace
from tests.reporting.report import example


def thumbnails(results: Results, workspace: Path, spent: int = 0) -> Thumbnails:
    return Thumbnails(Workspace(workspace), list(results.images["path"]), spent=spent)


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_rows_are_best_median_and_worst_by_difference(study: Study, workspace: Path) -> None:
    groups, every = image_rows(study, thumbnails(study.results, workspace))
    pairs = study.results.pairs(control="placebo", arm="wrong_lora", split="test")
    pairs = pairs[(pairs["trial_id"] == study.selected) & (pairs["metric"] == "aesthetic")]
    expected = pairs["difference"].dropna().sort_values(ascending=False).to_list()
    shown = [[row.shots[-1].difference for row in group.rows] for group in groups]
    middle = (len(expected) - 3) // 2
    chosen = [expected[:3], expected[middle : middle + 3], expected[-3:]]
    assert np.allclose(np.array(shown, dtype=float), chosen)
    assert groups[0].title == f"The 3 best of {len(expected)} pairs"
    assert every is not None and len(every.rows) == 24 - 9


def test_small_images_are_embedded_pixel_by_pixel(study: Study, workspace: Path) -> None:
    groups, _ = image_rows(study, thumbnails(study.results, workspace))
    row = groups[0].rows[0]
    images = study.results.images
    own = images[(images["trial_id"] == study.selected) & (images["seed"] == row.seed)]
    path = own.loc[own["prompt"] == row.prompt, "path"].iloc[0]
    thumbnail = row.shots[-1].thumbnail
    assert row.shots[-1].arm == "wrong_lora" and thumbnail is not None and thumbnail.crisp
    assert np.array_equal(pixels(thumbnail.uri), np.asarray(Image.open(workspace / path)))


def test_large_images_become_thumbnails(tmp_path: Path) -> None:
    name = "images/arm/chunk/large.png"
    (tmp_path / name).parent.mkdir(parents=True)
    Image.effect_noise((1024, 768), 60).save(tmp_path / name)
    thumbnail = Thumbnails(Workspace(tmp_path), [name])(name)
    assert thumbnail is not None and not thumbnail.crisp
    assert (thumbnail.width, thumbnail.height) == (LARGE, 192)
    assert pixels(thumbnail.uri).shape == (192, LARGE, 3)


def test_a_image_that_is_gone_or_broken_is_said_so(tmp_path: Path) -> None:
    results = example.build(tmp_path, example.config(axes={}), failed=())
    paths = results.images.loc[results.images["arm"] == "placebo", "path"]
    for path in paths:
        (tmp_path / path).write_bytes(b"not an image")
    shutil.rmtree(
        tmp_path / Path(results.images.loc[results.images["arm"] == "sham", "path"].iloc[-1]).parent
    )
    groups, _ = image_rows(Study(results), thumbnails(results, tmp_path))
    shots = {shot.arm: shot for shot in groups[0].rows[0].shots}
    for arm in ("placebo", "sham"):
        assert shots[arm].thumbnail is None and shots[arm].reason == "the file is gone or unreadable"
    assert shots["baseline"].thumbnail is not None


def test_rows_of_pairs_stop_at_their_bytes(study: Study, workspace: Path) -> None:
    _, every = image_rows(study, thumbnails(study.results, workspace, spent=ROWS + 1))
    assert every is None


def test_an_image_stands_once(study: Study, workspace: Path) -> None:
    every = thumbnails(study.results, workspace)
    path = every.paths[0]
    first, again = every(path), every(path)
    assert first is not None and again is not None
    assert first.uri and not again.uri and first.image == again.image == 0
    rest = every.rest(range(3))
    assert [bool(rest[row].uri) for row in range(3)] == [False, True, True]
    assert every.spent == len(first.uri) + len(rest[1].uri) + len(rest[2].uri)


def test_small_thumbnails_stop_at_the_bytes(study: Study, workspace: Path) -> None:
    assert thumbnails(study.results, workspace, spent=BYTES + 1).rest(range(3)) == {}


def test_parameters_are_templates_by_prompt_and_seed() -> None:
    parameters = Parameters()
    text = "{}, wet\nNegative prompt: wrong\nSteps: 20, Seed: {}, Size: 64x64"
    assert parameters.add(text.format("a fox", 7), "a fox") == (0, "7")
    assert parameters.add(text.format("an owl", 12), "an owl") == (0, "12")
    assert parameters.add("", "an owl") == (-1, "")
    assert parameters.add("made by hand", "an owl") == (1, "")
    assert parameters.templates == [text.format("{prompt}", "{seed}"), "made by hand"]
