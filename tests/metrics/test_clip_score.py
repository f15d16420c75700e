from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.multimodal.clip_iqa import _clip_iqa_compute

from harness.config.schema.metric import ClipIqaMetric
from harness.metrics.clip_score import ClipIqa, ClipScore
from harness.metrics.encoder import Encoder
from harness.metrics.metric import Batch


def test_cosine_times_100_against_the_own_prompt(encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2)]
    prompts = ["red fox", "cup"]
    found = ClipScore(encoder).measure(Batch(images, prompts))
    cosines = torch.nn.functional.cosine_similarity(
        encoder.embed_images(images), encoder.embed_prompts(prompts)[0]
    )
    assert [one.value for one in found] == pytest.approx((100 * cosines).tolist(), abs=1e-4)
    assert [one.prompt_truncated for one in found] == [False, False]


def test_a_cut_prompt_is_marked(encoder: Encoder) -> None:
    image = Image.new("RGB", (64, 64), "red")
    long = "red fox cup sky " * 5
    found = ClipScore(encoder).measure(Batch([image] * 2, [long, "red"]))
    assert [one.prompt_truncated for one in found] == [True, False]
    assert found[0].value is not None


def test_a_score_that_is_no_number_is_null_with_a_reason(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        encoder, "embed_images", lambda images: torch.full((len(images), encoder.width), torch.nan)
    )
    (found,) = ClipScore(encoder).measure(Batch([Image.new("RGB", (8, 8))], ["red"]))
    assert found.value is None
    assert found.reason == "the score is not a finite number"


def test_clip_iqa_is_torchmetrics_own(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has OpenAI's temperature, 100, for all."""
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "white")]
    pair = ("red fox", "cup sky")
    monkeypatch.setattr(encoder, "logit_scale", 100.0)
    found = [one.value for one in ClipIqa(encoder, pair).measure(Batch(images, ["cup"] * 3))]
    anchors, _ = encoder.embed_prompts(pair)
    theirs = _clip_iqa_compute(encoder.embed_images(images), anchors, ["pair"])
    assert found == pytest.approx(theirs.tolist(), abs=1e-4)
    assert len({round(value, 2) for value in theirs.tolist()}) == 3


def test_the_temperature_is_the_models_own(encoder: Encoder) -> None:
    assert encoder.logit_scale == pytest.approx(encoder._model.logit_scale.exp().item())


@pytest.mark.parametrize(
    ("texts", "pair"),
    [
        ("quality", ("Good photo.", "Bad photo.")),
        ("wrong", ("a good photo", "wrong")),
        (("a", "b"), ("a", "b")),
    ],
)
def test_a_pair_by_name_or_in_own_words(texts: Any, pair: tuple[str, str]) -> None:
    config = ClipIqaMetric(encoder="emoji", texts=texts)
    assert (config.pair, config.higher_is_better) == (pair, True)
    assert ClipIqaMetric(encoder="emoji", texts="contrast").higher_is_better is None
