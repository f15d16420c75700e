"""The embedded scorer knows a good image from a damaged one, and what an image shows."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageFilter

from harness.config.schema.metric import AestheticMetric, ClipScoreMetric, MetricConfig
from harness.diffusion import models
from harness.metrics import build_metrics, weights

PROMPTS = (
    "a cat on a red background",
    "a strawberry on a white background",
    "a house at sunset",
    "a rose on grass",
)
MODEL = Path(models.__file__).parent / "emoji"


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Images of four prompts: as drawn, blurred, and with the next image's prompt."""
    from harness.config.schema.model import EmojiModel
    from harness.diffusion.models.model import Row, SamplerSettings

    if not (weights.SHIPPED / "emoji" / "clip").is_dir() or not MODEL.is_dir():
        pytest.skip("the embedded weights are not in this checkout (experiments/000_emoji_model makes them)")
    rows = [Row(prompt=prompt, negative="", seed=seed, guidance=5.0) for seed, prompt in enumerate(PROMPTS)]
    model = models.load_model(EmojiModel(), device="cpu")
    drawn = [image.image for image in model.generate(rows, SamplerSettings(steps=20, refiner_start=0.8))]
    folder = tmp_path_factory.mktemp("emoji")
    cases: dict[str, list[Image.Image]] = {
        "drawn": drawn,
        "blurred": [image.filter(ImageFilter.GaussianBlur(3)) for image in drawn],
        "other": [*drawn[1:], drawn[0]],
    }
    opened = []
    for case, images in cases.items():
        for number, image in enumerate(images):
            image.save(folder / f"{case}-{number}.png")
            opened.append(
                {"image_id": f"{case}-{number}", "prompt": PROMPTS[number], "path": f"{case}-{number}.png"}
            )
    configs: list[MetricConfig] = [
        ClipScoreMetric(encoder="emoji"),
        AestheticMetric(encoder="emoji", head="emoji"),
    ]
    scored = build_metrics(configs, device="cpu").score(pd.DataFrame(opened), folder)
    found = pd.DataFrame([row for of_metric in scored for row in of_metric])
    assert found["reason"].isna().all()
    return found.assign(case=found["image_id"].str.partition("-")[0])


def mean(scores: pd.DataFrame, case: str, metric: str) -> float:
    return float(scores.loc[(scores["case"] == case) & (scores["metric"] == metric), "value"].mean())


def test_a_sharp_image_rates_higher_than_the_same_one_blurred(scores: pd.DataFrame) -> None:
    assert mean(scores, "drawn", "aesthetic") > mean(scores, "blurred", "aesthetic") + 0.5
    assert -2 < mean(scores, "drawn", "aesthetic") < 12


def test_the_own_prompt_scores_higher_than_another(scores: pd.DataFrame) -> None:
    assert mean(scores, "drawn", "clip_score") > mean(scores, "other", "clip_score") + 1
    assert not scores["prompt_truncated"].eq(True).any()
