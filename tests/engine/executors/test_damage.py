"""A file of the store that is no longer what was written is found when it is used, and made again."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.results import Results
from tests.engine.executors.carrying import assert_same, carry_out
from tests.sweeps.small import small_plan

pytestmark = pytest.mark.slow

# More steps go on from a checkpoint, a new seed is drawn with the adapters that are there, a new metric looks
# at the images, another rank is trained on the dataset.
EXTENDED = {
    "axes": {"training.steps": [2, 4, 6], "adapter.rank": [2, 3]},
    "seeds": [0, 1, 2],
}
ALONE = {"batch_size": 1, "checkpoint_every": 2, "pack": "off"}  # on any processor the same bytes


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """One bit, where it is easily overlooked: in the middle of the numbers."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory, tiny_config: SdxlModel, tiny_clip: str) -> list[Plan]:
    """A sweep, and the same extended in every way."""
    folder = tmp_path_factory.mktemp("sweeps")
    metrics = [{"kind": "clip_score", "encoder": tiny_clip}, "saturation", "contrast"]
    return [
        small_plan(folder, tiny_config, tiny_clip, compute=ALONE),
        small_plan(folder, tiny_config, tiny_clip, compute=ALONE, **EXTENDED, metrics=metrics),
    ]


@pytest.fixture(scope="module")
def store(plans: list[Plan], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    root = tmp_path_factory.mktemp("store")
    return root, carry_out(plans[0], root, "local").results


@pytest.fixture(scope="module")
def undamaged(
    plans: list[Plan], store: tuple[Path, Results], tmp_path_factory: pytest.TempPathFactory
) -> Results:
    root = tmp_path_factory.mktemp("undamaged") / "w"
    shutil.copytree(store[0], root)
    return carry_out(plans[1], root, "local").results


def after_damage(
    damage: Callable[[Path], None], patterns: Sequence[str], store: Path, plan: Plan, root: Path
) -> Results:
    """Of several kinds at once: what is not found of any of them is another image or another score."""
    shutil.copytree(store, root)
    for pattern in patterns:
        damaged = sorted(root.glob(pattern))
        assert damaged
        for file in damaged:
            damage(file)
    again = carry_out(plan, root, "local")
    assert not [outcome for outcome in again.outcomes if outcome.failed]
    assert [row["what"] for row in again.results.sweep["events"]] == ["made again"]
    for path, expected in again.results.images[["path", "sha256"]].astype(str).to_numpy():
        assert hashlib.sha256((root / path).read_bytes()).hexdigest() == expected
    return of_dev(again.results)


def of_dev(results: Results) -> Results:
    """Without test images: those of a trial that is not selected any more are nobody's to mend."""
    images = results.images[results.images["split"] == "dev"]
    scores = results.scores[results.scores["image_id"].isin(images["image_id"])]
    return replace(results, images=images, scores=scores)


@pytest.mark.parametrize(
    ("damage", "patterns"),
    [
        (truncate, ("datasets/*/**/*.png", "adapters/*/steps-000004/*lora*.safetensors")),
        (flip, ("adapters/*/steps-000004/training_state.safetensors", "images/*/*/*.png")),
    ],
)
def test_what_an_extended_sweep_builds_on(
    damage: Callable[[Path], None],
    patterns: Sequence[str],
    plans: list[Plan],
    store: tuple[Path, Results],
    undamaged: Results,
    tmp_path: Path,
    one_thread: None,
) -> None:
    assert_same(after_damage(damage, patterns, store[0], plans[1], tmp_path / "w"), of_dev(undamaged))


@pytest.mark.parametrize(
    ("damage", "patterns"),
    [
        (flip, ("images/*/*/images.parquet", "scores/*/*/manifest.json", "adapters/*/*/training_state.json")),
        (truncate, ("scores/*/*/scores.parquet", "images/*/*/manifest.json")),
    ],
)
def test_what_the_tables_are_read_from(
    damage: Callable[[Path], None],
    patterns: Sequence[str],
    plans: list[Plan],
    store: tuple[Path, Results],
    tmp_path: Path,
    one_thread: None,
) -> None:
    assert_same(after_damage(damage, patterns, store[0], plans[0], tmp_path / "w"), of_dev(store[1]))
