import numpy as np
import pytest
import torch
from PIL import Image

from harness.metrics.clip_score import ClipScore
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
