"""The contract that every metric keeps, and what the scorer adds to it."""

import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from harness.config.schema.metric import ClipScoreMetric, CommandMetric, ImageStatsMetric, MetricConfig
from harness.metrics import build_metrics
from harness.metrics.aesthetic import Aesthetic, LinearHead
from harness.metrics.clip_score import ClipIqa, ClipScore, Preference
from harness.metrics.command import Command
from harness.metrics.encoder import Encoder
from harness.metrics.image_stats import Guard
from harness.metrics.metric import Metric
from harness.metrics.score import IMAGES_PER_BATCH, Scorer
from harness.results.tables import SCORES, typed
from tests.metrics.tiny import WIDTH

WITH_WEIGHTS = ("clip_score", "aesthetic", "pick_score", "hps_v2", "clip_iqa")
KINDS = (*WITH_WEIGHTS, "command", "saturation", "clipped_pixels", "contrast", "sharpness")
# Seconds an image, in test_legibility; distances between images, in tests/results/test_embeddings.
ELSEWHERE = {"legibility", "drift", "diversity"}
PROGRAM = (
    "import json, sys; from PIL import Image; import numpy\n"
    "for line in sys.stdin: print(numpy.asarray(Image.open(json.loads(line)['image']).convert('RGB')).mean())"
)
READ_THE_PROMPT = ("clip_score", "pick_score", "hps_v2")
MEAN = CommandMetric(
    command=(sys.executable, "-c", PROGRAM), higher_is_better=None, folder=Path(__file__).parent
)
PROMPTS = ("red fox", "cup", "red fox cup sky red fox cup sky", "sky")


def test_every_kind_is_under_contract() -> None:
    union, _ = get_args(MetricConfig)
    declared = {
        kind for config in get_args(union) for kind in get_args(config.model_fields["kind"].annotation)
    }
    assert declared == set(KINDS) | ELSEWHERE


def scores_table(scorer: Scorer, images: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The rows as the engine writes them."""
    rows = [row for of_metric in scorer.score(images, folder) for row in of_metric]
    return typed(pd.DataFrame(rows, columns=SCORES.names), SCORES)


@pytest.fixture(scope="module")
def metrics(encoder: Encoder) -> list[Metric]:
    head = LinearHead(weight_D=torch.linspace(-3, 3, WIDTH).double(), bias=5.0, source="a test")
    guards = (Guard("saturation"), Guard("clipped_pixels"), Guard("contrast"), Guard("sharpness"))
    preferences = (Preference("pick_score", encoder), Preference("hps_v2", encoder))
    iqa = ClipIqa(encoder, ("red fox", "cup"))
    return [ClipScore(encoder), Aesthetic(encoder, head), *preferences, iqa, Command(MEAN), *guards]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """More images than are open at once, of several sizes, two of them unreadable."""
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES_PER_BATCH + 6):
        image = Image.fromarray(rng.integers(0, 256, (64, 48 + number % 3, 3), dtype=np.uint8))
        image.save(folder / f"{number}.png")
        prompt = PROMPTS[number % len(PROMPTS)]
        rows.append({"image_id": f"i{number}", "prompt": prompt, "path": f"{number}.png", "seed": number})
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:2000])
    (folder / "5.png").unlink()
    (folder / "7.png").write_text("not an image")
    return pd.DataFrame(rows), folder


def test_rows_are_the_scores_table(metrics: list[Metric], drawn: tuple[pd.DataFrame, Path]) -> None:
    images, folder = drawn
    scores = scores_table(Scorer(metrics), images, folder)
    assert list(scores.columns) == SCORES.names
    assert scores["image_id"].tolist() == images["image_id"].tolist() * len(KINDS)
    assert scores["metric"].tolist() == [kind for kind in KINDS for _ in range(len(images))]
    of_metric = scores.drop_duplicates("metric").set_index("metric")
    assert of_metric["metric_version"].eq("1").all()
    assert of_metric["weights_hash"].isna().tolist() == [False] * len(WITH_WEIGHTS) + [True] * 5
    reads = scores["metric"].isin(READ_THE_PROMPT)
    cut = scores[reads].set_index(["metric", "image_id"])["prompt_truncated"]
    for kind in READ_THE_PROMPT:
        assert (cut[kind, "i0"], cut[kind, "i2"]) == (False, True)
    assert scores.loc[~reads, "prompt_truncated"].isna().all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unreadable_image_is_null_with_a_reason_and_harms_no_other(
    metrics: list[Metric], drawn: tuple[pd.DataFrame, Path], kind: str
) -> None:
    images, folder = drawn
    scores = scores_table(Scorer(metrics), images, folder)
    scores = scores[scores["metric"] == kind].set_index("image_id")
    bad = scores[scores["value"].isna()]
    assert list(bad.index) == ["i3", "i5", "i7"]
    assert bad["reason"]["i5"] == "the image cannot be read: No such file or directory"
    assert bad["reason"]["i7"] == "the image cannot be read: not an image"
    assert bad["reason"]["i3"].startswith("the image cannot be read: ")
    assert not bad["reason"].str.contains(str(folder), regex=False).any()
    good = scores.drop(index=bad.index)
    assert np.isfinite(good["value"].to_numpy()).all()
    assert good["reason"].isna().all()


def test_order_and_size_of_the_batch_do_not_matter(
    metrics: list[Metric], drawn: tuple[pd.DataFrame, Path]
) -> None:
    images, folder = drawn
    scorer = Scorer(metrics)
    together = scores_table(scorer, images, folder)
    backwards = scores_table(scorer, images.iloc[::-1], folder)
    alone = pd.concat([scores_table(scorer, images.iloc[[row]], folder) for row in range(len(images))])
    by = ["image_id", "metric"]
    expected = together.sort_values(by, ignore_index=True)
    for other in (backwards, alone):  # to the last bit on a CPU
        pd.testing.assert_frame_equal(other.sort_values(by, ignore_index=True), expected, check_exact=True)


def test_one_pass_feeds_all_metrics_of_an_encoder(
    encoder: Encoder, metrics: list[Metric], drawn: tuple[pd.DataFrame, Path]
) -> None:
    images, folder = drawn
    seen = []
    hook = encoder._model.visual.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    Scorer(metrics).score(images.head(3), folder)
    hook.remove()
    assert sum(seen) == 3


def test_no_images_give_no_rows(metrics: list[Metric], drawn: tuple[pd.DataFrame, Path]) -> None:
    images, folder = drawn
    assert Scorer(metrics).score(images.head(0), folder) == [[] for _ in KINDS]


def test_only_unreadable_images(metrics: list[Metric], drawn: tuple[pd.DataFrame, Path]) -> None:
    images, folder = drawn
    scores = scores_table(Scorer(metrics), images.iloc[[5, 7]], folder)
    assert len(scores) == 2 * len(KINDS) and scores["reason"].notna().all()


def test_built_from_specs_with_each_encoder_once(clip_folder: Path, drawn: tuple[pd.DataFrame, Path]) -> None:
    images, folder = drawn
    clip = ClipScoreMetric(encoder=f"local-dir:{clip_folder}")
    scorer = build_metrics([clip, ImageStatsMetric(kind="contrast"), clip], device="cpu")
    first, guard, second = scorer.metrics
    assert isinstance(first, ClipScore)
    assert isinstance(second, ClipScore)
    assert first.encoder is second.encoder
    assert guard.kind == "contrast"
    assert scores_table(scorer, images.head(2), folder)["value"].notna().all()


def test_a_grey_or_transparent_image_is_read_as_rgb(metrics: list[Metric], tmp_path: Path) -> None:
    Image.new("L", (16, 16), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (16, 16), (128, 128, 128, 10)).save(tmp_path / "clear.png")
    images = pd.DataFrame(
        {"image_id": ["a", "b"], "prompt": ["red", "red"], "path": ["grey.png", "clear.png"]}
    )
    scores = scores_table(Scorer(metrics), images, tmp_path)
    scores = scores.pivot(index="image_id", columns="metric", values="value")
    assert np.array_equal(scores.loc["a"], scores.loc["b"])
