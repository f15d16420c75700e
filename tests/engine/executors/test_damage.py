"""A file of the store that is no longer what was written is found when it is used, and made again."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
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
        assert damaged, pattern
        for file in damaged:
            damage(file)
    again = carry_out(plan, root, "local")
    assert not [outcome for outcome in again.outcomes if outcome.failed]
    assert {row["what"] for row in again.results.sweep["events"]} <= {"made again"}
    for path, expected in again.results.images[["path", "sha256"]].astype(str).to_numpy():
        assert hashlib.sha256((root / path).read_bytes()).hexdigest() == expected
    assert not carry_out(plan, root, "local").outcomes
    return again.results


def assert_equal(these: Results, those: Results) -> None:
    """The same trials, images, scores and verdicts, on dev and on test."""
    assert_same(these, those)
    for name, keys in (
        ("trials", ["trial_id", "status", "selected"]),
        ("images", ["image_id", "split", "arm", "trial_id", "latent_hash"]),
        ("scores", ["image_id", "metric", "reason"]),
        ("summary", ["trial_id", "arm", "control", "metric", "split", "n_pairs", "n_missing", "reason"]),
    ):
        both = [getattr(r, name)[keys].sort_values(keys, ignore_index=True) for r in (these, those)]
        pd.testing.assert_frame_equal(*both)
    assert {"dev", "test"} == set(these.images["split"])


KINDS = {
    "images": (flip, ("images/*/*/*.png", "datasets/*/images/*.png")),
    "tables of images": (flip, ("images/*/*/images.parquet", "adapters/*/*/training_state.json")),
    "scores": (flip, ("scores/*/*/scores.parquet", "texts/*/*/*.safetensors", "latents/*/*/*.safetensors")),
    "states": (flip, ("adapters/*/steps-000004/training_state.safetensors", "sweeps/small/[a-z]*.*")),
    "adapters": (truncate, ("adapters/*/steps-*/*lora*.safetensors", "datasets/*/metadata.jsonl")),
    "manifests": (flip, ("images/*/*/manifest.json", "scores/*/*/manifest.json", "datasets/*/manifest.json")),
    "other manifests": (flip, ("adapters/*/*/manifest.json", "t*/*/*/manifest.json", "l*/*/*/manifest.json")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_to_damage(
    kind: str,
    plans: list[Plan],
    store: tuple[Path, Results],
    undamaged: Results,
    tmp_path: Path,
    one_thread: None,
) -> None:
    damage, patterns = KINDS[kind]
    assert_equal(after_damage(damage, patterns, store[0], plans[1], tmp_path / "w"), undamaged)


def test_the_same_sweep_again(
    plans: list[Plan], store: tuple[Path, Results], tmp_path: Path, one_thread: None
) -> None:
    patterns = ("images/*/*/images.parquet", "scores/*/*/manifest.json", "sweeps/small/*.parquet")
    assert_equal(after_damage(truncate, patterns, store[0], plans[0], tmp_path / "w"), store[1])
